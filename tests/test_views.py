"Labels of views: they replay what a teacher says, on disk nothing can change unseen, and old sets load as ever"
import json, math, random
from dataclasses import replace
import pytest, torch
from torch import nn
from infoutil import views
from infoutil.view_labels import epoch_order, ReplayedLabels, view_labels, ViewKey, ViewLabels
from infoutil.views import apply_views, draw_views
from infoutil.basics import InfoUtilError, rng, seed_from
from infoutil.labels import OnlineLabels
from infoutil.distilled_set import DistilledSet
from infoutil.files import StoreError, write_sealed
from infoutil.student import DistillCallback, DistilledLoader, Protocol, PROTOCOLS, view_key

mean, std = (.5, .4, .3), (.2, .3, .25)

def net(classes, seed=0):
    "A network that no two views leave alike"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
                             nn.Linear(54, classes), nn.Hardtanh(-30, 30)).eval()

def pixels(n, size, seed=0): return torch.randint(256, (n, 3, size, size), generator=rng('pixels', seed)).byte()

def draw_key(r):
    n, factor = r.randint(1, 12), r.choice([1, 2, 3])
    return ViewKey(n=n, size=r.choice([12, 17]), epochs=r.randint(1, 4), batch_size=r.randint(1, 14),
                   seed=r.randint(-5, 99), factor=factor, min_scale=r.choice([None, .3, 1.]), shuffle=r.random()<.7,
                   flip=r.random()<.7, autoaugment=r.random()<.3, cutmix=r.choice([0, .5, 1.]))

