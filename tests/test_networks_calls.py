"Networks that work in place, mix a batch, choose by image, are called twice, from threads, or inside modes of torch"
import threading
from dataclasses import replace
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from torch import nn
from infoutil.all import (
    attribute, distill, DistilledSet, evaluate, get_model, grad_cam, grad_norms, InfoUtilError, load_folder,
    patch_labels, predict, shapley_values, Teacher, train_teacher)
from infoutil.attribution import coalition_values, exact_shapley
from infoutil.basics import autocast, seeded
from infoutil.coresets import herding_crops, kmeans_crops, teacher_features
from infoutil.crop import informativeness
from infoutil.data import candidates
from infoutil.engine.fast_copies import fast_copy
from infoutil.gradient_norms import el2n_scores, loss_scores, utility
from infoutil.labels import OnlineLabels
from infoutil.models import MeanLogits
from infoutil.sre2l import bn_loss, recover

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Noise with a colour of its own for each of three classes"
    root, g = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for part in ('train', 'val'):
        for k,c in enumerate('abc'):
            (root/part/c).mkdir(parents=True)
            for i in range(12):
                im = g.normal(100, 30, (32, 32, 3))+80*np.eye(3)[k]
                Image.fromarray(im.clip(0, 255).astype('uint8')).save(root/part/c/f'{i:03d}.png')
    return root

def batch(n=6, size=16, channels_last=False, seed=1):
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x, torch.arange(n)%3

def teacher_of(m, size=32): return Teacher(m.eval(), 'custom', ('a', 'b', 'c'), size, (.5,)*3, (.2,)*3)

def trunk(pool=2, out=3):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(8*pool**2, out))

class Made(nn.Module):
    "A network of one function"
    def __init__(self, f, seed=0, **parts):
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.f = trunk(), f
        for k,m in parts.items(): setattr(self, k, m)
    def forward(self, x): return self.f(self, x)

def made(f, **kw): return Made(f, **kw).eval()

# ---- in place

class Scale(nn.Module):
    def forward(self, x): return x.mul_(2).sub_(.5)

def numpy_scale(x):
    a = x.detach().numpy()
    a *= 2
    a -= .5
    return x

IN_PLACE = dict(method=(lambda m, x: m.net(x.mul_(2).sub_(.5)), False), part=(lambda m, x: m.net(m.scale(x)), True),
                relu=(lambda m, x: m.net(F.relu_(x)), 'relu'), item=(lambda m, x: m.net(_set(x)), 'item'),
                bright=(lambda m, x: m.net(x.clamp_(max=1) if bool((x>2.5).any()) else x), 'bright'))
RIGHT = dict(method=lambda m, x: m.net(x*2-.5), part=lambda m, x: m.net(x*2-.5), relu=lambda m, x: m.net(F.relu(x)),
             item=lambda m, x: m.net(_set(x.clone())), bright=lambda m, x: m.net(x.clamp(max=1) if bool((x>2.5).any()) else x))

def _set(x):
    x[:, 0] = 0.
    return x

def in_place(kind): return made(IN_PLACE[kind][0], scale=Scale()), made(RIGHT[kind])

CALLS = dict(
    shapley=lambda m, x, y: shapley_values(m, x, y), exact=lambda m, x, y: exact_shapley(m, x, y, grid=2),
    one_a_pass=lambda m, x, y: shapley_values(m, x, y, chunk=1), cam=lambda m, x, y: grad_cam(m, x, y, layer=m.net[0]),
    windows=lambda m, x, y: informativeness(m, x, torch.tensor([[[0, 0, 8, 8], [2, 2, 9, 9]]]).expand(len(x), -1, -1)),
    copy=lambda m, x, y: fast_copy(m)(x), predict=lambda m, x, y: predict(m, x, precision='float32'),
    online=lambda m, x, y: OnlineLabels(m, 'float32')(x, None, None, None), norms=lambda m, x, y: grad_norms(m, x, y),
    loop=lambda m, x, y: grad_norms(m, x, y, method='loop'), loss=lambda m, x, y: loss_scores(m, x, y),
    el2n=lambda m, x, y: el2n_scores(m, x, y), utility=lambda m, x, y: utility(m, x, y),
    mean=lambda m, x, y: predict(MeanLogits([m, m]).eval(), x, precision='float32'))

