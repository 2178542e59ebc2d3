"Exact gradient norms against one backward pass an image; memory, chunks, kept plans, rules and scores of one's own"
import gc, json, re, warnings, weakref
from pathlib import Path
import pytest, torch
from torch import nn
from infoutil import gradient_norms
from infoutil.basics import BudgetError, InfoUtilError, seeded
from infoutil.fixtures.toys import toy_batch, toy_model
from infoutil.engine import gradient_pass, gradient_plan
from infoutil.engine.gradient_plan import kept_plans
from infoutil.engine.gradient_rules import linear_sq, norm_rule, row_sq, RULES
from infoutil.gradient_norms import el2n_scores, grad_norms, loss_scores, SCORES
from infoutil.models import get_model

root = Path(__file__).parents[1]

def batch(size, n=3):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=g), torch.tensor([0, 1, 2])

def loop(model, x, y):
    "The definition, by autograd"
    out = []
    for xi, yi in zip(x, y):
        loss = torch.nn.functional.cross_entropy(model(xi[None]), yi[None])
        gs = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        out.append(sum((g.double()**2).sum() for g in gs if g is not None).sqrt())
    return torch.stack(out)

NETWORKS = [('convnet3', 32), ('convnet4', 32), ('resnet18', 32), ('resnet18', 80), ('resnet50', 32),
            ('mobilenet_v2', 32), ('vgg11', 32), ('swin_v2_t', 32), ('vit_b_32', 32), ('convnext_tiny', 32),
            ('efficientnet_b0', 32), ('densenet121', 32), ('shufflenet_v2_x0_5', 32), ('regnet_y_400mf', 32),
            ('squeezenet1_1', 32)]

LARGE = {'resnet50', 'vgg11', 'vit_b_32', 'regnet_y_400mf', 'swin_v2_t'}       # whose kinds of layers the others have too

@pytest.mark.parametrize('arch,size', [pytest.param(*n, marks=[pytest.mark.slow]*(n[0] in LARGE)) for n in NETWORKS])
def test_equals_autograd(arch, size):
    with seeded(1): m = get_model(arch, 4, size)
    for p in m.modules():
        if not isinstance(p, torch.nn.BatchNorm2d): continue
        torch.nn.init.uniform_(p.running_var, .5, 2)
        torch.nn.init.normal_(p.running_mean, 0, .1)
    m = m.double().eval()
    x, y = batch(size)
    x = x.double()
    before = {k:v.clone() for k,v in m.state_dict().items()}
    want = loop(m, x, y)
    torch.testing.assert_close(grad_norms(m, x, y).double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_norms(m, x, y, chunk=1).double(), want, rtol=1e-6, atol=0)
    assert all(torch.equal(v, before[k]) for k,v in m.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in m.parameters())

def test_cheap_scores():
    with seeded(1): m = get_model('convnet3', 4, 32).eval()
    x, y = batch(32)
    z = m(x).detach()
    torch.testing.assert_close(loss_scores(m, x, y, chunk=1), torch.nn.functional.cross_entropy(z, y, reduction='none'))
    torch.testing.assert_close(el2n_scores(m, x, y), (z.softmax(1)-torch.eye(4)[y]).norm(dim=1))

class Watched(nn.Module):
    "Notes the size of every batch; raises what a GPU raises when one is larger than `room`"
    def __init__(self, body, room=10**9, error=torch.OutOfMemoryError):
        super().__init__()
        self.body, self.error, self.notes = body, error, [room]
    def forward(self, x):
        self.notes.append(len(x))
        if len(x)>self.notes[0]: raise self.error('CUDA out of memory. Tried to allocate 2.00 GiB')
        return self.body(x)

class Token(nn.Module):
    "A layer that vmap cannot run, around a parameter without a rule"
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(3, 1, 1))
    def forward(self, x): return x+self.shift*float(self.shift.detach().sum().item()>0)

