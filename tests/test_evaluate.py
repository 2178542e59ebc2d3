"Evaluation against oracles: differences, scores, parts of sets, other labels, memory; mistakes cost no training"
import json, math, statistics
from dataclasses import asdict, replace
from types import SimpleNamespace
import pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats
import infoutil.evaluation, infoutil.robust_scores
from infoutil.view_labels import view_labels, ViewKey
from infoutil.basics import BudgetError, InfoUtilError, rng
from infoutil.fixtures.toys import toy_model
from infoutil.data import Split
from infoutil.label_teachers import cross_architecture, label_teacher_curve, relabel
from infoutil.evaluation import _Trained, difference, evaluate, mean_std, Result
from infoutil.labels import patch_labels
from infoutil.continual_learning import _part_of_test, class_orders, continual, step_sizes, take_classes
from infoutil.robust_scores import (
    augmentation_robust_score, CASES, label_robust_score, robust_scores, scores_of, without_augmentation)
from infoutil.distilled_set import DistilledSet
from infoutil.student import PROTOCOLS, student_learner
from infoutil.teacher import Teacher
import ready

MEAN, STD, NAMES = (.4, .5, .6), (.2, .25, .3), ('ant', 'bee', 'cat', 'dog', 'elk')
fraction = st.floats(0, 1)
QUICK = dict(arch='convnet3', epochs=1, device='cpu', precision='float32', show_progress=False)

def teacher(seed=0, n=5):
    return Teacher(toy_model(n, seed=seed), 'convnet3', NAMES[:n], 16, MEAN, STD, epoch=seed+1, accuracy=.5)

def a_set(ipc=2, factor=2, t=None):
    t = t or teacher()
    images = torch.randint(256, (5*ipc, 3, 16, 16), generator=rng(0, 'set', ipc), dtype=torch.uint8)
    meta = dict(method='random', factor=factor, mean=MEAN, std=STD, label_teacher='converged')
    origin = [dict(image=i, tile=k, source=f'{NAMES[i//ipc]}/{i}.png') for i in range(5*ipc) for k in range(factor**2)]
    return DistilledSet(images, torch.arange(5).repeat_interleave(ipc), NAMES,
                        patch_labels(t.model, images, factor, MEAN, STD), t, meta, origin)

@pytest.fixture
def test_images(tmp_path):
    "Real images that were decoded already: their files do not exist, so that decoding twice would fail"
    def make(ds, n=15):
        split = Split(tmp_path, tuple(f'{i}.png' for i in range(n)), tuple(sorted(i%5 for i in range(n))))
        dl = infoutil.evaluation.real_dl(split, ds.size, ds.mean, ds.std, device='cpu')
        dl.dataset.cache.copy_(torch.randint(256, (n, 3, 16, 16), generator=rng(1, 'test'), dtype=torch.uint8))
        dl.dataset.have[:] = True
        return dl
    return make

def never(*a, **k): raise AssertionError('a student was trained')

# ---- differences

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(fraction, fraction), min_size=2, max_size=8))
def test_paired_difference_is_students_t(pairs):
    a, b = zip(*pairs)
    d = difference(a, b)
    assert d.n==len(a) and math.isclose(d.mean, statistics.fmean(a)-statistics.fmean(b), abs_tol=1e-12)
    if d.se>1e-6: assert math.isclose(d.mean/d.se, stats.ttest_rel(a, b).statistic, rel_tol=1e-6, abs_tol=1e-9)

@settings(max_examples=60, deadline=None)
@given(st.lists(fraction, min_size=2, max_size=8), st.lists(fraction, min_size=2, max_size=8))
def test_unpaired_difference_is_welchs(a, b):
    d = difference(a, b, paired=False)
    if d.se>1e-6:
        assert math.isclose(d.mean/d.se, stats.ttest_ind(a, b, equal_var=False).statistic, rel_tol=1e-6, abs_tol=1e-9)
    assert tuple(difference(b, a, paired=False))==(-d.mean, d.se, d.n)

def test_pairing_is_by_seed():
    r = lambda seed, v: Result(v, statistics.fmean(v), statistics.stdev(v), dict(seed=seed), (1.,)*len(v))
    assert difference(r(0, (.5, .6)), r(0, (.4, .5))).n==2
    with pytest.raises(InfoUtilError, match='same seeds'): difference(r(0, (.5, .6)), r(1, (.4, .5)))
    assert difference(r(0, (.5, .6)), (.4, .5)).n==2                # numbers without seeds are taken at their word

