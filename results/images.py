"""Which images: ends of the ranking, windows or whole images, mosaics, and who decides; a JSON line a student

    infoutil teacher CIFAR10 -o TEACHER --arch convnet3_32 --size 32 --epochs 15 --early-epoch 6 --valid-frac 0.1 --checkpoints 1,2,3,4,8
    python results/images.py windows CIFAR10 TEACHER -o results/images.jsonl --ipc 1
    python results/images.py windows CIFAR10 TEACHER -o results/images.jsonl --ipc 10 --epochs 100 --only '^random$|^rded|^whole, l|lowest third|^windows .(08-1|25|5)$|^random windows .(08-1|5)$|^.5 or whole, the|^mosaic, (random|whole|windows .25$)'
    python results/images.py ends CIFAR10 TEACHER -o results/images.jsonl --ipc 1,10,100 --candidates 1000 --epochs 60 --seeds 0,1
    python results/images.py paper CIFAR10 TEACHER -o results/images.jsonl --ipc 10 --epochs 100 --seeds 0,1
    python results/images.py calls CIFAR10 TEACHER -o results/images.jsonl --candidates 10   # trains nothing: windows by calls

    infoutil teacher IMAGENETTE -o PHOTOS --arch convnet4_64 --size 64 --epochs 14 --early-epoch 6 --valid-frac 0.1 --checkpoints 2,4,8
    python results/images.py windows IMAGENETTE PHOTOS -o results/images.jsonl --ipc 1 --epochs 100 --candidates 100 --seeds 0,1 --only 'mosaic|random|rded|whole, lowest norm|^windows .25$|surer'

    infoutil teacher IMAGENETTE -o TEACHER64 --arch convnet4_32 --size 64 --epochs 20 --early-epoch 10 --valid-frac 0.1 --checkpoints 1,2,3,5,7,15
    python results/images.py calls IMAGENETTE TEACHER64 -o results/images.jsonl --candidates 5

Rows of ten images a class with one student were stopped after it, and with stored labels some have nine (seeds 0 to 8); the commands of nine draws more, by every kind of labels, are on the page (paper/images). Those of `ends` at 100 images a class, and the mosaics of ImageNette, were stopped before their second draw was complete.
Students learn where the choice of images matters: from hard classes, or from one stored label a patch (of the early state), in short runs of `best`.
They are measured on training images that were held out of all training and choosing. A later call continues the file; `--share 1/2` takes every second
row, so that two processes may share the work, each with a file of its own. CIFAR10 may be any folder train/CLASS/*, with its own teacher.
"""
import argparse, json, os, re, time
from functools import partial
from pathlib import Path
import torch, torch.nn.functional as F
from sklearn.cluster import KMeans
from infoutil.algorithm import InfoUtil, score_windows
from infoutil.attribution import attribute, shapley_values, show_only
from infoutil.coresets import teacher_features
from infoutil.crop import noisy_maps, pool_map
from infoutil.data import candidates, load_data
from infoutil.distillation import class_maps, distill
from infoutil.evaluation import evaluate, test_dl
from infoutil.gradient_norms import SCORES
from infoutil.label_teachers import relabel
from infoutil.methods import whole_images
from infoutil.pixels import cut_patches
from infoutil.selection import take_crops, top_crops
from infoutil.student import PROTOCOLS
from infoutil.teacher import load_teacher, predict

HELD_OUT = 0.1
KEPT = {}           # scores and maps of candidates: every row of a seed looks at the same ones

def kept(what, cands, make):
    key = (what, cands.label, cands.seeds)
    if key not in KEPT: KEPT[key] = make()
    return KEPT[key]

def scores(cands, teacher, score='grad_norm'):
    "The score of whole images"
    y = torch.full((len(cands),), cands.label)
    return kept(score, cands, lambda: SCORES[score](teacher.model, teacher.normalize(cands.images), y).double())

def whole(cands, n, teacher, cfg, end='lowest', score='grad_norm'):
    return top_crops(whole_images(cands, scores(cands, teacher, score)), n, end, per_image=1)

def joined(cands, n, teacher, cfg):
    "Lowest sum of the ranks by norm and by loss"
    rank = sum(scores(cands, teacher, s).argsort().argsort() for s in ('grad_norm', 'loss'))
    return top_crops(whole_images(cands, rank), n, 'lowest', per_image=1)

