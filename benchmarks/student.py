"""What a student's epoch costs beside its own arithmetic: drawing and rendering views, labels, the loop around them, validation

    python benchmarks/student.py                              # about eight minutes of one thread; the figures of results/speed/student.json
    python benchmarks/student.py --rded CHECKOUT              # the same, with RDED's released code on the same images
    python benchmarks/student.py --quick                      # a look in under 20 s
    python benchmarks/student.py --only precisions            # bfloat16 students beside float32 ones, seed by seed

The floor of an epoch is a bare loop over ready tensors: the label teacher's forward pass under inference mode (where labels are made online), the student's
forward pass, loss, backward pass and optimizer step, in the same precision, channels-last, in the same batches. Every other way is divided by it, in turns
within one process. `seconds` are of one epoch. Rows of kind 'share' say where the time of an epoch goes, those of kind 'validation' compare reading and
measuring real images with bare forward passes on ready ones, and 'crop and score' is the choice of patches of one class, from files. RDED's code
(https://github.com/LINs-lab/RDED) is imported from a checkout and runs as released, its calls of .cuda() answered by whatever device is asked for.
"""
import argparse, contextlib, io, os, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from PIL import Image
from common import interleaved, save, show
from infoutil import student as module
from infoutil.rded import rded_crops
from infoutil.basics import autocast, rng, seeded
from infoutil.data import candidates, load_data
from infoutil.evaluation import difference, evaluate, test_dl
from infoutil.labels import patch_labels
from infoutil.models import get_model
from infoutil.distilled_set import DistilledSet
from infoutil.student import batch_size_for, matrices, PROTOCOLS, SoftLoss
from infoutil.teacher import Teacher
from infoutil.fixtures.demo_teacher import demo_teacher

# network, size, images a class, classes, tiles along a side, epochs a call; resnet18 has three classes, since an epoch of ten takes half a minute of one thread
# (RDED's code counts top-5 accuracy, for which three are too few)
SETTINGS = [('convnet3', 32, 1, 10, 1, 8), ('convnet3', 32, 10, 10, 1, 1), ('convnet3', 32, 50, 10, 1, 1), ('convnet4', 64, 1, 10, 2, 3), ('convnet4', 64, 10, 10, 2, 1),
            ('resnet18', 64, 10, 3, 2, 1), ('convnet3', 32, 10, 100, 1, 1)]
COLUMNS = ('kind', 'network', 'size', 'ipc', 'classes', 'precision', 'way', 'seconds', 'ratio', 'low', 'high', 'reference')
MEAN, STD = (.5, .45, .4), (.25,)*3