# ---- robust scores

@settings(max_examples=100, deadline=None)
@given(st.lists(fraction, min_size=4, max_size=4), st.integers(0, 3), fraction, fraction)
def test_scores_are_monotone_in_each_accuracy(v, i, other, w):
    lo, hi = [[*v[:i], x, *v[i+1:]] for x in sorted((v[i], other))]
    for f,signs in ((label_robust_score, (-1, 1, 1, -1)), (augmentation_robust_score, (1, -1, 1, -1))):
        a, b = f(*lo, weight=w), f(*hi, weight=w)
        assert -1e-12<=a<=1+1e-12 and signs[i]*(b-a)>=-1e-12
        if abs(hi[i]-lo[i])>1e-3 and .01<w<.99: assert signs[i]*(b-a)>1e-7

@settings(max_examples=50, deadline=None)
@given(st.lists(fraction, min_size=4, max_size=4))
def test_scores_as_ddranking_writes_them(v):
    import numpy as np
    hlr, ior = v[0]-v[1], v[2]-v[3]
    alpha = .5*ior-(1-.5)*hlr
    assert math.isclose(label_robust_score(*v), (np.exp(alpha)-np.exp(-1))/(np.exp(1)-np.exp(-1)), abs_tol=1e-12)
    beta = .5*(v[0]-v[1])+(1-.5)*(v[2]-v[3])
    assert math.isclose(augmentation_robust_score(*v), (np.exp(beta)-np.exp(-1))/(np.exp(1)-np.exp(-1)), abs_tol=1e-12)

def test_standard_errors_are_the_spread_of_the_scores():
    "Over many experiments of 5 repeats, the standard error foretells how far the scores scatter"
    g, mean = rng(0, 'experiments'), torch.tensor([.5, .7, .6, .5, .4])
    found = []
    for _ in range(400):
        common = .02*torch.randn(5, generator=g)                   # of the seed: the same in all five cases
        v = (mean[:, None]+common+.02*torch.randn(5, 5, generator=g)).clamp(0, 1)
        real = (.9+.03*torch.randn(3, generator=g)).clamp(0, 1).tolist()
        s = scores_of(dict(zip(CASES, v.tolist())), real)
        found.append((s.lrs, s.lrs_se, s.ars, s.ars_se, *s.parts['hlr'], *s.parts['ior']))
    found = torch.tensor(found, dtype=torch.float64)
    for k in range(0, 8, 2):
        want, got = float(found[:, k].std()), float(found[:, k+1].pow(2).mean().sqrt())
        assert abs(got/want-1)<.15, (k, got, want)                 # 400 experiments know a deviation to 4 %

def test_scores_refuse_percents():
    accs = {k:(.5, .6) for k in CASES}
    with pytest.raises(InfoUtilError, match='divide percents'): scores_of({**accs, 'random_any': (50., 60.)}, .9)
    with pytest.raises(InfoUtilError, match='divide percents'): label_robust_score(.9, .5, .7, 60.)

@pytest.mark.parametrize('name', PROTOCOLS)
def test_without_augmentation_the_student_sees_the_images(name):
    p, ds, seen = without_augmentation(name), a_set(), []
    if p.labels not in (None, 'hard', 'online', 'stored'): pytest.skip('labels that belong to other views')
    learn = student_learner(ds, arch='convnet3', protocol=p, epochs=2, device='cpu', precision='float32')
    want = (ds.images.float()/255-torch.tensor(MEAN).view(3, 1, 1))/torch.tensor(STD).view(3, 1, 1)
    learn.model.register_forward_pre_hook(lambda m, x: seen.extend(x[0].detach().clone()))
    learn.fit_distilled(False)
    assert len(seen)==2*len(ds)
    for x in seen: assert (x-want).abs().amax((1, 2, 3)).min()<1e-5

