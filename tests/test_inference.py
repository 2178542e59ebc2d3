"Fast copies of networks against the networks themselves, and passes that fit in memory"
import gc, weakref
import pytest, torch, torchvision
from copy import deepcopy
from torch import nn
from infoutil.basics import *
from infoutil.fixtures.toys import toy_batch, toy_model
from infoutil.engine.fast_copies import fast_copy, FastCopy, made_copies
from infoutil.engine.memory import in_chunks, memory_free
from infoutil.models import get_model

def lively(m, seed=0):
    "Running statistics and scales that a network could have after training"
    with seeded(seed, 'lively'):
        for b in m.modules():
            if isinstance(b, nn.BatchNorm2d):
                b.running_mean.normal_(0, .1)
                b.running_var.uniform_(.5, 1.5)
                if b.affine:
                    b.weight.data.uniform_(.5, 1.5)
                    b.bias.data.normal_(0, .1)
    return m.eval()

def network(arch, size=64):
    with seeded(1):
        if arch=='vit':
            m = torchvision.models.VisionTransformer(size, 8, 2, 2, 32, 64, num_classes=10)
            nn.init.normal_(m.heads[0].weight)               # zero by default
            return m.eval()
        if arch=='vgg11_bn':                                 # without its 120 million weights behind the convolutions
            layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs['A'], batch_norm=True)
            return lively(nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)))
        return lively(get_model(arch, 10, size))

def images(n=2, size=64, seed=0): return torch.randn(n, 3, size, size, generator=rng(seed, 'images'))

def left(f, x): return sum(isinstance(m, nn.BatchNorm2d) for m in f.net(f.how(x)).modules())

@pytest.mark.parametrize('arch,how,norms', [
    ('convnet3', 'folded', 0), ('resnet18', 'folded', 0), ('mobilenet_v2', 'folded', 0),
    ('efficientnet_b0', 'folded', 0), ('densenet121', 'folded', 62), ('vgg11_bn', 'folded', 0),
    ('googlenet', 'folded', 0), ('shufflenet_v2_x1_0', 'folded', 0), ('vit', 'folded', 0)])
def test_a_copy_differs_by_rounding_only(arch, how, norms):
    net, x = network(arch), images()
    before = {k: (v.clone(), v.stride()) for k,v in net.state_dict().items()}
    f = fast_copy(net)
    with torch.no_grad(): want = net(x)
    assert f.how(x)==how and left(f, x)==norms
    assert float((f(x)-want).abs().max()/want.abs().max())<1e-5
    assert not f(x).requires_grad and not f(x).is_inference()
    low = fast_copy(net, 'bfloat16')(x)
    assert low.dtype==torch.float32 and 0<float((low-want).abs().max()/want.abs().max())<.1
    assert all(torch.equal(v, before[k][0]) and v.stride()==before[k][1] for k,v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters()) and not net.training

class Wild(nn.Module):
    "What folding must see: shared modules, a convolution read twice, no statistics, no scale, a weight that is used"
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.bn = nn.BatchNorm2d(4, affine=kind!='no scale', track_running_stats=kind!='no statistics')
        self.bn2 = nn.BatchNorm2d(4)
        self.alias, self.scale = self.bn, 1.
    def forward(self, x):
        z, k = self.a(x), self.kind
        if k=='shared norm':        z = self.bn(self.b(self.bn(z)))
        elif k=='alias':            z = self.alias(self.b(self.bn(z)))
        elif k=='shared conv':      z = self.bn(self.b(z))+self.bn2(self.b(z+1))
        elif k=='read twice':       z = self.bn(z)+z
        elif k=='weight':           z = self.bn(z)+nn.functional.conv2d(x, self.a.weight, padding=1)
        elif k=='branches':         z = self.bn(z) if x.sum()>0 else self.bn2(z)
        elif k=='flag':             z = self.bn(z)*self.scale
        elif k=='view':             z = self.bn(z).view(len(x), -1)[..., None, None]
        else:                       z = self.bn(z)
        return z.relu().mean((2, 3))

