"Images recovered from a teacher: the loss by hand, the course of the optimisation, and a teacher that nothing happens to"
from copy import deepcopy
import pytest, torch, torch.nn.functional as F
from torch import nn
from infoutil.basics import *
from infoutil.models import ConvNet, get_model
from infoutil.sre2l import (
    bn_layers, bn_loss, feature_stats, recover, sre2l_batches, sre2l_images, sre2l_provenance, view_batch, watch_bn)
from infoutil.distilled_set import DistilledSet
from infoutil.teacher import predict, Teacher

def made(model, n=10, size=32): return Teacher(model.eval(), 'custom', tuple(map(str, range(n))), size, (.5, .45, .4), (.25, .25, .3))

def settled(arch, n=10, size=32):
    "A random network whose running statistics are those of smooth random images, so that there is something to recover"
    with seeded(0, arch if isinstance(arch, str) else 'a network of its own'):     # a function is known by its address
        m = arch() if callable(arch) else get_model(arch, n, size)
        for b in m.modules():
            if isinstance(b, nn.modules.batchnorm._BatchNorm): b.momentum = None
        m.train()
        with torch.no_grad(): m(F.interpolate(torch.randn(64, 3, size//4, size//4), size=(size, size), mode='bilinear'))
    return made(m, n, size)

@pytest.fixture(scope='module')
def teacher(): return settled(lambda: ConvNet(10, 3, 16, 32))

def start(n=10, size=32, seed=0): return torch.randn(n, 3, size, size, generator=rng(seed, 'start'))

def by_hand(t, x, first):
    "The definition, layer by layer, for a plain sequence of modules"
    total, weight = 0., first
    for m in [m for block in t.model for m in (block if isinstance(block, nn.Sequential) else [block])]:
        if isinstance(m, nn.BatchNorm2d):
            v = x.transpose(0, 1).flatten(1)
            total += weight*(((v.mean(1)-m.running_mean)**2).sum().sqrt()+((v.var(1, correction=0)-m.running_var)**2).sum().sqrt())
            weight = 1.
        x = m(x)
    return total

@pytest.mark.parametrize('first', (0., 1., 10.))
def test_bn_loss_is_the_definition(teacher, first):
    x = start().requires_grad_()
    want, got = by_hand(teacher, x, first), bn_loss(teacher.model, x, first)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)
    for a,b in zip(torch.autograd.grad(got, x), torch.autograd.grad(want, x)): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6*float(b.abs().max()))

@pytest.mark.parametrize('layout', (torch.contiguous_format, torch.channels_last))
def test_statistics_in_bfloat16_keep_their_digits(layout):
    x = (torch.randn(20, 8, 16, 16, generator=rng(0))*3+2).bfloat16().to(memory_format=layout)
    mean, var = feature_stats(x)
    assert mean.dtype==var.dtype==torch.float32
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)

def test_a_layer_that_is_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.bn = nn.BatchNorm2d(3, affine=False)
        def forward(self, x): return self.bn(self.bn(x)).mean((2, 3))
    m, x = Twice().eval(), start(4)
    with watch_bn(m) as found: m(x)
    assert len(found)==2 and not m.bn._forward_pre_hooks
    torch.testing.assert_close(bn_loss(m, x, 10.), 10*found[0]+found[1])

@pytest.mark.parametrize('seed', range(20))
def test_views_are_resized_slices(seed):
    g, x = rng('view', seed), torch.randn(2, 3, 24, 24, generator=rng(seed))
    h, w = torch.randint(1, 25, (2,), generator=g).tolist()
    t, l = int(torch.randint(25-h, (1,), generator=g)), int(torch.randint(25-w, (1,), generator=g))
    dy, dx, flip = *torch.randint(-5, 6, (2,), generator=g).tolist(), bool(seed%2)
    want = F.interpolate(x[:, :, t:t+h, l:l+w], (24, 24), mode='bilinear')
    want = (want.flip(3) if flip else want).roll((dy, dx), (2, 3))
    torch.testing.assert_close(view_batch(x, (t, l, h, w), flip, (dy, dx)), want, rtol=1e-4, atol=1e-4)

