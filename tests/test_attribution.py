"Shapley estimators against brute force, closed forms, axioms and their own promises"
import inspect, itertools, json, math, re
from pathlib import Path
import pytest, torch
from torch import nn
from infoutil.attribution import (
    all_masks, attribute, Attribution, BUDGET, calls_for, coalition_values, estimator, ESTIMATORS, exact_shapley,
    grad_cam, MAP_COLOURS, plan_coalitions, shapley_values, show_maps, show_only)
from infoutil.basics import *
from infoutil.fixtures.toys import toy_batch, toy_model
from infoutil.crop import informativeness
import infoutil.engine.priors as priors
from infoutil.engine.priors import fwht, make_plans, near_triples, prior_plan, set_table, shipped_plans, symmetry
from infoutil.engine.measure import measure
from infoutil.models import get_model

METHODS = [m for m in ESTIMATORS if m!='exact']     # which takes no budget below all coalitions: a test of its own
root = Path(__file__).parents[1]

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
    def __init__(self, table):
        super().__init__()
        self.table = table
    def forward(self, x):
        code = ((x[:, 0].flatten(1)>.5).long()<<torch.arange(x[0, 0].numel())).sum(1)
        return self.table[code][:, None]

class Additive(nn.Module):
    "Adds the pixels up under weights; two classes"
    def __init__(self, w):
        super().__init__()
        self.w, self.calls = w, 0
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
    game = Game(table).eval()
    for got in (exact_shapley(game, x, y, grid), shapley_values(game, x, y, grid, budget=2**d)):
        torch.testing.assert_close(got.flatten().double(), want, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('grid', [1, 2, 3, 4, 5, 7])
def test_additive_games_are_exact_at_the_least_budget(grid, method):
    w, x = torch.randn(3, 23, 17, generator=rng(1), dtype=torch.float64), torch.rand(3, 3, 23, 17, generator=rng(2))
    y = torch.tensor([0, 1, 0])
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
        for chunk in (1, 5, 64, 500):
            got = shapley_values(net, x, y, method=method, chunk=chunk)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        alone = torch.cat([shapley_values(net, x[i:i+1], y[i:i+1], method=method) for i in range(6)])
        torch.testing.assert_close(alone, want, rtol=1e-4, atol=1e-5)
        assert torch.equal(shapley_values(net, x, y, method=method), want)

def test_seeds_turn_the_design_and_a_turned_image_gets_a_turned_map():
    (x, y), net = toy_batch(2, 16), toy_model()
    maps = [shapley_values(net, x, y, budget=40, seed=s) for s in range(9)]
    assert torch.equal(maps[0], maps[8]) and not torch.equal(maps[0], maps[1])
    even = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 2)).eval()
    torch.testing.assert_close(*[shapley_values(even, x, y%2, seed=s) for s in (0, 6)], rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('grid', [2, 3, 4])
def test_the_design_is_nested_and_has_no_doubles(grid):
    for budget in (2*grid**2, 60, 64, 200):
        for method in ('prior', 'kernel'):
            if 2*grid**2<=budget<2**grid**2:
                masks, solve = plan_coalitions(grid, budget, 2, method)
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
    phi = shapley_values(net, x, y)
    grad_cam(net, x, y)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), random) and not phi.is_inference()
    assert all(torch.equal(v, state[k]) for k,v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())

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
    conv = nn.Conv2d(3, 1, 1, bias=False)
    conv.weight.data.fill_(1.)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    net[3].weight.data = torch.tensor([[64.], [-64.]])           # 64 pixels: the gradient at each is 1, or -1
    x = torch.rand(1, 3, 8, 8)
    want = x.sum(1).view(1, 2, 4, 2, 4).mean((2, 4))
    torch.testing.assert_close(grad_cam(net, x, torch.tensor([0]), grid=2), want)
    assert not grad_cam(net, x, torch.tensor([1]), grid=2).any()

def test_shap_object_keeps_the_sum():
    (x, y), net = toy_batch(3, 19), toy_model()
    a = attribute(net, x, y, grid=4)
    e = a.to_shap(x)
    assert e.values.shape==e.data.shape==(3, 19, 19, 3)
    total = torch.tensor(e.values.sum((1, 2, 3))+e.base_values).float()
    torch.testing.assert_close(total, a.full, rtol=1e-4, atol=1e-5)

