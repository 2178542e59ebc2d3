"""How time and memory of the whole `distill` grow: with images, classes, resolution and budget; and what ImageNet would take

    python benchmarks/growth.py                  # about 7 minutes on one thread
    python benchmarks/growth.py --quick          # under 20 seconds; memory in this process, so that a point also pays for what earlier ones left behind
    python benchmarks/growth.py --device cuda    # and images per second for 1,000 classes of made images at 224 px with a ResNet-18

Made images, mosaics of 2 x 2, and a network that computes next to nothing, so that what is not the network's arithmetic shows. The points of an axis take turns in one process for their time, whose *reference*
is the axis's first point;
`peak_bytes`, the memory beyond what was held before, comes from a process for every point, in which a tiny run went before. `set_bytes` is what the result itself holds: the images
and their labels, which grow with classes squared (a logit of each class for each tile). The last row of an axis has the exponents of a fit log y = a + b log x: 1 is in proportion, 0 is not at all.

`folder` adds images to the data set, `candidates` adds images that the method looks at.

ImageNet's rows are extrapolated from the images per second that were measured: 300 candidates a class, and all 1,281,167 images.
The paper's only figure of the kind: ImageNet-21K in 5.83 hours on one A100 (appendix; number of candidates and of calls not given).
"""
import argparse, ctypes, json, math, os, subprocess, sys, tempfile, warnings
from pathlib import Path
import torch, torchvision
from torch import nn
from infoutil.basics import seeded
from infoutil.data import load_data
from infoutil.distillation import distill
from infoutil.methods import make_config
from common import interleaved, peak, save, show
from whole import make_images, random_teacher

def tiny(n_classes):
    "A network of one convolution and one linear layer"
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, n_classes))

BASE = dict(classes=4, candidates=12, folder=12, size=32, budget=32, ipc=1)
# axis -> its points, each a change of BASE
AXES = {'candidates': [dict(classes=2, size=128, candidates=n, folder=n) for n in (128, 512, 2048)],
        'folder':     [dict(folder=n) for n in (64, 256, 1024)],
        'classes':    [dict(classes=n, candidates=4, folder=4) for n in (10, 100, 1000)],
        'resolution': [dict(size=n, candidates=8, folder=8) for n in (32, 64, 128, 224)],
        'budget':     [dict(budget=n) for n in (32, 64, 128, 256, 512, 1024)]}
QUICK = {'candidates': [dict(candidates=n, folder=n) for n in (4, 16)], 'folder': [dict(folder=n, candidates=4) for n in (8, 128)],
         'classes': [dict(classes=n, candidates=4, folder=4) for n in (2, 8)], 'resolution': [dict(size=n, candidates=4) for n in (32, 64)], 'budget': [dict(budget=n, candidates=4) for n in (32, 64)]}
KEY = dict(candidates='candidates', folder='folder', classes='classes', resolution='size', budget='budget')
COLUMNS = ('axis', 'value', 'images', 'seconds', 'ratio', 'low', 'high', 'peak_bytes', 'set_bytes', 'seconds_exponent', 'peak_exponent')

def folder_of(point, tmp):
    "Images for a point, made once"
    d = Path(tmp)/'{classes}-{folder}-{size}'.format(**point)
    return d if d.is_dir() else make_images(d, point['classes'], point['folder'], point['size'], 'jpg')

def run_of(point, tmp, device):
    "A point as a function without arguments that returns the set"
    data = load_data(folder_of(point, tmp))
    with seeded('growth'): net = tiny(point['classes'])
    t = random_teacher('tiny', data.classes, point['size'], device, net)
    cfg = make_config(candidates=point['candidates'], budget=point['budget'], ipc=point['ipc'], factor=2)
    return lambda: distill(data, t, cfg=cfg, preflight=False, show_progress=False)

def warm_up(point, tmp, device):
    "A run on a few images, which loads libraries and computes the design"
    run_of(dict(BASE, classes=2, candidates=4, folder=4, size=point['size'], budget=point['budget']), tmp, device)()

def memory(point, tmp, device):
    "Peak of one run beyond what was held before, bytes; glibc first hands back what earlier work has freed, or its pages would be used again unseen"
    warm_up(point, tmp, device)
    run = run_of(point, tmp, device)
    if (trim := getattr(ctypes.CDLL(None), 'malloc_trim', None)): trim(0)
    return peak(run, device)