@pytest.mark.parametrize('seed', range(25))
def test_replay_is_online(seed):
    "All logits in 32 bits: the same targets to the last bit; fewer: exact where kept, with the right mass elsewhere"
    r = random.Random(seed)
    key, classes, t = draw_key(r), r.choice([2, 7, 300]), r.choice([1., 20.])
    model, im, k = net(classes, seed), pixels(key.n, key.size, seed), r.randint(1, classes-1)
    full, part = [view_labels(model, im, key, mean, std, t, top, 32) for top in (None, k)]
    part = ViewLabels.restore(json.loads(json.dumps(part.recipe())), part.tensors())
    online, y = OnlineLabels(model, 'float32'), torch.zeros(key.n, dtype=int)
    for e in range(key.epochs):
        for b,ids in enumerate(key.order(e)):
            v = draw_views(ids, seed=key.seed, epoch=e, batch=b, size=key.size, factor=key.factor,
                           min_scale=key.min_scale, shuffle=key.shuffle, flip=key.flip, autoaugment=key.autoaugment,
                           cutmix=key.cutmix)
            x = apply_views(im[ids], v, mean, std)
            want, all_, some = [f(x, v, ids, y[ids], t) for f in (online, ReplayedLabels(full), ReplayedLabels(part))]
            assert torch.equal(all_, want)
            at = part.index[e, ids].long()
            torch.testing.assert_close(some.gather(1, at), want.gather(1, at), atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(some.sum(1), torch.ones(len(ids)))
            left = some.scatter(1, at, torch.nan)
            torch.testing.assert_close(left.nanmean(1), want.scatter(1, at, torch.nan).nanmean(1), atol=1e-6, rtol=1e-4)

@pytest.mark.parametrize('seed', range(8))
def test_key_names_what_a_student_sees(seed):
    "The loader's order and batches are those of the key, but for a lone last image"
    r = random.Random(seed)
    n, bs = r.randint(1, 40), r.randint(1, 45)
    key, dl = ViewKey(n, 16, 3, bs, seed), DistilledLoader(torch.arange(n), bs, seed)
    for e in range(3):
        dl.epoch = e
        want = [b.tolist() for b in key.order(e)]
        if n>bs and n%bs==1: want.pop()
        assert [b[0].tolist() for b in dl]==want and torch.equal(torch.cat(key.order(e)), epoch_order(n, seed, e))

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A set with labels of views, and its directory"
    key = ViewKey(n=6, size=16, epochs=3, batch_size=4, factor=2)
    im = pixels(6, 16)
    ds = DistilledSet(im, torch.arange(3).repeat_interleave(2), tuple('abc'), meta=dict(factor=2, mean=mean, std=std),
                      views=view_labels(net(3), im, key, mean, std, top_k=2))
    return ds, ds.save(tmp_path_factory.mktemp('views')/'set')

def refused(path):
    with pytest.raises(StoreError) as e: DistilledSet.load(path)
    assert str(e.value).count(';')>=2, e.value

def test_every_byte_counts(saved):
    "A flipped byte anywhere, and every cut, is refused"
    f, r = saved[1]/'labels/views.safetensors', random.Random(0)
    good = f.read_bytes()
    try:
        for i in (*range(0, len(good), 7), len(good)-1):
            f.write_bytes(good[:i]+bytes([good[i]^(1<<r.randrange(8))])+good[i+1:])
            refused(saved[1])
        for i in range(0, len(good), 31):
            f.write_bytes(good[:i])
            refused(saved[1])
        f.unlink()
        refused(saved[1])
    finally: f.write_bytes(good)
    assert torch.equal(DistilledSet.load(saved[1]).views.logits, saved[0].views.logits)

def test_a_sealed_forgery_that_does_not_fit(saved):
    "Whatever the recipe says is checked, also under a valid seal"
    f = saved[1]/'infoutil.json'
    good = f.read_bytes()
    m = {k:v for k,v in json.loads(good).items() if k!='digest'}
    v = m['views']
    odd = [None, [], {}, dict(v, key=None), *({k:w for k,w in v.items() if k!=gone} for gone in v),
           *(dict(v, **{k: w}) for k in v for w in (None, 'x', -1, []))]
    odd += [dict(v, key=dict(v['key'], **{k: w})) for k in v['key'] for w in ('x', -2, 3.7, [], 11)]
    try:
        for o in odd:
            write_sealed(f, {**m, 'views': o})
            refused(saved[1])
    finally: f.write_bytes(good)

def test_schema(saved, tmp_path):
    "Sets without labels of views are what they were; those with them ask for a reader that knows"
    plain = replace(saved[0], views=None).save(tmp_path/'plain')
    assert json.loads((plain/'infoutil.json').read_text())['schema']==1
    assert 'views' not in (plain/'infoutil.json').read_text()
    assert 'views' not in (plain/'README.md').read_text()
    assert json.loads((saved[1]/'infoutil.json').read_text())['schema']==2 and DistilledSet.load(plain).views is None

def test_stages_are_no_part_of_the_result(saved, tmp_path):
    stages = {'label': {'seconds': 1.5, 'peak_bytes': None}, 'choose': {'seconds': .1, 'peak_bytes': 10}}
    a = replace(saved[0], meta={**saved[0].meta, 'stages': stages}).save(tmp_path/'a')
    assert (a/'infoutil.json').read_bytes()==(saved[1]/'infoutil.json').read_bytes()
    assert DistilledSet.load(a).meta['stages']==stages

def test_students_share_views_and_differ_in_weights(saved):
    "Loaded from disk, without a teacher: the seed is of the weights, the views are the file's"
    ds = DistilledSet.load(saved[1])
    a, b = [ds.learner(arch='convnet3', labels='views', epochs=3, seed=s, device='cpu', precision='float32',
                       protocol='rded', bs=4) for s in (0, 1)]
    assert a.dls.train.seed==b.dls.train.seed==0 and not torch.equal(next(a.model.parameters()),
                                                                     next(b.model.parameters()))
    seen = []
    for learn in (a, b):
        cb = next(c for c in learn.cbs if isinstance(c, DistillCallback))
        told = cb.labeller
        cb.labeller = lambda *args: seen.append(told(*args)) or seen[-1]
        learn.fit_distilled(False)
    assert len(seen)==12 and all(torch.equal(p, q) for p,q in zip(seen[:6], seen[6:]))

def test_every_protocol_gives_a_key(saved):
    for name,p in PROTOCOLS.items():
        key = view_key(saved[0], p, 5, 3, seed=1)
        assert (key.n, key.factor, key.cutmix, key.shuffle)==(6, 2, p.cutmix, p.shuffle), name
    assert view_key(saved[0], Protocol(min_scale=.25), 5, 3).min_scale==.25

def test_one_pixel_makes_other_images(saved):
    im = saved[0].images.clone()
    im[-1, -1, -1, -1] ^= 1
    with pytest.raises(InfoUtilError, match='other images'): replace(saved[0], images=im)

def drawn_alone(i, seed, epoch, size, factor, lo, hi):
    "The view of one image, spelled out: what scheme 1 means"
    g = rng(seed, 'view', epoch, i)
    cols, rows = [torch.randperm(factor, generator=g).tolist() for _ in range(2)]
    u = torch.rand(41, generator=g, dtype=torch.float64).tolist()
    for a,r,y,x in (u[k:k+4] for k in range(0, 40, 4)):                          # torchvision's ten tries
        area, ratio = size**2*(lo+(hi-lo)*a), math.exp(math.log(3/4)+r*(math.log(4/3)-math.log(3/4)))
        w, h = round(math.sqrt(area*ratio)), round(math.sqrt(area/ratio))
        if 0<w<=size and 0<h<=size: return cols, rows, [int(y*(size-h+1)), int(x*(size-w+1)), h, w], u[40]<.5
    return cols, rows, [0, 0, size, size], u[40]<.5

@pytest.mark.parametrize('seed', range(12))
def test_scheme_1(seed):
    "Views are those of scheme 1, image by image, whatever is skipped on the way: labels that were stored depend on it"
    r = random.Random(seed)
    size, factor, lo, hi = r.choice([7, 32, 65, 224]), r.choice([1, 1, 2, 3]), r.choice([None, .1, .99,
                                                                                         1.]), r.choice([.995, 1.])
    lo = min(lo or 1/factor, hi)
    ids = torch.randperm(500)[:80]
    v = draw_views(ids, seed=seed, epoch=3, size=size, factor=factor, min_scale=lo, max_scale=hi)
    got = list(zip(v.cols.tolist(), v.rows.tolist(), v.box.tolist(), v.flip.tolist()))
    assert got==[drawn_alone(i, seed, 3, size, factor, lo, hi) for i in ids.tolist()]

@pytest.mark.parametrize('size', [8, 32, 96])
def test_randaugment_is_torchvisions(size):
    im, seeds = pixels(120, size, size), [seed_from('rand', size, i) for i in range(120)]
    assert (views._augment(im, seeds, size, 'rand')!=views._augment_each(im, seeds, size, 'rand')).double().mean()<1e-3
    v = views.draw_views(range(4), seed=1, epoch=2, size=size, randaugment=True, cutmix=0, flip=False, min_scale=1)
    ours = views.apply_views(im[:4], v, (0, 0, 0), (1, 1, 1))
    assert torch.equal((ours*255).round().byte(), views._augment(im[:4], [seed_from(1, 'rand', 2, i) for i in range(4)], size, 'rand'))

@pytest.mark.parametrize('size', [8, 21, 32, 64, 65, 96])
def test_autoaugment_is_torchvisions(size):
    """Images with one operation go through it together; their pixels are what torchvision makes of each image alone under its seed. A number that lies between two bytes to its last digit
    may be rounded the other way in other company, and a later operation may widen that: one pixel of a thousand may differ"""
    n = 400 if size<65 else 120
    im, seeds = pixels(n, size, size), [seed_from('auto', size, i) for i in range(n)]
    im[::2] = im[::2]//3+60                                                      # dull ones, for contrast
    assert (views._augment(im, seeds, size)!=views._augment_each(im, seeds, size)).double().mean()<1e-3
    used = {step[0] for s in seeds for step in views._draw_auto(s, *views._tables(size)) if step}
    assert used>={op for p in views._tables(size)[0] for op,chance,_ in p if chance>.3}

def test_a_torchvision_with_other_tables(monkeypatch):
    "Where torchvision keeps its tables elsewhere, images go one by one and look the same"
    im, want = pixels(9, 32), views._augment(pixels(9, 32), range(9), 32)
    monkeypatch.setattr(views, '_tables', lambda size, policy: None)
    assert (views._augment(im, range(9), 32)!=want).double().mean()<1e-3
