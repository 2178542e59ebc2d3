"Shapley estimators against brute force, closed forms, axioms and their own promises"
import math, itertools
import pytest, torch
from torch import nn
from infoutil.core import *
from infoutil.models import get_model
from infoutil.crop import informativeness
from infoutil.measure import measure
from infoutil.attribution import METHODS as ALL, all_masks, attribute, coalition_values, exact_shapley, grad_cam, shapley_values, show_only

METHODS = ALL[:-1]     # 'exact' takes no budget below all coalitions and is a test of its own

def by_definition(v, d):
    "Shapley values from the subset formula; `v` takes a frozenset"
    phi = []
    for i in range(d):
        rest = [j for j in range(d) if j!=i]
        phi.append(sum((v(frozenset(s)|{i})-v(frozenset(s)))*math.factorial(k)*math.factorial(d-k-1)/math.factorial(d)
                       for k in range(d) for s in itertools.combinations(rest, k)))
    return torch.tensor(phi, dtype=torch.float64)

class Game(nn.Module):
    "A game of patches as a model: an image of ones, each patch one pixel, looks its coalition up in a table"
    def __init__(self, table): super().__init__(); self.table = table
    def forward(self, x):
        code = ((x[:, 0].flatten(1)>.5).long()<<torch.arange(x[0, 0].numel())).sum(1)
        return self.table[code][:, None]

class Additive(nn.Module):
    "Adds the pixels up under weights; two classes"
    def __init__(self, w): super().__init__(); self.w, self.calls = w, 0
    def forward(self, x):
        self.calls += len(x)
        s = (x.double()*self.w).sum((1, 2, 3))
        return torch.stack([s, -2*s], 1)

def patch_sums(t, grid):
    "Sums over the patches of (h, w), borders at round(i*side/grid)"
    e = [[round(i*s/grid) for i in range(grid+1)] for s in t.shape]
    return torch.stack([torch.stack([t[a:b, c:d].sum() for c,d in zip(e[1], e[1][1:])]) for a,b in zip(e[0], e[0][1:])])

