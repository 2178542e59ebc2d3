"""Exact gradient norms: time, memory and error against plain forward and backward passes, and against other libraries

    python benchmarks/gradients.py                     # all networks, about 6 minutes on one thread
    python benchmarks/gradients.py --quick             # one small network, under 20 seconds
    python benchmarks/gradients.py --only convnet3 vit --device cuda

The *reference* is what a user would run without wanting norms: forward and backward of the summed loss with all
weight gradients, in the layout (NCHW or channels-last) and at the chunk (8 to 128 images) that are fastest here.
Peers also get the best of several chunks. All ways take turns in one process.

Columns: `ratio` to the reference (median over rounds, quartiles `low` and `high`); `error`: largest relative error of
an image's norm against autograd in float64, one image at a time; `error_layout`: the same against autograd in
float32, in the layout in which the way computes, of every image beside a copy of itself (kernels for one image alone
round differently, which may put a ReLU on its other side: the row `loop` shows how much that is); `peak_bytes` beyond
what was held before, for the norms of all images. The row `plain, all at once` is the full batch in one pass, whose
memory the norms are held against; in `infoutil, first call` the plan is made, which later calls find. Networks have
random weights: neither time nor memory depends on them.
"""
import argparse, ctypes, warnings
from copy import deepcopy
import torch, torchvision
from torch import nn
from torch.func import functional_call, grad, vmap
import torch.nn.functional as F
from infoutil.basics import rng, seeded
from infoutil.engine.gradient_plan import kept_plan, kept_plans
from infoutil.gradient_norms import grad_norms
from infoutil.models import get_model
from common import interleaved, peak, save, show
from networks import vit