def smooth(n, size, seed=0):
    "Made pictures (n, 3, size, size), uint8, that JPEG treats like photographs"
    x = torch.rand(n, 3, size//8, size//8, generator=rng('pictures', seed))
    return (255*torch.nn.functional.interpolate(x, (size, size), mode='bicubic')).round().clamp(0, 255).byte()

def made_set(arch, size, ipc, classes, factor):
    "A set with an untrained teacher: the arithmetic is the same"
    with seeded(0): model = get_model(arch, classes, size).eval()
    names = tuple(f'{c:05}' for c in range(classes))
    images = smooth(ipc*classes, size)
    return DistilledSet(images, torch.arange(classes).repeat_interleave(ipc), names, patch_labels(model, images, factor, MEAN, STD, size), Teacher(model, arch, names, size, MEAN, STD), dict(factor=factor))

def student(ds, arch, epochs, precision, device, labels, protocol):
    "A call that trains one and the same student for some more epochs"
    if labels=='views': ds = ds.with_view_labels(protocol, arch, epochs, device=device, show_progress=False)
    learn = ds.learner(arch=arch, labels=labels, protocol=protocol, epochs=epochs, precision=precision, device=device)
    return learn, lambda: learn.fit_distilled(False)

def floor(ds, arch, epochs, precision, device, online):
    "A call of the bare loop, on tensors that are ready"
    bs, last = batch_size_for(ds.ipc, len(ds.classes), ds.size, arch), torch.channels_last
    with seeded(0): model = get_model(arch, len(ds.classes), ds.size).to(device, memory_format=last)
    opt = torch.optim.AdamW([dict(params=ps, weight_decay=wd) for ps,wd in zip(matrices(model), (.01, 0.))], lr=1e-3, fused=True)
    teacher, loss = ds.teacher.model.to(device, memory_format=last).eval(), SoftLoss(20.)
    batches = [torch.randn(len(b), 3, ds.size, ds.size, generator=rng('x', i)).to(device, memory_format=last) for i,b in enumerate(torch.arange(len(ds)).split(bs))]
    ready = [torch.rand(len(x), len(ds.classes), device=device).softmax(1) for x in batches]
    def step(x, t):
        if online:
            with torch.inference_mode(), autocast(device, precision): z = teacher(x)
            t = (z.clone().float()/20).softmax(1)              # the clone is an ordinary tensor
        with autocast(device, precision): l = loss(model(x), t)
        l.backward(); opt.step(); opt.zero_grad()
    def run():
        for _ in range(epochs):
            for x,t in zip(batches, ready): step(x, t)
    return run

# -------- RDED's released code

@contextlib.contextmanager
def on(device):
    "Answer .cuda() by another device, so that code written for one GPU runs there"
    to = lambda self, *a, **k: self.to(device)
    kept = [(c, c.cuda) for c in (torch.Tensor, torch.nn.Module)]
    for c,_ in kept: c.cuda = to
    try: yield
    finally:
        for c,f in kept: c.cuda = f

def released(checkout):
    "The modules of a checkout of RDED; None, and a line that says so, where there is none"
    if not checkout or not (Path(checkout)/'validation'/'main.py').is_file(): print(f"RDED's released code is not at {checkout}: skipped" if checkout else "RDED's released code was not given (--rded): skipped"); return None
    argv, here = sys.argv, os.getcwd()
    with tempfile.TemporaryDirectory() as tmp:                 # its options are read, and a folder is made, when it is imported
        sys.argv, sys.path[:0] = argv[:1], [str(Path(checkout).resolve())]
        os.chdir(tmp)
        try: import synthesize.utils, validation.main, validation.utils
        finally: os.chdir(here); sys.argv = argv
    return SimpleNamespace(train=validation.main.train, v=validation.utils, s=synthesize.utils)

def jpegs(images, y, root, quality=95):
    "Images as CLASS/NUMBER.jpg, the way RDED keeps its sets"
    for i,(im,c) in enumerate(zip(images, y.tolist())):
        f = Path(root)/f'{c:05}'/f'{i:05}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(im.permute(1, 2, 0).numpy()).save(f, quality=quality)

def released_student(rded, ds, arch, epochs, device, root):
    "A call that trains with RDED's own function, dataset and transforms; its loader in this process, since all is measured on one thread"
    import torchvision.transforms as tf
    jpegs(ds.images, ds.y, root)
    steps = [tf.ToTensor(), rded.v.ShufflePatches(ds.factor), tf.RandomResizedCrop(size=ds.size, scale=(1/ds.factor, 1), antialias=True), tf.RandomHorizontalFlip(), tf.Normalize(MEAN, STD)]
    data = rded.v.ImageFolder(classes=range(len(ds.classes)), ipc=ds.ipc, mem=True, shuffle=True, root=str(root), transform=tf.Compose(steps))
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size_for(ds.ipc, len(ds.classes), ds.size, arch), shuffle=True, num_workers=0)
    with seeded(0): model = get_model(arch, len(ds.classes), ds.size).to(device)
    teacher = get_model(arch, len(ds.classes), ds.size).to(device).eval().requires_grad_(False)
    args = SimpleNamespace(optimizer=torch.optim.AdamW(rded.v.get_parameters(model), lr=1e-3, weight_decay=.01), mix_type='cutmix', cutmix=1., temperature=20, re_accum_steps=1)
    def run():
        with on(device), contextlib.redirect_stdout(io.StringIO()):
            for e in range(epochs): rded.train(e, loader, teacher, model, args)
    return run

def crop_and_score(rded, arch, size, images, device, rounds, factor=2):
    "One class of JPEG files: five windows an image, scored; four patches kept"
    with tempfile.TemporaryDirectory() as tmp:
        jpegs(smooth(images, size), torch.zeros(images, dtype=int), f'{tmp}/train'); jpegs(smooth(2, size), torch.ones(2, dtype=int), f'{tmp}/train'); jpegs(smooth(2, size), torch.arange(2), f'{tmp}/test')
        t, data = made_set(arch, size, 1, 2, factor).teacher, load_data(tmp)
        model = t.model.to(device)
        ours = lambda: rded_crops(candidates(data, 0, size, n=images, workers=1), 4, t, factor, 5, 'float32')
        ways = {'ours': ours, 'decode alone': lambda: candidates(data, 0, size, n=images, workers=1)}
        if rded is not None: ways['released code'] = lambda: released_crops(rded, tmp, model, size, images, factor, device)
        return [dict(kind='crop and score', network=arch, size=size, images=images, precision='float32', way=w, reference='ours', **r) for w,r in interleaved(ways, 'ours', rounds, device=device).items()]