def test_robust_scores_pair_seeds_and_refuse_first(test_images, monkeypatch):
    ds, rnd = a_set(), a_set(t=teacher())
    dl = test_images(ds)
    s = robust_scores(ds, [rnd, rnd], dl, (.9, .92), repeats=2, seed=3, **QUICK)
    assert s.accuracies['random_any']==evaluate(rnd, dl, repeats=2, seed=3, **QUICK).accuracies
    assert s.accuracies['syn_hard']==evaluate(ds, dl, protocol=replace(without_augmentation('rded'), temperature=1.,
                                                                       labels='hard'), repeats=2, seed=3,
                                              **QUICK).accuracies
    assert json.loads(json.dumps(s.to_dict()))['ars_se']==s.ars_se
    monkeypatch.setattr(infoutil.robust_scores, 'evaluate', never)
    with pytest.raises(InfoUtilError, match='stored labels'):
        robust_scores(ds, replace(rnd, labels=None), dl, .9, labels='stored', repeats=2, **QUICK)
    with pytest.raises(InfoUtilError, match='has mean'):
        robust_scores(ds, replace(rnd, teacher=None, meta={**rnd.meta, 'mean': (.1,)*3}), dl, .9, labels='stored',
                      repeats=2, **QUICK)

# ---- sets with other labels, and parts of sets

def test_relabel_round_trip(tmp_path):
    ds, early = a_set(), teacher(1)
    before = {k:v.clone() for k,v in early.model.state_dict().items()}
    new = relabel(ds, early, 'epoch_002')
    new.save(tmp_path/'set')
    back = DistilledSet.load(tmp_path/'set', model=toy_model(5))
    assert back.meta['label_teacher']=='epoch_002'
    assert back.teacher.epoch==2
    assert torch.equal(back.labels, new.labels)
    assert torch.equal(back.images, ds.images)
    assert torch.equal(back.labels, patch_labels(early.model, ds.images, 2, MEAN,
                                                 STD).half()) and back.provenance==ds.provenance
    assert all(torch.equal(v, before[k]) for k,v in early.model.state_dict().items())
    again = relabel(DistilledSet.load(tmp_path/'set', with_teacher=False), teacher(), 'converged')
    assert torch.equal(again.labels, ds.labels) and {k:v for k,v in again.meta.items() if k!='versions'}==ds.meta

def test_relabel_keeps_no_other_labels_of_the_old_teacher():
    ds = a_set()
    key = ViewKey(n=len(ds), size=16, epochs=2, batch_size=5, factor=2)
    ds = replace(ds, views=view_labels(ds.teacher.model, ds.images, key, MEAN, STD))
    known = {'images', 'y', 'classes', 'labels', 'teacher', 'meta', 'provenance'}
    assert ds.views is not None
    for new in (relabel(ds, teacher(1), 'early'), take_classes(ds, [0, 1])):       # and other classes are other views
        for k in set(ds.__dataclass_fields__)-known: assert not getattr(new, k), f'{k} of another teacher was kept'

@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 5), st.integers(1, 3), st.integers(1, 2))
def test_taken_classes_keep_their_images(order, n, ipc, factor):
    ds, at = a_set(ipc, factor), order[:n]
    part = take_classes(ds, [NAMES[c] for c in at])
    assert part.classes==tuple(NAMES[c] for c in at) and part.meta['taken']==list(at)
    for new,old in enumerate(at): assert torch.equal(part.class_images(new), ds.class_images(old))
    assert torch.equal(part.labels, torch.cat([ds.labels[c*ipc:(c+1)*ipc] for c in at])[:, :, at])
    assert [p['source'] for p in part.provenance]==[f'{NAMES[c]}/{c*ipc+i}.png' for c in at for i in range(ipc)
                                                    for _ in range(factor**2)]
    assert [(p['image'], p['tile']) for p in part.provenance]==[(i, k) for i in range(n*ipc) for k in range(factor**2)]
    x = part.teacher.normalize(part.images)
    with torch.no_grad(): assert torch.equal(part.teacher.model(x), ds.teacher.model(x)[:, at])
    whole = take_classes(part, sorted(range(n), key=lambda i: at[i]))          # back into the old order
    assert torch.equal(whole.labels, take_classes(ds, sorted(at)).labels) and whole.meta['taken']==sorted(at)

@given(st.integers(2, 200), st.data())
@settings(max_examples=50, deadline=None)
def test_steps_are_even(n, data):
    steps = data.draw(st.integers(1, n-1))
    s = step_sizes(n, steps)
    assert sum(s)==n and len(s)==steps and max(s)-min(s)<=1 and s==sorted(s, reverse=True) and s[0]>=2

