"The whole run on the digits, the command line, and what happens to bad input"
import json, os, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
from PIL import Image
import infoutil.distillation
from torchvision.datasets import ImageFolder
from infoutil.attribution import exact_shapley, shapley_values
from infoutil.command_line import main
from infoutil.basics import InfoUtilError
from infoutil.coresets import random_crops
from infoutil.images import read_picture
from infoutil.rded import rded_crops
from infoutil.data import stream_candidates
from infoutil.distillation import class_maps, distill, infoutil_crops
from infoutil.methods import all_settings, make_config, map_settings, METHODS, reads
from infoutil.distilled_set import DistilledSet
from infoutil.teacher import save_teacher

@pytest.fixture(scope='session')
def world(digits): return digits

small = dict(ipc=1, candidates=6, precision='float32', label_teacher='by_ipc', show_progress=False, preflight=False)

def tree(d): return {p.relative_to(d).as_posix():p.read_bytes() for p in Path(d).rglob('*') if p.is_file() and p.name!='run.json'}

def test_same_seed_same_bytes(world, tmp_path):
    for k in 'ab': distill(world['data'], world['teacher'], world['early'], **small).save(tmp_path/k)
    assert tree(tmp_path/'a')==tree(tmp_path/'b')

changes = dict(method='random', ipc=2, factor=2, candidates=5, seed=1, attribution='grad_cam', budget=40, estimator='kernel', output='probability', grid=3, alpha=0., crops=2, min_area=.55,
               max_area=.3, score='loss', end='highest', per_image=None, equal='all', label_teacher='converged', label_teachers=2, precision='bfloat16')

def test_windows_are_as_large_as_a_tile_has_room_for(world):
    run = lambda **kw: distill(world['data'], world['teacher'], world['early'], **{**small, 'candidates': 4, **kw})
    whole, quarter = run(), run(factor=2)
    assert [p['box'] for p in whole.provenance]==[[0, 0, 32, 32]]*10 and len(whole.provenance[0]['maps'])==4 and len(run(grid=3).provenance[0]['maps'])==3
    assert {tuple(p['box'][2:]) for p in quarter.provenance}=={(16, 16)} and whole.meta['config']['max_area']==1 and quarter.meta['config']['min_area']==.25
    assert torch.equal(whole.images, run(min_area=1., per_image=None).images)      # equal windows of one image enter once
    for odd in (dict(crops=3), dict(alpha=0.)):
        with pytest.raises(InfoUtilError, match='the windows are whole images, which'): run(**odd)
    assert {tuple(p['box'][2:]) for p in run(max_area=.25).provenance}=={(16, 16)}

def test_maps_of_an_earlier_meaning_are_made_anew(world, tmp_path, monkeypatch):
    run = lambda: distill(world['data'], world['teacher'], world['early'], cache=tmp_path, **{**small, 'candidates': 4, 'factor': 2})
    first = run()
    n = len(list(tmp_path.iterdir()))
    run()
    assert n==len(list(tmp_path.iterdir()))==10
    monkeypatch.setattr(infoutil.distillation, '_REVISION', 0)
    assert torch.equal(run().images, first.images) and len(list(tmp_path.iterdir()))==2*n

def test_every_field_is_tried(): assert {*changes, 'iterations', 'picture'}=={'method', *all_settings()}

def test_windows_of_the_original_picture(world, tmp_path):
    noise = torch.Generator().manual_seed(0)
    for c in world['data'].classes:
        (tmp_path/'train'/c).mkdir(parents=True)
        for i in range(5): Image.fromarray(torch.randint(256, (120, 200, 3), dtype=torch.uint8, generator=noise).numpy()).save(tmp_path/f'train/{c}/{i}.png')
    run = lambda data, picture, **kw: distill(data, world['teacher'], method='rded', picture=picture, ipc=1, factor=2, candidates=4, preflight=False,
                                              label_teacher='converged', show_progress=False, **kw)
    a, b = run(tmp_path, 'original', work=tmp_path/'work', valid_frac=.2), run(tmp_path, 'square', valid_frac=.2)
    boxes = torch.tensor([p['box'] for p in a.provenance])
    assert int((boxes[:, 1]+boxes[:, 3]).max())>160 and int((boxes[:, 0]+boxes[:, 2]).max())<=120 and a.meta['config']['picture']=='original'
    for p,im in zip(a.provenance[:4], (a.images[0, :, t:t+16, l:l+16] for t in (0, 16) for l in (0, 16))):       # a tile is its window of the file
        t, l, h, w = p['box']
        px = read_picture(tmp_path/p['source'])[None, :, t:t+h, l:l+w].float()
        assert (torch.nn.functional.interpolate(px, (16, 16), mode='bilinear', antialias=True)[0].round()-im).abs().max()<=1
    assert a.images.float().std()>1.2*b.images.float().std()                                        # noise that was not averaged away twice
    assert torch.equal(run(world['data'], 'original').images, run(world['data'], 'square').images)  # files of the network's size