def quantiles(cands, n, teacher, cfg):
    "One image of each of n equal parts of the lower half of the ranking: the lowest of its part"
    order = scores(cands, teacher).argsort()[:max(len(cands)//2, n)]
    rows = [int(order[i*len(order)//n]) for i in range(n)]
    return take_crops(whole_images(cands, scores(cands, teacher)), rows)

def clusters(cands, n, teacher, cfg):
    "The lowest image of each of n clusters of features among the lowest third"
    s = scores(cands, teacher)
    low = s.argsort()[:max(len(cands)//3, n)]
    feats = teacher_features(teacher, cands.images[low])
    found = torch.tensor(KMeans(n, n_init=4, random_state=cfg.seed).fit(feats.numpy()).labels_)
    rows = [int(low[found==c][0]) for c in range(n)]           # `low` is in order
    return take_crops(whole_images(cands, s), rows)

def decided(cands, n, teacher, cfg, area, rule):
    "The window at the highest cell of the map, or the whole image where the rule says so; lowest norms, one an image"
    size, y = teacher.size, torch.full((len(cands),), cands.label)
    m = InfoUtil(min_area=area, max_area=area, seed=cfg.seed, crops=1).fit(size)
    maps = kept('maps', cands, lambda: class_maps(cands, teacher, m))
    box, x = m.boxes(maps, cands.seeds, size), teacher.normalize(cands.images)
    crop = teacher.normalize(cut_patches(cands.images, torch.arange(len(cands)), box[:, 0], size))
    p = lambda x: predict(teacher.model, x).softmax(1)[:, cands.label]
    if rule=='map':            # half of the positive part of the map lies inside
        mass = F.interpolate(maps.clamp(min=0)[:, None], size)[:, 0]
        inside = torch.stack([mass[i, t:t+h, l:l+w].sum() for i,(t,l,h,w) in enumerate(box[:, 0].tolist())])
        cut = inside>=mass.sum((1, 2))/2
    elif rule=='answer':       # Definition 1: of the image outside of the window nothing is shown, and the answer stays
        t, l, h, w = box[:, 0].unbind(1)
        at = torch.arange(size)
        show = ((at>=t[:, None])&(at<(t+h)[:, None]))[:, :, None]&((at>=l[:, None])&(at<(l+w)[:, None]))[:, None]
        cut = predict(teacher.model, x*show[:, None]).argmax(1)==cands.label
    elif rule=='surer':        # the teacher is at least as sure of the enlarged window as of the image
        cut = p(crop)>=p(x)
    box = torch.where(cut[:, None, None], box, torch.tensor([0, 0, size, size]))
    return top_crops(score_windows(cands, box, None, teacher, SCORES['grad_norm']), n, 'lowest', per_image=1)

def window(area, **kw): return dict(min_area=area, max_area=area, **kw)

WINDOWS = {
    # factor 1
    'random': dict(method='random'), 'rded': dict(method='rded'),
    'whole, lowest norm': whole, 'whole, middle norm': partial(whole, end='middle'),
    'whole, highest norm': partial(whole, end='highest'), 'whole, lowest loss': partial(whole, score='loss'),
    'whole, ranks joined': joined, 'whole, lower half in parts': quantiles, 'whole, clusters of the lowest third': clusters,
    'windows .08-1': dict(min_area=.08, max_area=1.),
    'windows .5': window(.5), 'windows .25': window(.25), 'windows .25, two an image': window(.25, per_image=2),
    'random windows .5': window(.5, method='random_grad_norm'), 'random windows .25': window(.25, method='random_grad_norm'),
    'random windows .08-1': dict(method='random_grad_norm', min_area=.08, max_area=1.),           # RDED's crops, ranked by norm
    '.5 or whole by the map': partial(decided, area=.5, rule='map'),
    '.5 or whole by Definition 1': partial(decided, area=.5, rule='answer'),
    '.5 or whole, the surer': partial(decided, area=.5, rule='surer'),
    # mosaics
    'mosaic, random whole': dict(method='random', factor=2), 'mosaic, rded': dict(method='rded', factor=2),
    'mosaic, whole, lowest norm': (2, whole),
    'mosaic, windows .25': dict(factor=2), 'mosaic, random windows .25': dict(factor=2, method='random_grad_norm'),
    'mosaic, windows .25, lowest loss': dict(factor=2, score='loss'), 'mosaic, windows .25, highest norm': dict(factor=2, end='highest'),
    'mosaic, .25 or whole by the map': (2, partial(decided, area=.25, rule='map')),
    'mosaic, .25 or whole, the surer': (2, partial(decided, area=.25, rule='surer')),
}
ENDS = {'random': dict(method='random'), **{f'{e} norm': partial(whole, end=e) for e in ('lowest', 'middle', 'highest')}}
PAPER = {'random': dict(method='random'), 'paper': dict(preset='paper'), 'paper, equal windows once': dict(preset='paper', equal='once'),
         'paper, no noise': dict(preset='paper', alpha=0.), 'paper, no noise, equal windows once': dict(preset='paper', alpha=0., equal='once')}
PARTS = dict(windows=WINDOWS, ends=ENDS, paper=PAPER)

def make(how, data, judge, ipc, seed, n, cache):
    kw = dict(ipc=ipc, seed=seed, candidates=n, label_teacher='converged', show_progress=False, preflight=False)
    if isinstance(how, dict): return distill(data, judge, cache=cache, **kw, **how)
    factor, choose = how if isinstance(how, tuple) else (1, how)
    return distill(data, judge, choose=choose, factor=factor, **kw)

def about(ds):
    "How many patches are whole images, and how many are copies of another"
    told = [(p['source'], *p['box']) for p in ds.provenance]
    return dict(whole=sum(p['box'][2:]==[ds.size]*2 for p in ds.provenance)/len(told), copies=len(told)-len(set(told)))

def run(part, folder, teacher, out, ipcs, seeds, labels, epochs, only, share, n, who, cache):
    data, judge, labeller = load_data(folder, HELD_OUT), load_teacher(teacher), load_teacher(teacher, who)
    key = lambda r: tuple(r[k] for k in ('part', 'data', 'name', 'ipc', 'seed', 'labels', 'epochs'))
    rows = [json.loads(l) for l in out.read_text().splitlines()] if out.exists() else []
    done = {key(r) for r in rows if r['part']!='calls'}
    dl, (mine, of) = None, share
    todo = [(s, i, name) for s in seeds for i in ipcs for name in PARTS[part] if re.search(only, name)]
    for seed, ipc, name in todo[mine-1::of]:
        row = dict(part=part, data=Path(folder).name, size=judge.size, judge=judge.arch, judge_accuracy=judge.accuracy,
                   name=name, ipc=ipc, seed=seed, candidates=n, epochs=epochs)
        left = [l for l in labels if key({**row, 'labels': l}) not in done]
        if not left: continue
        start = time.perf_counter()
        ds = relabel(make(PARTS[part][name], data, judge, ipc, seed, n, cache), labeller, who)
        seconds = time.perf_counter()-start
        for l in left:
            dl = dl or test_dl(ds, data.choosing)
            res = evaluate(ds, dl, judge.arch, l, PROTOCOLS['best'], epochs=epochs, repeats=1, seed=seed, show_progress=False)
            found = dict(row, factor=ds.factor, **about(ds), labels=l, label_teacher='none' if l=='hard' else who, accuracy=res.mean,
                         seconds=res.seconds[0], seconds_of_the_set=round(seconds, 1), torch=torch.__version__)
            with out.open('a') as f: f.write(json.dumps(found)+'\n')
            print(f'{name}, {ipc} a class, {l} labels, seed {seed}: {100*res.mean:.1f} %', flush=True)

def few_patterns(teacher, x, y, pairs=8):
    "Maps from the smoothest patterns of a 4 x 4 grid and their complements: least squares with values that vary smoothly"
    h = torch.tensor([[1., 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]])
    order = sorted((i+j, i, j) for i in range(4) for j in range(4))[:pairs]
    P = torch.stack([torch.outer(h[i], h[j]).flatten() for _,i,j in order])
    v = torch.stack([predict(teacher.model, show_only(im[None], torch.cat([P>0, P<0]), 4)[0])[:, c] for im,c in zip(x, y)])
    g, at = v[:, :pairs]-v[:, pairs:], torch.cartesian_prod(torch.arange(4.), torch.arange(4.))
    K, mean = (-torch.cdist(at, at)).exp(), g[:, :1]/16          # a first pattern of all patches: the sum of the values
    phi = mean+(g-mean*P.sum(1))@torch.linalg.solve(P@K@P.T+torch.eye(pairs), P@K)
    return phi.view(-1, 4, 4)

def calls(folder, teacher, out, n, reference=2048):
    "Windows of maps from few model calls beside those of maps from many"
    data, judge = load_data(folder, HELD_OUT), load_teacher(teacher)
    drawn = [candidates(data, c, judge.size, n, seed=7) for c in range(data.n_classes)]
    x, seeds = torch.cat([judge.normalize(c.images) for c in drawn]), [s for c in drawn for s in c.seeds]
    y = torch.arange(data.n_classes).repeat_interleave(torch.tensor([len(c) for c in drawn]))
    maps = lambda way, b, seed=1: pool_map(shapley_values(judge.model, x, y, 4, b, seed=seed, method=way, precision='float32'))
    found = {('prior', b): maps('prior', b) for b in (32, 48, 64, 96, 128, 256)}
    found |= {(w, 64): maps(w, 64) for w in ('kernel', 'permutation')}
    found['patterns', 16] = pool_map(few_patterns(judge, x, y))
    found['prior', reference] = true = maps('prior', reference, 0)
    spread = pool_map(attribute(judge.model, x, y, 4, 48, seed=1).std**2)/4              # variance of a window's mean, patches apart
    best, std = true.flatten(1).amax(1, keepdim=True), true.flatten(1).std(1, keepdim=True, correction=0)
    for alpha in (0., 2.):
        rows = dict(found)
        for more,margin in ((64, .25), (96, .5)):
            left = undecided(found['prior', 48], spread, seeds, alpha, margin)
            rows[f'48, then {more}', float(48+(more-48)*left.float().mean())] = torch.where(left[:, None, None], *[found['prior', b] for b in (more, 48)])
        z = noisy_maps(true, 5, alpha, seeds).flatten(2).argmax(2)
        for (way, b),m in rows.items():
            a = noisy_maps(m, 5, alpha, seeds).flatten(2).argmax(2)
            lost = (best-true.flatten(1).gather(1, a))/std
            row = dict(part='calls', data=Path(folder).name, size=judge.size, judge=judge.arch, images=len(x), way=way, calls=b, reference=reference,
                       alpha=alpha, same=float((a==z).float().mean()), lost=float(lost.mean()), torch=torch.__version__)
            with out.open('a') as f: f.write(json.dumps(row)+'\n')
            print(f"{way}, {b:.0f} calls, alpha {alpha:g}: {100*row['same']:.0f} % the same windows, {row['lost']:.3f} deviations lost", flush=True)

def undecided(maps, spread, seeds, alpha, margin):
    "Whether a runner-up lies within `margin` posterior deviations of the highest cell, in any of an image's five maps"
    top = noisy_maps(maps, 5, alpha, seeds).flatten(2).topk(2).values
    return (top[..., 0]-top[..., 1]).amin(1)<margin*(2*spread.flatten(1).amax(1)).sqrt()

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('part', choices=(*PARTS, 'calls'))
    for n in ('folder', 'teacher'): a.add_argument(n)
    a.add_argument('-o', '--out', type=Path, required=True)
    a.add_argument('--ipc', default='1,10')
    a.add_argument('--seeds', default='0,1,2')
    a.add_argument('--labels', default='hard,stored')
    a.add_argument('--epochs', type=int, default=300)
    a.add_argument('--candidates', type=int, default=300)
    a.add_argument('--who', default='early', help='state of the teacher that labels')
    a.add_argument('--only', default='', help='rows whose name has this regular expression')
    a.add_argument('--share', default='1/1')
    a.add_argument('--cache', help='folder for attribution maps')
    a = a.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    if a.part=='calls': raise SystemExit(calls(a.folder, a.teacher, a.out, a.candidates))
    ints = lambda t: [int(v) for v in t.split(',')]
    run(a.part, a.folder, a.teacher, a.out, ints(a.ipc), ints(a.seeds), a.labels.split(','), a.epochs, a.only,
        [int(v) for v in a.share.split('/')], a.candidates, a.who, a.cache)