def memory_apart(point, tmp, device):
    "`memory` in a process of its own"
    cmd = [sys.executable, __file__, '--device', device, '--point', json.dumps(point), '--tmp', str(tmp)]
    return json.loads(subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

def exponent(xs, ys):
    "Slope of a straight line through the logarithms, by least squares; None where something is missing or nothing"
    if any(not y or y<=0 for y in ys): return None
    xs, ys = [[math.log(v) for v in vs] for vs in (xs, ys)]
    mx, my = sum(xs)/len(xs), sum(ys)/len(ys)
    return sum((x-mx)*(y-my) for x,y in zip(xs, ys))/sum((x-mx)**2 for x in xs)

def grow(axis, changes, tmp, device, rounds, apart):
    "Rows of one axis"
    points = [{**BASE, **c} for c in changes]
    name = lambda p: f'{axis} {p[KEY[axis]]}'
    ways, sets = {name(p): run_of(p, tmp, device) for p in points}, {}
    for p in points: warm_up(p, tmp, device)
    took = interleaved({k: (lambda k=k: sets.update({k: ways[k]().nbytes})) for k in ways}, name(points[0]), rounds, warm=0, device=device)
    rows = [dict(axis=axis, value=p[KEY[axis]], network='tiny', size=p['size'], images=p['classes']*p['candidates'], way=name(p), reference=name(points[0]), error=None,
                 **took[name(p)], set_bytes=sets[name(p)], peak_bytes=(memory_apart if apart else memory)(p, tmp, device)) for p in points]
    col = lambda k: [r[k] for r in rows]
    rows.append(dict(rows[-1], way=f'{axis}: exponent', value=None, seconds_exponent=exponent(col('value'), col('seconds')), peak_exponent=exponent(col('value'), col('peak_bytes')) if apart else None))
    show(rows, COLUMNS)
    return rows

IMAGENET, PAPER = 1281167, 'ImageNet-21K in 5.83 h on one A100 (the paper)'

def shaped_like_imagenet(tmp, device, classes, candidates, size=224, budget=64, rounds=1, width=500, distinct=32):
    "Images per second of a ResNet-18 on JPEG files of `width` pixels, `distinct` ones under many names, and the hours that ImageNet-1K would take"
    few = make_images(Path(tmp)/'few', 1, distinct, width, 'jpg')
    files, root = sorted((few/'train').rglob('*.jpg')), Path(tmp)/'imagenet'
    for c in range(classes):
        for part, n in (('train', candidates), ('val', 1)):
            (root/part/f'{c:04}').mkdir(parents=True)
            for i in range(n): os.link(files[(c*candidates+i)%len(files)], root/part/f'{c:04}'/f'{i}.jpg')
    data = load_data(root)
    with seeded('imagenet'): net = torchvision.models.resnet18(num_classes=classes)
    t = random_teacher('resnet18', data.classes, size, device, net)
    run = lambda cands: distill(data, t, ipc=1, factor=2, candidates=cands, budget=budget, preflight=False, show_progress=False)
    took = interleaved({'run': lambda: run(candidates)}, 'run', rounds, warm=int(device!='cpu'), device=device)['run']
    rate = classes*candidates/took['seconds']
    hours = lambda n: n/rate/3600 if (size, budget)==(224, 64) else None      # a small trial says nothing about ImageNet
    row = dict(axis='ImageNet-shaped', network='resnet18', size=size, images=classes*candidates, way=f'{classes} classes, {budget} calls', reference='itself', error=None, **took,
               peak_bytes=peak(lambda: run(candidates), device) if device!='cpu' else None, images_per_second=rate, hours_300_a_class=hours(300*1000), hours_all=hours(IMAGENET), extrapolated=True, published=PAPER if size==224 else None)
    show([row], ('axis', 'way', 'images', 'seconds', 'images_per_second', 'hours_300_a_class', 'hours_all', 'published'))
    return row

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=[*AXES, 'imagenet'], default=[*AXES, 'imagenet']); p.add_argument('--quick', action='store_true', help='two points an axis')
    p.add_argument('--device', default='cpu'); p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--point', help=argparse.SUPPRESS); p.add_argument('--tmp', help=argparse.SUPPRESS)
    p.add_argument('-o', '--out', help='file for the rows; without it results/speed/growth.json')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    if a.point:
        print(json.dumps(memory(json.loads(a.point), a.tmp, a.device)))
        sys.exit()
    with tempfile.TemporaryDirectory() as tmp:
        rows = [r for axis in a.only if axis in AXES for r in grow(axis, (QUICK if a.quick else AXES)[axis], tmp, a.device, 1 if a.quick else a.rounds, not a.quick)]
        if 'imagenet' in a.only:
            if a.quick: how = dict(classes=2, candidates=4, size=64, budget=32, width=96)
            else: how = dict(classes=2, candidates=4) if a.device=='cpu' else dict(classes=1000, candidates=12)
            rows.append(shaped_like_imagenet(tmp, a.device, **how))
    print(save('growth', rows, a.device, out=a.out))
