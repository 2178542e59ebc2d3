"""CIFAR-10, ConvNet-3: which crops make the best small sets?

Two parts, each a file of JSON lines (one line a student) that a later call continues:

    infoutil teacher CIFAR10 -o TEACHER --arch convnet3 --size 32 --epochs 20 --early-epoch 10 --valid-frac 0.1
    python results/cifar10.py search CIFAR10 TEACHER -o results/cifar10_search.jsonl   # measured on training images that the teacher and every set never saw
    python results/cifar10.py final  CIFAR10 TEACHER -o results/cifar10.jsonl          # measured once on the test images

CIFAR10 is a folder train/CLASS/*, test/CLASS/*. A tenth of the training images is held out in both parts: no candidate and no teacher's
batch comes from it. `--seeds 0,1` (and so on) lets several processes share the work, each with a file of its own.
"""
import argparse, json, os, platform
from dataclasses import replace
from pathlib import Path
import torch
from sklearn.cluster import KMeans
from infoutil.pixels import cut_patches
from infoutil.coresets import random_crops
from infoutil.rded import rded_crops
from infoutil.basics import rng
from infoutil.data import load_data
from infoutil.evaluation import evaluate
from infoutil.distillation import class_maps, distill, infoutil_crops
from infoutil.methods import make_config
from infoutil.selection import take_crops
from infoutil.teacher import load_teacher, predict

HELD_OUT = 0.1
WHOLE, PAPER = dict(min_area=1., max_area=1.), dict(min_area=.25, max_area=.25, end='highest', per_image=None)

# name -> settings that differ from the default, plus who judges, where windows lie, and whether clusters spread the choice
SEARCH = {
    'random':                              dict(method='random'),
    'rded':                                dict(method='rded'),
    'paper':                               PAPER,
    'paper, lowest norm':                  {**PAPER, 'end': 'lowest'},
    'paper, lowest norm, one an image':    {**PAPER, 'end': 'lowest', 'per_image': 1},
    'area .25-1, lowest norm':             dict(min_area=.25),
    'area .5-1, lowest norm':              dict(min_area=.5),
    'area .7-1, lowest norm':              dict(min_area=.7),
    'area .5-1, middle norm':              dict(min_area=.5, end='middle'),
    'area .5-1, highest norm':             dict(min_area=.5, end='highest'),
    'area .5-1, lowest norm, all crops':   dict(min_area=.5, per_image=None),
    'area .5-1, lowest norm, early judge': dict(min_area=.5, judge='early'),
    'area .5-1, lowest loss':              dict(min_area=.5, score='loss'),
    'area .5-1, lowest norm, random places': dict(min_area=.5, places='random'),
    'whole, lowest norm':                  WHOLE,
    'whole, lowest norm, early judge':     {**WHOLE, 'judge': 'early'},
    'whole, highest norm':                 {**WHOLE, 'end': 'highest'},
    'random, 2 x 2 mosaics':               dict(method='random', factor=2),
    'rded, 2 x 2 mosaics':                 dict(method='rded', factor=2),
    'whole, lowest norm of each of n clusters of features': {**WHOLE, 'spread': 'features'},
    'whole, lowest norm of each of n clusters of logits':   {**WHOLE, 'spread': 'logits'},
    'area .7-1, lowest norm of each of n clusters of features': dict(min_area=.7, spread='features'),
    'area .7-1, lowest norm of each of n clusters of logits':   dict(min_area=.7, spread='logits'),
}
FINAL = {'infoutil': {}, 'rded': dict(method='rded'), 'random': dict(method='random'), 'infoutil (paper preset)': PAPER}

class Maps:
    "Attribution maps by class and seed, computed once and kept on disk"
    def __init__(self, folder, teacher): self.dir, self.teacher = Path(folder), teacher
    def __call__(self, cands, cfg):
        f = self.dir/f'maps_{self.teacher.sha256[:12]}_{cfg.seed}_{cands.label}_{cfg.budget}.pt'
        if not f.exists():
            self.dir.mkdir(parents=True, exist_ok=True)
            tmp = f.with_suffix(f'.{os.getpid()}')
            torch.save(class_maps(cands, self.teacher, cfg), tmp); tmp.rename(f)
        return torch.load(f, weights_only=True)

def spread(cands, ranked, n, teacher, what):
    "The best crop of each of `n` clusters"
    index = {f:i for i,f in enumerate(cands.files)}
    x = teacher.normalize(cut_patches(cands.images, torch.tensor([index[f] for f in ranked.source]), ranked.box, teacher.size))
    net = teacher.model if what=='logits' else torch.nn.Sequential(*list(teacher.model)[:-1]).eval()
    group = KMeans(n, n_init=4, random_state=0).fit_predict(predict(net, x, precision='float32').numpy()).tolist()
    return take_crops(ranked, sorted(group.index(g) for g in set(group)))