@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('call', CALLS)
@pytest.mark.parametrize('kind', IN_PLACE)
def test_a_network_works_in_place_on_memory_of_its_own(kind, call, last):
    if (kind, call)==('bright', 'utility'): pytest.skip('vmap knows no branches')
    (a, b), (x, y) = in_place(kind), batch(channels_last=last)
    before = x.clone()
    got = CALLS[call](a, x, y)
    assert torch.equal(x, before)
    want = CALLS[call](b, before, y)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5*float(want.abs().max()))

def test_labels_of_networks_in_place(photos):
    (a, b), g = in_place('method'), torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 16, 16), generator=g, dtype=torch.uint8)
    torch.testing.assert_close(*[patch_labels(m, images, 1, (.5,)*3, (.2,)*3) for m in (a, b)])
    kw = dict(method='random', ipc=2, preflight=False, show_progress=False)
    one, two = [distill(str(photos), teacher_of(m), **kw).labels.float() for m in in_place('method')]
    torch.testing.assert_close(one, two)

def test_sre2l_of_a_network_in_place():
    f = lambda m, x: m.tail(m.bn(x.mul_(2)))
    g = lambda m, x: m.tail(m.bn(x*2))
    parts = lambda: dict(bn=nn.BatchNorm2d(3), tail=trunk())
    (x, y), (a, b) = batch(3, 32), [made(h, **parts()) for h in (f, g)]
    b.load_state_dict(a.state_dict())
    before = x.clone()
    torch.testing.assert_close(bn_loss(a, x), bn_loss(b, before))
    assert torch.equal(x, before)
    kw = dict(iterations=2, precision='float32')
    torch.testing.assert_close(recover(teacher_of(a), x, y, **kw), recover(teacher_of(b), before, y, **kw))

# ---- statistics of a batch, and chance

BN = nn.BatchNorm2d
MIXING = dict(
    layer=lambda: made(lambda m, x: m.net(m.bn(x)), bn=BN(3, track_running_stats=False)),
    flat=lambda: made(lambda m, x: m.bn(m.net(x)), bn=nn.BatchNorm1d(3, track_running_stats=False)),
    function=lambda: made(lambda m, x: m.net(F.batch_norm(x, None, None, training=True))),
    running=lambda: made(lambda m, x: m.net(F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True))),
    dropout=lambda: made(lambda m, x: m.net(F.dropout(x))), channels=lambda: made(lambda m, x: m.net(F.dropout2d(x))),
    noise=lambda: made(lambda m, x: m.net(x+torch.randn_like(x))))
SCORED = {k: CALLS[k] for k in ('shapley', 'windows', 'predict', 'online', 'loss', 'el2n')}

@pytest.mark.parametrize('call', SCORED)
@pytest.mark.parametrize('kind', MIXING)
def test_answers_that_depend_on_neighbours_or_chance_are_refused(kind, call):
    with pytest.raises(InfoUtilError, match='accepted;'): SCORED[call](MIXING[kind](), *batch())

@pytest.mark.parametrize('kind', [k for k in MIXING if k in ('dropout', 'channels', 'noise')])
def test_norms_by_chance_are_refused(kind):
    for method in ('auto', 'vmap'):
        with pytest.raises(InfoUtilError, match='chance'): grad_norms(MIXING[kind](), *batch(), method=method)

@pytest.mark.parametrize('f', [
    lambda m, x: m.net(F.instance_norm(x)), lambda m, x: m.net(m.norm(x)), lambda m, x: m.net(F.dropout(x, training=False)),
    lambda m, x: m.net(m.drop(x)), lambda m, x: m.net(x+torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(1))),
    lambda m, x: m.net(F.conv2d(x, F.batch_norm(m.w.weight.view(1, 3, -1), None, None, training=True).view_as(m.w.weight)))])
def test_what_is_each_image_s_own_is_served(f):
    m = made(f, norm=nn.InstanceNorm2d(3), drop=nn.Dropout(), w=nn.Conv2d(3, 3, 3))
    x, y = batch()
    a, b = shapley_values(m, x, y, chunk=2), shapley_values(m, x, y, chunk=64)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5*float(b.abs().max()))
    torch.testing.assert_close(loss_scores(m, x, y, chunk=1), loss_scores(m, x, y))

