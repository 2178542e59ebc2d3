"""Networks that the benchmarks look at, and tables of their outputs on all 65,536 coalitions of a 4 x 4 grid

    infoutil teacher CIFAR10 -o NETS/convnet3 --arch convnet3 --size 32 --epochs 20 --early-epoch 10 --valid-frac 0.1
    python benchmarks/networks.py train resnet18 IMAGENETTE -o NETS/resnet18
    python benchmarks/networks.py train vit_small CIFAR10 -o NETS/vit_small
    python benchmarks/networks.py train digits_resnet digits -o NETS/digits_resnet
    python benchmarks/networks.py train digits_vit digits -o NETS/digits_vit
    python benchmarks/networks.py tables NETS/convnet3 CIFAR10 -n 20 -o TABLES/convnet3      # images of the evaluation split

A table is a file an image: `logit` and `probability` of the true class, float64 (65536,), row number's bit i shows patch i. Networks compute in the
precision that `attribute` is used with ('auto'), so that the table is the game that is played. A call that finds files there goes on behind them.
"""
import argparse
from functools import partial
from pathlib import Path
import numpy as np, torch, torchvision
from infoutil.attribution import all_masks, show_only
from infoutil.basics import check_choice, rng
from infoutil.data import load_data
from infoutil.images import read_images
from infoutil.engine.memory import choose_chunk
from infoutil.engine.fast_copies import fast_copy
from infoutil.models import get_model
from infoutil.teacher import load_teacher
from infoutil.training import train_teacher

def vit(n_classes=10, size=32, patch=4, dim=128, depth=4, heads=4):
    "A small vision transformer: 64 patches of 4 px; 0.8 million parameters, `vit_small` 0.16 million"
    return torchvision.models.VisionTransformer(size, patch, depth, heads, dim, 4*dim, num_classes=n_classes)

# name -> network, size, and how it is trained; resnet18 keeps torchvision's own stem, a quarter of the cost of the one for small images
NETS = {'convnet3':      (lambda: get_model('convnet3', 10, 32), 32, dict(epochs=20)),
        'resnet18':      (lambda: torchvision.models.resnet18(num_classes=10), 64, dict(epochs=16)),
        'vit':           (vit, 32, dict(epochs=14, lr=2e-3)),
        'vit_small':     (partial(vit, dim=64, depth=3, heads=2), 32, dict(epochs=4, lr=3e-3)),
        'digits_resnet': (lambda: torchvision.models.resnet18(num_classes=10), 32, dict(epochs=8)),
        'digits_vit':    (vit, 32, dict(epochs=25, lr=2e-3))}

def network(folder, state='converged'):
    "A `Teacher` from a folder whose name is one of `NETS`, or any that `load_teacher` knows"
    name = Path(folder).name
    return load_teacher(folder, state, **(dict(model=NETS[name][0]()) if name in NETS and name!='convnet3' else {}))

def train(name, data, path, precision='auto'):
    "Train one of `NETS` and keep it"
    net, size, how = NETS[check_choice('network', name, NETS)]
    with torch.random.fork_rng(): torch.manual_seed(0); model = net()
    t = train_teacher(data, path, size=size, model=model, early_epoch=how['epochs'], show_progress=False, precision=precision, force=True, **how)
    print(f'{name}: {t}')

def sample(data, n, split='valid'):
    "`n` files of a split, as many of every class, and their labels"
    part = getattr(data, split)
    files = [(f, c) for c in range(data.n_classes)
             for f in sorted(part.of_class(c), key=lambda f: int(torch.randint(2**40, (1,), generator=rng('table', f))))[:n//data.n_classes]]
    return [data.root/f for f,_ in files], torch.tensor([c for _,c in files])

@torch.inference_mode()
def table(model, x, y, precision='auto'):
    "True class's logit and probability of one normalized image under all coalitions, float64 (2, 65536), as `attribute` would see them"
    net, out = fast_copy(model, precision), []
    for m in all_masks(16).split(choose_chunk(net, x[None])):
        z = net(show_only(x[None], m)[0].contiguous(memory_format=net.layout(x[None]))).double()
        out.append(torch.stack([z[:, y], z.softmax(1)[:, y]]))
    return torch.cat(out, 1).numpy()

def tables(folder, data, n, path, split='test', precision='auto', state='converged', offset=0, step=1):
    "A table for each of `n` images; `offset` and `step` share the work among processes"
    t, path = network(folder, state), Path(path)
    files, y = sample(load_data(data, t.held_out), n, split)
    x = t.normalize(read_images(files, t.size))
    path.mkdir(parents=True, exist_ok=True)
    for i in range(offset, len(x), step):
        if (f := path/f'{i:03}.npz').exists(): continue
        v = table(t.model, x[i], int(y[i]), precision=precision)
        np.savez(path/f'.{f.name}', logit=v[0], probability=v[1], label=int(y[i]), source=files[i].name)
        (path/f'.{f.name}').rename(f)
        print(f, flush=True)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest='what', required=True)
    a = sub.add_parser('train');  a.add_argument('net', choices=NETS); a.add_argument('data'); a.add_argument('-o', dest='path', required=True)
    a = sub.add_parser('tables'); a.add_argument('net'); a.add_argument('data'); a.add_argument('-n', type=int, default=20); a.add_argument('-o', dest='path', required=True)
    a.add_argument('--split', default='test', choices=('train', 'valid', 'test')); a.add_argument('--precision', default='auto'); a.add_argument('--state', default='converged')
    a.add_argument('--offset', type=int, default=0); a.add_argument('--step', type=int, default=1)
    a = p.parse_args()
    if a.what=='train': train(a.net, a.data, a.path)
    else: tables(a.net, a.data, a.n, a.path, a.split, a.precision, a.state, a.offset, a.step)