@pytest.mark.parametrize('seed,grid', [(s, g) for s in range(3) for g in (2, 3)])
def test_exact_is_the_subset_formula(seed, grid):
    d = grid*grid
    table = torch.randn(2**d, generator=rng(seed), dtype=torch.float64)
    x, y = torch.ones(1, 3, grid, grid), torch.tensor([0])
    want = by_definition(lambda s: float(table[sum(1<<i for i in s)]), d)
    for got in (exact_shapley(Game(table).eval(), x, y, grid), shapley_values(Game(table).eval(), x, y, grid, budget=2**d)):
        torch.testing.assert_close(got.flatten().double(), want, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('grid', [1, 2, 3, 4, 5, 7])
def test_additive_games_are_exact_at_the_least_budget(grid, method):
    w, x, y = torch.randn(3, 23, 17, generator=rng(1), dtype=torch.float64), torch.rand(3, 3, 23, 17, generator=rng(2)), torch.tensor([0, 1, 0])
    want = torch.stack([patch_sums((xi.double()*w).sum(0), grid)*(1, -2)[int(c)] for xi,c in zip(x, y)])
    least = min(2*grid**2, 2**grid**2)
    for budget in (least, least+1, least+9):
        model = Additive(w).eval()
        for seed in (0, 5):
            model.calls = 0
            got = shapley_values(model, x, y, grid, budget, seed=seed, method=method)
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
            assert model.calls<=budget*len(x)
    with pytest.raises(BudgetError, match=f'{least} or more'): shapley_values(model, x, y, grid, least-1, method=method)

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('output', ['logit', 'probability'])
def test_values_sum_to_the_whole_minus_the_hidden_image(method, output):
    (x, y), net = toy_batch(5, 20), toy_model()
    base = torch.rand(3, 1, 1)
    for grid,budget in ((2, 9), (3, 40), (4, 64), (5, 64), (7, 128)):
        for baseline in (None, base, torch.zeros(()), x.flip(0)):
            a = attribute(net, x, y, grid, budget, baseline, output, method=method)
            hidden = torch.zeros_like(x) if baseline is None else baseline.expand_as(x)
            read = lambda z: (net(z).softmax(1) if output=='probability' else net(z)).gather(1, y[:, None])[:, 0]
            torch.testing.assert_close(a.phi.sum((1, 2)), read(x)-read(hidden), rtol=1e-4, atol=1e-5)
            assert a.budget<=budget and a.phi.shape==(5, grid, grid) and a.phi.dtype==torch.float32

def test_order_two_games_are_exact_for_the_prior():
    d, g = 16, rng(3)
    a, b = torch.randn(d, generator=g).double(), torch.randn(d, d, generator=g).double().triu(1)
    m = all_masks(d).double()
    table = m@a+((m@b)*m).sum(1)
    got = shapley_values(Game(table).eval(), torch.ones(1, 3, 4, 4), torch.tensor([0]), budget=32).flatten().double()
    torch.testing.assert_close(got, a+(b+b.T).sum(1)/2, rtol=1e-4, atol=1e-5)

def test_neither_chunk_nor_neighbours_matter():
    (x, y), net = toy_batch(6, 16), toy_model()
    for method in METHODS:
        want = shapley_values(net, x, y, method=method)
        for chunk in (1, 5, 64, 500): torch.testing.assert_close(shapley_values(net, x, y, method=method, chunk=chunk), want, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.cat([shapley_values(net, x[i:i+1], y[i:i+1], method=method) for i in range(6)]), want)
        assert torch.equal(shapley_values(net, x, y, method=method), want)

def test_seeds_turn_the_design_and_a_turned_image_gets_a_turned_map():
    (x, y), net = toy_batch(2, 16), toy_model()
    maps = [shapley_values(net, x, y, budget=40, seed=s) for s in range(9)]
    assert torch.equal(maps[0], maps[8]) and not torch.equal(maps[0], maps[1])
    even = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 2)).eval()
    torch.testing.assert_close(*[shapley_values(even, x, y%2, seed=s) for s in (0, 6)], rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('grid', [2, 3, 4])
def test_the_design_is_nested_and_has_no_doubles(grid):
    from infoutil.attribution import _plan
    for budget in (2*grid**2, 60, 64, 200):
        for method in ('prior', 'kernel'):
            if 2*grid**2<=budget<2**grid**2:
                masks, solve = _plan(grid, budget, 2, method)
                assert len(masks.unique(dim=0))==len(masks)<=budget
                phi, _ = solve((masks.sum(1)==grid**2).double()[None])          # only the whole image is worth anything
                torch.testing.assert_close(phi.sum(1), torch.ones(1).double())

def test_accuracy_grows_with_the_budget_on_a_real_network():
    (x, y), net = toy_batch(4, 12, seed=5), toy_model(seed=2)
    exact = exact_shapley(net, x, y, grid=3)
    for method in METHODS:
        err = [float((shapley_values(net, x, y, 3, b, method=method)-exact).norm()/exact.norm()) for b in (18, 60, 250)]
        assert err[2]<=err[0] and err[2]<.15, (method, err)

def test_hidden_patches_of_any_size():
    x, masks = torch.rand(2, 3, 10, 7), torch.tensor([[1, 0, 0]*3, [0]*9, [1]*9]).bool()
    out = show_only(x, masks, 3)
    assert torch.equal(out[:, 2], x) and not out[:, 1].any()
    assert torch.equal(out[:, 0, :, :, :2], x[..., :2]) and not out[:, 0, :, :, 2:].any()
    assert torch.equal(show_only(x, masks, 3, torch.ones(3, 1, 1))[:, 1], torch.ones_like(x))

def test_nothing_is_changed():
    (x, y), net = toy_batch(3), toy_model()
    before, state, random = x.clone(), {k:v.clone() for k,v in net.state_dict().items()}, torch.get_rng_state()
    for method in METHODS: shapley_values(net, x, y, method=method)
    phi = shapley_values(net, x, y); grad_cam(net, x, y)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), random) and not phi.is_inference()
    assert all(torch.equal(v, state[k]) for k,v in net.state_dict().items()) and all(p.grad is None for p in net.parameters())