# ---- what the probe did not see

def by_autograd(m, x, y, i):
    loss = F.cross_entropy(m(x[i:i+1].clone()).double(), y[i:i+1])
    gs = torch.autograd.grad(loss, list(m.parameters()), allow_unused=True)
    return torch.stack([(g.double()**2).sum() for g in gs if g is not None]).sum().sqrt()

def hot(x): return x.flatten(1).abs().amax(1)>6

def gate(m, x):
    z, h = m.net(x), hot(x)
    if h.any():
        z = z.clone()
        z[h] = z[h]+m.other(x[h])
    return z

def exit_early(m, x): return m.net(x) if float(x.abs().max())<6 else m.other(x)

def read_again(m, x):
    z = m.net(x)
    return z+F.conv2d(x, m.net[0].weight).mean((2, 3))[:, :3] if hot(x).any().tolist() else z

def read_weights(m, x):
    z = m.net(x)
    return z+F.linear(x.mean((2, 3)), m.extra.weight) if hot(x).detach().numpy().any() else z

def no_peek(m, x): return m.net(x)+(m.other(x) if len(x)>2 else 0.)

def sorted_rows(m, x):
    order = x.mean((1, 2, 3)).argsort(descending=True) if x.mean((1, 2, 3)).ndim else None
    return m.net(x[order])[order.argsort()]

def experts(m, x):
    h, z = hot(x), x.new_zeros(len(x), 3)
    for e,rows in ((m.net, ~h), (m.other, h)): z = z.index_put((rows,), e(x[rows])) if rows.any() else z
    return z

def soft_experts(m, x):
    w = m.extra(x.mean((2, 3))).softmax(1)
    return w[:, :1]*m.net(x)+w[:, 1:2]*m.other(x)

def shared_expert(m, x):
    h = hot(x)
    rows = torch.cat([h.nonzero()[:, 0], (~h).nonzero()[:, 0]])
    return m.net(x.index_select(0, rows))[rows.argsort()]

