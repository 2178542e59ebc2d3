"""What Shapley values of a 4 x 4 grid cost beside the forward passes they are made of, and what other packages take

    python benchmarks/attribution.py                     # about five minutes on one thread
    python benchmarks/attribution.py --quick             # one network, one image
    python benchmarks/attribution.py --device cuda --images 16

Ways, all of them on normalized images, with --calls model calls an image:
- `infoutil float32`, `infoutil bfloat16`: `attribution.shapley_values`, from an image to its map
- `bare float32`, `bare bfloat16`: the copy of the network that they use, on masked images that are ready, in its layout
  and as many a pass
- `plain 64`, `plain CHUNK`: the network as it comes, float32, NCHW, on ready images, 64 a pass or as many as `bare`
- `by hand`: masks of pixels, multiplied, and the network as it comes, 64 a pass
- `captum`, `shap`, `shapiq`: their KernelSHAP of each image, with the network as it comes and 64 masked images a pass
Every row has its ratio to one reference, measured in turns. `error` is the largest distance of a map from the map that
the network as it comes would give for the same calls, as a part of its norm.
"""
import argparse, ctypes
from contextlib import suppress
import numpy as np, torch, torchvision
import common, networks
from infoutil.attribution import plan_coalitions, shapley_values, show_only
from infoutil.basics import rng, seeded
from infoutil.engine.fast_copies import fast_copy
from infoutil.engine.memory import choose_chunk
from infoutil.models import get_model

# name -> network, size, images
NETS = {'convnet3': (lambda: get_model('convnet3', 10, 32), 32, 2),
        'convnet4': (lambda: get_model('convnet4', 10, 64), 64, 1),
        'resnet18': (lambda: torchvision.models.resnet18(num_classes=10), 64, 2),
        'vit':      (networks.vit, 32, 1)}
PEERS = ('captum', 'shap', 'shapiq')

def world(name, images, device):
    "Network, normalized images and classes"
    make, size, n = NETS[name]
    with seeded(0, name):
        net = make()
        if name=='vit': torch.nn.init.normal_(net.heads[0].weight, std=.1)       # zero by default
    x = torch.randn(images or n, 3, size, size, generator=rng('images', name)).to(device)
    return net.to(device).eval(), x, torch.arange(len(x), device=device)%10

def passes(net, z, chunk):
    "A network on images that are ready"
    @torch.inference_mode()
    def go(): return torch.cat([net(c) for c in z.split(chunk)])
    return go