def released_crops(rded, root, model, size, images, factor, device):
    "What its synthesis does to one class, up to the chosen patches"
    import torchvision.transforms as tf
    data = rded.v.ImageFolder(classes=[0], ipc=images, shuffle=True, root=f'{root}/train', transform=None)
    data.samples = [(p, 0) for p in data.image_paths]
    data.transform = tf.Compose([tf.ToTensor(), rded.s.MultiRandomCrop(num_crop=5, size=size, factor=factor), tf.Normalize(MEAN, STD)])
    x, y = next(iter(torch.utils.data.DataLoader(data, batch_size=images, shuffle=False, num_workers=0)))
    with on(device): return rded.s.selector(4, model, x, y, size, m=5)

# -------- an epoch, and where it goes

def epochs_of(setting, precision, device, rounds, rded=None, every=True):
    "Rows of one setting: students beside the floor, with `every` of all kinds of labels, else of online ones"
    arch, size, ipc, classes, factor, e = setting
    ds = made_set(arch, size, ipc, classes, factor)
    about = dict(kind='epoch', network=arch, size=size, ipc=ipc, classes=classes, images=len(ds), batch=batch_size_for(ipc, classes, size, arch), precision=precision)
    make = lambda labels, protocol='rded': student(ds, arch, e, precision, device, labels, protocol)[1]
    with tempfile.TemporaryDirectory() as tmp:
        online = {'floor with a teacher': floor(ds, arch, e, precision, device, True), 'online': make('online'), 'online, paper': make('online', 'paper')}
        if rded is not None and precision=='float32' and classes>=5: online['released code'] = released_student(rded, ds, arch, e, device, tmp)
        alone = {'floor without a teacher': floor(ds, arch, e, precision, device, False), 'stored, paper': make('stored', 'paper'), **{l: make(l) for l in ('stored', 'views', 'hard')}} if every else {}
        out = []
        for ways in filter(None, (online, alone)):
            for w,r in interleaved(ways, next(iter(ways)), rounds, device=device).items(): out.append(dict(about, way=w, reference=next(iter(ways)), **{**r, 'seconds': r['seconds']/e}))
    return out

class Clock:
    "Time that goes into functions, by name; a function's own, without what is timed inside it"
    def __init__(self, device): self.spent, self.stack, self.device = {}, [], torch.device(device)
    def now(self):
        if self.device.type=='cuda': torch.cuda.synchronize(self.device)
        return time.perf_counter()
    def timed(self, name, fn):
        def run(*args, **kwargs):
            t, inside = self.now(), len(self.stack)
            self.stack.append(0.)
            try: return fn(*args, **kwargs)
            finally:
                took = self.now()-t
                self.spent[name] = self.spent.get(name, 0.)+took-self.stack.pop()
                if self.stack: self.stack[-1] += took
        return run

def shares(setting, precision, device, labels='online', protocol='rded'):
    "Rows: the part of an epoch that each stage takes"
    arch, size, ipc, classes, factor, e = setting
    learn, run = student(made_set(arch, size, ipc, classes, factor), arch, e, precision, device, labels, protocol)
    run()
    c, cb, kept = Clock(device), next(c for c in learn.cbs if isinstance(c, module.DistillCallback)), (module.draw_views, module.apply_views)
    module.draw_views, module.apply_views = c.timed('draw views', kept[0]), c.timed('render views', kept[1])
    cb.labeller, learn._step, learn._backward = c.timed('labels', cb.labeller), c.timed('optimizer', learn._step), c.timed('backward', learn._backward)
    learn.model.forward, learn.loss_func = c.timed('forward', learn.model.forward), c.timed('loss', learn.loss_func)
    try: c.timed('loop', run)()
    finally: module.draw_views, module.apply_views = kept
    all_ = sum(c.spent.values())
    return [dict(kind='share', network=arch, size=size, ipc=ipc, classes=classes, images=ipc*classes, precision=precision, labels=labels, protocol=protocol, way=k, seconds=v/e, ratio=v/all_, low=v/all_, high=v/all_, reference='the epoch') for k,v in c.spent.items()]