@pytest.mark.parametrize('f', [gate, exit_early, read_again, read_weights, sorted_rows, experts, soft_experts, shared_expert])
@pytest.mark.parametrize('chunk', [None, 2])
def test_norms_of_images_that_take_another_way(f, chunk):
    m, (x, y) = made(f, other=trunk(), extra=nn.Linear(3, 3, bias=False)), batch(8)
    x[2:4] *= 4
    x[5] += 1.
    want = torch.stack([by_autograd(m, x, y, i) for i in range(8)]).float()
    torch.testing.assert_close(grad_norms(m, x, y, chunk=chunk), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_norms(m, x[:2], y[:2], chunk=chunk), want[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_norms(m, x, y, chunk=chunk), want, rtol=1e-4, atol=1e-5)

def test_a_plan_is_kept_where_nothing_changes():
    "A network that looks at its data, and one with a part for training alone, still go by their plan"
    from infoutil.engine.gradient_plan import kept_plan
    x, y = batch(8)
    for f in (lambda m, x: m.net(x) if x.isfinite().all() else x.new_full((len(x), 3), float('nan')), lambda m, x: m.net(x)):
        m = made(f, other=trunk())
        assert kept_plan(m, x, y) is not None
        want = torch.stack([by_autograd(m, x, y, i) for i in range(8)]).float()
        torch.testing.assert_close(grad_norms(m, x, y, method='closed'), want, rtol=1e-4, atol=1e-5)

# ---- one image at a time through batch norm

def tokens(m, x):
    v = m.bn(m.conv(x)).flatten(2).mT
    z = m.head((v.mT@v/v.shape[1]).flatten(1))
    return z*2 if m.peeks and float(z.sum())>1e9 else z

def in_function(m, x):
    v = F.batch_norm(m.conv(x), m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias).flatten(2).mT
    return m.head((v.mT@v/v.shape[1]).flatten(1))

def one_high(m, x):
    v = m.bn(m.conv(x).mean(2, keepdim=True)).flatten(2).mT
    return m.head((v.mT@v/v.shape[1]).flatten(1))

def slopes(m, x, y, i, e=1e-5):
    "Norm of the loss gradient by finite differences"
    s, loss = 0., lambda: F.cross_entropy(m(x[i:i+1]), y[i:i+1])
    with torch.no_grad():
        for f in (p.view(-1) for n,p in m.named_parameters() if not n.startswith('net')):
            for j in range(len(f)):
                was = f[j].item()
                f[j] = was+e
                a = loss()
                f[j] = was-e
                s += float((a-loss())/2/e)**2
                f[j] = was
    return s**.5

@pytest.mark.parametrize('peeks', [False, True])
@pytest.mark.parametrize('f', [tokens, in_function, one_high])
def test_lone_images_through_batch_norm(f, peeks):
    m = made(f, conv=nn.Conv2d(3, 4, 3, padding=1), bn=BN(4), head=nn.Linear(16, 3)).double()
    m.peeks, (x, y) = peeks, batch(4, 8)
    x = x.double()
    want = torch.tensor([slopes(m, x, y, i) for i in range(4)], dtype=torch.float64)
    for method in ('auto', 'loop'):
        torch.testing.assert_close(grad_norms(m, x, y, method=method), want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(grad_norms(m, x, y, method=method, chunk=1), want, rtol=1e-4, atol=1e-6)
    a, b = [grad_cam(m, x, y, chunk=c, layer=m.conv) for c in (1, 4)]
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)

def test_utility_of_a_pair_leaves_one_image_alone():
    m = made(tokens, conv=nn.Conv2d(3, 4, 3, padding=1), bn=BN(4), head=nn.Linear(16, 3)).double()
    m.peeks, (x, y), eta = False, batch(2, 8), .1
    x, ps = x.double(), [p for n,p in m.named_parameters() if not n.startswith('net')]
    def step(rows):                                                       # beside a copy, so that no image is alone
        loss = F.cross_entropy(m(torch.cat([x[rows], x[rows]]))[:len(rows)], y[rows], reduction='sum')
        return [p.detach()-eta*g for p,g in zip(ps, torch.autograd.grad(loss, ps))]
    def slope(i): return torch.autograd.grad(F.cross_entropy(m(torch.cat([x[i:i+1]]*2))[:1], y[i:i+1]), ps)
    full, flows = step([0, 1]), []
    for i in range(2):
        rest = step([1-i])
        flows.append(max(abs(float(sum((g*(a-b)).sum() for g,a,b in zip(slope(j), full, rest)))) for j in range(2)))
    torch.testing.assert_close(utility(m, x, y, eta), torch.tensor(flows, dtype=torch.float64), rtol=1e-6, atol=1e-9)

# ---- what a copy watches

SCALE = 1.

def helper(z): return z/SCALE

class Settings:
    by = 1.
    inner = np.ones(3, 'float32')

settings = Settings()

class Reader(nn.Module):
    factor = 1.
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.w, self.ws = trunk(), np.ones(3, 'float32'), dict(a=[np.ones(3, 'float32')])
        self.deep, k = Settings(), 1.
        def inside(z): return z*k
        def change(v):
            nonlocal k
            k = v
        self.inside, self.change = inside, change
    @staticmethod
    def still(z): return z*SCALE*SCALE
    @property
    def half(self): return Settings.by
    def forward(self, x):
        z = helper(self.inside(self.net(x)))*torch.from_numpy(self.w)*torch.from_numpy(self.ws['a'][0])*self.factor
        return self.still(z)*self.half*settings.by*torch.from_numpy(self.deep.inner)

def change_global(m): globals().update(SCALE=.25)
def change_helper(m): globals().update(helper=lambda z: 5*z)
def change_array(m): m.w *= 7
def change_kept_array(m): m.ws['a'][0][:] = 3
def change_class(m): Reader.factor = 3.
def change_other_class(m): Settings.by = 4.
def change_object(m): settings.by = 6.
def change_deep_array(m): m.deep.inner[1] = 9.
def change_enclosed(m): m.change(8.)
def change_method(m): Reader.still = staticmethod(lambda z: 4*z)

@pytest.mark.parametrize('change', [change_global, change_helper, change_array, change_kept_array, change_class, change_other_class,
                                    change_object, change_deep_array, change_enclosed, change_method])
def test_a_copy_follows_what_forward_reads(change, monkeypatch):
    for owner, name in ((Reader, 'factor'), (Reader, 'still'), (Settings, 'by')): monkeypatch.setattr(owner, name, vars(owner)[name])
    for name in ('SCALE', 'helper'): monkeypatch.setitem(globals(), name, globals()[name])
    monkeypatch.setitem(globals(), 'settings', Settings())
    monkeypatch.setattr(Settings, 'inner', np.ones(3, 'float32'))
    m, (x, y) = Reader().eval(), batch(2)
    def agrees():
        with torch.no_grad(): want = (m(x)-m(0*x)).gather(1, y[:, None])[:, 0]
        torch.testing.assert_close(shapley_values(m, x, y).sum((1, 2)), want, rtol=1e-4, atol=1e-5)
        return want
    before = agrees()
    change(m)
    assert not torch.allclose(agrees(), before)

def test_an_unchanged_network_keeps_its_copy():
    from infoutil.engine.fast_copies import made_copies
    m, (x, y) = Reader().eval(), batch(2)
    shapley_values(m, x, y)
    kept = made_copies[m]
    shapley_values(m, x, y)
    assert made_copies[m] is kept

# ---- modes of torch around a call

AROUND = dict(autocast=lambda: torch.autocast('cpu', torch.bfloat16), no_grad=torch.no_grad, inference=torch.inference_mode)
MODEL = lambda: made(lambda m, x: m.tail(m.net[0](x).relu().flatten(1)), tail=nn.Linear(8*14*14, 3))
VALUES = dict({k: CALLS[k] for k in ('shapley', 'exact', 'cam', 'windows', 'copy', 'predict', 'online', 'norms', 'loop', 'loss', 'el2n', 'utility')},
              vmap=lambda m, x, y: grad_norms(m, x, y, method='vmap'),
              labels=lambda m, x, y: patch_labels(m, (x*40+100).clamp(0, 255).byte(), 1, (.5,)*3, (.2,)*3),
              coalitions=lambda m, x, y: coalition_values(m, x, y, torch.eye(16).bool()))

@pytest.mark.parametrize('call', VALUES)
@pytest.mark.parametrize('around', AROUND)
def test_a_number_is_the_same_inside_a_mode(around, call):
    m, (x, y) = MODEL(), batch()
    want = VALUES[call](m, x, y)
    with AROUND[around](): got = VALUES[call](m, x, y)
    assert torch.equal(got, want)

@pytest.mark.parametrize('around', AROUND)
def test_images_made_inside_a_mode(around):
    m, (x, y) = MODEL(), batch()
    want = [grad_norms(m, x, y), grad_cam(m, x, y, layer=m.net[0]), shapley_values(m, x, y)]
    with AROUND[around]():
        z = x.clone()
        got = [grad_norms(m, z, y), grad_cam(m, z, y, layer=m.net[0]), shapley_values(m, z, y)]
    assert all(map(torch.equal, got, want))

def test_autocast_of_ours_inside_the_caller_s():
    lin, x = nn.Linear(4, 2), torch.ones(1, 4)
    with torch.autocast('cpu', torch.bfloat16):
        with autocast('cpu', 'float32'): assert lin(x).dtype==torch.float32
        with autocast('cpu', 'bfloat16'): assert lin(x).dtype==torch.bfloat16
        assert lin(x).dtype==torch.bfloat16

@pytest.fixture(scope='module')
def trained(photos):
    kw = dict(arch='convnet3_8', size=32, epochs=1, show_progress=False, precision='float32')
    t = train_teacher(str(photos), None, **kw)
    how = [dict(method='random'), dict(method='infoutil'), dict(method='sre2l', iterations=2), dict(method='herding')]
    sets = [distill(str(photos), t, ipc=1, preflight=False, show_progress=False, **h) for h in how]
    return kw, t, how, sets

def test_work_is_the_same_inside_a_mode(photos, trained):
    kw, t, how, sets = trained
    measure = lambda: evaluate(sets[0], str(photos), epochs=2, repeats=1, show_progress=False, precision='float32').accuracies
    want, at = measure(), t.normalize(sets[0].images)
    for around in AROUND.values():
        with around():
            again = train_teacher(str(photos), None, **kw)
            assert torch.equal(predict(again.model, at), predict(t.model, at))
            for h,ds in zip(how, sets):
                got = distill(str(photos), again, ipc=1, preflight=False, show_progress=False, **h)
                assert torch.equal(got.images, ds.images)
            assert measure()==want
        assert not torch.is_inference(next(again.model.parameters()))
        grad_norms(again.model, at, sets[0].y)                                   # an ordinary network came out

# ---- features

def features(m, d):
    c = candidates(d, 0, 32, 10)
    t = teacher_of(m)
    f = teacher_features(t, c.images)
    assert len(f)==10 and len(set(herding_crops(c, 4, t).source))==4 and len(set(kmeans_crops(c, 4, t).source))==4
    return f, t.normalize(c.images)

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 3)
    def forward(self, z): return self.fc(input=z)

