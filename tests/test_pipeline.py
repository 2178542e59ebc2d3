"The whole run on the digits, the command line, and what happens to bad input"
import json, os, sys
from dataclasses import fields, replace
from pathlib import Path
import pytest, torch
from PIL import Image
from torchvision.datasets import ImageFolder
from infoutil.attribution import exact_shapley, shapley_values
from infoutil.cli import main
from infoutil.core import InfoUtilError
from infoutil.baselines import random_crops, rded_crops
from infoutil.data import fetch_data, load_data, stream_candidates
from infoutil.pipeline import DistillConfig, class_maps, distill, infoutil_crops, make_config
from infoutil.store import DistilledSet
from infoutil.teacher import demo_teacher, load_teacher, save_teacher

@pytest.fixture(scope='session')
def world(tmp_path_factory):
    d = tmp_path_factory.mktemp('world')
    folder = fetch_data('digits', d)
    data = load_data('digits', dest=d)
    teacher, x, y = demo_teacher(path=d/'teacher', data=data)
    return dict(dir=d, folder=folder, data=data, teacher=teacher, early=load_teacher(d/'teacher', 'early', device='cpu'), x=x, y=y)

small = dict(ipc=1, candidates=12, precision='float32', show_progress=False, preflight=False)

def tree(d): return {p.relative_to(d).as_posix():p.read_bytes() for p in Path(d).rglob('*') if p.is_file() and p.name!='run.json'}

def test_same_seed_same_bytes(world, tmp_path):
    for k in 'ab': distill(world['data'], world['teacher'], world['early'], **small).save(tmp_path/k)
    assert tree(tmp_path/'a')==tree(tmp_path/'b')

changes = dict(method='random', ipc=2, factor=2, candidates=5, seed=1, attribution='grad_cam', budget=32, estimator='kernel', output='probability', grid=3, alpha=0., crops=2, min_area=.55,
               max_area=.3, score='loss', end='highest', per_image=None, label_teacher='converged', precision='bfloat16')

def test_windows_are_as_large_as_a_tile_has_room_for(world):
    run = lambda **kw: distill(world['data'], world['teacher'], world['early'], **{**small, **kw})
    whole, quarter = run(), run(factor=2)
    assert [p['box'] for p in whole.provenance]==[[0, 0, 32, 32]]*10 and len(whole.provenance[0]['maps'])==4 and len(run(grid=3).provenance[0]['maps'])==3
    assert {tuple(p['box'][2:]) for p in quarter.provenance}=={(16, 16)} and whole.meta['config']['max_area']==1 and quarter.meta['config']['min_area']==.25
    assert torch.equal(whole.images, run(min_area=1., crops=3, per_image=None).images)      # equal windows of one image enter once
    assert {tuple(p['box'][2:]) for p in run(max_area=.25).provenance}=={(16, 16)}

def test_every_field_is_tried(): assert {*changes, 'iterations'}=={f.name for f in fields(DistillConfig)}

def test_iterations_change_something(world):
    run = lambda n: distill(world['data'], world['teacher'], world['early'], method='sre2l', iterations=n, ipc=1, show_progress=False, preflight=False)
    assert not torch.equal(run(3).images, run(6).images)

@pytest.mark.parametrize('field', changes)
def test_every_field_changes_something(world, field):
    kw = {**small, 'max_area':.6, 'min_area':.3, 'end':'middle', **({'ipc':4} if field=='per_image' else {})}
    drop = ('max_area', 'min_area', 'end') if field=='method' else ()          # random does not read them
    a = distill(world['data'], world['teacher'], world['early'], **kw)
    b = distill(world['data'], world['teacher'], world['early'], **{k:v for k,v in {**kw, field:changes[field]}.items() if k not in drop+(('precision',) if field=='method' else ())})
    same = a.images.shape==b.images.shape and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.provenance==b.provenance
    assert not same, f'{field} changes nothing'

def test_shapley_default_is_close_to_exact(world):
    x, y = world['x'][:3], world['y'][:3]
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
        seen.append(cfg.crops)
        return infoutil_crops(cands, n, teacher, cfg)
    def theirs(cands, n, teacher, cfg): return rded_crops(cands, n, teacher, cfg.factor, cfg.crops, cfg.precision)
    run = lambda **kw: distill(world['data'], world['teacher'], world['early'], **{**small, **kw})
    assert torch.equal(run(choose=ours).images, run().images) and set(seen)=={5}
    assert torch.equal(run(choose=theirs).images, run(method='rded').images)

class Cramped(torch.nn.Module):
    "A network for which memory ends at so many images a pass"
    def __init__(self, net, most): super().__init__(); self.net, self.most, self.refused = net, most, 0
    def forward(self, x):
        if len(x)>self.most:
            self.refused += 1
            raise torch.OutOfMemoryError(f'CUDA out of memory. Tried to allocate {len(x)} images')
        return self.net(x)

@pytest.mark.parametrize('method', ['infoutil', 'shapley_loss'])
def test_running_out_of_memory_changes_no_byte(world, method):
    kw = {**small, 'candidates': 6, 'factor': 2, 'method': method}
    tight = replace(world['teacher'], model=Cramped(world['teacher'].model, 3).eval())
    sets = {k: distill(world['data'], t, t, **kw) for k,t in (('roomy', replace(tight, model=Cramped(world['teacher'].model, 10**9).eval())), ('tight', tight))}
    a, b = sets['roomy'], sets['tight']
    assert tight.model.refused>0 and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert a.provenance==b.provenance

@pytest.mark.parametrize('kw', [dict(factor=2), dict(end='middle', min_area=.3, per_image=None), dict(), dict(method='random_grad_norm', factor=2), dict(method='herding')], ids=str)
def test_a_class_in_parts_gives_the_same_bytes(world, monkeypatch, kw):
    import infoutil.pipeline as pipeline
    seen, stream = [], pipeline.read_ahead
    def watched(*args, **kw):
        for c in stream(*args, **kw): seen.append(len(c)); yield c
    monkeypatch.setattr(pipeline, 'read_ahead', watched)
    run = lambda: distill(world['data'], world['teacher'], world['early'], **{**{k:v for k,v in small.items() if k!='precision' or kw.get('method')!='herding'}, **kw})
    whole = run()
    monkeypatch.setattr(pipeline, '_BLOCK', 5)
    monkeypatch.setattr(pipeline, '_PART', 0)                       # nothing is held, so chosen images are read once more
    parts = run()
    assert set(seen[:10])=={12} and seen[10:13]==([12, 12, 12] if kw.get('method')=='herding' else [5, 5, 2])     # herding wants all images of a class at once
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.labels, parts.labels) and whole.provenance==parts.provenance

def test_labels_by_pieces_are_those_of_all_images(world):
    from infoutil.label import patch_labels
    from infoutil.pipeline import _label
    images = distill(world['data'], world['teacher'], method='random', ipc=10, factor=2, show_progress=False, preflight=False).images
    t, cfg = world['teacher'], make_config(factor=2)
    whole = patch_labels(t.model, images, 2, t.mean, t.std).half()
    assert torch.equal(_label(t, images, cfg), whole) and torch.equal(_label(t, images, cfg, room=4*64*4*10), whole)      # 64 images and 36
