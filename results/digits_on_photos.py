"""Digits upon photographs: does a window find the digit, and does it make better students? A JSON line a student, or a row of windows

    infoutil teacher digits_on_photos -o TEACHER --arch convnet4_16 --epochs 8 --bs 32 --lr .01 --early-epoch 4 --precision float32
    python results/digits_on_photos.py windows TEACHER -o results/digits_on_photos.jsonl
    python results/digits_on_photos.py students TEACHER -o results/digits_on_photos.jsonl --seeds 0,1,2

Students are networks like the teacher, which labels every view of theirs; the recipe is `best` with 300 epochs instead of 1,000 and without mirrored views.
A seed draws other candidates and another student. A later call continues the file.
"""
import argparse, json, time
from dataclasses import replace
from pathlib import Path
import torch
from infoutil.algorithm import InfoUtil
from infoutil.attribution import grad_cam
from infoutil.crop import pool_map, random_windows, windows
from infoutil.data import candidates, load_data
from infoutil.distillation import distill
from infoutil.engine.photographed_digits import digit_place
from infoutil.evaluation import evaluate
from infoutil.student import PROTOCOLS
from infoutil.teacher import load_teacher

METHODS = {'random': dict(method='random'), 'infoutil': {}, 'infoutil, windows of a quarter': dict(min_area=.25, max_area=.25),
           'infoutil, factor 2': dict(factor=2), 'rded': dict(method='rded'), 'rded, factor 2': dict(method='rded', factor=2),
           'grad_cam, factor 2': dict(method='grad_cam', factor=2), 'infoutil --preset paper': dict(preset='paper')}

def holds_centre(files, boxes):
    "Whether windows (n, 4) hold the centre of the digits of their files"
    at = torch.tensor([digit_place(f) for f in files])
    y, x = at[:, 0]+at[:, 2]//2, at[:, 1]+at[:, 3]//2
    t, l, h, w = boxes.unbind(1)
    return (t<=y)&(y<t+h)&(l<=x)&(x<l+w)

def window_rows(data, teacher, n):
    "Shares of windows of a quarter of the area that hold the centre of the digit"
    m, found = InfoUtil(factor=2, precision='float32').fit(teacher.size), {}
    add = lambda k, files, boxes: found.setdefault(k, []).append(holds_centre(files, boxes).float())
    for c in range(data.n_classes):
        cands = candidates(data, c, teacher.size, n)
        x, y = teacher.normalize(cands.images), torch.full((len(cands),), c)
        maps = m.attribute(teacher.model, x, y)
        boxes, each = m.boxes(maps, cands.seeds, teacher.size), [f for f in cands.files for _ in range(m.crops)]
        add('highest Shapley value', cands.files, boxes[:, -1])
        add('highest Shapley value, with noise', [f for f in cands.files for _ in range(m.crops-1)], boxes[:, :-1].flatten(0, 1))
        add('highest Grad-CAM value', cands.files, windows(pool_map(grad_cam(teacher.model, x, y, m.grid))[:, None], teacher.size)[:, 0])
        add('random', each, random_windows(cands.seeds, m.crops, teacher.size).flatten(0, 1))
        best = m.choose(m.score_part(cands, teacher, maps), 4)
        add('the four of lowest gradient norm', best.source, best.box)
    return [dict(part='windows', windows=k, n=len(v:=torch.cat(vs)), share=round(float(v.mean()), 4)) for k,vs in found.items()]

def student_row(data, teacher, name, ipc, seed, n, labels, epochs, cache):
    kw = METHODS[name]
    start = time.perf_counter()
    ds = distill(data, teacher, ipc=ipc, seed=seed, candidates=n, label_teacher='converged', cache=cache, show_progress=False, **kw)
    protocol = replace(PROTOCOLS['best'], epochs=epochs, flip=False)
    res = evaluate(ds, data, teacher.arch, labels, protocol, repeats=1, seed=seed, show_progress=False)
    return dict(part='students', name=name, ipc=ipc, seed=seed, labels=labels, epochs=epochs, candidates=n, accuracy=round(res.mean, 4),
                judge=teacher.arch, judge_accuracy=round(teacher.accuracy, 4), config=ds.meta['config'], seconds=round(time.perf_counter()-start, 1))

if __name__=='__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda s: [int(v) for v in s.split(',')]
    ap.add_argument('part', choices=('windows', 'students'))
    ap.add_argument('teacher')
    ap.add_argument('-o', '--out', type=Path, required=True)
    ap.add_argument('--ipc', type=numbers, default=[1])
    ap.add_argument('--seeds', type=numbers, default=[0, 1, 2])
    ap.add_argument('--candidates', type=int, default=40)
    ap.add_argument('--labels', default='online')
    ap.add_argument('--epochs', type=int, default=300)
    ap.add_argument('--cache', type=Path, help='folder for attribution maps')
    a = ap.parse_args()
    data, teacher = load_data('digits_on_photos'), load_teacher(a.teacher)
    rows = [json.loads(l) for l in a.out.read_text().splitlines()] if a.out.exists() else []
    done = {tuple(r.get(k) for k in ('part', 'name', 'ipc', 'seed', 'labels', 'epochs')) for r in rows}
    def put(row):
        with a.out.open('a') as f: f.write(json.dumps(row)+'\n')
        print({k:v for k,v in row.items() if k!='config'}, flush=True)
    if a.part=='windows' and not any(r['part']=='windows' for r in rows):
        for row in window_rows(data, teacher, a.candidates): put(row)
    for seed, ipc, name in [(s, i, m) for s in a.seeds for i in a.ipc for m in METHODS] if a.part=='students' else ():
        if ('students', name, ipc, seed, a.labels, a.epochs) in done: continue
        put(student_row(data, teacher, name, ipc, seed, a.candidates, a.labels, a.epochs, a.cache))