def test_class_orders_are_the_same_everywhere():
    code = "from infoutil.continual_learning import class_orders; print(class_orders(range(7), 3, seed=5))"
    out = ready.run('code', [code]).stdout                         # of a process that hashes text in its own way
    assert eval(out)==class_orders(range(7), 3, seed=5)==class_orders(range(7), 5, seed=3)[2:]

@pytest.mark.parametrize('labels', ['online', 'stored', 'hard'])
def test_each_step_is_an_evaluation_of_its_classes(labels, test_images):
    ds, quick = a_set(), {**QUICK, 'epochs': 8}                     # enough that seeds differ
    dl = test_images(ds, 100)
    frame = continual(ds, dl, steps=3, orders=[[4, 2, 0, 1, 3]], labels=labels, seed=2, **quick)
    assert list(frame.seen)==[2, 4, 5] and list(frame.added)==['elk, cat', 'ant, bee',
                                                               'dog'] and list(frame.test_images)==[40, 80, 100]
    images, y = dl.dataset.cache, torch.tensor(dl.dataset.split.labels)
    learn = student_learner(take_classes(ds, [4, 2]), arch='convnet3', labels=labels, epochs=8, seed=2, device='cpu',
                            precision='float32').fit_distilled(False)
    x = ds.teacher.normalize(torch.cat([images[y==4], images[y==2]]))
    with torch.no_grad(): right = learn.model.eval()(x).argmax(1)==torch.tensor([0]*20+[1]*20)
    assert frame.accuracy[0]==pytest.approx(float(right.float().mean()), abs=1/40+1e-6)      # in other batches one near tie may fall the other way

def test_test_images_of_some_classes(test_images):
    ds = a_set()
    dl = test_images(ds)
    part = _part_of_test(dl, ds, [4, 2], 'cpu').dataset
    y = torch.tensor(dl.dataset.split.labels)
    assert part.split.labels==(0, 0, 0, 1, 1, 1)
    assert torch.equal(part.cache, dl.dataset.cache[torch.cat([torch.where(y==c)[0] for c in (4, 2)])])
    assert part.split.files==tuple(dl.dataset.split.files[i] for c in (4, 2)
                                   for i in torch.where(y==c)[0]) and part.have.all()

# ---- many students

def test_one_loader_serves_all(test_images):
    ds = a_set()
    dl = test_images(ds)
    frame = cross_architecture(ds, dl, ['convnet3', 'convnet4'], repeats=2, seed=1,
                               **{k:v for k,v in QUICK.items() if k!='arch'})
    want = evaluate(ds, dl, repeats=2, seed=1, **{**QUICK, 'arch': 'convnet4'})
    assert list(frame[frame.arch=='convnet4'].accuracy)==list(want.accuracies) and list(frame.seed)==[1, 2, 1, 2]
    curve = label_teacher_curve(ds, {'b': teacher(1), 'a': teacher()}, dl, repeats=2, **QUICK)
    assert list(curve.label_teacher)==['b', 'b', 'a', 'a'] and list(curve.label_epoch)==[2, 2, 1, 1]
    assert list(curve.accuracy[:2])==list(evaluate(relabel(ds, teacher(1), 'b'), dl, repeats=2, **QUICK).accuracies)
    assert list(mean_std(curve, 'label_teacher').index)==['b', 'a']

@pytest.mark.parametrize('call,match', [
    (lambda ds, dl: cross_architecture(ds, dl, ['convnet3', 'resnet81']), "did you mean 'resnet18'"),
    (lambda ds, dl: cross_architecture(ds, dl, ['convnet3', 'convnet6']), 'larger size'),
    (lambda ds, dl: label_teacher_curve(ds, [teacher(), replace(teacher(1), size=32)], dl, arch='convnet3'),
     'the same size'),
    (lambda ds, dl: label_teacher_curve(ds, [teacher()], dl, labels='hard', arch='convnet3'), 'do not look at'),
    (lambda ds, dl: evaluate(replace(ds, meta={**ds.meta, 'mean': (.1, .2, .3)}), dl, 'convnet3'),
     'same size and scale')])