@pytest.mark.parametrize('body', [toy_model(), nn.Sequential(Token(), toy_model()).eval()])
@pytest.mark.parametrize('error', [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves(body, error):
    x, y = toy_batch(23)
    want, m = grad_norms(body, x, y, method='loop'), Watched(body, 5, error).eval()
    torch.testing.assert_close(grad_norms(m, x, y), want, rtol=1e-5, atol=0)
    assert max(n for n in m.notes[1:] if n<=5)>=2, 'one by one is not halving'
    assert not any(len(k._forward_hooks)+len(k._forward_pre_hooks) for k in m.modules())
    assert all(p.requires_grad for p in m.parameters())
    for f in (loss_scores, el2n_scores): torch.testing.assert_close(f(m, x, y), f(body, x, y), rtol=1e-5, atol=0)

class Rooted(nn.Module):
    "A parameter that only the network as a whole holds: everything goes through vmap"
    def __init__(self):
        super().__init__()
        self.body, self.mix = toy_model(), nn.Parameter(torch.eye(4))
    def forward(self, x): return self.body(x)@self.mix.tanh()

@pytest.mark.parametrize('net', [lambda: nn.Sequential(Watched(toy_model()), nn.PReLU(init=.1)), Rooted])
def test_out_of_memory_of_a_general_way(monkeypatch, net):
    "vmap may run out of memory as well: the answer is a smaller pass, not one image at a time"
    with seeded(6): m = net().eval()
    (x, y), sizes, real = toy_batch(16), [], torch.func.vmap
    want = grad_norms(m, x, y, method='loop')
    def tight(f):
        def run(*a):
            sizes.append(len(a[-1]))
            if sizes[-1]>3: raise torch.OutOfMemoryError('CUDA out of memory')
            return real(f)(*a)
        return run
    for mod in (gradient_norms, gradient_pass): monkeypatch.setattr(mod, 'vmap', tight)
    torch.testing.assert_close(grad_norms(m, x, y), want, rtol=1e-5, atol=0)
    assert sizes[-1]>1 and sizes[-1]<=3 and sum(n for n in sizes if n<=3)>=16

def test_too_little_memory():
    for room in (0, 1):
        m = Watched(toy_model(), room).eval()
        with pytest.raises(BudgetError, match='memory ran out.*accepted; free memory'): grad_norms(m, *toy_batch(4))

def test_chunk_fits_memory(monkeypatch):
    x, y = toy_batch(64)
    m = Watched(toy_model()).eval()
    want = grad_norms(m, x, y)
    assert max(m.notes[1:])==32
    monkeypatch.setattr(gradient_pass, 'memory_free', lambda device: 10**6)
    monkeypatch.setattr(gradient_pass, 'SMALL', 0)
    m.notes[1:] = []
    torch.testing.assert_close(grad_norms(m, x, y), want, rtol=1e-6, atol=0)
    assert 2<=max(m.notes[1:])<32
    m.notes[1:] = []
    grad_norms(m, x, y, chunk=64)                                  # the user's own size stays
    assert m.notes[1:]==[64]

@pytest.mark.parametrize('arch,size', [('convnet3', 32), ('resnet18', 32), pytest.param('mobilenet_v2', 32, marks=pytest.mark.slow)])
def test_chunk_changes_nothing(arch, size):
    """The company an image keeps moves no score by more than rounding, on any processor. Matrix-vector and
    matrix-matrix kernels round apart, and a ReLU whose input is rounding noise may then fall on its other side:
    hence 1e-5 for logits and losses, 1e-3 for norms in float32; in float64, where no ReLU is that near to 0,
    norms keep nine digits"""
    with seeded(1): m = Watched(get_model(arch, 4, size)).eval()
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(5, 3, size, size, generator=g), torch.randint(4, (5,), generator=g)
    logits = lambda chunk: torch.cat([m(s).detach() for s in x.split(chunk)])
    z = logits(5)
    m.notes[1:] = []                                               # an attribute: another one makes another plan
    norms, losses = grad_norms(m, x, y, chunk=5), loss_scores(m, x, y, chunk=5)
    scale = float(z.abs().max())
    for chunk in (2, 3, 4, None):
        m.notes[1:] = []
        torch.testing.assert_close(grad_norms(m, x, y, chunk=chunk), norms, rtol=1e-3, atol=0)
        assert min(m.notes[1:])>=2                             # 5 = 4 + 1: the last one runs beside its neighbour
        torch.testing.assert_close(loss_scores(m, x, y, chunk=chunk), losses, rtol=1e-5, atol=1e-5*scale)
        if chunk: torch.testing.assert_close(logits(chunk), z, rtol=1e-5, atol=1e-5*scale)
    m, x, y = m.double(), x[:5].double(), y[:5]
    torch.testing.assert_close(grad_norms(m, x, y, chunk=2), grad_norms(m, x, y, chunk=5), rtol=1e-9, atol=0)

def count_plans(monkeypatch):
    made, make = [], gradient_plan.make_plan
    monkeypatch.setattr(gradient_plan, 'make_plan', lambda *a: made.append(1) or make(*a))
    return made

def twice(m): m.again = True
def hook(m): m.body[0].register_forward_hook(lambda m, a, out: out*2)
def layer(m): m.body[4] = nn.Conv2d(8, 8, 3, padding=1)
def tie(m): m.body[4].weight = m.other.weight
def add(m): m.extra = nn.Parameter(torch.ones(4))
def step(m): m.body[0].weight.data = m.body[0].weight.data*2
def inplace(m):
    with torch.no_grad(): m.body[0].weight.mul_(2)
def freeze(m): m.body[0].weight = nn.Parameter(m.body[0].weight.detach().clone())
def mine(m):
    m.body[4].forward = lambda x: nn.functional.conv2d(x, m.body[4].weight*m.other.weight, padding=1)

class Changing(nn.Module):
    "A network that can be changed in many ways after its plan has been made"
    def __init__(self):
        super().__init__()
        self.body, self.other = toy_model(), nn.Conv2d(8, 8, 3, padding=1)
        self.again, self.extra = False, None
    def forward(self, x):
        h = self.body[:4](x)+self.other(self.body[:4](x)) if self.again else self.body[:4](x)
        z = self.body[4:](h+self.other(h))
        return z if self.extra is None else z*self.extra

@pytest.mark.parametrize('change', [twice, hook, layer, tie, add, step, inplace, freeze, mine])
def test_plan_is_made_again_after_a_change(monkeypatch, change):
    made, (x, y) = count_plans(monkeypatch), toy_batch(6)
    with seeded(3): m = Changing().eval()
    grad_norms(m, x, y)
    n = len(made)
    grad_norms(m, x, y)
    grad_norms(m, x[:3], y[:3])
    assert len(made)==n, 'a plan is made once'
    with seeded(4): change(m)
    m.eval()
    torch.testing.assert_close(grad_norms(m, x, y), grad_norms(m, x, y, method='loop'), rtol=1e-5, atol=0)
    assert len(made)>n

def test_plan_is_made_for_a_kind_of_images(monkeypatch):
    made, m = count_plans(monkeypatch), toy_model()
    for i,size in enumerate((16, 24)):
        x, y = toy_batch(4, size)
        torch.testing.assert_close(grad_norms(m, x, y), grad_norms(m, x, y, method='loop'), rtol=1e-5, atol=0)
        assert len(made)==i+1

def test_plan_does_not_keep_the_model():
    m = Changing().eval()
    grad_norms(m, *toy_batch(4))
    gone = weakref.ref(m)
    del m
    gc.collect()
    assert gone() is None

class Views(nn.Module):
    "Cannot run channels-last"
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8*16*16, 4)
    def forward(self, x): return self.head(self.conv(x).view(len(x), -1))

def test_network_that_needs_its_layout():
    with seeded(5): m = Views().eval()
    x, y = toy_batch(6)
    want = grad_norms(m, x, y, method='loop')
    for method in ('auto', 'closed'):
        torch.testing.assert_close(grad_norms(m, x, y, method=method), want, rtol=1e-5, atol=0)

def test_bad_label_anywhere():
    x, y = toy_batch(6)
    y[5] = 4
    for _ in range(2):                                             # before and after the plan is kept
        with pytest.raises(InfoUtilError, match='class order'): grad_norms(m := toy_model(), x, y)
    grad_norms(m, x[:4], y[:4])
    with pytest.raises(InfoUtilError, match='class order'): grad_norms(m, x, y)

class Wrapped(nn.Module):
    "A network in a wrapper that changes what comes out"
    def __init__(self, change):
        super().__init__()
        self.body, self.change = toy_model(), change
    def forward(self, x): return self.change(self.body(x))

@pytest.mark.parametrize('method', ['auto', 'vmap', 'loop'])
def test_gradients_of_the_caller_are_left_alone(method):
    "Those of images that want one, and of a tensor that is no parameter"
    x, y = toy_batch(4)
    m = Wrapped(lambda z: z*m.scale).eval()
    m.scale = torch.ones(4, requires_grad=True)
    want, x = grad_norms(toy_model(), x, y), x.requires_grad_()
    got = grad_norms(m, x, y, method=method)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    assert not got.requires_grad and x.grad is None and m.scale.grad is None
    assert m.scale.requires_grad and x.requires_grad

@pytest.mark.parametrize('make', [torch.jit.script, lambda m: torch.jit.trace(m, toy_batch(2)[0]),
                                  lambda m: nn.Sequential(torch.jit.script(m), nn.Linear(4, 4)).eval()])
@pytest.mark.filterwarnings('ignore')
def test_scripted_networks(make):
    m, (x, y) = make(toy_model()), toy_batch(5)
    for _ in range(3):                                            # a script is rewritten after its first runs
        torch.testing.assert_close(grad_norms(m, x, y), grad_norms(m, x, y, method='loop'), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad_norms(m, x, y).double(), loop(m, x, y), rtol=1e-5, atol=0)

class Waves(nn.Module):
    "Complex parameters: of a layer, and bare"
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.mix = nn.Linear(8, 8, dtype=torch.complex64)
        self.turn = nn.Parameter(torch.randn(1, 8, dtype=torch.complex64))
    def forward(self, x):
        z = self.mix(self.conv(x).relu().mean((2, 3))*self.turn)
        return self.head((z*z).real+z.imag)

@pytest.mark.filterwarnings('error')
def test_weight_norm_is_no_copy():
    "Its kernel fills the gradient of the first length alone: the others are what memory held, often 0, and once 1e37"
    x, y = batch(8)
    for norm in (nn.utils.parametrizations.weight_norm, nn.utils.weight_norm):
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter('ignore', FutureWarning)             # of the older one
            m = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).double().eval()
        torch.testing.assert_close(grad_norms(m, x.double(), y), grad_norms(m, x.double(), y, method='loop'), rtol=1e-7, atol=0)
        assert not [k for k,how in kept_plans[m][1].popitem()[1].routes().items() if how=='copy']