def test_iterations_change_something(world):
    run = lambda n: distill(world['data'], world['teacher'], world['early'], method='sre2l', iterations=n, ipc=1, label_teacher='by_ipc', show_progress=False, preflight=False)
    assert not torch.equal(run(3).images, run(6).images)

kept = {}
def unchanged(world, kw):
    "The set that changed ones are compared with, made once"
    key = repr(kw)
    if key not in kept: kept[key] = distill(world['data'], world['teacher'], world['early'], **kw)
    return kept[key]

@pytest.mark.parametrize('field', changes)
def test_every_field_changes_something(world, field):
    windows = dict(max_area=.6, min_area=.3, end='middle', budget=32)
    kw = {**small, **windows, 'candidates': 4, **({'ipc':4} if field=='per_image' else {}), **(dict(ipc=4, per_image=None, alpha=0.) if field=='equal' else {})}
    drop = (*windows, 'precision') if field=='method' else ()                  # random does not read them
    a = unchanged(world, kw)
    b = distill(world['data'], world['teacher'], world['early'], **{k:v for k,v in {**kw, field:changes[field]}.items() if k not in drop})
    same = a.images.shape==b.images.shape and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.provenance==b.provenance
    assert not same, f'{field} changes nothing'

@pytest.mark.slow
def test_shapley_default_is_close_to_exact(world):
    x, y = world['x'][:1], world['y'][:1]
    exact = exact_shapley(world['teacher'].model, x, y)
    err = ((shapley_values(world['teacher'].model, x, y)-exact).flatten(1).norm(dim=1)/exact.flatten(1).norm(dim=1)).mean()
    assert err<0.1, float(err)

def test_imagefolder_opens_the_set(world, tmp_path):
    distill(world['data'], world['teacher'], world['early'], **small).save(tmp_path/'s')
    f = ImageFolder(tmp_path/'s'/'train')
    assert [c.split('_', 1)[1] for c in f.classes]==list(world['data'].classes) and len(f)==10

@pytest.mark.parametrize('break_it', ['empty class', 'text as image', 'one class', 'missing'])
def test_bad_folders_end_in_a_sentence(world, tmp_path, capsys, break_it):
    src = tmp_path/'data'
    for c in ('a', 'b')[:1 if break_it=='one class' else 2]:
        for part in ('train', 'test'):
            (src/part/c).mkdir(parents=True)
            for i in range(4): Image.new('RGB', (32, 32), (i*50, 0, 0)).save(src/part/c/f'{i}.png')
    if break_it=='empty class': [p.unlink() for p in (src/'train'/'b').iterdir()]
    if break_it=='text as image': (src/'train'/'b'/'2.png').write_text('no image')
    if break_it=='missing': src = tmp_path/'nowhere'
    assert main(['teacher', str(src), '-o', str(tmp_path/'out'), '--epochs', '1', '--early-epoch', '1', '--size', '32'])==1
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith('infoutil: ') and ';' in err, err
    assert not (tmp_path/'out').exists() and not list(tmp_path.glob('.out*'))

def test_teacher_of_another_class_order(world, tmp_path, capsys):
    save_teacher(replace(world['teacher'], classes=tuple(reversed(world['data'].classes))), tmp_path/'t')
    assert main(['distill', str(world['folder']), '--teacher', str(tmp_path/'t'), '-o', str(tmp_path/'o')])==1
    assert "class 0 is '9'" in capsys.readouterr().err