BODY = lambda m, x: m.net[:-1](x)
PLAIN = dict(unused=lambda m, x: m.net(x), extra=lambda m, x: (m.net(x), m.aux(BODY(m, x)))[0], scaled=lambda m, x: m.net(x)/3,
             named=lambda m, x: m.named(BODY(m, x)), log=lambda m, x: m.net(x).log_softmax(1), gated=lambda m, x: m.net(m.squeeze(x)),
             two=lambda m, x: m.net(x)+m.net(x))

class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 3)
    def forward(self, x): return x*self.b(self.a(x.mean((2, 3))).relu()).sigmoid()[..., None, None]

@pytest.mark.parametrize('kind', PLAIN)
def test_features_are_what_the_head_was_given(photos, kind):
    m = made(PLAIN[kind], aux=nn.Linear(32, 3), named=Named(), squeeze=Squeeze(), last=nn.Linear(7, 2))
    f, x = features(m, load_folder(str(photos)))
    with torch.no_grad(): want = BODY(m, m.squeeze(x) if kind=='gated' else x).double()
    torch.testing.assert_close(f, torch.cat([want, want], 1) if kind=='two' else want, rtol=1e-5, atol=1e-6)

def test_features_of_a_mirrored_network_and_of_a_convolution(photos):
    d = load_folder(str(photos))
    f, x = features(made(lambda m, x: m.net(x)+m.net(x.flip(-1))), d)
    m = made(lambda m, x: 0)
    with torch.no_grad(): want = torch.cat([BODY(m, x), BODY(m, x.flip(-1))], 1).double()
    torch.testing.assert_close(f, want, rtol=1e-5, atol=1e-6)
    head = nn.Conv2d(8, 3, 1)
    m = made(lambda m, x: m.head(m.net[0](x).relu()).mean((2, 3)), head=head, squeeze=Squeeze())
    f, x = features(m, d)
    with torch.no_grad(): torch.testing.assert_close(f, m.net[0](x).relu().mean((2, 3)).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((f@head.weight[:, :, 0, 0].double().T+head.bias.double()).float(), m(x), rtol=1e-4, atol=1e-4)

def test_features_that_have_no_name_are_refused(photos):
    c = candidates(load_folder(str(photos)), 0, 32, 10)
    for f, why in ((lambda m, x: F.linear(m.net[:4](x), m.net[4].weight), 'no linear layer'),
                   (lambda m, x: m.net(torch.cat([x, x.flip(-1)])).unflatten(0, (2, -1)).mean(0), '20 rows for 10 images')):
        with pytest.raises(InfoUtilError, match=why): teacher_features(teacher_of(made(f)), c.images)

# ---- threads

def at_once(*work):
    "Each in a thread of its own, all started together; what they returned or raised"
    out, gate = [None]*len(work), threading.Barrier(len(work))
    def run(i, f):
        gate.wait()
        try: out[i] = f()
        except Exception as e: out[i] = e
    ts = [threading.Thread(target=run, args=p, daemon=True) for p in enumerate(work)]
    for t in ts: t.start()
    for t in ts: t.join(120)
    assert not any(t.is_alive() for t in ts), 'threads wait for each other'
    return out

def close(got, want):
    for g,w in zip(got, want):
        if isinstance(g, Exception): raise g
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-4*float(w.abs().max()))