def pixel_masks(masks, size):
    return masks.view(-1, 1, 4, 4).repeat_interleave(size//4, 2).repeat_interleave(size//4, 3)

def by_hand(net, x, masks):
    "Masks of pixels, multiplied"
    @torch.inference_mode()
    def go():
        m = pixel_masks(masks, x.shape[-1]).to(x)
        return torch.stack([torch.cat([net(xi*c) for c in m.split(64)]) for xi in x])
    return go

def values(net, xi, y):
    "A numpy game for one image: rows of 0 and 1 -> the logit of the class"
    @torch.inference_mode()
    def f(m):
        m = pixel_masks(torch.as_tensor(np.asarray(m), dtype=xi.dtype, device=xi.device), xi.shape[-1])
        return torch.cat([net(xi*c)[:, y] for c in m.split(64)]).double().cpu().numpy()
    return f

def captum_way(net, x, y, calls):
    from captum.attr import KernelShap
    fmask = pixel_masks(torch.arange(16, device=x.device), x.shape[-1])
    how = dict(feature_mask=fmask, n_samples=calls, perturbations_per_eval=64)
    @torch.no_grad()
    def go():
        for xi,yi in zip(x, y.tolist()): KernelShap(net).attribute(xi[None], target=yi, **how)
    return go

def shap_way(net, x, y, calls):
    import shap
    def go():
        for xi,yi in zip(x, y.tolist()):
            explainer = shap.KernelExplainer(values(net, xi, yi), np.zeros((1, 16)))
            explainer.shap_values(np.ones((1, 16)), nsamples=calls-2, l1_reg=False, silent=True)
    return go

def shapiq_way(net, x, y, calls):
    import shapiq
    def go():
        for xi,yi in zip(x, y.tolist()):
            shapiq.KernelSHAP(n=16, random_state=0).approximate(budget=calls, game=values(net, xi, yi))
    return go

def peers(net, x, y, calls):
    "Packages that are installed; the others are named"
    out = {}
    for name,make in zip(PEERS, (captum_way, shap_way, shapiq_way)):
        try:
            way = make(net, x, y, calls)
            way()
            out[name] = way
        except ImportError as e: print(f'{name} is skipped: {e}')
    return out

def error(net, x, y, masks, solve, **how):
    "Largest relative distance of a map from the one that the network as it comes gives for the same calls"
    one = lambda xi, yi: torch.cat([net(show_only(xi[None], m)[0])[:, yi] for m in masks.split(64)])
    with torch.inference_mode(): v = torch.stack([one(xi, yi) for xi,yi in zip(x, y)]).double()
    want, got = solve(v.cpu())[0], shapley_values(net, x, y, budget=len(masks), **how).flatten(1).cpu()
    return float(((got-want).norm(dim=1)/want.norm(dim=1)).max())

def peak(fn, device):
    "Peak memory of one call; what the C library holds in reserve, which would hide what the call takes, is given back"
    with suppress(OSError, AttributeError): ctypes.CDLL('libc.so.6').malloc_trim(0)
    return common.peak(fn, device)

def bench(name, images, calls, rounds, device):
    "Rows of one network"
    net, x, y = world(name, images, device)
    masks, solve = plan_coalitions(4, calls, 0, 'prior')
    ready, rows = show_only(x, masks.to(device)).flatten(0, 1), []
    fast = {p: fast_copy(net, p) for p in ('float32', 'bfloat16')}
    chunk = {p: choose_chunk(f, x) for p,f in fast.items()}
    ways = {f'infoutil {p}': lambda p=p: shapley_values(net, x, y, budget=calls, precision=p) for p in fast}
    last = ready.contiguous(memory_format=torch.channels_last)
    ways |= {f'bare {p}': passes(f, last, chunk[p]) for p,f in fast.items()}
    plain = {f'plain {c}': passes(net, ready, c) for c in sorted({64, chunk['float32']})}
    other = {'by hand': by_hand(net, x, masks), **peers(net, x, y, len(masks))}
    def add(some, reference, rounds=rounds):
        about = dict(network=name, size=x.shape[-1], images=len(x), calls=len(masks))
        for way,t in common.interleaved(some, reference, rounds, device=device).items():
            off = error(net, x, y, masks, solve, precision=way.split()[1]) if way.startswith('infoutil') else None
            size = next((c for p,c in chunk.items() if p in way), 64)
            rows.append(dict(**about, way=way, **t, reference=reference, error=off, chunk=size,
                             images_per_second=len(x)/t['seconds'], peak_bytes=peak(some[way], device)))
    for p in fast: add({k: ways[k] for k in (f'infoutil {p}', f'bare {p}')}, f'bare {p}')
    add({**plain, **ways}, 'plain 64')
    add({'infoutil float32': ways['infoutil float32'], **other}, 'infoutil float32', max(2, rounds//2))
    return rows

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--nets', nargs='+', choices=NETS, default=list(NETS))
    p.add_argument('--images', type=int, help='images a network; by default 1 to 4')
    p.add_argument('--calls', type=int, default=64)
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--device', default='cpu')
    p.add_argument('--quick', action='store_true', help='convnet3, one image, 32 calls, two rounds')
    p.add_argument('-o', '--out')
    a = p.parse_args()
    if a.quick: a.nets, a.images, a.calls, a.rounds = ['convnet3'], 1, 32, 2
    rows = []
    for name in a.nets:
        new = bench(name, a.images, a.calls, a.rounds, a.device)
        common.show(new, ['network', 'way', 'reference', 'seconds', 'ratio', 'low', 'high', 'error',
                          'images_per_second', 'chunk', 'peak_bytes'])
        rows += new
    print(common.save('attribution', rows, a.device, PEERS, a.out, calls=a.calls, rounds=a.rounds))