@pytest.mark.parametrize('kind', ['plain', 'shared norm', 'alias', 'shared conv', 'read twice', 'weight',
                                  'no statistics', 'no scale', 'branches', 'flag', 'view'])
def test_what_folding_must_not_break(kind):
    net = Wild(kind).eval()
    if kind!='no statistics': lively(net)
    for s in (1., -1.):                                       # both sides of a branch
        x = s*images(4, 16).abs()
        with torch.no_grad(): want = net(x)
        torch.testing.assert_close(fast_copy(net)(x), want, rtol=1e-5, atol=1e-6)
    how = {'weight': 'channels last', 'branches': 'channels last', 'view': 'as it is'}.get(kind, 'folded')
    norms = (kind not in ('plain', 'no scale', 'flag'))+(kind=='shared conv')
    assert fast_copy(net).how(x)==how and (how!='folded' or left(fast_copy(net), x)==norms)
    if kind=='flag':
        net.scale = 5.
        torch.testing.assert_close(fast_copy(net)(x), 5*want, rtol=1e-5, atol=1e-6)

def test_hooks_and_functions_are_called_as_they_are():
    net, x, seen = lively(toy_model()), toy_batch(4)[0], []
    net[0].register_forward_hook(lambda m, i, o: seen.append(len(o)))
    f = fast_copy(net)
    assert f.how(x)=='as it is'
    torch.testing.assert_close(f(x), net(x).detach(), rtol=1e-5, atol=1e-6)
    assert seen==[4, 4]
    g = fast_copy(lambda z: z.sum((2, 3)))
    assert torch.equal(g(x), x.sum((2, 3))) and g.how(x)=='as it is' and device_of(g).type=='cpu'
    odd = lively(toy_model())
    odd.forward = lambda z: z.mean((2, 3))
    assert torch.equal(fast_copy(odd)(x), x.mean((2, 3)))
    assert isinstance(fast_copy(net), FastCopy)
    with pytest.raises(InfoUtilError, match='eval'): fast_copy(toy_model().train())

@pytest.mark.parametrize('change', ['data', 'step', 'buffer', 'swap', 'load', 'move', 'sign'])
def test_a_changed_network_gets_a_new_copy(change):
    net, x = lively(toy_model()), toy_batch(4)[0]
    old = fast_copy(net)(x)
    if change=='data': net[4].weight.data.mul_(1.5)                            # no version counter moves
    if change=='sign': net[4].weight.data.neg_()
    if change=='buffer': net[1].running_var.mul_(2.)
    if change=='swap': net[9] = nn.Linear(32, 4).eval()
    if change=='load': net.load_state_dict(lively(toy_model(seed=3), 3).state_dict())
    if change=='move': net[4].weight = nn.Parameter(net[4].weight.detach().flip(0))
    if change=='step':
        net.train()
        opt = torch.optim.SGD(net.parameters(), 1.)
        net(x).pow(2).sum().backward()
        opt.step()
        net.eval()
    new = fast_copy(net)(x)
    assert not torch.allclose(new, old, rtol=1e-3)
    torch.testing.assert_close(new, net(x).detach(), rtol=1e-5, atol=1e-6)

class Settings: scale = 1.

class Odd(nn.Module):
    "A network that asks for attributes of every kind, of which torch knows none"
    def __init__(self, **own):
        super().__init__()
        self.body = lively(toy_model())
        self.__dict__.update(own)
    def forward(self, x):
        z, own = self.body(x), vars(self)
        if 'seen' in own: self.seen += 1
        if 'mean' in own: z = self.body(x-self.mean)
        for k in ('config', 'pair'): z = z*own[k][0] if k in own else z
        if 'settings' in own: z = z*self.settings.scale
        if 'act' in own: z = self.act(z)
        return z+self.others[0](x) if 'others' in own else z