def whole(m, want):
    "Nothing is left of the threads: hooks, flags, borrowed weights"
    assert not any(k._forward_hooks or k._forward_pre_hooks or 'forward' in vars(k) for k in m.modules())
    assert all(type(p) is nn.Parameter and p.requires_grad for p in m.parameters())
    assert all(torch.equal(a, b) for a,b in zip(m.state_dict().values(), want))

class Slow(nn.Module):
    "Lets other threads in between its layers"
    def forward(self, x):
        threading.Event().wait(.002)
        return x

def slow(arch='convnet3_8'):
    with seeded(3): m = get_model(arch, 3, 32)
    for k in (1, 4, 7): m.insert(k, Slow())
    return m.eval()

SHARED = dict(norms=lambda m, x, y: grad_norms(m, x, y, chunk=4), vmap=lambda m, x, y: grad_norms(m, x, y, method='vmap', chunk=8),
              loss=lambda m, x, y: loss_scores(m, x, y), shapley=lambda m, x, y: shapley_values(m, x, y),
              cam=lambda m, x, y: grad_cam(m, x, y, layer=[k for k in m.modules() if isinstance(k, nn.Conv2d)][0]), copy=lambda m, x, y: fast_copy(m)(x))

@pytest.mark.parametrize('calls', [('norms',)*4, ('vmap', 'norms', 'loss', 'norms'), ('shapley', 'norms', 'copy', 'norms'),
                                   ('cam', 'norms', 'vmap', 'shapley')], ids=' '.join)