def validation(arch, size, n, device, precision, rounds):
    "Measuring a student on files that are in memory, beside bare forward passes on ready tensors in the same batches"
    with tempfile.TemporaryDirectory() as tmp:
        data = load_data('digits', dest=tmp)
        ds = replace(made_set(arch, size, 1, 10, 1), classes=data.classes, teacher=None)
        split = replace(data.test, files=data.test.files[:n], labels=data.test.labels[:n])
        dl = test_dl(ds, split, device=device)
        learn = ds.learner(dl, arch=arch, labels='hard', epochs=1, precision=precision, device=device)
        model = learn.model.to(device, memory_format=torch.channels_last).eval()
        ready = [b[0].to(memory_format=torch.channels_last) for b in dl]
        def bare():
            with torch.inference_mode(), autocast(device, precision): return sum(float(model(x).argmax(1).sum()) for x in ready)
        def ours():
            with learn.no_bar(), learn.no_logging(): return learn.validate()
        return [dict(kind='validation', network=arch, size=size, images=len(split), batch=dl.bs, precision=precision, way=w, reference='bare forward', **r)
                for w,r in interleaved({'bare forward': bare, 'validation': ours}, 'bare forward', rounds, device=device).items()]

# -------- does bfloat16 cost accuracy?

def precisions(seeds, device, ipcs=((1, 100), (10, 40))):
    "Students of random digits in both precisions, paired by seed: a row a student, and the difference with its standard error"
    with tempfile.TemporaryDirectory() as tmp:
        data = load_data('digits', dest=tmp)
        teacher = demo_teacher(data=data)[0]
        rows = []
        for ipc,epochs in ipcs:
            images = torch.cat([candidates(data, c, 32, n=ipc).images for c in range(10)])
            ds = DistilledSet(images, torch.arange(10).repeat_interleave(ipc), data.classes, None, teacher, dict(method='random', factor=1))
            dl = test_dl(ds, data.test, device=device)
            got = {p: evaluate(ds, dl, 'convnet3', 'online', 'rded', epochs=epochs, repeats=seeds, precision=p, device=device, show_progress=False) for p in ('float32', 'bfloat16')}
            d = difference(got['bfloat16'], got['float32'])
            rows += [dict(kind='precision', network='convnet3', size=32, ipc=ipc, classes=10, epochs=epochs, precision=p, way='online', accuracies=list(r.accuracies), mean=r.mean, std=r.std,
                          difference=d.mean if p=='bfloat16' else None, standard_error=d.se if p=='bfloat16' else None, seeds=seeds) for p,r in got.items()]
            print(f'IPC {ipc}, {epochs} epochs: float32 {got["float32"]}, bfloat16 {got["bfloat16"]}, difference {d}', flush=True)
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='the smallest settings only'); p.add_argument('--device', default='cpu'); p.add_argument('--rounds', type=int)
    p.add_argument('--rded', metavar='DIR', help="a checkout of RDED's released code"); p.add_argument('--seeds', type=int, default=6, help='students of each precision')
    p.add_argument('--only', choices=('epochs', 'precisions'), help='one part of it'); p.add_argument('--out', help='JSON file for the rows')
    a = p.parse_args()
    if a.device=='cpu': torch.set_num_threads(1)
    rows, rounds = [], a.rounds or (2 if a.quick else 3)
    def add(more, columns=COLUMNS):
        rows.extend(more); show(more, columns); print(flush=True)
        return save('student_precisions' if a.only=='precisions' else 'student', rows, a.device, ('fastai', 'torchvision'), a.out, rounds=rounds, quick=a.quick)   # as far as it is
    if a.only!='precisions': costs(a, rounds, add)
    if a.only=='precisions' or not (a.quick or a.only): print(add(precisions(a.seeds, a.device), ('kind', 'ipc', 'epochs', 'precision', 'mean', 'std', 'difference', 'standard_error', 'seeds')))

def costs(a, rounds, add):
    "All rows about time, handed to `add` as they come"
    rded = released(a.rded)
    for s in [(*SETTINGS[0][:5], 2)] if a.quick else SETTINGS:
        for precision in ('float32',) if a.quick else ('float32', 'bfloat16'): add(epochs_of(s, precision, a.device, rounds, rded, every=s[:5] in [t[:5] for t in SETTINGS[:2]]))
    for s in SETTINGS[:1] if a.quick else (SETTINGS[0], SETTINGS[1], SETTINGS[4]):
        for protocol in ('rded', 'paper'): add(shares((*s[:5], 3*s[5]), 'float32', a.device, protocol=protocol))
    add(validation('convnet3', 32, 32 if a.quick else 360, a.device, 'float32', rounds))
    add(crop_and_score(rded, *(('convnet3', 32, 8) if a.quick else ('convnet4', 64, 60)), a.device, rounds), ('kind', 'network', 'size', 'images', 'way', 'seconds', 'ratio', 'low', 'high', 'reference'))

if __name__=='__main__': main()
