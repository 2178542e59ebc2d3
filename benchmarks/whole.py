"""The whole `distill`, saving included, against the sum of its floors: what its teacher's own arithmetic takes on tensors that are ready

    python benchmarks/whole.py                                                       # made images, networks of random weights
    python benchmarks/whole.py --cifar10 CIFAR10 --imagenette IMAGENETTE --nets NETS # photographs; NETS/convnet3 and NETS/convnet4, see networks.py; about 6 minutes on one thread
    python benchmarks/whole.py --quick                                               # under 20 seconds
    python benchmarks/whole.py --only 'convnet4 mosaics' --device cuda

The *reference* is the sum of three bare computations, on as many images as the run has, each at the layout and number of images a pass that are fastest here:
masked forward passes of the network in the mode in which the run computes them, plain forward and backward of the summed loss for every crop, forward passes for the labels.
It and the whole run take turns in one process, on one thread that computes. `whole` may decode beside it on every core, `whole, one core` may not.
`cpu_ratio` is the same ratio of processor time, decoding threads included: where other work disturbs the machine it disturbs this one least.
The check of the teacher on real images has a price that does not grow with the run: it is a row of its own, not a part of `whole`.

Rows `stage: ...` come from one more run; their ratio is the share of its time. `waiting` is how long the computing thread had no images because they were still being decoded.
`decoding` ran in other threads meanwhile and adds to no sum.
"""
import argparse, os, tempfile, time, warnings
from contextlib import contextmanager
from pathlib import Path
from statistics import median
import numpy as np, torch, torch.nn.functional as F
from PIL import Image
import infoutil.algorithm as algorithm, infoutil.data, infoutil.distillation as distillation
from infoutil.attribution import plan_coalitions, show_only
from infoutil.pixels import cut_patches
from infoutil.basics import rng, seeded
from infoutil.data import draw_candidates, load_data
from infoutil.images import read_images
from infoutil.engine.fast_copies import fast_copy
from infoutil.methods import make_config
from infoutil.models import ConvNet, get_model
from infoutil.mosaics import split_mosaics
from infoutil.teacher import check_teacher, load_teacher, Teacher
from common import interleaved, save, show
from networks import NETS as TRAINED

# name -> network, side, data set, settings; quarter windows want the maps of all candidates, whole images those of the chosen ones
CASES = {'convnet3 whole images': ('convnet3', 32, 'cifar10', dict(ipc=2, candidates=60)),
         'convnet3 windows':      ('convnet3', 32, 'cifar10', dict(ipc=2, candidates=10, min_area=.25, max_area=.25)),
         'convnet4 mosaics':      ('convnet4', 64, 'imagenette', dict(ipc=1, candidates=5, factor=2))}
COLUMNS = ('network', 'images', 'way', 'seconds', 'ratio', 'low', 'high', 'cpu_ratio')