def course(t, **kw):
    "Losses at every step, and the images"
    seen = []
    end = recover(t, start(size=t.size), torch.arange(10), watch=lambda i, x, ce, bn: seen.append((float(ce), float(bn))), **kw)
    return torch.tensor(seen), end

def right(t, x): return float((predict(t.model, t.normalize(t.denormalize(x)), precision='float32').argmax(1)==torch.arange(10)).float().mean())

@pytest.mark.parametrize('arch,iterations', [(lambda: ConvNet(10, 3, 16, 32), 60), ('convnet3', 30), pytest.param('resnet18', 10, marks=pytest.mark.slow)])
def test_the_loss_falls(arch, iterations):
    t = settled(arch)
    seen, end = course(t, iterations=iterations, precision='float32')
    total = seen[:, 0]+.01*seen[:, 1]
    assert len(seen)==iterations and total[-3:].mean()<.7*total[0]
    lo, hi = [((v-torch.tensor(t.mean))/torch.tensor(t.std)).view(3, 1, 1) for v in (0., 1.)]
    assert (end>=lo-1e-5).all() and (end<=hi+1e-5).all()

@pytest.mark.parametrize('arch,iterations,least', [(lambda: ConvNet(10, 3, 16, 32), 60, .9), ('convnet3', 30, .9), pytest.param('resnet18', 10, .5, marks=pytest.mark.slow)])   # chance: .1
def test_images_are_recognised_and_their_noise_is_not(arch, iterations, least):
    t = settled(arch)                                       # random weights: a small weight of the statistics, which dwarf the classes otherwise
    end = course(t, iterations=iterations, precision='float32', bn_weight=1e-4)[1]
    assert right(t, end)>=least and right(t, start())<=.3

def test_statistics_alone_come_nearer(teacher):
    seen = course(teacher, iterations=60, precision='float32', bn_weight=1.)[0][:, 1]
    assert seen[-3:].mean()<.5*seen[0]

@pytest.mark.parametrize('arch', ('mobilenet_v2', 'efficientnet_b0', 'densenet121', 'vgg11_bn'))
def test_other_networks_with_batchnorm(arch):
    t = made(get_model(arch, 10, 32))
    with watch_bn(t.model) as found, torch.no_grad(): t.model(start(2))
    assert len(found)==len(bn_layers(t.model))
    assert sre2l_images(t, 10, 1, iterations=1).shape==(10, 3, 32, 32)

def test_crops_and_mirrors_above_32_px():
    t = settled(lambda: ConvNet(10, 3, 8, 40), size=40)
    seen, _ = course(t, iterations=40, precision='float32', lr=.25, bn_weight=.01, shift=5)
    assert seen[-5:, 0].mean()<.8*seen[0, 0]
    a, b, c = [recover(t, start(size=40), torch.arange(10), iterations=12, **kw) for kw in ({}, dict(min_scale=.08, flip=True, shift=2, lr=.1, bn_weight=1.), dict(min_scale=1., flip=False))]
    assert torch.equal(a, b) and not torch.equal(a, c)

@pytest.mark.parametrize('change', [dict(lr=.1), dict(bn_weight=1.), dict(first_bn=1.), dict(min_scale=.5), dict(shift=1), dict(flip=True), dict(precision='bfloat16'), dict(seed=1), dict(iterations=4)])
def test_every_setting_counts(teacher, change):
    run = lambda **kw: recover(teacher, start(), torch.arange(10), **{**dict(iterations=5, precision='float32'), **kw})
    assert not torch.equal(run(), run(**change)) and torch.equal(run(), run())

def test_same_seed_same_bytes_whatever_the_global_state(teacher):
    run = lambda seed: sre2l_images(teacher, 10, 3, seed=seed, batch=20, iterations=3)
    torch.manual_seed(1); a = run(0)
    torch.manual_seed(2); state = torch.get_rng_state(); b = run(0)
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), state) and not torch.equal(a, run(1))
    assert torch.equal(a, sre2l_images(teacher, 10, 3, 0, 3, batch=20))               # seed and iterations may be given by place
    assert a.shape==(30, 3, 32, 32) and a.dtype==torch.uint8 and len({im.numpy().tobytes() for im in a})==30