def test_hooks_of_weights_are_set_aside():
    "A training may mask gradients so; all weights count here, as frozen ones do"
    with seeded(0): m = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()
    x, y = batch(8)
    want = grad_norms(m, x.double(), y, method='loop')
    m[1].weight.register_hook(torch.zeros_like)
    for way in gradient_norms.WAYS: torch.testing.assert_close(grad_norms(m, x.double(), y, method=way), want, rtol=1e-7, atol=0)
    assert len(m[1].weight._backward_hooks)==1

def test_complex_parameters_count():
    with seeded(7): m = Waves().eval()
    x, y = toy_batch(5)
    want = []
    for xi, yi in zip(x, y):
        gs = torch.autograd.grad(nn.functional.cross_entropy(m(xi[None]), yi[None]), list(m.parameters()))
        want.append(sum((g.abs()**2).sum() for g in gs).sqrt())
    want = torch.stack(want)
    for method in ('auto', 'vmap', 'loop'):
        torch.testing.assert_close(grad_norms(m, x, y, method=method), want, rtol=1e-5, atol=0)

def test_what_gives_no_norm_is_said():
    x, y = toy_batch(4)
    for t in (torch.uint8, torch.int16):
        for f in (grad_norms, loss_scores, el2n_scores):
            with pytest.raises(InfoUtilError, match='type int64 are accepted'): f(toy_model(), x, y.to(t))
    m = Wrapped(lambda z: z>0).eval()
    with pytest.raises(InfoUtilError, match='torch.bool.*logits of shape'): grad_norms(m, x, y)
    with torch.inference_mode(): m = toy_model()
    with pytest.raises(InfoUtilError, match='outside torch.inference_mode'): grad_norms(m, x, y)