class Unruled(nn.Module):
    "A network with what no rule knows: a transposed convolution, a depthwise gate read as a bare parameter, a PReLU"
    def __init__(self, n_classes=10):
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 64, 4, 4), nn.ConvTranspose2d(64, 64, 2, 2)
        self.gate, self.act = nn.Parameter(torch.full((64, 1, 3, 3), .1)), nn.PReLU(64)
        self.body = nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU(inplace=True),
                                  nn.Conv2d(128, 128, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(128, n_classes)
    def forward(self, x):
        x = self.act(self.up(self.stem(x)))
        return self.head(self.body(x+F.conv2d(x, self.gate, padding=1, groups=64)).mean((2, 3)))

# name -> network, side in pixels, images
NETS = {'convnet3':         (lambda: get_model('convnet3', 10, 32), 32, 128),
        'convnet4':         (lambda: get_model('convnet4', 10, 64), 64, 64),
        'resnet18':         (lambda: torchvision.models.resnet18(num_classes=10), 64, 64),
        'resnet18 low-res': (lambda: get_model('resnet18', 10, 32), 32, 64),
        'vit':              (vit, 32, 64),
        'mobilenet_v2':     (lambda: get_model('mobilenet_v2', 10, 64), 64, 64),
        'unruled':          (Unruled, 32, 64)}
CHUNKS = (8, 16, 32, 64, 128)
LAYOUTS = {'NCHW': torch.contiguous_format, 'channels-last': torch.channels_last}

def network(name, device):
    "A network in eval mode whose batch norms have seen data, and its images and labels"
    make, size, n = NETS[name]
    with seeded('gradients', name): m = make()
    g = rng('gradients', name)
    for b in m.modules():
        if not isinstance(b, nn.BatchNorm2d): continue
        b.running_var.uniform_(.5, 2, generator=g)
        b.running_mean.normal_(0, .1, generator=g)
    if name=='vit': nn.init.normal_(m.heads[-1].weight, 0, .05, generator=g)    # torchvision starts it at zero
    x, y = torch.randn(n, 3, size, size, generator=g), torch.randint(10, (n,), generator=g)
    return m.eval().to(device), x.to(device), y.to(device)

def loss(model, x, y): return F.cross_entropy(model(x), y, reduction='sum')

def plain(model, x, y, chunk, layout):
    "Forward and backward of the summed loss, weight gradients formed as usual"
    model, x = deepcopy(model).to(memory_format=LAYOUTS[layout]), x.to(memory_format=LAYOUTS[layout])
    def run():
        model.zero_grad()
        for xs, ys in zip(x.split(chunk), y.split(chunk)): loss(model, xs, ys).backward()
    return run

def loop(model, x, y, layout='NCHW', dtype=torch.float32, copies=1):
    "One image at a time, beside copies of itself: the oracle"
    model = deepcopy(model).to(dtype=dtype).to(memory_format=LAYOUTS[layout])
    ps = list(model.parameters())
    def one(i):
        xs = x[[i]*copies].to(dtype).contiguous(memory_format=LAYOUTS[layout])
        gs = torch.autograd.grad(loss(lambda x: model(x)[:1], xs, y[i:i+1]), ps, allow_unused=True)
        return sum((g.double()**2).sum() for g in gs if g is not None).sqrt()
    return lambda: torch.stack([one(i) for i in range(len(x))])

def func(model, x, y, chunk):
    "`torch.func`: vmap of grad"
    ps = {k: p.detach() for k,p in model.named_parameters()}
    def one(x, y): return grad(lambda ps: loss(lambda x: functional_call(model, ps, (x,)), x, y))(ps)
    def norm(x, y): return sum((g.double()**2).sum() for g in one(x[None], y[None]).values()).sqrt()
    return lambda: torch.cat([vmap(norm)(xs, ys) for xs, ys in zip(x.split(chunk), y.split(chunk))])

def _calm(model):
    "A copy without operations in place, which the hooks of both libraries cannot bear"
    model = deepcopy(model)
    for m in model.modules():
        if hasattr(m, 'inplace'): m.inplace = False
    return model

def opacus(model, x, y, chunk):
    "Opacus forms every image's gradient; it takes no layer with buffers, so the terms of BatchNorm are missing"
    from opacus import GradSampleModule
    model = _calm(model)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.requires_grad_(False)
    model = GradSampleModule(model, loss_reduction='sum', strict=False)
    for m in model.modules(): m.training = not isinstance(m, (nn.BatchNorm2d, nn.Dropout))   # hooks sleep in eval mode
    ps = [p for p in model.parameters() if p.requires_grad]
    def norms(x, y):
        model.zero_grad(set_to_none=True)
        loss(model, x, y).backward()
        each = [p.grad_sample for p in ps if p.grad_sample is not None]
        out = sum(g.flatten(1).double().pow(2).sum(1) for g in each).sqrt()
        for p in ps: p.grad_sample = None
        return out
    return lambda: torch.cat([norms(*s) for s in zip(x.split(chunk), y.split(chunk))])

def backpack(model, x, y, chunk):
    "BackPACK: the extension `BatchL2Grad`"
    from backpack import backpack as on, extend
    from backpack.extensions import BatchL2Grad
    model, crit = extend(_calm(model)), extend(nn.CrossEntropyLoss(reduction='sum'))
    ps = list(model.parameters())
    def norms(x, y):
        model.zero_grad(set_to_none=True)
        with on(BatchL2Grad()): crit(model(x), y).backward()
        return sum(p.batch_l2.double() for p in ps).sqrt()
    return lambda: torch.cat([norms(*s) for s in zip(x.split(chunk), y.split(chunk))])

def fastest(make, options, x, y, rounds, device):
    "The fastest of several options, each tried on at least 32 images and its own chunk"
    n = {o: min(len(x), max(32, o[0])) for o in options}
    took = interleaved({o: make(x[:n[o]], y[:n[o]], *o) for o in options}, options[0], rounds, device=device)
    return min(took, key=lambda o: took[o]['seconds']/n[o])

def peers(model, x, y, chunks, device):
    "Way -> function returning norms, each at its best chunk; those that refuse the network are named and left out"
    ways = {'loop': loop(model, x, y)}
    for name, make in (('torch.func vmap', func), ('opacus', opacus), ('backpack', backpack)):
        try:
            best, = fastest(lambda x, y, c: make(model, x, y, c), [(c,) for c in chunks], x, y, 1, device)
            batchnorm = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
            less = ' without BatchNorm' if name=='opacus' and batchnorm else ''
            ways[f'{name}{less}, {best} a pass'] = make(model, x, y, best)
        except Exception as e:
            why = str(e).splitlines()[0][:150] if str(e) else ''
            print(f'  {name} skipped: {type(e).__name__}: {why}', flush=True)
    return ways

def needed(fn, device):
    "Peak memory of a call, bytes; glibc first hands back what earlier calls have freed, or they would pay for this one"
    if (trim := getattr(ctypes.CDLL(None), 'malloc_trim', None)): trim(0)
    return peak(fn, device)

def relative(got, want): return float(((got.double()-want)/want).abs().max())

def run(name, device, rounds, images=None, others=True):
    "Rows of one network"
    model, x, y = network(name, device)
    if images: x, y = x[:images], y[:images]
    print(f'{name}: {len(x)} images of {x.shape[-1]} px', flush=True)
    options = [(c, l) for c in CHUNKS if c<=max(len(x), 8) for l in LAYOUTS]
    best = fastest(lambda x, y, c, l: plain(model, x, y, c, l), options, x, y, 2, device)
    ref = 'plain, {} a pass, {}'.format(*best)
    ways = {ref: plain(model, x, y, *best), 'plain, all at once': plain(model, x, y, len(x), 'NCHW'),
            'infoutil': lambda: grad_norms(model, x, y),
            'infoutil, first call': lambda: (kept_plans.clear(), grad_norms(model, x, y))[1],
            'infoutil, bfloat16': lambda: grad_norms(model, x, y, precision='bfloat16')}
    if others: ways.update(peers(model, x, y, (4, 8, 16), device))
    took, want = interleaved(ways, ref, rounds, device=device), loop(model, x, y, dtype=torch.float64)()
    ours = 'channels-last' if (plan := kept_plan(model, x, y)) and plan.last else 'NCHW'
    same = {l: loop(model, x, y, l, copies=2)() for l in {ours, 'NCHW'}}
    rows = []
    for n, t in took.items():
        got, errors = None if n.startswith('plain') else ways[n](), {}
        layout = ours if n.startswith('infoutil') else 'NCHW'
        if got is not None: errors = dict(error=relative(got, want), error_layout=relative(got, same[layout]))
        about = dict(network=name, size=x.shape[-1], images=len(x), way=n, reference=ref)
        rows.append(about | t | errors | dict(peak_bytes=needed(ways[n], device)))
    show(rows, COLUMNS)
    return rows

COLUMNS = ('network', 'way', 'seconds', 'ratio', 'low', 'high', 'error', 'error_layout', 'peak_bytes')

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=NETS, default=list(NETS))
    p.add_argument('--quick', action='store_true', help='ConvNet-3 on 16 images')
    p.add_argument('--device', default='cpu')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--no-peers', action='store_true')
    p.add_argument('-o', '--out', help='file for the rows; without it results/speed/gradients.json')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    names, rounds, images = (['convnet3'], 2, 16) if a.quick else (a.only, a.rounds, None)
    rows = []
    for n in names:                                             # kept network by network: the large ones take minutes
        rows += run(n, a.device, rounds, images, not a.no_peers)
        file = save('gradients', rows, a.device, ('opacus', 'backpack-for-pytorch'), a.out)
    print(file)