@pytest.mark.slow
def test_fastai_learner_is_a_teacher(world):
    from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize, imagenet_stats, accuracy
    from infoutil.models import ConvNet
    dls = ImageDataLoaders.from_folder(world['folder'], train='train', valid='test', item_tfms=Resize(32), batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False), bs=64,
                                       num_workers=0, device=torch.device('cpu'))
    learn = Learner(dls, ConvNet(10, width=16), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    ds = learn.distill(ipc=1, candidates=8, show_progress=False)
    assert len(ds)==10 and ds.classes==tuple('0123456789')

def test_chunks_and_ready_maps_change_nothing(world):
    cfg = make_config(precision='float32', factor=1, min_area=.3)
    cands = next(iter(stream_candidates(world['data'], 32, 20, labels=[3])))
    a = infoutil_crops(cands, 6, world['teacher'], cfg)
    b = infoutil_crops(cands, 6, world['teacher'], cfg, maps=class_maps(cands, world['teacher'], cfg, chunk=7), chunk=3)
    assert a.source==b.source and torch.equal(a.box, b.box)
    torch.testing.assert_close(a.score, b.score, rtol=1e-4, atol=1e-7)
    c = infoutil_crops(cands, 6, world['teacher'], cfg, judge=world['early'])
    assert not torch.equal(a.score, c.score)

def another(f):
    "A value of a setting that is not its default"
    about, v = f.metadata, f.default
    if about['choices'] is not None: return next(c for c in about['choices'] if c!=v)
    if f.type is bool: return not v
    if f.type is str: return 'converged'
    if v is None: return {'budget': 40}.get(f.name, 2 if f.type is int else .5)
    return v+1 if about['most'] is None or v+1<=about['most'] else v-1

with_maps = [(m, k) for m,c in METHODS.items() if c.attribute for k in reads(c)]

def test_every_method_with_maps_and_all_its_settings_are_tried():
    assert {m for m,_ in with_maps}=={m for m,c in METHODS.items() if c.attribute}>={'infoutil', 'shapley_loss', 'grad_cam'}
    assert {k for m,k in with_maps if m=='infoutil'}==set(reads(METHODS['infoutil']))

@pytest.mark.parametrize('name, setting', with_maps)
def test_kept_maps_serve_all_settings_that_do_not_move_them_and_no_others(world, name, setting):
    "A setting that is declared to leave maps alone leaves them alone; every other one is part of the key of kept maps"
    cls = METHODS[name]
    f = reads(cls)[setting]
    a, b = cls(precision='float32'), cls(**{'precision': 'float32', setting: another(f)})
    if setting=='precision': a = cls()
    assert getattr(a, setting)!=getattr(b, setting)
    if f.metadata['maps']: assert map_settings(a)!=map_settings(b)
    else:
        assert map_settings(a)==map_settings(b)
        x, y = world['x'][:2], world['y'][:2]                        # normalized already
        assert torch.equal(*(m.attribute(world['teacher'].model, x, y, None) for m in (a, b)))

def test_methods_share_kept_maps_where_their_maps_are_the_same():
    told = {k: map_settings(METHODS[k]())['attribution'] for k in ('infoutil', 'grad_cam', 'random_grad_norm')}
    assert len(set(told.values()))==3 and map_settings(METHODS['infoutil']())==map_settings(METHODS['shapley_loss']())

def test_a_method_of_ones_own_is_held_to_its_promise(world):
    def first(cands, n, teacher, cfg): return random_crops(cands, n)
    ds = distill(world['data'], world['teacher'], world['early'], choose=first, **small)
    assert ds.meta['method']==ds.meta['config']['method']=='first'
    assert torch.equal(ds.images, distill(world['data'], world['teacher'], world['early'], method='random', **{k:v for k,v in small.items() if k!='precision'}).images)
    def short(cands, n, teacher, cfg): return random_crops(cands, n+1)
    with pytest.raises(InfoUtilError, match='2 crops of class 0; 1 crops'): distill(world['data'], world['teacher'], world['early'], choose=short, **small)
    def stranger(cands, n, teacher, cfg): return replace(random_crops(cands, n), source=('elsewhere.png',))
    with pytest.raises(InfoUtilError, match='boxes inside its candidates'): distill(world['data'], world['teacher'], world['early'], choose=stranger, **small)

def test_a_method_of_ones_own_gets_the_settings_and_may_build_on_ours(world):
    seen = []
    def ours(cands, n, teacher, cfg):
        maps = class_maps(cands, teacher, cfg)
        seen.append((cfg.crops, tuple(maps.shape)))
        return infoutil_crops(cands, n, teacher, cfg)
    def theirs(cands, n, teacher, cfg): return rded_crops(cands, n, teacher, cfg.factor, cfg.crops, cfg.precision)
    run = lambda **kw: distill(world['data'], world['teacher'], world['early'], **{**small, **kw})
    assert torch.equal(run(choose=ours).images, run().images) and set(seen)=={(5, (6, 4, 4))}
    assert torch.equal(run(choose=theirs).images, run(method='rded').images)

class Cramped(torch.nn.Module):
    "A network for which memory ends at so many images a pass"
    def __init__(self, net, most): super().__init__(); self.net, self.most, self.refused = net, most, 0
    def forward(self, x):
        if len(x)>self.most:
            self.refused += 1
            raise torch.OutOfMemoryError(f'CUDA out of memory. Tried to allocate {len(x)} images')
        return self.net(x)

@pytest.mark.slow
@pytest.mark.parametrize('method', ['infoutil', 'shapley_loss'])
def test_running_out_of_memory_changes_no_choice(world, method):
    kw = {**small, 'candidates': 4, 'factor': 2, 'method': method}
    tight = replace(world['teacher'], model=Cramped(world['teacher'].model, 13).eval())
    sets = {k: distill(world['data'], t, t, **kw) for k,t in (('roomy', replace(tight, model=Cramped(world['teacher'].model, 10**9).eval())), ('tight', tight))}
    a, b = sets['roomy'], sets['tight']
    assert tight.model.refused>0 and torch.equal(a.images, b.images) and a.provenance==b.provenance
    torch.testing.assert_close(a.labels, b.labels, rtol=2e-3, atol=2e-3)            # 16 bits of logits that other kernels may round the other way for thirteen images

@pytest.mark.parametrize('kw', [pytest.param(dict(factor=2), marks=pytest.mark.slow), pytest.param(dict(end='middle', min_area=.3, per_image=None), marks=pytest.mark.slow), dict(), dict(method='random_grad_norm', factor=2), dict(method='herding')], ids=str)
def test_a_class_in_parts_gives_the_same_bytes(world, monkeypatch, kw):
    import infoutil.distillation as distillation, infoutil.engine.class_runs as class_runs
    seen, stream = [], distillation.read_ahead
    def watched(*args, **kw):
        for c in stream(*args, **kw): seen.append(len(c)); yield c
    monkeypatch.setattr(distillation, 'read_ahead', watched)
    run = lambda: distill(world['data'], world['teacher'], world['early'], **{**{k:v for k,v in small.items() if k!='precision' or kw.get('method')!='herding'}, **kw})
    whole = run()
    monkeypatch.setattr(class_runs, 'BLOCK', 5)
    monkeypatch.setattr(class_runs, 'HELD', 0)                       # nothing is held, so chosen images are read once more
    parts = run()
    assert set(seen[:10])=={6} and seen[10:13]==([6, 6, 6] if kw.get('method')=='herding' else [5, 1, 5])     # herding wants all images of a class at once
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.labels, parts.labels) and whole.provenance==parts.provenance

def test_labels_by_pieces_are_those_of_all_images(world):
    from infoutil.labels import patch_labels
    from infoutil.distillation import label_images
    images = distill(world['data'], world['teacher'], method='random', ipc=10, factor=2, show_progress=False, preflight=False).images
    t = world['teacher']
    whole = patch_labels(t.model, images, 2, t.mean, t.std).half()
    assert torch.equal(label_images(t, images, 2), whole) and torch.equal(label_images(t, images, 2, room=4*64*4*10), whole)      # 64 images and 36