# -- torch's attention

def _self(at, t, i): return at(t, t, t, need_weights=False)[0], None
def _weights(at, t, i): return at(t, t, t)
def _heads(at, t, i): return at(t, t, t, average_attn_weights=False)
def _cross(at, t, i): return at(t, t.flip(-2), t.flip(-2), need_weights=False)[0], None
def _mask(at, t, i):
    mask = torch.eye(t.shape[i], dtype=torch.bool)
    return at(t, t, t, need_weights=False, attn_mask=mask)[0], None
def _twice(at, t, i):
    o = _self(at, t, i)[0]
    return _self(at, o, i)

class Attends(nn.Module):
    "Patches, one attention called in the way that `how` says, a linear layer"
    def __init__(self, how=_self, **kw):
        super().__init__()
        self.how, self.cut, self.head = how, nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 3)
        self.at = nn.MultiheadAttention(16, 4, **{'batch_first': True, **kw})
    def forward(self, x):
        t, i = self.cut(x).flatten(2).mT, int(self.at.batch_first)
        o, w = self.how(self.at, t if i else t.transpose(0, 1), i)
        if w is not None: o = o*(1+w.amax(-1).flatten(1)[:, :1, None])           # the weights count, too
        return self.head(o.mean(i))

CALLS = [(_self, {}, True), (_self, dict(bias=False), True), (_self, dict(batch_first=False), True),
         (_weights, {}, True), (_heads, {}, True), (_self, dict(dropout=.3), True),
         (_cross, {}, False), (_mask, {}, False), (_twice, {}, False), (_self, dict(add_bias_kv=True), False),
         (_self, dict(add_zero_attn=True), False), (_cross, dict(kdim=16, vdim=16), False)]