def test_one_network_in_several_threads(calls):
    x, y = batch(16, 32)
    for _ in range(3):
        m = slow()
        right = slow()
        state, want = [v.clone() for v in m.state_dict().values()], [SHARED[c](right, x, y) for c in calls]
        close(at_once(*[lambda c=c: SHARED[c](m, x, y) for c in calls]), want)
        whole(m, state)

def test_networks_that_share_a_part_in_several_threads():
    x, y = batch(16, 32)
    m = slow()
    views = [v.eval() for v in (m, nn.Sequential(m), MeanLogits([m, slow()]), nn.Sequential(*m))]
    want = [loss_scores(v, x, y) for v in views]+[grad_norms(v, x, y, method='loop') for v in views]
    close(at_once(*[lambda v=v: loss_scores(v, x, y) for v in views], *[lambda v=v: grad_norms(v, x, y) for v in views]), want)

def test_networks_of_their_own_are_traced_while_others_run():
    (x, y), nets, call = batch(8, 32), [slow() for _ in range(4)], nn.Module.__call__
    want = [SHARED[c](slow(), x, y) for c in ('shapley', 'loss', 'copy', 'norms')]
    close(at_once(*[lambda c=c, m=m: SHARED[c](m, x, y) for c,m in zip(('shapley', 'loss', 'copy', 'norms'), nets)]), want)
    assert nn.Module.__call__ is call

def test_trainings_in_two_threads_are_what_they_are_alone(photos, trained):
    kw, t, *_ = trained
    at = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    train = lambda seed: (lambda: predict(train_teacher(str(photos), None, seed=seed, **kw).model, at))
    close(at_once(train(0), train(0)), [predict(t.model, at)]*2)

# ---- slips

def test_images_that_require_a_gradient():
    pytest.importorskip('shap')
    x, y = batch(2)
    x.requires_grad_()
    made_of = attribute(MODEL(), x, y).to_shap(x)
    assert made_of.values.shape==(2, 16, 16, 3) and x.grad is None

def test_a_dollar_in_a_title(tmp_path):
    ds = DistilledSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ('$$', '$a_'), torch.zeros(2, 1, 2), None,
                      dict(mean=[.4]*3, std=[.2]*3), [])
    for i in (0, 1): ds.show_labels(i)[0].figure.savefig(tmp_path/'labels.png')
    x, y = batch(2)
    attribute(MODEL(), x, y).show(x, names=('$$', '$a_', 'c'))[0].figure.savefig(tmp_path/'maps.png')