def test_mistakes_cost_no_training(call, match, test_images, monkeypatch):
    ds = a_set()
    monkeypatch.setattr(infoutil.evaluation, 'student_learner', never)
    with pytest.raises(InfoUtilError, match=match): call(ds, test_images(ds))

def test_best_epoch_stands_beside_the_last(test_images):
    ds = a_set()
    dl = test_images(ds)
    res = evaluate(ds, dl, repeats=2, every=2, **{**QUICK, 'epochs': 5})
    # the last epoch is measured, and is on no curve of every second
    assert [[e for e,_ in c] for c in res.curves]==[[2, 4]]*2
    assert res.best==tuple(max(a, *(v for _,v in c)) for a,c in zip(res.accuracies, res.curves))
    # measuring changes nothing
    assert res.accuracies==evaluate(ds, dl, repeats=2, **{**QUICK, 'epochs': 5}).accuracies
    assert evaluate(ds, dl, repeats=1, every=5, **{**QUICK, 'epochs': 5}).best==()
    old = {k:v for k,v in asdict(res).items() if k not in ('best', 'peak_bytes')}
    assert Result(**old).best==() and len(Result(**old).table())==2

def test_the_last_epoch_may_be_the_best():
    # training loss, then loss and accuracy where measured: every second and the last
    values = [(1.,), (1., 1., .5), (1.,), (1., 1., .6), (1., 1., .9)]
    c = _Trained(SimpleNamespace(recorder=SimpleNamespace(values=values)), 2)
    assert c.points==[(2, .5), (4, .6)] and c.best==c.accuracy==.9

# ---- memory

PEAKS = """
import torch
from infoutil.engine.measure import measure
rise = lambda s: s.peak_bytes-s.before_bytes
with measure('cpu') as first: a = torch.ones(50_000_000); del a
with measure('cpu') as outer:
    a = torch.ones(50_000_000); del a                       # before the others set the mark back
    with measure('cpu') as second: b = bytearray(1_000_000); del b
    with measure('cpu') as third: a = torch.ones(25_000_000); del a
print(first.kind, *map(rise, (first, outer, second, third)))
"""

def test_a_peak_is_that_of_its_own_block():
    # a process of its own: in one that has run other tests, memory that was given back and is still held serves the next block
    kind, *rises = ready.run('code', [PEAKS]).stdout.split()
    if kind!='resident': pytest.skip('no high-water mark that can be set back')
    first, outer, second, third = map(int, rises)
    assert .95<first/200e6<1.15 and second<20e6 and .95<third/100e6<1.2 and .95<outer/200e6<1.15

# ---- the student's learner: less work around a batch, the same student

def trained(monkeypatch=None, **change):
    "Weights and losses of a short training; `change` replaces names of the student module"
    import infoutil.student as module
    if monkeypatch is not None:
        for k,v in change.items(): monkeypatch.setattr(module, k, v)
    learn = student_learner(a_set(3), None, 'convnet3', 'stored', 'rded', 3, bs=4, device='cpu',
                            precision='float32').fit_distilled(False)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()]), torch.stack(learn.recorder.losses)

def test_the_learner_is_fastais(monkeypatch):
    "Asking fewer callbacks, and leaving losses on the device, changes no bit"
    from fastai.learner import AvgSmoothLoss, Learner
    ours, fastais = trained(), trained(monkeypatch, StudentLearner=Learner, _SmoothLoss=AvgSmoothLoss)
    assert len(ours[1])==3*4 and all(torch.equal(a, b) for a,b in zip(ours, fastais))

def test_no_tensor_is_kept_of_a_batch():
    "Small ones between large ones that come and go would break up the heap, which then grows with every batch"
    from fastai.callback.core import Callback
    kept = []
    class Look(Callback):
        order = 4                                            # before the losses become tensors again
        def after_fit(self): kept.extend(self.learn.recorder.losses)
    learn = student_learner(a_set(3), None, 'convnet3', 'stored', 'rded', 3, bs=4, device='cpu', precision='float32')
    learn.add_cb(Look())
    learn.fit_distilled(False)
    assert len(kept)==12 and not any(map(torch.is_tensor, kept[:-1]))
    assert torch.equal(torch.tensor([float(l) for l in kept]), torch.stack(learn.recorder.losses))