def ranking(kw, early, maps, cands, teacher, cfg):
    "All crops of a class that a row may use, best first"
    per = 1 if kw.get('method')!='infoutil' and 'method' in kw else cfg.per_image or cfg.crops
    n = len(cands)*min(per, cfg.crops)
    if kw.get('method')=='random': return random_crops(cands, n)
    if kw.get('method')=='rded':   return rded_crops(cands, n, teacher, cfg.factor, cfg.crops, cfg.precision)
    if kw.get('places')=='random': m = torch.randn(len(cands), cfg.grid, cfg.grid, generator=rng(cfg.seed, 'places', cands.label))
    else: m = torch.zeros(len(cands), cfg.grid, cfg.grid) if cfg.min_area==1 else maps(cands, cfg)      # a whole image has one place only
    return infoutil_crops(cands, n, teacher, cfg, m, early if kw.get('judge')=='early' else teacher)

def chooser(name, kw, early, maps, memo):
    "The `choose` function of a row; a ranking serves every IPC and label teacher"
    def choose(cands, n, teacher, cfg):
        key = (name, cfg.seed, cands.label)
        if key not in memo: memo[key] = ranking(kw, early, maps, cands, teacher, cfg)
        return spread(cands, memo[key], n, teacher, kw['spread']) if 'spread' in kw else take_crops(memo[key], range(n))
    choose.__name__ = name
    return choose

def students(part, data, teacher, early, rows, ipcs, labels, seed, maps, out, epochs=None):
    "Distil and train every student of one seed that `out` does not hold yet"
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(r['name'], r['ipc'], r['label_teacher'], r['seed']) for r in map(json.loads, out.read_text().splitlines())} if out.exists() else set()
    memo = {}
    for ipc in ipcs:
        for which in labels:
            for name, kw in rows.items():
                if (name, ipc, which, seed) in done: continue
                cfg = make_config(ipc=ipc, seed=seed, label_teacher=which, **{k:v for k,v in kw.items() if k not in ('judge', 'places', 'method', 'spread')})
                ds = distill(data, teacher, early, cfg, preflight=False, show_progress=False, choose=chooser(name, kw, early, maps, memo))
                res = evaluate(ds, data.valid if part=='search' else data.test, protocol='rded', epochs=epochs, repeats=1, seed=seed, show_progress=False)
                row = dict(part=part, name=name, ipc=ipc, label_teacher=which, seed=seed, accuracy=res.mean, judge=kw.get('judge', 'converged'), places=kw.get('places', 'attributed'), spread=kw.get('spread'),
                           config=ds.meta['config'], epochs=res.config['epochs'], recipe=res.config['recipe'], arch=res.config['arch'], labels=res.config['labels'],
                           measured_on=f"{res.config['test_images']} {'held-out training' if part=='search' else 'test'} images", seconds_student=res.seconds[0],
                           teacher=dict(early=early.accuracy, converged=teacher.accuracy, sha256=teacher.sha256), torch=torch.__version__, threads=torch.get_num_threads(), machine=platform.machine())
                with open(out, 'a') as f: f.write(json.dumps(row)+'\n')
                print(f'{part} seed {seed} ipc {ipc} {which:9} {name:40} {res.mean:.4f}  ({res.seconds[0]:.0f} s)', flush=True)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('part', choices=('search', 'final'))
    ap.add_argument('data'); ap.add_argument('teacher')
    ap.add_argument('-o', '--out', required=True, type=Path)
    ap.add_argument('--seeds', default='0,1,2'); ap.add_argument('--ipc', default='10,1'); ap.add_argument('--labels', default='early,converged')
    ap.add_argument('--rows', help='only rows whose name starts with one of these (or is it, with $ at the end), separated by |')
    ap.add_argument('--epochs', type=int); ap.add_argument('--cache', default='results/.cache')
    a = ap.parse_args()
    data = load_data(a.data, valid_frac=HELD_OUT)
    teacher, early = load_teacher(a.teacher), load_teacher(a.teacher, 'early')
    rows = SEARCH if a.part=='search' else FINAL
    if a.rows: rows = {k:v for k,v in rows.items() if any(k==r[:-1] if r.endswith('$') else k.startswith(r) for r in a.rows.split('|'))}
    for seed in map(int, a.seeds.split(',')):
        students(a.part, data, teacher, early, rows, list(map(int, a.ipc.split(','))), a.labels.split(','), seed, Maps(a.cache, teacher), a.out, a.epochs)

if __name__=='__main__': main()