def test_exact_by_name_is_exact():
    (x, y), net = toy_batch(3, 12), toy_model()
    for grid in (2, 3):
        a = attribute(net, x, y, grid, method='exact')
        torch.testing.assert_close(a.phi, exact_shapley(net, x, y, grid))
        assert a.budget==2**grid**2 and not a.std.any()
    with pytest.raises(BudgetError, match='65536 or more'): attribute(net, x, y, method='exact', budget=1000)
    with pytest.raises(BudgetError, match='up to 4'): attribute(net, x, y, 5, method='exact')

def test_the_budget_is_chosen_where_none_is_given():
    assert calls_for()==BUDGET and calls_for('exact')==2**16
    assert calls_for('prior', 7)==98 and calls_for('kernel', 4, 200)==200
    (x, y), net = toy_batch(2), toy_model()
    assert torch.equal(shapley_values(net, x, y), shapley_values(net, x, y, budget=BUDGET))

def random_game(seed, a=.3, b=.5, grid=4):
    "A game whose coefficients fall with order and diameter, and its Shapley values from them"
    bits, size, diam = set_table(grid)
    c = torch.randn(len(size), generator=rng(seed), dtype=torch.float64).numpy()*(a**(size/2.)*b**(diam/2.))
    phi = [2*(c*bits[:, i]*(size%2)/size.clip(1)).sum() for i in range(grid*grid)]
    return torch.from_numpy(fwht(c*(-1.)**size)), torch.tensor(phi)

def test_error_bars_cover_what_they_promise():
    z, errs = {64: [], 256: []}, {64: [], 256: []}
    for s in range(40):
        table, want = random_game(s, (.05, .3, .6)[s%3], (.2, .5, .9)[s%3])
        for budget in z:
            a = attribute(Game(table).eval(), torch.ones(1, 3, 4, 4).double(), torch.tensor([0]), budget=budget)
            err = a.phi.flatten()-want
            z[budget].append(err/a.std.flatten())
            errs[budget].append(err.norm()/want.norm())
    for budget,v in z.items():
        v = torch.cat(v).abs()
        one, two = [float((v<z).double().mean()) for z in (1, 1.96)]
        assert .55<one<.85 and .85<two<.99, (budget, one, two)
    assert torch.stack(errs[256]).mean()<.6*torch.stack(errs[64]).mean()

