"""CIFAR-10, ConvNet-3: which recipe and which label teacher make the best student?

Three parts, each a file of JSON lines (one line a student), the first and the last of which a later call continues:

    infoutil teacher CIFAR10 -o TEACHER --arch convnet3 --size 32 --epochs 8 --early-epoch 6 --valid-frac 0.1 --checkpoints 1,2,3,4,5,7
    python results/recipe.py search CIFAR10 TEACHER -o results/recipe_search.jsonl   # measured on 5,000 training images that nobody was trained on
    python results/recipe.py trial  CIFAR10 TEACHER -o results/recipe_trial.jsonl    # who should label, as `--label-teacher auto` finds out
    python results/recipe.py final  CIFAR10 TEACHER -o results/recipe.jsonl          # measured once on the test images

CIFAR10 is a folder train/CLASS/*, test/CLASS/*. The search trains on random images, so that no choice of images favours a recipe. `--only TEXT` takes
the rows whose name holds it, and `--seeds 0,1` some of the seeds, so that several processes may share the work, each with a file of its own.
"""
import argparse, json, os
from dataclasses import asdict, replace
from pathlib import Path
import torch
from infoutil.data import load_data
from infoutil.distillation import distill
from infoutil.evaluation import evaluate, test_dl
from infoutil.label_teachers import relabel, try_label_teachers
from infoutil.labels import label_states
from infoutil.student import Protocol, PROTOCOLS
from infoutil.teacher import load_teacher

HELD_OUT = 0.1
ONE, TWO, THREE = 'epoch_001', 'epoch_001+epoch_002', 'epoch_001+epoch_002+epoch_003'
LATER = 'epoch_002+epoch_003+epoch_005'
CROPS = dict(epochs=1000, bs=10, min_scale=.25)      # from where single fields are changed; all else as in RDED's

# name -> label teacher, and fields of the protocol that differ from RDED's
SEARCH = {
    'crops of area .25-1':         (TWO, CROPS),
    'no crops':                    (TWO, dict(epochs=1000, bs=10)),
    'crops of area .08-1':         (TWO, {**CROPS, 'min_scale': .08}),
    'with RandAugment':            (TWO, {**CROPS, 'randaugment': True}),
    'crops of area .08-1 and RandAugment': (TWO, {**CROPS, 'min_scale': .08, 'randaugment': True}),
    'MSE + .025 cross-entropy':    (TWO, {**CROPS, 'loss': 'mse', 'hard': .025}),
    'cosine loss':                 (TWO, {**CROPS, 'loss': 'cosine'}),
    'rate to zero (cosine)':       (TWO, {**CROPS, 'schedule': 'cosine'}),
    'mean of the last 5 %':        (TWO, {**CROPS, 'average': .05}),
    'Muon':                        (TWO, {**CROPS, 'optimizer': 'muon'}),
    'rate .002':                   (TWO, {**CROPS, 'lr': .002}),
    'temperature 4':               (TWO, {**CROPS, 'temperature': 4.}),
    'no CutMix':                   (TWO, {**CROPS, 'cutmix': 0.}),
    'labels of epoch 1':           (ONE, CROPS),
    'labels of epochs 1, 2 and 3': (THREE, CROPS),
    '300 epochs':                  (TWO, {**CROPS, 'epochs': 300}),
    '300 epochs, labels of epoch 1': (ONE, {**CROPS, 'epochs': 300}),
    '300 epochs, labels of epoch 2': ('epoch_002', {**CROPS, 'epochs': 300}),
    '300 epochs, labels of epochs 1, 2 and 3': (THREE, {**CROPS, 'epochs': 300}),
    'RDED, labels of epoch 6':     ('early', {}),
    'RDED, labels of epoch 1':     (ONE, {}),
    # these with --ipc 10
    'ten a class, 300 epochs, RandAugment': (LATER, dict(bs=25, min_scale=.25, randaugment=True)),
    'ten a class, 300 epochs, RandAugment, crops of area .08-1': (LATER, dict(bs=25, min_scale=.08, randaugment=True)),
}
METHODS = ('infoutil', 'rded', 'random')
# recipe -> label teacher of its rows
FINAL = {'best': TWO, 'rded': 'early'}

def rows(part):
    "Name, method, label teacher and protocol of every row"
    if part=='search': return [(n, 'random', who, Protocol(**kw)) for n,(who, kw) in SEARCH.items()]
    return [(p, m, who, PROTOCOLS[p]) for p,who in FINAL.items() for m in METHODS]

def run(part, folder, teacher, out, ipc, seeds, only):
    data, judge = load_data(folder, HELD_OUT), load_teacher(teacher, device='cpu')
    done = [json.loads(l) for l in out.read_text().splitlines()] if out.exists() else []
    done = {(r['name'], r['method'], r['ipc'], r['seed']) for r in done}
    dl, sets = None, {}
    for seed in seeds:
        for name, method, who, p in rows(part):
            if (name, method, ipc, seed) in done or only not in name: continue
            if (method, seed) not in sets:
                sets[method, seed] = distill(data, judge, method=method, ipc=ipc, seed=seed, show_progress=False)
            ds = relabel(sets[method, seed], load_teacher(teacher, who, device='cpu'), who)
            dl = dl or test_dl(ds, data.valid if part=='search' else data.test)
            res = evaluate(ds, dl, 'convnet3', 'online', p, repeats=1, seed=seed, show_progress=False)
            own = {k:v for k,v in asdict(p).items() if v!=asdict(Protocol())[k]}
            row = dict(part=part, name=name, method=method, ipc=ipc, label_teacher=who, seed=seed, accuracy=res.mean,
                       unlike_rded=own, seconds=res.seconds[0], judge=judge.accuracy, torch=torch.__version__)
            with out.open('a') as f: f.write(json.dumps(row)+'\n')
            print(f"{name}, {method}, {ipc} a class, seed {seed}: {100*res.mean:.1f} % in {res.seconds[0]:.0f} s", flush=True)

def trial(folder, teacher, out, ipc):
    judge = load_teacher(teacher, device='cpu')
    frame = try_label_teachers(load_data(folder, HELD_OUT), label_states(judge, None, teacher), ipc)
    out.write_text(''.join(json.dumps(dict(ipc=ipc, **r))+'\n' for r in frame.to_dict('records')))

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('part', choices=('search', 'trial', 'final'))
    for n in ('folder', 'teacher'): a.add_argument(n)
    a.add_argument('-o', '--out', type=Path, required=True)
    a.add_argument('--ipc', type=int, default=1)
    a.add_argument('--seeds', default='0,1,2')
    a.add_argument('--only', default='')
    a = a.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    if a.part=='trial': trial(a.folder, a.teacher, a.out, a.ipc)
    else: run(a.part, a.folder, a.teacher, a.out, a.ipc, [int(s) for s in a.seeds.split(',')], a.only)