def test_bfloat16_stays_near():
    (x, y), net = toy_batch(4), toy_model()
    a, b = shapley_values(net, x, y), shapley_values(net, x, y, precision='bfloat16')
    assert 0<float((a-b).norm()/a.norm())<.1

def test_bad_input():
    (x, y), net = toy_batch(2), toy_model()
    with pytest.raises(InfoUtilError, match='NaN'): shapley_values(lambda z: net(z)*float('nan'), x, y)
    with pytest.raises(InfoUtilError, match='class order'): shapley_values(net, x, y+9)
    with pytest.raises(InfoUtilError, match='eval'): shapley_values(toy_model().train(), x, y)
    with pytest.raises(InfoUtilError, match='from 1 to 16'): shapley_values(net, x, y, grid=17)
    with pytest.raises(InfoUtilError, match='method'): shapley_values(net, x, y, method='lime')
    with pytest.raises(InfoUtilError, match='output'): shapley_values(net, x, y, output='loss')
    with pytest.raises(InfoUtilError, match='precision'): shapley_values(net, x, y, precision='half')
    with pytest.raises(BudgetError, match='use shapley_values'): exact_shapley(net, x, y, grid=5)
    assert shapley_values(net, x[:0], y[:0]).shape==(0, 4, 4)

def test_grad_cam_finds_the_layer_or_says_so():
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for arch in ('resnet18', 'vgg11', 'mobilenet_v2'):
        with seeded(0): net = get_model(arch, 2, 64).eval()
        cam = grad_cam(net, x, y)
        assert cam.shape==(2, 4, 4) and (cam>=0).all() and cam.isfinite().all()
        torch.testing.assert_close(grad_cam(net, x, y, chunk=1), cam, rtol=1e-3, atol=1e-5)
    with seeded(0): swin = get_model('swin_v2_t', 2, 64).eval()
    with pytest.raises(InfoUtilError, match='layer='): grad_cam(swin, x, y)

def test_grad_cam_by_hand():
    conv = nn.Conv2d(3, 1, 1, bias=False); conv.weight.data.fill_(1.)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    net[3].weight.data = torch.tensor([[64.], [-64.]])                      # 64 pixels: the gradient at each is 1, or -1
    x = torch.rand(1, 3, 8, 8)
    want = x.sum(1).view(1, 2, 4, 2, 4).mean((2, 4))
    torch.testing.assert_close(grad_cam(net, x, torch.tensor([0]), grid=2), want)
    assert not grad_cam(net, x, torch.tensor([1]), grid=2).any()

def test_shap_object_keeps_the_sum():
    (x, y), net = toy_batch(3, 19), toy_model()
    a = attribute(net, x, y, grid=4)
    e = a.to_shap(x)
    assert e.values.shape==e.data.shape==(3, 19, 19, 3)
    torch.testing.assert_close(torch.tensor(e.values.sum((1, 2, 3))+e.base_values).float(), a.full, rtol=1e-4, atol=1e-5)

def test_exact_by_name_is_exact():
    (x, y), net = toy_batch(3, 12), toy_model()
    for grid in (2, 3):
        a = attribute(net, x, y, grid, method='exact')
        torch.testing.assert_close(a.phi, exact_shapley(net, x, y, grid))
        assert a.budget==2**grid**2 and not a.std.any()
    with pytest.raises(BudgetError, match='65536 or more'): attribute(net, x, y, method='exact', budget=1000)
    with pytest.raises(BudgetError, match='up to 4'): attribute(net, x, y, 5, method='exact')

def test_the_budget_is_chosen_where_none_is_given():
    from infoutil.attribution import BUDGET, calls_for
    assert calls_for()==BUDGET and calls_for('exact')==2**16 and calls_for('prior', 7)==98 and calls_for('kernel', 4, 200)==200
    (x, y), net = toy_batch(2), toy_model()
    assert torch.equal(shapley_values(net, x, y), shapley_values(net, x, y, budget=BUDGET))

