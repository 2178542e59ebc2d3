"""The tables: students of one distilled set after another, a JSON line each, on the test images

    infoutil teacher CIFAR10 -o TEACHER --arch convnet3 --size 32 --epochs 30 --early-epoch 10 --valid-frac 0.1 --checkpoints 1,2,3,5,7,15,20
    python results/recipe.py labels CIFAR10 TEACHER -o LABELS.jsonl --ipc 10 --who early,epoch_005+epoch_007+early     # on held-out training images
    python results/tables.py CIFAR10 TEACHER -o results/tables.jsonl --ipc 10 --pick LABELS.jsonl --methods infoutil,rded,random --seeds 0,1,2

The label teacher is named (`--who epoch_005+early`, `--who by_ipc` for the paper's rule), or is the one whose students were best in the lines that
`recipe.py labels` wrote for that data, network, number of images and epochs (`--pick`). A tenth of the training images is held out: no teacher, no set and no student
has seen them. `paper` among the methods is InfoUtil with the paper's settings. A later call continues the file; several processes take a file each.
"""
import argparse, json, os, statistics, time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
import torch, torchvision
from torch import nn
from infoutil.data import load_data
from infoutil.distillation import distill
from infoutil.evaluation import evaluate, test_dl
from infoutil.label_teachers import relabel
from infoutil.labels import label_epoch_for
from infoutil.models import network
from infoutil.student import PROTOCOLS
from infoutil.teacher import load_teacher

HELD_OUT = 0.1
DEVICE = torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'

@network('small_vgg')
def small_vgg(n_classes, size):
    "VGG-11 for small images: BatchNorm, and one linear layer behind the convolutions"
    m = torchvision.models.vgg11_bn(num_classes=n_classes)
    m.avgpool, m.classifier = nn.Identity(), nn.Linear(512*(size//32)**2, n_classes)
    return m

def pick(file, data, arch, ipc, epochs):
    "Whose students of that data and network were best at these images a class and epochs"
    rows = defaultdict(list)
    for line in Path(file).read_text().splitlines():
        r = json.loads(line)
        if (r['data'], r['arch'], r['ipc'], r['unlike_rded'].get('epochs'))==(data, arch, ipc, epochs): rows[r['label_teacher']].append(r['accuracy'])
    if not rows: raise SystemExit(f'{file} has no student of {data}, {arch}, {ipc} a class and {epochs} epochs: run recipe.py labels, or name the label teacher (--who)')
    return max(rows, key=lambda w: statistics.fmean(rows[w]))

def run(folder, teacher, out, ipc, methods, seeds, who, file, protocols, archs, epochs):
    data, judge = load_data(folder, HELD_OUT), load_teacher(teacher)
    done = [json.loads(l) for l in out.read_text().splitlines()] if out.exists() else []
    done = {(r['method'], r['ipc'], r['protocol'], r['arch'], r['seed'], r['epochs']) for r in done}
    dl = None
    for seed in seeds:
        for method in methods:
            start, kw = time.perf_counter(), dict(preset='paper') if method=='paper' else dict(method=method)
            ds = distill(data, judge, ipc=ipc, seed=seed, label_teacher='converged', show_progress=False, **kw)
            seconds = time.perf_counter()-start
            for protocol in protocols:
                p = PROTOCOLS[protocol] if epochs is None else replace(PROTOCOLS[protocol], epochs=epochs)
                labels = label_epoch_for(ipc) if who=='by_ipc' else who or pick(file, Path(folder).name, judge.arch, ipc, p.epochs)
                labelled = relabel(ds, load_teacher(teacher, labels), labels)
                for arch in archs or [judge.arch]:
                    if (method, ipc, protocol, arch, seed, p.epochs) in done: continue
                    dl = dl or test_dl(ds, data.test)
                    res = evaluate(labelled, dl, arch, 'online', p, repeats=1, seed=seed, show_progress=False)
                    row = dict(data=Path(folder).name, size=ds.size, judge=judge.arch, judge_accuracy=judge.accuracy, method=method, ipc=ipc, factor=ds.factor,
                               label_teacher=labels, protocol=protocol, epochs=p.epochs, arch=arch, seed=seed, accuracy=res.mean,
                               seconds=res.seconds[0], seconds_of_the_set=round(seconds, 1), torch=torch.__version__, device=DEVICE)
                    with out.open('a') as f: f.write(json.dumps(row)+'\n')
                    print(f'{method}, {ipc} a class, {protocol}, {arch}, seed {seed}, labels of {labels}: {100*res.mean:.1f} %', flush=True)

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for n in ('folder', 'teacher'): a.add_argument(n)
    a.add_argument('-o', '--out', type=Path, required=True)
    a.add_argument('--ipc', type=int, required=True)
    a.add_argument('--methods', default='infoutil,rded,random')
    a.add_argument('--seeds', default='0,1,2')
    a.add_argument('--who')
    a.add_argument('--pick')
    a.add_argument('--protocols', default='best')
    a.add_argument('--archs', default='')
    a.add_argument('--epochs', type=int)
    a = a.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    text = lambda t: [v for v in t.split(',') if v]
    run(a.folder, a.teacher, a.out, a.ipc, text(a.methods), [int(s) for s in text(a.seeds)], a.who, a.pick, text(a.protocols), text(a.archs), a.epochs)
