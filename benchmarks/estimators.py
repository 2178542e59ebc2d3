"""How far are Shapley estimates from the exact values, by number of model calls? Ours beside captum, shap and shapiq

    python benchmarks/estimators.py TABLES/convnet3 TABLES/resnet18 TABLES/vit -o results/speed/estimators.json

Every folder holds the outputs of a network on all 65,536 coalitions (see benchmarks/networks.py), so that each
estimator is asked about the very same game and no figure rests on another's idea of hiding. `error` is |estimate -
exact| / |exact| in the Euclidean norm, a number an image; `agree` says whether the hottest 2 x 2 window, which the
crop is cut around, is the exact one. Peers draw with seed 0, 1, ... for the images; ours is the same design for every
image. `--quick` looks at two images and two budgets; without a folder the tables are those of a made game.
"""
import argparse, contextlib, io, tempfile, warnings
from importlib.util import find_spec
from pathlib import Path
import numpy as np, torch
from infoutil.attribution import attribute, exact_shapley
from infoutil.crop import pool_map
from common import save, show

BUDGETS = (64, 128, 256, 512, 1024)
POWERS = 2**np.arange(16)

class TableNet:
    "A model whose images are 4 x 4 pixels, one a patch, and whose first logit is a table's entry"
    def __init__(self, values): self.values = torch.from_numpy(values)
    def __call__(self, x):
        v = self.values[(x.flatten(1)>.5).long()@torch.from_numpy(POWERS)]
        return torch.stack([v, torch.zeros_like(v)], 1)

ONES, CLASS = torch.ones(1, 1, 4, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.long)

def ours(method='prior', **kw):
    def way(values, budget, seed):
        seed = 0 if method=='prior' else seed
        return attribute(TableNet(values), ONES, CLASS, budget=budget, method=method, seed=seed, **kw)
    return way

def captum_kernel(values, budget, seed):
    "captum's KernelShap as it comes; the two ends that it evaluates beside its samples are counted"
    from captum.attr import KernelShap
    torch.manual_seed(seed)
    np.random.seed(seed)
    net = TableNet(values)
    f = lambda x: net(x.view(-1, 1, 4, 4))[:, 0]
    how = dict(baselines=torch.zeros(1, 16), n_samples=budget, perturbations_per_eval=64)
    return KernelShap(f).attribute(torch.ones(1, 16), **how)[0].double().numpy()

def shap_kernel(values, budget, seed):
    "shap's KernelExplainer without its default feature selection, which keeps the error from falling"
    import shap
    np.random.seed(seed)
    f = lambda m: values[(m>.5)@POWERS]
    explainer = shap.KernelExplainer(f, np.zeros((1, 16)))
    return np.asarray(explainer.shap_values(np.ones((1, 16)), nsamples=budget-2, l1_reg=False, silent=True)).reshape(16)

def shapiq_way(name, **kw):
    def way(values, budget, seed):
        from shapiq import approximator
        game = lambda m: values[np.atleast_2d(np.asarray(m, bool))@POWERS]-values[0]
        v = getattr(approximator, name)(n=16, random_state=seed, **kw).approximate(budget, game)
        return np.array([v[(i,)] for i in range(16)])
    return way

LEVERAGE = np.ones(17)                          # sizes drawn alike: the leverage scores of the Shapley regression
WAYS = {'infoutil prior':            ours(),
        'infoutil kernel':           ours('kernel'),
        'infoutil kernel_unpaired':  ours('kernel_unpaired'),
        'infoutil permutation':      ours('permutation'),
        'captum KernelShap':         captum_kernel,
        'shap KernelExplainer':      shap_kernel,
        'shapiq KernelSHAP paired':  shapiq_way('KernelSHAP', pairing_trick=True),
        'shapiq KernelSHAP leverage, paired': shapiq_way('KernelSHAP', pairing_trick=True, sampling_weights=LEVERAGE),
        'shapiq PermutationSamplingSV': shapiq_way('PermutationSamplingSV'),
        'shapiq SVARM':              shapiq_way('SVARM'),
        'shapiq kADD-SHAP':          shapiq_way('kADDSHAP', max_order=2)}