def test_fused_steps_round_only(monkeypatch):
    "The fused optimizer takes the steps of the plain one"
    from functools import partial
    import infoutil.student as module
    slow = lambda opt: lambda params, fused, **kw: opt(params, fused=False, foreach=False, **kw)
    ours = trained()
    plain = trained(monkeypatch, OPTIMIZERS={k: slow(v) for k,v in module.OPTIMIZERS.items()})
    torch.testing.assert_close(ours[0], plain[0], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(ours[1], plain[1], atol=1e-6, rtol=1e-4)

def test_callbacks_that_come_late_are_asked():
    "A callback that is added for one call, or gets a method afterwards, is asked from then on"
    from fastai.callback.core import Callback
    told, learn = [], student_learner(a_set(), None, 'convnet3', 'hard', epochs=1, bs=5, device='cpu',
                                      precision='float32')
    class Late(Callback):
        def after_step(self): told.append('step')
    learn.fit_distilled(False)
    learn.add_cb(Late())
    learn.fit_distilled(False)
    learn.remove_cb(Late)
    learn.fit_distilled(False)
    own = Callback(after_backward=lambda self: told.append('own'))
    learn('after_backward')
    learn.add_cb(own)
    learn('after_backward')
    learn.remove_cb(own)
    learn('after_backward')
    assert told==['step']*2+['own']

def out_of_room(learn, most, training):
    "Make the network refuse more than `most` images, as a full GPU would"
    real, seen = learn.model.forward, []
    def forward(x):
        if learn.model.training==training and len(x)>most:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
        if learn.model.training==training: seen.append(len(x))
        return real(x)
    learn.model.forward = forward
    return seen

def test_validation_halves_its_batches(test_images):
    "The same accuracy from batches that fit; no autocast stays open; with no room at all an error says so"
    ds = a_set()
    dl = test_images(ds, 15)
    make = lambda: student_learner(ds, dl, 'convnet3', 'hard', epochs=1, device='cpu', precision='bfloat16')
    want = make().fit_distilled(False).recorder.final_record[-1]
    learn = make()
    seen = out_of_room(learn, 4, False)
    learn.fit_distilled(False)
    assert seen==[3]*5
    assert dl.bs==3
    assert learn.recorder.final_record[-1]==pytest.approx(want, abs=1/15+1e-6)   # one image: its two highest logits may be equal to the few digits of bfloat16
    assert not torch.is_autocast_enabled('cpu')
    learn = make()
    out_of_room(learn, 0, False)
    with pytest.raises(BudgetError, match='1 image at a time; .*; free memory'): learn.fit_distilled(False)

@pytest.mark.parametrize('error', [torch.OutOfMemoryError, RuntimeError, KeyboardInterrupt])
def test_autocast_is_closed_whatever_ends_a_batch(error):
    "Or all that follows in the process would be computed in bfloat16, and the next student would be another one"
    make = lambda: student_learner(a_set(), None, 'convnet3', 'hard', epochs=1, device='cpu', precision='float32')
    want = make().fit_distilled(False).model.state_dict()
    def stop(x): raise error('CUDA out of memory' if error is torch.OutOfMemoryError else 'stop')
    for go in (lambda l: l.fit_distilled(False), lambda l: l.fit(1)):
        learn = student_learner(a_set(), None, 'convnet3', 'hard', epochs=1, device='cpu', precision='bfloat16')
        learn.model.forward = stop
        with pytest.raises((error, BudgetError)), learn.no_bar(), learn.no_logging(): go(learn)
        assert not torch.is_autocast_enabled('cpu')
    assert all(torch.equal(v, want[k]) for k,v in make().fit_distilled(False).model.state_dict().items())

def test_a_training_batch_is_never_made_smaller():
    learn = student_learner(a_set(), None, 'convnet3', 'hard', epochs=1, bs=6, device='cpu', precision='float32')
    seen = out_of_room(learn, 5, True)
    with pytest.raises(BudgetError, match=r'6 images a batch; .*Protocol\(bs=3\)') as e: learn.fit_distilled(False)
    assert not seen and str(e.value).count(';')>=2
    learn.model.forward = lambda x: (_ for _ in ()).throw(RuntimeError('shapes do not fit'))
    with pytest.raises(RuntimeError, match='shapes do not fit'): learn.fit_distilled(False)