@pytest.mark.parametrize('how,kw,rule', CALLS, ids=lambda v: getattr(v, '__name__', str(v)))
def test_attention(how, kw, rule):
    with seeded(0): m = Attends(how, **kw).double().eval()
    for p in m.parameters(): nn.init.normal_(p, 0, .3, generator=torch.Generator().manual_seed(p.numel()))
    x, y = batch(16)
    x, was = x.double(), {k: dict(vars(s)) for k,s in m.named_modules()}
    got = grad_norms(m, x, y)
    assert torch.allclose(got, loop(m, x, y), rtol=1e-9)
    plan = next(iter(kept_plans[m][1].values()))
    assert (plan is not None and {'at', 'at.out_proj'}<=plan.rules.keys())==rule
    assert all(dict(vars(s))==was[k] for k,s in m.named_modules())                    # its forward is its own again
    m.float()
    assert torch.allclose(grad_norms(m, x.float(), y).double(), got, rtol=1e-5)

def hook_attention(a): a.register_forward_hook(lambda m, i, o: (2*o[0], o[1]))

def patch_attention(a):
    real = a.forward
    a.forward = lambda q, k, v, **kw: (3*real(q, k, v, **kw)[0], None)

@pytest.mark.parametrize('change', [hook_attention, patch_attention])
def test_a_hooked_or_patched_attention_is_replayed(change):
    with seeded(0): m = Attends().double().eval()
    x, y = batch(16)
    x = x.double()
    plain = grad_norms(m, x, y)
    change(m.at)
    got = grad_norms(m, x, y)
    assert torch.allclose(got, loop(m, x, y), rtol=1e-9) and not torch.allclose(got, plain, rtol=1e-2)

def test_attention_equals_autograd():
    from torchvision.models import VisionTransformer
    with seeded(3): m = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4).double().eval()
    torch.nn.init.normal_(m.heads.head.weight)
    x, y = batch(16)
    torch.testing.assert_close(grad_norms(m, x.double(), y).double(), loop(m, x.double(), y), rtol=1e-6, atol=0)

def test_vision_transformers_need_no_replay():
    with seeded(0): m = get_model('vit_b_32', 3, 32).eval()
    grad_norms(m, *batch(32))
    assert not next(iter(kept_plans[m][1].values())).replays

# -- rules and scores of one's own

class Tilt(nn.Module):
    "Channels times weights, plus the same weights"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3)+.5)
    def forward(self, x): return (x+1)*self.weight[:, None, None]

def right(m, a, g): return row_sq(((a+1)*g).sum((2, 3)))
def forgets(m, a, g): return row_sq((a*g).sum((2, 3)))
def raises(m, a, g): raise IndexError('no such thing')

@pytest.fixture
def tilted(monkeypatch):
    "A network with such a layer; rules that a test registers are forgotten after it"
    for k in list(RULES): monkeypatch.setitem(RULES, k, RULES[k])
    monkeypatch.setitem(RULES, Tilt, None)
    monkeypatch.delitem(RULES, Tilt)
    with seeded(8): return nn.Sequential(Tilt(), toy_model()).double().eval()