def random_game(seed, a=.3, b=.5, grid=4):
    "A game whose coefficients fall with order and diameter, and its Shapley values from them"
    from infoutil.attribution import _coalitions, _fwht
    bits, size, diam = _coalitions(grid)
    c = torch.randn(len(size), generator=rng(seed), dtype=torch.float64).numpy()*(a**(size/2.)*b**(diam/2.))
    phi = [2*(c*bits[:, i]*(size%2)/size.clip(1)).sum() for i in range(grid*grid)]
    return torch.from_numpy(_fwht(c*(-1.)**size)), torch.tensor(phi)

def test_error_bars_cover_what_they_promise():
    z, errs = {64: [], 256: []}, {64: [], 256: []}
    for s in range(40):
        table, want = random_game(s, (.05, .3, .6)[s%3], (.2, .5, .9)[s%3])
        for budget in z:
            a = attribute(Game(table).eval(), torch.ones(1, 3, 4, 4).double(), torch.tensor([0]), budget=budget)
            err = a.phi.flatten()-want
            z[budget].append(err/a.std.flatten()); errs[budget].append(err.norm()/want.norm())
    for budget,v in z.items():
        v = torch.cat(v).abs()
        assert .55<(v<1).double().mean()<.85 and .85<(v<1.96).double().mean()<.99, (budget, (v<1).double().mean(), (v<1.96).double().mean())
    assert torch.stack(errs[256]).mean()<.6*torch.stack(errs[64]).mean()