def test_classes_are_in_order(teacher):
    y = torch.arange(10).repeat_interleave(2)
    ims = sre2l_images(teacher, 10, 2, batch=10, iterations=60, precision='float32')
    assert (predict(teacher.model, teacher.normalize(ims), precision='float32').argmax(1)==y).float().mean()>=.9

@pytest.mark.parametrize('n,ipc,batch', [(10, 1, 100), (10, 15, 100), (10, 50, 100), (7, 5, 3), (100, 3, 100), (250, 2, 100), (3, 4, 1)])
def test_batches_hold_every_image_once_and_are_even(n, ipc, batch):
    parts = sre2l_batches(n, ipc, batch)
    assert sorted(torch.cat(parts).tolist())==list(range(n*ipc)) and max(map(len, parts))<=max(batch, 1)
    if n<=batch:
        for p in parts: assert (torch.bincount(p//ipc, minlength=n)==len(p)//n).all()        # all classes alike
    assert max(map(len, parts))-min(map(len, parts))<=max(n, 1)

class Stop(Exception): pass

def test_teacher_is_left_as_it_was(teacher):
    t = replace_model(teacher)
    t.model[0][0].weight.requires_grad_(False)
    before, flags = deepcopy(t.model.state_dict()), [p.requires_grad for p in t.model.parameters()]
    def stop(i, *args):
        assert not any(p.requires_grad for p in t.model.parameters())
        if i==2: raise Stop
    with torch.no_grad(): sre2l_images(t, 10, 1, iterations=3)
    with pytest.raises(Stop): recover(t, start(), torch.arange(10), iterations=5, watch=stop)
    assert all(torch.equal(v, before[k]) for k,v in t.model.state_dict().items())
    assert [p.requires_grad for p in t.model.parameters()]==flags and all(p.grad is None for p in t.model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks or m.training for m in t.model.modules())

def replace_model(t): return made(deepcopy(t.model))

def test_what_cannot_be_done_is_refused(teacher):
    y = torch.arange(10)
    for arch in ('vgg11', 'swin_v2_t', 'vit_b_32'):
        with pytest.raises(TeacherError, match='without BatchNorm.*accepts.*resnet18'): sre2l_images(made(get_model(arch, 10, 32)), 10, 1, iterations=1)
    with pytest.raises(TeacherError, match='without BatchNorm'): bn_layers(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
    for kw in (dict(iterations=0), dict(iterations=2.5), dict(lr=0), dict(lr=float('inf')), dict(lr='fast'), dict(bn_weight=-1), dict(first_bn=float('nan')), dict(min_scale=0), dict(min_scale=2), dict(shift=-1)):
        with pytest.raises(InfoUtilError, match=f'{list(kw)[0]} came as .* accepted'): sre2l_images(teacher, 10, 1, **kw)
    for kw in (dict(ipc=0), dict(ipc=1, batch=0)):
        with pytest.raises(InfoUtilError, match='whole number from 1 up'): sre2l_images(teacher, 10, **kw)
    with pytest.raises(TeacherError, match='knows 10'): sre2l_images(teacher, 9, 1)
    with pytest.raises(InfoUtilError, match='eval'): recover(Teacher(deepcopy(teacher.model).train(), 'x', teacher.classes, 32, teacher.mean, teacher.std), start(), y)
    broken = replace_model(teacher); nn.init.constant_(broken.model[0][0].bias, float('nan'))
    with pytest.raises(TeacherError, match='NaN'): sre2l_images(broken, 10, 1, iterations=2)

def test_a_set_of_them_is_stored_like_any_other(teacher, tmp_path):
    ims, origin = sre2l_images(teacher, 10, 2, iterations=2), sre2l_provenance(10, 2, 32, torch.arange(20.))
    ds = DistilledSet(ims, torch.arange(10).repeat_interleave(2), teacher.classes, meta=dict(method='sre2l', mean=teacher.mean, std=teacher.std), provenance=origin)
    ds.save(tmp_path/'set')
    back = DistilledSet.load(tmp_path/'set')
    assert torch.equal(back.images, ims) and back.provenance==origin and origin[7]==dict(image=7, tile=0, source='noise, class 3', box=[0, 0, 32, 32], score=7., maps=None)
    assert [p['score'] for p in sre2l_provenance(2, 2, 8)]==[0.]*4