def routes(m): return next(iter(kept_plans[m][1].values())).routes()

def test_rule_of_ones_own(tilted):
    "It is used as soon as it is registered, also where a plan is kept, and spares the replay"
    x, y = toy_batch(5)
    x = x.double()
    want = loop(tilted, x, y)
    torch.testing.assert_close(grad_norms(tilted, x, y), want, rtol=1e-9, atol=0)
    assert routes(tilted)['0.weight']=='replay of 0'
    with pytest.raises(InfoUtilError, match='0.weight'): grad_norms(tilted, x, y, method='closed')
    norm_rule(Tilt)(right)
    for method in ('auto', 'closed'):
        torch.testing.assert_close(grad_norms(tilted, x, y, method=method), want, rtol=1e-9, atol=0)
    assert routes(tilted)['0']=='rule'

@pytest.mark.parametrize('sq', [forgets, raises])
def test_wrong_rules_give_right_norms(tilted, sq):
    x, y = toy_batch(5)
    x = x.double()
    norm_rule(Tilt)(right)
    want = grad_norms(tilted, x, y)
    norm_rule(Tilt)(sq)                                            # the kept plan must not be used with another rule
    torch.testing.assert_close(grad_norms(tilted, x, y), want, rtol=1e-9, atol=0)

def test_rules_that_cannot_be(tilted):
    norm_rule(Tilt)(lambda m, a, g: (a*g).sum())
    with pytest.raises(InfoUtilError, match=r'norm rule of Tilt returned \(\).*sum over all axes but the first'):
        grad_norms(tilted, toy_batch(4)[0].double(), toy_batch(4)[1])
    for wrong in (nn.Linear(2, 2), linear_sq, 'Linear'):
        with pytest.raises(InfoUtilError, match='write @norm_rule'): norm_rule(wrong)

def test_subclasses_inherit_no_rule(tilted):
    "A subclass may do something else in its forward"
    class Own(nn.Linear):
        def forward(self, x): return super().forward(x)*self.weight.sum()
    with seeded(9): m = nn.Sequential(toy_model(), Own(4, 4)).double().eval()
    x, y = toy_batch(4)
    torch.testing.assert_close(grad_norms(m, x.double(), y), loop(m, x.double(), y), rtol=1e-9, atol=0)
    assert routes(m)['1.weight']=='replay of 1'

def test_scores_take_the_same_arguments():
    x, y = toy_batch(5)
    for name, f in SCORES.items():
        s = f(toy_model(), x, y, chunk=2, precision='float32')
        assert s.shape==(5,) and s.dtype==torch.float32 and (s>=0).all(), name

def test_costs_quoted_are_those_measured():
    "The table of the page against the rows of the benchmark"
    page = json.loads((root/'nbs/05_gradient_norms.ipynb').read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in page['cells'])
    rows = json.loads((root/'results/speed/gradients.json').read_text(encoding='utf-8'))['rows']
    names = {'ConvNet-3': 'convnet3', 'ConvNet-4': 'convnet4', 'ResNet-18': 'resnet18', 'vision transformer': 'vit',
             'MobileNetV2': 'mobilenet_v2', 'parts without a rule': 'unruled'}
    for shown, network in names.items():
        cells = re.search(rf'^\| {shown},[^|]*\|(.*)\|$', text, re.M)[1].split('|')
        for cell, way in zip(cells, ('infoutil', 'infoutil, bfloat16', 'torch.func vmap')):
            mine = [r for r in rows if r['network']==network]
            found = [r['ratio'] for r in mine if r['way']==way or 'vmap' in way and way in r['way']]
            assert cell.strip()==(f'{found[0]:.2f}' if found else ''), (shown, way)


def test_vmap_says_what_it_cannot_do():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(12, 3)
        def forward(self, x): return self.last(x.flatten(1))*len(x.flatten().nonzero())
    m, x, y = Counting().eval(), torch.rand(3, 3, 2, 2)+.1, torch.arange(3)
    with pytest.raises(InfoUtilError, match="vmap cannot run this network .*'auto' and 'loop' take any"): grad_norms(m, x, y, method='vmap', chunk=1)
    torch.testing.assert_close(grad_norms(m, x, y, chunk=1), grad_norms(m, x, y, method='loop'))
