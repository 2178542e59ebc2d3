"""How many model calls does a distilled set need? Its accuracy against the calls an image, beside many more calls or all of them

    python benchmarks/budget.py digits --demo --calls 32 64 128 exact --candidates 20 --repeats 10 --epochs 60 --arch convnet3
    python benchmarks/budget.py IMAGENETTE --teacher NETS/convnet4 --calls 32 64 128 1024 --candidates 20 --repeats 3

All look at the same candidates, with windows of a quarter of the image (2 x 2 tiles), so that the maps decide where they lie. A repeat has its own
noise and its own student, and repeats are paired. The last of --calls is the reference: every row says how far its accuracy lies from the reference's
(mean difference over repeats, and its standard error), and which part of its chosen crops is the same to the pixel.
"""
import argparse, statistics, tempfile
from dataclasses import replace
from infoutil.basics import seed_from
from infoutil.data import candidates, load_data
from infoutil.evaluation import evaluate
from infoutil.distillation import class_maps, distill, infoutil_crops
from infoutil.methods import make_config
from infoutil.fixtures.demo_teacher import demo_teacher
from infoutil.teacher import load_teacher
from common import RESULTS, save, show

def config(args, calls=None):
    kw = {} if calls is None else dict(estimator='exact', budget=2**16) if calls=='exact' else dict(budget=int(calls))
    return make_config(ipc=args.ipc, factor=2, candidates=args.candidates, label_teacher='by_ipc', **kw)

def repeat(data, teacher, early, maps, seed, args):
    "Crops chosen by `maps` under the noise of a repeat, and the accuracy of a student of theirs"
    chosen = {}
    def by_maps(cands, n, teacher, cfg):
        cands = replace(cands, seeds=tuple(seed_from(seed, s) for s in cands.seeds))
        chosen[cands.label] = infoutil_crops(cands, n, teacher, cfg, maps[cands.label])
        return chosen[cands.label]
    ds = distill(data, teacher, early, config(args), preflight=False, choose=by_maps, show_progress=False)
    return chosen, evaluate(ds, data.test, args.arch, protocol='rded', repeats=1, seed=seed, epochs=args.epochs, show_progress=False).accuracies[0]

def crops_of(chosen): return {(c, s, *b) for c,crops in chosen.items() for s,b in zip(crops.source, crops.box.tolist())}

def run(args):
    "A row for every number of calls"
    tmp = tempfile.TemporaryDirectory()
    data = load_data(args.data, dest=tmp.name) if args.demo else load_data(args.data, load_teacher(args.teacher).held_out)
    teacher, early = (demo_teacher(data=data)[0], None) if args.demo else (load_teacher(args.teacher), load_teacher(args.teacher, 'early'))
    got = {}
    for calls in args.calls:
        maps = {c: class_maps(candidates(data, c, teacher.size, args.candidates), teacher, config(args, calls)) for c in range(data.n_classes)}
        print(calls, 'maps', flush=True)
        got[calls] = [repeat(data, teacher, early, maps, s, args) for s in range(args.repeats)]
        print(calls, [round(a, 4) for _,a in got[calls]], flush=True)
    return [row(args, calls, got[calls], got[args.calls[-1]]) for calls in args.calls]

def row(args, calls, mine, ref):
    acc, diff = [a for _,a in mine], [a-b for (_,a),(_,b) in zip(mine, ref)]
    spread = lambda v: statistics.stdev(v) if len(v)>1 else 0.
    same = [len(crops_of(a)&crops_of(b))/len(crops_of(b)) for (a,_),(b,_) in zip(mine, ref)]
    return dict(data=args.data if args.demo else args.name, calls=calls, reference=args.calls[-1], accuracy=statistics.fmean(acc), std=spread(acc), difference=statistics.fmean(diff),
                error=spread(diff)/len(diff)**.5, same_crops=statistics.fmean(same), accuracies=acc, repeats=len(acc))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', nargs='?', default='digits'); p.add_argument('--teacher'); p.add_argument('--demo', action='store_true', help='the small teacher of the digits'); p.add_argument('--name', default='imagenette')
    p.add_argument('--calls', nargs='+', default=['32', '64', '128', 'exact']); p.add_argument('--candidates', type=int, default=20); p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--ipc', type=int, default=1); p.add_argument('--epochs', type=int); p.add_argument('--arch'); p.add_argument('--out'); p.add_argument('--quick', action='store_true')
    a = p.parse_args()
    if a.quick: a.data, a.demo, a.calls, a.candidates, a.repeats, a.epochs, a.arch = 'digits', True, ['32', '128'], 4, 1, 2, 'convnet3'
    rows = run(a)
    show(rows, ['data', 'calls', 'accuracy', 'std', 'difference', 'error', 'same_crops', 'repeats'])
    print(save('budget_'+rows[0]['data'], rows, out=a.out, ipc=a.ipc, candidates=a.candidates, epochs=a.epochs, label_teacher='converged' if a.demo else 'early'))