def make_images(folder, n_classes, each, size, suffix='png', seed=0):
    "A folder of made images: smooth colours with some grain, `each` a class for training and 2 for validation"
    g = np.random.default_rng(seed)
    for part, n in (('train', each), ('val', 2)):
        for c in range(n_classes):
            d = Path(folder)/part/f'{c:04}'
            d.mkdir(parents=True)
            for i in range(n):
                small = Image.fromarray(g.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
                grain = g.integers(-20, 21, (size, size, 3))
                Image.fromarray((np.asarray(small)+grain).clip(0, 255).astype(np.uint8)).save(d/f'{i:05}.{suffix}', **(dict(quality=90) if suffix=='jpg' else {}))
    return Path(folder)

def random_teacher(arch, classes, size, device='cpu', model=None):
    "A `Teacher` with random weights: neither time nor memory depends on them"
    with seeded('whole', arch): model = get_model(arch, len(classes), size) if model is None else model
    return Teacher(model.eval().to(device), arch, tuple(classes), size, (.5,)*3, (.25,)*3)

def world(case, folders, nets, device, tmp, model=None):
    "Data, teacher, settings and what they are called"
    arch, size, name, kw = CASES[case]
    where = Path(nets)/arch if nets else None
    if folders.get(name) and where and where.is_dir():
        t = load_teacher(where, device=device, **(dict(model=TRAINED[arch][0]()) if arch in TRAINED and arch!='convnet3' else {}))
        if t.size==size: return load_data(folders[name], t.held_out), t, kw, name
        print(f'{where} has a network of {t.size} px and {size} px is wanted: made images instead')
    print(f'{case}: {name} or its network was not given: made images instead', flush=True)
    data = load_data(make_images(tmp/case.replace(' ', '_'), 10, max(60, kw['candidates']), size))
    return data, random_teacher(arch, data.classes, size, device, model), kw, 'made images'

def best(some, device):
    "The fastest of several ways, each tried twice after a warm-up"
    took = interleaved(some, next(iter(some)), 2, device=device)
    return min(took, key=lambda k: took[k]['seconds'])

LAYOUTS = {'NCHW': torch.contiguous_format, 'channels-last': torch.channels_last}

def forwards(net, x, total, device, chunks):
    "Bare forward passes over `total` images, of which `x` are ready: the fastest of several chunks"
    x = x.contiguous(memory_format=torch.channels_last)
    def passes(chunk, total):
        parts = x[:total].split(chunk)
        with torch.inference_mode():
            for _ in range(total//len(x)): [net(p) for p in parts]
            for p in x[:total%len(x)].split(chunk): net(p) if len(p) else None
    some = {c: (lambda c=c: passes(c, len(x))) for c in chunks if c<=len(x)}
    chunk = best(some, device)
    return lambda: passes(chunk, total)

def steps(model, x, y, total, device, chunks):
    "Plain forward and backward of the summed loss over `total` crops, weight gradients formed as usual: the fastest of several chunks and layouts"
    def run(chunk, layout, total):
        done, xs = 0, x.contiguous(memory_format=LAYOUTS[layout])
        while done<total:
            for p,t in zip(xs.split(chunk), y.split(chunk)):
                p, t = p[:total-done], t[:total-done]
                if not len(p): return
                model.zero_grad()
                F.cross_entropy(model(p), t, reduction='sum').backward()
                done += len(p)
    some = {(c, l): (lambda c=c, l=l: run(c, l, len(x))) for c in chunks if c<=len(x) for l in LAYOUTS}
    chunk, layout = best(some, device)
    return lambda: run(chunk, layout, total)

def floors(data, t, cfg, device, chunks):
    "The three floors of a run as functions, and how often each of them computes"
    n, c = 64, data.n_classes
    files = [draw_candidates(data, k, cfg.candidates, cfg.seed) for k in range(c)]
    images, chosen = sum(map(len, files)), c*cfg.ipc*cfg.factor**2
    pixels = read_images([data.root/f for f in sum(files, ())[:n]], t.size).to(device)
    pixels = pixels.repeat(-(-n//len(pixels)), 1, 1, 1)[:n]
    masks, _ = plan_coalitions(cfg.grid, cfg.budget, cfg.seed, cfg.estimator)
    masked = show_only(t.normalize(pixels[:1]), masks, cfg.grid)[0]
    s = int(t.size*cfg.min_area**.5)
    crops = t.normalize(cut_patches(pixels, torch.arange(n), torch.tensor([[0, 0, s, s]]).repeat(n, 1), t.size))
    tiles = t.normalize(pixels)
    attributed = images if cfg.uses_maps=='all' else chosen
    y = torch.zeros(n, dtype=torch.long, device=crops.device)
    return {'masked forward passes': (forwards(fast_copy(t.model, cfg.precision), masked, attributed*len(masks), device, chunks), attributed*len(masks)),
            'forward and backward of crops': (steps(t.model, crops, y, images*cfg.crops, device, chunks), images*cfg.crops),
            'forward passes for labels': (forwards(fast_copy(t.model, 'float32'), tiles, chosen, device, chunks), chosen)}

# what is timed, by where it is and what it is called there
STAGES = {'check files': ((distillation, 'check_images'),), 'draw candidates': ((distillation, 'draw_candidates'),), 'attribute': ((distillation, 'class_maps'),),
          'windows': ((algorithm.InfoUtil, 'boxes'),), 'cut and scale': ((algorithm, 'cut_patches'), (distillation, 'cut_patches')),
          'rank': (*((algorithm, n) for n in ('top_crops', 'best_rows', 'take_crops', 'concat_crops')), (distillation, 'take_crops'), (distillation, 'concat_crops')),
          'settle windows': ((distillation.Job, 'settled'),), 'settle records': ((distillation.Job, 'written'),), 'mosaics': ((distillation, 'make_mosaics'),),
          'labels': ((distillation, 'label_images'),), 'provenance': ((distillation, 'provenance'),)}

@contextmanager
def watched():
    "Seconds by stage, while the block runs: the functions of a distillation, each behind a clock"
    took, kept, scores, read, within = {}, {}, dict(algorithm.SCORES), infoutil.data.read_images, [0.]
    def clock(stage, fn, beside=False):
        def timed(*args, **kw):
            within.append(0.)
            t0 = time.perf_counter()
            try: return fn(*args, **kw)
            finally:
                dt, inner = time.perf_counter()-t0, within.pop()      # a stage inside a stage counts once
                within[-1] += dt
                took[stage] = took.get(stage, 0.)+dt-inner
        def other(*args, **kw):                                      # in threads of its own
            t0 = time.perf_counter()
            try: return fn(*args, **kw)
            finally: took[stage] = took.get(stage, 0.)+time.perf_counter()-t0
        return other if beside else timed
    def stream(*args, **kw):
        it = kept[distillation, 'read_ahead'](*args, **kw)
        step = clock('waiting for images', lambda: next(it, None))
        while (got := step()) is not None: yield got
    for where in [(distillation, 'read_ahead'), *sum(STAGES.values(), ())]: kept[where] = getattr(*where)
    try:
        for stage, places in STAGES.items():
            for where in places: setattr(*where, clock(stage, kept[where]))
        distillation.read_ahead, infoutil.data.read_images = stream, clock('decoding', read, beside=True)
        for k,fn in scores.items(): algorithm.SCORES[k] = clock('score', fn)
        yield took
    finally:
        for where, fn in kept.items(): setattr(*where, fn)
        algorithm.SCORES.update(scores); infoutil.data.read_images = read

def counted(fn, cpu):
    "`fn`, with the processor time of all threads put on a list"
    def run():
        t0 = time.process_time(); fn()
        cpu.append(time.process_time()-t0)
    return run

def stages(whole):
    "Rows of one run's stages, most expensive first"
    with watched() as took:
        t0 = time.perf_counter()
        saving = whole()
        all_ = time.perf_counter()-t0
    took['saving'] = saving
    took['everything else'] = all_-sum(v for k,v in took.items() if k!='decoding')
    return [dict(way=f'stage: {k}', seconds=v, ratio=v/all_, low=v/all_, high=v/all_, reference='whole') for k,v in sorted(took.items(), key=lambda kv: -kv[1])]

@contextmanager
def one_core():
    "This thread, and those that it starts, on one core"
    if not hasattr(os, 'sched_setaffinity'): yield; return
    had = os.sched_getaffinity(0)
    try: os.sched_setaffinity(0, {min(had)}); yield
    finally: os.sched_setaffinity(0, had)

def run(case, folders, nets, device, rounds, tmp, chunks=(8, 16, 32, 64), model=None, **less):
    "Rows of one case"
    data, t, kw, source = world(case, folders, nets, device, tmp, model)
    cfg = make_config(**{**kw, **less}).fit(t.size)
    parts = floors(data, t, cfg, device, chunks)
    def whole():
        ds = distillation.distill(data, t, cfg=cfg, preflight=False, show_progress=False)
        t0 = time.perf_counter()
        ds.save(tmp/'set', force=True)
        return time.perf_counter()-t0
    def alone():
        with one_core(): whole()
    ways = {'floor': lambda: [f() for f,_ in parts.values()], 'whole': whole}
    if device=='cpu' and len(getattr(os, 'sched_getaffinity', lambda _: [0])(0))>1: ways['whole, one core'] = alone
    cpu = {k: [] for k in ways}
    took = interleaved({k: counted(f, cpu[k]) for k,f in ways.items()}, 'floor', rounds, device=device)
    work = {k: [a/b for a,b in zip(v[-rounds:], cpu['floor'][-rounds:])] for k,v in cpu.items()}
    rows = [dict(way=k, reference='floor', cpu_seconds=median(cpu[k][-rounds:]), cpu_ratio=median(work[k]), **v) for k,v in took.items()]
    part = interleaved({k: f for k,(f,_) in parts.items()}, 'masked forward passes', 1, 0, device)
    total = sum(v['seconds'] for v in part.values())
    rows += [dict(way=f'floor: {k}', passes=parts[k][1], seconds=v['seconds'], ratio=v['seconds']/total, low=v['seconds']/total, high=v['seconds']/total, reference='floor') for k,v in part.items()]
    rows += stages(whole)
    if source!='made images':
        t0 = time.perf_counter(); check_teacher(t, data); s = time.perf_counter()-t0
        big = took['whole']['seconds']*300/cfg.candidates
        rows.append(dict(way='check of the teacher, once a run', seconds=s, ratio=s/big, low=s/big, high=s/big, reference='whole, extrapolated to 300 candidates a class'))
    about = dict(network=case, size=t.size, images=min(cfg.candidates, len(data.train))*data.n_classes, source=source, error=None)
    rows = [{**about, **r} for r in rows]
    show(rows, COLUMNS)
    return rows

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cifar10', help='folder of CIFAR-10'); p.add_argument('--imagenette', help='folder of ImageNette'); p.add_argument('--nets', help='folder of trained networks')
    p.add_argument('--only', nargs='+', choices=CASES, default=list(CASES)); p.add_argument('--quick', action='store_true', help='few made images and one case')
    p.add_argument('--device', default='cpu'); p.add_argument('--rounds', type=int, default=5)
    p.add_argument('-o', '--out', help='file for the rows; without it results/speed/whole.json')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    folders = {} if a.quick else dict(cifar10=a.cifar10, imagenette=a.imagenette)
    with tempfile.TemporaryDirectory() as tmp:
        if a.quick: rows = run('convnet3 windows', {}, None, a.device, 1, Path(tmp), (16,), ConvNet(10, width=16), candidates=3, ipc=1, budget=32)
        else: rows = [r for case in a.only for r in run(case, folders, a.nets, a.device, a.rounds, Path(tmp))]
    print(save('whole', rows, a.device, out=a.out))
