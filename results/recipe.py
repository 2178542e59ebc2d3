"""CIFAR-10, ConvNet-3: which recipe and which label teacher make the best student?

Five parts, each a file of JSON lines (one line a student), which a later call continues; a trial is done whole and its lines appended:

    infoutil teacher CIFAR10 -o TEACHER --arch convnet3 --size 32 --epochs 8 --early-epoch 6 --valid-frac 0.1 --checkpoints 1,2,3,4,5,7
    python results/recipe.py search CIFAR10 TEACHER -o results/recipe_search.jsonl   # measured on 5,000 training images that nobody was trained on
    python results/recipe.py ladder CIFAR10 TEACHER -o results/recipe_ladder.jsonl --ipc 50 --seeds 0 --who epoch_015+epoch_020+converged --only 'RandAug|twice'   # `best` with one field changed, likewise
    python results/recipe.py labels CIFAR10 TEACHER -o results/recipe_labels.jsonl --ipc 10 --who early,epoch_003+epoch_005   # likewise
    python results/recipe.py trial  CIFAR10 TEACHER -o results/recipe_trial.jsonl    # who should label, as `--label-teacher auto` finds out
    python results/recipe.py final  CIFAR10 TEACHER -o results/recipe.jsonl          # measured once on the test images

CIFAR10 is a folder train/CLASS/*, test/CLASS/*. All but the last part train on random images, so that no choice of images favours a recipe. `--only TEXT`
takes the rows whose name has it (a regular expression), `--seeds 0,1` some of the seeds, and `--share 2/5` every fifth row from the second on, so that
several processes may share the work, each with a file of its own.
"""
import argparse, json, os, re
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
DEVICE = torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
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
# changes of `best`, one at a time
LADDER = {
    'best':                        {},
    'crops of area .25-1':         dict(min_scale=.25),
    'no crops':                    dict(min_scale=1.),
    'no RandAugment':              dict(randaugment=False),
    'no CutMix':                   dict(cutmix=0.),
    'MSE + .025 cross-entropy':    dict(loss='mse', hard=.025),
    'cosine loss':                 dict(loss='cosine'),
    'rate to zero (cosine)':       dict(schedule='cosine'),
    'mean of the last 5 %':        dict(average=.05),
    'both':                        dict(schedule='cosine', average=.05),
    'Muon':                        dict(optimizer='muon'),
    'rate .002':                   dict(lr=.002),
    'temperature 4':               dict(temperature=4.),
    'twice the batch':             dict(bs=((1, 10), (100, 50), (500, 100))),
}
LABELS = {1: TWO, 10: LATER, 50: 'epoch_007+converged'}   # of the ladder, by images per class
METHODS = ('infoutil', 'rded', 'random')
# recipe -> label teacher of its rows
FINAL = {'best': TWO, 'rded': 'early'}

def rows(part, ipc, who, protocols='best'):
    "Name, method, label teacher and protocol of every row"
    if part=='ladder': return [(n, 'random', who or LABELS[ipc], replace(PROTOCOLS['best'], **kw)) for n,kw in LADDER.items()]
    if part=='labels': return [(f'labels of {w}', 'random', w, PROTOCOLS[p]) for w in who.split(',') for p in protocols.split(',')]
    if part=='search': return [(n, 'random', who, Protocol(**kw)) for n,(who, kw) in SEARCH.items()]
    return [(p, m, who, PROTOCOLS[p]) for p,who in FINAL.items() for m in METHODS]

def run(part, folder, teacher, out, ipc, seeds, only, who, share, protocols):
    data, judge = load_data(folder, HELD_OUT), load_teacher(teacher)
    done = [json.loads(l) for l in out.read_text().splitlines()] if out.exists() else []
    same = dict(data=Path(folder).name, arch=judge.arch)
    done = {(r['name'], r['method'], r['ipc'], r['seed'], r['unlike_rded'].get('epochs')) for r in done if all(r.get(k, v)==v for k,v in same.items())}
    dl, sets, (mine, of) = None, {}, share
    todo = [(seed, *r) for seed in seeds for r in rows(part, ipc, who, protocols) if re.search(only, r[0])]
    for seed, name, method, who, p in todo[mine-1::of]:
        if (name, method, ipc, seed, None if p.epochs==Protocol().epochs else p.epochs) in done: continue
        if (method, seed) not in sets:
            sets[method, seed] = distill(data, judge, method=method, ipc=ipc, seed=seed, show_progress=False)
        ds = relabel(sets[method, seed], load_teacher(teacher, who), who)
        dl = dl or test_dl(ds, data.test if part=='final' else data.valid)
        res = evaluate(ds, dl, judge.arch, 'online', p, repeats=1, seed=seed, show_progress=False)
        own = {k:v for k,v in asdict(p).items() if v!=asdict(Protocol())[k]}
        row = dict(part=part, **same, name=name, method=method, ipc=ipc, label_teacher=who, seed=seed, accuracy=res.mean,
                   unlike_rded=own, seconds=res.seconds[0], judge=judge.accuracy, torch=torch.__version__, device=DEVICE)
        with out.open('a') as f: f.write(json.dumps(row)+'\n')
        print(f"{name}, {method}, {ipc} a class, seed {seed}: {100*res.mean:.1f} % in {res.seconds[0]:.0f} s", flush=True)

def trial(folder, teacher, out, ipc):
    judge = load_teacher(teacher)
    frame = try_label_teachers(load_data(folder, HELD_OUT), label_states(judge, None, teacher), ipc)
    with out.open('a') as f: f.writelines(json.dumps(dict(ipc=ipc, **r))+'\n' for r in frame.to_dict('records'))

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('part', choices=('search', 'ladder', 'labels', 'trial', 'final'))
    for n in ('folder', 'teacher'): a.add_argument(n)
    a.add_argument('-o', '--out', type=Path, required=True)
    a.add_argument('--ipc', type=int, default=1)
    a.add_argument('--seeds', default='0,1,2')
    a.add_argument('--only', default='')
    a.add_argument('--who', help='label teachers, between commas; for ladder one, else that of the file')
    a.add_argument('--share', default='1/1')
    a.add_argument('--protocols', default='best', help='of labels, between commas')
    a = a.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    if a.part=='trial': trial(a.folder, a.teacher, a.out, a.ipc)
    else: run(a.part, a.folder, a.teacher, a.out, a.ipc, [int(s) for s in a.seeds.split(',')], a.only, a.who,
             [int(n) for n in a.share.split('/')], a.protocols)