def made_tables(folder, n=2):
    "Tables of a made game whose interactions fall with their order; the name of their folder"
    g, size = np.random.default_rng(0), np.array([bin(i).count('1') for i in range(2**16)])
    path = Path(folder)/'made'
    path.mkdir()
    for i in range(n):
        c = g.standard_normal(2**16)*.3**size*(size<5)
        v = sum(c[a]*(1.-2.*(size[np.arange(2**16)&a]%2)) for a in np.flatnonzero(size<4))
        np.savez(path/f'{i:03}.npz', logit=v, probability=1/(1+np.exp(-v)))
    return path

def hottest(phi): return int(pool_map(torch.as_tensor(phi).view(1, 4, 4)).argmax())

def measure_way(name, way, values, budget, image, exact, **about):
    "One row"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        got = way(values, budget, image)
    std = got.std if hasattr(got, 'phi') else None
    phi = got.phi[0].double().numpy().reshape(16) if hasattr(got, 'phi') else got
    error = float(np.linalg.norm(phi-exact)/np.linalg.norm(exact))
    row = dict(way=name, budget=budget, image=image, error=error, agree=hottest(phi)==hottest(exact), **about)
    if std is not None: row['z'] = [round(float(z), 4) for z in (phi-exact)/std[0].double().numpy().reshape(16)]
    return row

def run(folders, ways, budgets, images):
    "Rows of all ways on all tables"
    rows = []
    for folder in map(Path, folders):
        for i,f in enumerate(sorted(folder.glob('[0-9]*.npz'))[:images]):
            for output in ('logit', 'probability'):
                values = np.load(f)[output].astype(np.float64)
                exact = exact_shapley(TableNet(values), ONES, CLASS)[0].double().numpy().reshape(16)
                for name in ways:
                    about = dict(network=folder.name, output=output)
                    rows += [measure_way(name, WAYS[name], values, b, i, exact, **about) for b in budgets]
        print(folder.name, flush=True)
    return rows

def summary(rows):
    "A row for every network, output, way and budget: means over images, their spread, and the numbers themselves"
    out = []
    for key in dict.fromkeys((r['network'], r['output'], r['way'], r['budget']) for r in rows):
        rs = [r for r in rows if (r['network'], r['output'], r['way'], r['budget'])==key]
        e = np.array([r['error'] for r in rs])
        row = dict(zip(('network', 'output', 'way', 'budget'), key), images=len(rs), error=float(e.mean()),
                   spread=float(e.std(ddof=1)) if len(e)>1 else 0., agree=float(np.mean([r['agree'] for r in rs])),
                   errors=[round(float(v), 5) for v in e])
        z = np.abs([v for r in rs for v in r.get('z', ())])
        if len(z): row['covered'] = {f'{k:.3f}': float((z<=k).mean()) for k in (.674, 1., 1.645, 1.96)}
        out.append(row)
    return out

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('tables', nargs='*')
    p.add_argument('-o', '--out')
    p.add_argument('-n', '--images', type=int, default=20)
    p.add_argument('--ways', nargs='*', default=list(WAYS))
    p.add_argument('--quick', action='store_true')
    p.add_argument('--device', default='cpu', choices=('cpu',), help='tables are read on the CPU')
    a = p.parse_args()
    missing = [m for m in ('captum', 'shap', 'shapiq') if find_spec(m) is None]
    if missing: print(f"{', '.join(missing)} not installed: skipped")
    with tempfile.TemporaryDirectory() as tmp:
        folders = a.tables or [made_tables(tmp)]
        ways = [w for w in a.ways if w.split()[0] not in missing]
        rows = summary(run(folders, ways, BUDGETS[:2] if a.quick else BUDGETS, 2 if a.quick else a.images))
    show(rows, ['network', 'output', 'way', 'budget', 'images', 'error', 'spread', 'agree'])
    print(save('estimators', rows, peers=('captum', 'shap', 'shapiq'), out=a.out, images=a.images))
