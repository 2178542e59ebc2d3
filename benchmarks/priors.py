"""How the priors and the design of the prior-based estimator were chosen, on tables that its error figures do not use

    python benchmarks/priors.py TABLES/tune_* -o results/speed/priors.json

The tables come from benchmarks/networks.py (training images; digits ResNet-18, digits transformer, ImageNette
ConvNet-4). A row is a choice: the prior that picks the first 32 pairs, and the priors whose posteriors are averaged.
Its error is averaged over images and over the square's 8 symmetries, so that no design is luckily turned; `log_error`
is the mean logarithm of the error over networks, outputs and budgets.
"""
import argparse
from pathlib import Path
import numpy as np, torch
from infoutil.attribution import all_masks, exact_matrix
from infoutil.engine.priors import bits_of, extend_design, posterior, PRIORS, small_parts, symmetry, variances
from common import save

SETS = {'one (.09, .4)': ((.09, .4),), 'one (.09, .8)': ((.09, .8),), 'one (.4, .4)': ((.4, .4),), 'nine': PRIORS}
OPENINGS = ((.09, .4), (.09, .8), (.2, .6), None)
BUDGETS = (64, 128, 256, 512)

def design(opening):
    "512 calls: the first 32 pairs by a prior of their own, the rest by the mean of the nine; None: all by the mean"
    mean = np.mean([variances(4, p) for p in PRIORS], 0)
    return extend_design(4, mean, 256, () if opening is None else extend_design(4, variances(4, opening), 32))

def turned(values, seed):
    "The table of the same game on an image turned by a symmetry, and which patch plays which part"
    role = torch.as_tensor(symmetry(4, seed)).argsort()
    return values[:, (all_masks(16).long()<<role).sum(1)], role

def errors(tables, codes, priors, budget):
    "Mean relative error by (network, output)"
    c = codes[:budget//2]
    post, out = posterior(small_parts(4, c, priors), 2.*bits_of(c, 16)-1), {}
    for key,(values, exact) in tables.items():
        errs = []
        for s in range(8):
            v, role = turned(values, s)
            phi, want = post((v[:, c]-v[:, 65535-c])/2)[0], exact[:, role]
            errs.append((phi-want).norm(dim=1)/want.norm(dim=1))
        out[key] = float(torch.cat(errs).mean())
    return out

def read(folders, n):
    "{(network, output): (values (n, 65536), exact (n, 16))}"
    out = {}
    for f in map(Path, folders):
        for o in ('logit', 'probability'):
            v = torch.from_numpy(np.stack([np.load(p)[o] for p in sorted(f.glob('[0-9]*.npz'))[:n]]))
            out[f.name, o] = v, v@exact_matrix(16).T
    return out

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('tables', nargs='+')
    p.add_argument('-o', '--out')
    p.add_argument('-n', '--images', type=int, default=10)
    p.add_argument('--quick', action='store_true', help='two choices and one budget')
    a = p.parse_args()
    openings, sets, budgets = OPENINGS, SETS, BUDGETS
    if a.quick: openings, sets, budgets = OPENINGS[:1], {k: SETS[k] for k in list(SETS)[-2:]}, BUDGETS[:1]
    tables, rows = read(a.tables, a.images), []
    for opening in openings:
        codes = design(opening)
        for name,priors in sets.items():
            es = {b: errors(tables, codes, priors, b) for b in budgets}
            for b,e in es.items():
                mean = float(np.mean(np.log(list(e.values()))))
                rows.append(dict(opening=str(opening), priors=name, budget=b, log_error=mean,
                                 **{' '.join(k): v for k,v in e.items()}))
            print(opening, name, [round(r['log_error'], 3) for r in rows[-len(budgets):]], flush=True)
    print(save('priors', rows, out=a.out, images=a.images))