def test_the_bars_scale_with_the_game_and_turn_with_the_seed():
    table, _ = random_game(1)
    at = lambda t, **kw: attribute(Game(t).eval(), torch.ones(1, 3, 4, 4).double(), torch.tensor([0]), **kw)
    a, b = at(table), at(10*table)
    torch.testing.assert_close(b.std, 10*a.std, rtol=1e-3, atol=1e-6); torch.testing.assert_close(b.phi, 10*a.phi, rtol=1e-3, atol=1e-5)
    from infoutil.attribution import _symmetry
    role = torch.as_tensor(_symmetry(4, 1)).argsort()             # patch i of the turned game plays the part of patch role[i]
    turned = table[(all_masks(16).long()<<role).sum(1)]
    c = at(turned, seed=1)
    torch.testing.assert_close(c.phi.flatten(), a.phi.flatten()[role], rtol=1e-4, atol=1e-6); torch.testing.assert_close(c.std.flatten(), a.std.flatten()[role], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(at(turned).phi.flatten(), a.phi.flatten()[role], rtol=1e-4, atol=1e-6)      # another design, another error

def test_the_shipped_posteriors_are_what_would_be_computed():
    from infoutil import attribution
    for budget in (32, 64, 128, 200):
        v = torch.randn(3, 2*(budget//2), generator=rng(budget), dtype=torch.float64)
        kept = attribution._prior_plan(4, budget, 3)
        attribution._prior_plan.cache_clear()
        shipped, attribution._shipped = attribution._shipped, dict
        try: fresh = attribution._prior_plan(4, budget, 3)
        finally: attribution._shipped = shipped; attribution._prior_plan.cache_clear()
        assert torch.equal(kept[0], fresh[0])
        for p,q in zip(attribution._paired(kept[1], v), attribution._paired(fresh[1], v)):
            assert (p is None)==(q is None)
            if p is not None: torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)

class Answer(nn.Module):
    "A network whose outputs are made into something else"
    def __init__(self, make): super().__init__(); self.body, self.make = toy_model(), make
    def forward(self, x): return self.make(self.body(x))

@pytest.mark.parametrize('make', [lambda z: dict(logits=z), lambda z: (z, z), lambda z: z[:, 0], lambda z: z[:, None], lambda z: z[:1], lambda z: None])
def test_outputs_that_are_no_logits(make):
    "Dictionaries and tuples, as some packages' networks return, and tables of another shape: a sentence, never a number"
    x, y = toy_batch(3)
    for model in (Answer(make).eval(), lambda z: make(toy_model()(z))):
        for method in ('prior', 'kernel'):
            with pytest.raises(InfoUtilError, match='logits of shape .n, classes. are accepted; wrap it'): shapley_values(model, x, y, method=method)
    with pytest.raises(InfoUtilError, match='wrap it'): grad_cam(Answer(make).eval(), x, y)
    with pytest.raises(InfoUtilError, match='wrap it'): informativeness(Answer(make).eval(), x, torch.tensor([0, 0, 8, 8]).expand(3, 2, 4))

def test_labels_and_baselines_of_other_kinds():
    (x, y), net = toy_batch(3), toy_model()
    for t in (torch.uint8, torch.int16, torch.bool):
        with pytest.raises(InfoUtilError, match='type int64 are accepted'): shapley_values(net, x, y.to(t))
    torch.testing.assert_close(shapley_values(net, x, y.int(), baseline=.5), shapley_values(net, x, y, baseline=torch.full((3, 1, 1), .5)))
    for bad in (torch.zeros(4, 1, 1), torch.zeros(5, 3, 16, 16)):
        with pytest.raises(InfoUtilError, match='a baseline of shape.*a colour has the shape .3, 1, 1.'): shapley_values(net, x, y, baseline=bad)

def test_values_that_autograd_may_use():
    (x, y), net, w = toy_batch(2), toy_model(), torch.ones(1, requires_grad=True)
    for f in (lambda: coalition_values(net, x, y, all_masks(4), 2), lambda: shapley_values(net, x, y), lambda: grad_cam(net, x, y)): (f()*w).sum().backward()
    with torch.inference_mode(): a, b = grad_cam(net, x, y), shapley_values(net, x, y)
    assert torch.equal(a, grad_cam(net, x, y)) and torch.equal(b, shapley_values(net, x, y))

class Tight(nn.Module):
    "Raises what a GPU raises when a batch is larger than `room`"
    def __init__(self, room): super().__init__(); self.body, self.room, self.sizes = toy_model(), room, []
    def forward(self, x):
        if len(x)>self.room: raise torch.OutOfMemoryError('CUDA out of memory')
        self.sizes.append(len(x))
        return self.body(x)

def test_memory_that_runs_out():
    (x, y), boxes = toy_batch(9), torch.tensor([0, 0, 8, 8]).expand(9, 1, 4)
    for f in (lambda m: grad_cam(m, x, y), lambda m: shapley_values(m, x, y), lambda m: informativeness(m, x, boxes)):
        m = Tight(5).eval()
        torch.testing.assert_close(f(m), f(toy_model()), rtol=1e-4, atol=1e-6)
        assert 1<max(m.sizes)<=5
        with pytest.raises(BudgetError, match='memory ran out.*free memory'): f(Tight(0).eval())

def test_grad_cam_does_not_hang_on_work_in_place():
    def net(inplace):
        with seeded(1): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)).eval()
    x, y = toy_batch(4)
    torch.testing.assert_close(grad_cam(net(True), x, y), grad_cam(net(False), x, y))

@pytest.mark.parametrize('grid', [2, 3, 5, 7])
def test_triples_are_those_that_are_near(grid):
    from infoutil.attribution import _triples
    cells, reach = list(itertools.product(range(grid), repeat=2)), 3
    wide = lambda t: max(max(v)-min(v) for v in zip(*(cells[i] for i in t)))
    want = [t for t in itertools.combinations(range(grid*grid), 3) if wide(t)<=reach]
    got, diameters = _triples(grid, reach)
    assert list(map(tuple, got.tolist()))==want and diameters.tolist()==list(map(wide, want))

def test_triples_of_a_fine_grid_fit_into_memory():
    "A grid of 32 has 178 million triples, of which few are near"
    from infoutil.attribution import _triples
    with measure('cpu') as s: t, _ = _triples(32)
    assert len(t)<2e5 and (s.peak_bytes is None or s.kind!='resident' or s.peak_bytes-s.before_bytes<5e8)