def grow(m): m.settings.scale = 3.
ODD = {'tensor': (dict(mean=torch.tensor(0.)), lambda m: setattr(m, 'mean', torch.tensor(2.))),
       'tensor in place': (dict(mean=torch.tensor(0.)), lambda m: m.mean.data.add_(2.)),
       'dictionary': (dict(config={0: 1.}), lambda m: m.config.update({0: 3.})),
       'list': (dict(pair=[1., 2.]), lambda m: m.pair.reverse()),
       'object': (dict(settings=Settings()), grow),
       'function': (dict(act=torch.sigmoid), lambda m: setattr(m, 'act', torch.tanh)),
       'hidden network': (dict(others=[lively(toy_model(seed=3))]), lambda m: m.others[0][4].weight.data.mul_(3)),
       'code': (dict(), lambda m: setattr(type(m), 'forward', lambda self, x: self.body(x)*3))}

@pytest.mark.parametrize('kind', ODD)
def test_a_copy_heeds_attributes_of_every_kind(kind):
    own, change = ODD[kind]
    net, x = type('Odd', (Odd,), {})(**own).eval(), toy_batch(4)[0]
    old, first = fast_copy(net)(x), fast_copy(net).how(x)
    change(net)
    new = fast_copy(net)(x)
    assert not torch.allclose(new, old, rtol=1e-3) and first==('as it is' if kind=='hidden network' else 'folded')
    torch.testing.assert_close(new, net(x).detach(), rtol=1e-5, atol=1e-6)

def test_a_network_that_changes_itself_is_called_as_it_is():
    net, x = Odd(seen=0).eval(), toy_batch(4)[0]
    f = fast_copy(net)
    assert f.how(x)=='as it is'
    torch.testing.assert_close(f(x), net(x).detach(), rtol=1e-5, atol=1e-6)
    seen, kept = net.seen, made_copies[net]
    fast_copy(net)(x)
    assert net.seen==seen+1 and made_copies[net] is kept            # no copy is tried again

def test_outputs_that_are_no_logits():
    x = toy_batch(3)[0]
    makes = (lambda z: dict(logits=z), lambda z: (z, z), lambda z: z[:, 0], lambda z: z[:1], lambda z: z>0,
             lambda z: None)
    for out in makes:
        net = toy_model()
        inner = net.forward
        net.forward = lambda x, out=out: out(inner(x))
        with pytest.raises(InfoUtilError, match='logits of shape .n, classes. are accepted; wrap it'): fast_copy(net)(x)

def test_a_copy_goes_with_its_model():
    net, x = lively(toy_model()), toy_batch(4)[0]
    fast_copy(net)(x)
    fast_copy(net, 'bfloat16')(x)
    assert fast_copy(net)._parts[1] is made_copies[net]
    last = weakref.ref(made_copies[net])
    del net
    gc.collect()
    assert last() is None

def test_sizes_types_and_empty_batches():
    net = lively(toy_model())
    last = toy_batch(3)[0].contiguous(memory_format=torch.channels_last)
    for x in (toy_batch(1)[0], toy_batch(5, 32)[0], last, toy_batch(6)[0][::2], toy_batch(2)[0][:0]):
        torch.testing.assert_close(fast_copy(net)(x), net(x).detach(), rtol=1e-5, atol=1e-6)
    two = deepcopy(net).double()
    torch.testing.assert_close(fast_copy(two)(x.double()), two(x.double()).detach(), rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError): fast_copy(net)(torch.zeros(2, 5, 8, 8))    # the network's own complaint

def test_memory_that_runs_out():
    ran = []
    def fn(rows):
        if rows.stop-rows.start>room:
            raise RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes")
        ran.append(rows)
        return list(range(100))[rows]
    for room,chunk in ((1, 5), (3, 64), (7, 7), (100, 6)):
        ran.clear()
        assert sum(in_chunks(fn, 20, chunk), [])==list(range(20))
        assert [r.start for r in ran]==[0]+[r.stop for r in ran[:-1]]                # nothing twice, nothing missed
    room = 0
    with pytest.raises(BudgetError, match='memory ran out with 1 rows'): in_chunks(fn, 20, 5)
    room = 3
    with pytest.raises(BudgetError, match='room for 4'): in_chunks(fn, 20, 16, least=4)
    def wrong(rows): raise RuntimeError('view')
    with pytest.raises(RuntimeError, match='view'): in_chunks(wrong, 3, 2)
    assert 0<memory_free('cpu')<2**50