def test_the_bars_scale_with_the_game_and_turn_with_the_seed():
    table, _ = random_game(1)
    at = lambda t, **kw: attribute(Game(t).eval(), torch.ones(1, 3, 4, 4).double(), torch.tensor([0]), **kw)
    a, b = at(table), at(10*table)
    torch.testing.assert_close(b.std, 10*a.std, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(b.phi, 10*a.phi, rtol=1e-3, atol=1e-5)
    role = torch.as_tensor(symmetry(4, 1)).argsort()   # patch i of the turned game plays patch role[i]'s part
    turned = table[(all_masks(16).long()<<role).sum(1)]
    c = at(turned, seed=1)
    want = a.phi.flatten()[role]
    torch.testing.assert_close(c.phi.flatten(), want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(c.std.flatten(), a.std.flatten()[role], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(at(turned).phi.flatten(), want, rtol=1e-4, atol=1e-6)      # another design, another error

def test_the_shipped_posteriors_are_what_would_be_computed(monkeypatch):
    for budget in (32, 64, 128, 200):
        g = torch.randn(3, budget//2, generator=rng(budget), dtype=torch.float64)
        kept = prior_plan(4, budget, 3)
        with monkeypatch.context() as m:
            m.setattr(priors, 'shipped_plans', dict)
            fresh = prior_plan(4, budget, 3)
        assert torch.equal(kept[0], fresh[0])
        for p,q in zip(kept[1](g), fresh[1](g)):
            assert (p is None)==(q is None)
            if p is not None: torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)

def test_the_file_of_plans_is_what_make_plans_makes():
    fresh, kept = make_plans(), shipped_plans()
    assert fresh.keys()==kept.keys() and torch.equal(fresh['codes'], kept['codes'])
    for k in kept:
        assert fresh[k].dtype==kept[k].dtype
        torch.testing.assert_close(fresh[k], kept[k], rtol=1e-5, atol=1e-6)

def test_an_estimator_of_ones_own():
    (x, y), net, asked = toy_batch(3), toy_model(), []
    try:
        @estimator('mine', least=lambda grid: grid**2+2)
        def last(grid, budget, seed):
            "What is lost without a patch"
            asked.append((grid, budget, seed))
            d = grid*grid
            none = torch.zeros(1, d).bool()
            return torch.cat([none, ~none, ~torch.eye(d).bool()]), lambda v: (v[:, 1:2]-v[:, 2:], None)
        w = torch.randn(3, 16, 16, generator=rng(1), dtype=torch.float64)
        want = torch.stack([patch_sums((xi.double()*w).sum(0), 4) for xi in x])
        got = shapley_values(Additive(w).eval(), x, y*0, budget=20, seed=7, method='mine')
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
        a = attribute(net, x, y, budget=30, seed=7, method='mine')
        assert (a.method, a.budget, a.std)==('mine', 18, None) and asked==[(4, 20, 7), (4, 30, 7)]
        torch.testing.assert_close(a.phi.sum((1, 2)), a.full-a.empty, rtol=1e-4, atol=1e-5)
        attribute(net, x, y, budget=30, seed=7, method='mine')
        assert len(asked)==2                                        # plans are kept
        with pytest.raises(BudgetError, match="18 or more are needed by 'mine'"): calls_for('mine', 4, 17)
        with pytest.raises(InfoUtilError, match='that name'): estimator('mine')(lambda grid, budget, seed: None)
        with pytest.raises(InfoUtilError, match='that name'): estimator('prior')(last)
    finally: del ESTIMATORS['mine']
    with pytest.raises(InfoUtilError, match='unknown method'): shapley_values(net, x, y, method='mine')

def test_signatures_are_said_once_and_places_still_count():
    names = ['model', 'x', 'y', 'grid', 'budget', 'baseline', 'output', 'seed', 'method', 'chunk', 'precision']
    game = [n for n in names if n not in ('budget', 'seed', 'method')]
    params = lambda f: list(inspect.signature(f).parameters.values())
    assert [p.name for p in params(shapley_values)]==names and params(shapley_values)==params(attribute)
    assert [p.default for p in params(attribute)][3:]==[4, None, None, 'logit', 0, 'prior', None, 'float32']
    assert [p.name for p in params(exact_shapley)]==game
    assert [p.name for p in params(coalition_values)]==game[:3]+['masks']+game[3:]
    (x, y), net, base = toy_batch(2, 12), toy_model(), torch.ones(3, 1, 1)
    how = dict(grid=3, budget=40, baseline=base, output='probability', seed=2, method='kernel', chunk=7)
    by_place = shapley_values(net, x, y, 3, 40, base, 'probability', 2, 'kernel', 7, 'float32')
    torch.testing.assert_close(by_place, shapley_values(net, x, y, **how))
    v = coalition_values(net, x, y, all_masks(4), 2, base, 'probability', 7)
    assert v.shape==(2, 16) and (v<=1).all()
    by_name = exact_shapley(net, x, y, grid=2, baseline=base, output='probability', chunk=7)
    torch.testing.assert_close(exact_shapley(net, x, y, 2, base, 'probability', 7), by_name)
    for f in (shapley_values, exact_shapley):
        with pytest.raises(TypeError): f(net, x, y, shape=3)

def test_the_errors_that_the_page_names_are_those_that_were_measured():
    cells = json.loads((root/'nbs/03_attribution.ipynb').read_text(encoding='utf-8'))['cells']
    text = ''.join(''.join(c['source']) for c in cells if c['cell_type']=='markdown')
    said = re.search(r'off by (\d+) to (\d+) %.*?by (\d+) to (\d+) %.*?: (\d+) to (\d+) %', text, re.S)
    rows = json.loads((root/'results/speed/estimators.json').read_text())['rows']
    errs = lambda way: [100*r['error'] for r in rows if (r['way'], r['output'], r['budget'])==(way, 'logit', 64)]
    want = [round(f(errs(w))) for w in ('infoutil prior', 'captum KernelShap', 'infoutil kernel') for f in (min, max)]
    assert list(map(int, said.groups()))==want, want

def test_maps_are_drawn_on_one_scale_that_is_white_at_zero():
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    phi = torch.tensor([[[3., -1.], [0., .5]], [[0., 0.], [0., -.2]]])
    ims = torch.rand(2, 3, 7, 5)
    for axs in (show_maps(phi), show_maps(phi, ims), show_maps(phi, ims, axs=plt.subplots(1, 2)[1])):
        meshes = [a.collections[0] for a in axs]
        assert all(m.get_cmap().name==MAP_COLOURS=='RdBu_r' and m.get_clim()==(-3., 3.) for m in meshes)
        assert [m.get_array().flatten().tolist() for m in meshes]==[p.flatten().tolist() for p in phi]
        r, g, b, _ = meshes[0].to_rgba([3., -3., 0.]).T
        assert r[0]>b[0] and b[1]>r[1] and min(r[2], g[2], b[2])>.95
    assert axs[0].get_xlim()==(0, 5) and axs[0].get_ylim()==(7, 0)         # pixels of the images
    a = Attribution(phi, phi.sum((1, 2)), torch.zeros(2), torch.tensor([1, 0]), 4, 'exact', 'logit', 2)
    assert a.show(ims, n=1, names='ab')[0].figure.axes[0].get_title()=='b'
    plt.close('all')

class Answer(nn.Module):
    "A network whose outputs are made into something else"
    def __init__(self, make):
        super().__init__()
        self.body, self.make = toy_model(), make
    def forward(self, x): return self.make(self.body(x))

@pytest.mark.parametrize('make', [lambda z: dict(logits=z), lambda z: (z, z), lambda z: z[:, 0], lambda z: z[:, None],
                                  lambda z: z[:1], lambda z: None])
def test_outputs_that_are_no_logits(make):
    "Dictionaries and tuples, as some packages' networks return, tables of another shape: a sentence, never a number"
    x, y = toy_batch(3)
    for model in (Answer(make).eval(), lambda z: make(toy_model()(z))):
        for method in ('prior', 'kernel'):
            with pytest.raises(InfoUtilError, match='logits of shape .n, classes. are accepted; wrap it'):
                shapley_values(model, x, y, method=method)
    with pytest.raises(InfoUtilError, match='wrap it'): grad_cam(Answer(make).eval(), x, y)
    boxes = torch.tensor([0, 0, 8, 8]).expand(3, 2, 4)
    with pytest.raises(InfoUtilError, match='wrap it'): informativeness(Answer(make).eval(), x, boxes)

def test_labels_and_baselines_of_other_kinds():
    (x, y), net = toy_batch(3), toy_model()
    for t in (torch.uint8, torch.int16, torch.bool):
        with pytest.raises(InfoUtilError, match='type int64 are accepted'): shapley_values(net, x, y.to(t))
    want = shapley_values(net, x, y, baseline=torch.full((3, 1, 1), .5))
    torch.testing.assert_close(shapley_values(net, x, y.int(), baseline=.5), want)
    for bad in (torch.zeros(4, 1, 1), torch.zeros(5, 3, 16, 16)):
        with pytest.raises(InfoUtilError, match='a baseline of shape.*a colour has the shape .3, 1, 1.'):
            shapley_values(net, x, y, baseline=bad)

def test_values_that_autograd_may_use():
    (x, y), net, w = toy_batch(2), toy_model(), torch.ones(1, requires_grad=True)
    fs = (lambda: coalition_values(net, x, y, all_masks(4), 2), lambda: shapley_values(net, x, y),
          lambda: grad_cam(net, x, y))
    for f in fs: (f()*w).sum().backward()
    with torch.inference_mode(): a, b = grad_cam(net, x, y), shapley_values(net, x, y)
    torch.testing.assert_close([a, b], [grad_cam(net, x, y), shapley_values(net, x, y)], rtol=1e-5, atol=1e-6)

class Tight(nn.Module):
    "Raises what a GPU raises when a batch is larger than `room`"
    def __init__(self, room):
        super().__init__()
        self.body, self.room, self.sizes = toy_model(), room, []
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
        head = nn.AdaptiveAvgPool2d(2), nn.Flatten()
        with seeded(1): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace), *head, nn.Linear(32, 4)).eval()
    x, y = toy_batch(4)
    torch.testing.assert_close(grad_cam(net(True), x, y), grad_cam(net(False), x, y))

@pytest.mark.parametrize('grid', [2, 3, 5, 7])
def test_triples_are_those_that_are_near(grid):
    cells, reach = list(itertools.product(range(grid), repeat=2)), 3
    wide = lambda t: max(max(v)-min(v) for v in zip(*(cells[i] for i in t)))
    want = [t for t in itertools.combinations(range(grid*grid), 3) if wide(t)<=reach]
    got, diameters = near_triples(grid, reach)
    assert list(map(tuple, got.tolist()))==want and diameters.tolist()==list(map(wide, want))

def test_triples_of_a_fine_grid_fit_into_memory():
    "A grid of 32 has 178 million triples, of which few are near"
    with measure('cpu') as s: t, _ = near_triples(32)
    assert len(t)<2e5 and (s.peak_bytes is None or s.kind!='resident' or s.peak_bytes-s.before_bytes<5e8)
