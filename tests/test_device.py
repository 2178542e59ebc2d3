"Everything on a device that is not there: no tensor is left behind, none is used where it is not, and the figures are the CPU's"
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from infoutil.all import (attribute, DistilledSet, distill, evaluate, get_model, grad_cam, grad_norms, load_data, load_teacher, patch_labels, shapley_values, train_teacher)
from infoutil.attribution import ESTIMATORS
from infoutil.command_line import main
from infoutil.crop import informativeness, windows
from infoutil.gradient_norms import SCORES
from infoutil.kept_students import predict_files, train_student
from infoutil.label_teachers import try_label_teachers
from infoutil.student import with_view_labels
from pretend_device import Elsewhere, pretend

@pytest.fixture
def mps(monkeypatch):
    "Apple's device, as far as it shows from Python"
    state = torch.zeros(4, dtype=torch.uint8)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    for name,f in dict(get_rng_state=lambda: state, set_rng_state=lambda s: None, empty_cache=lambda: None, synchronize=lambda: None).items():
        monkeypatch.setattr(torch.mps, name, f)
    with pretend('mps') as mode: yield mode

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d, g = tmp_path_factory.mktemp('device')/'photos', np.random.default_rng(0)
    for part,n in (('train', 12), ('val', 8)):
        for k,c in enumerate('abc'):
            (d/part/c).mkdir(parents=True)
            for i in range(n): Image.fromarray((g.normal(100, 30, (32, 32, 3))+80*np.eye(3)[k]).clip(0, 255).astype('uint8')).save(d/part/c/f'{i}.png')
    return d

@pytest.fixture(scope='module')
def kept(folder):
    "A teacher on the disk"
    train_teacher(folder, folder.parent/'t', arch='convnet3_8', size=32, epochs=4, early_epoch=1, bs=6, precision='float32', device='cpu', show_progress=False)
    return folder.parent/'t'

# -- the pretender ----------------------------------------------------------------------------------------------------

def test_what_a_real_device_refuses_is_refused():
    with pretend('mps') as m:
        here, away = torch.ones(3), torch.ones(3).to('mps')
        assert away.device.type==(2*away).device.type==torch.zeros(2, device=away.device).device.type=='mps' and here.device.type=='cpu'
        assert (away*torch.tensor(2.)).is_mps and away[torch.tensor([0])].is_mps and away.cpu().device.type=='cpu' and m.moves==2
        for f in (lambda: away+here, lambda: here[away.long()], lambda: nn.Linear(3, 3)(away), lambda: torch.stack([away, here])):
            with pytest.raises((Elsewhere, TypeError)): f()
        for f in (away.numpy, away.double):
            with pytest.raises(TypeError): f()
        net = nn.Linear(3, 3).to('mps')
        met = []
        out = net(away)
        out.register_hook(lambda g: met.append(g.device.type))
        out.sum().backward()
        assert met==['mps'] and net.weight.grad.is_mps

# -- what is asked of networks ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ('mps', 'cuda'))
@pytest.mark.parametrize('arch', ('convnet3_8', pytest.param('resnet18', marks=pytest.mark.slow)))
def test_values_norms_and_labels_are_those_of_the_cpu(kind, arch, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d=None: (2**30, 2**31))
    for k in ('memory_reserved', 'memory_allocated'): monkeypatch.setattr(torch.cuda, k, lambda d=None: 0)
    torch.manual_seed(0)
    net, x, y = get_model(arch, 3, 32).eval(), torch.randn(4, 3, 32, 32), torch.arange(4)%3
    boxes = windows(torch.rand(4, 2, 3, 3), 32)
    pixels = (40*x+120).clamp(0, 255).byte()
    asked = {'attribute': lambda n, x, y: attribute(n, x, y).phi, 'grad_cam': grad_cam, 'informativeness': lambda n, x, y: informativeness(n, x, boxes),
             'labels': lambda n, x, y: patch_labels(n, pixels, 2, (.5,)*3, (.2,)*3), 'general norms': lambda n, x, y: grad_norms(n, x, y, method='vmap'),
             **{f'Shapley {e}': lambda n, x, y, e=e: shapley_values(n, x, y, grid=2, budget=64, method=e) for e in ESTIMATORS},
             **{f'score {s}': SCORES[s] for s in SCORES}}
    right = {k: f(net, x, y) for k,f in asked.items()}
    with pretend(kind, kind=='cuda'):
        away = get_model(arch, 3, 32).eval()
        away.load_state_dict(net.state_dict())
        away, x, y = away.to(kind), x.to(kind), y.to(kind)
        for k,f in asked.items(): torch.testing.assert_close(f(away, x, y).cpu().double(), right[k].double(), rtol=2e-3, atol=1e-4, msg=lambda m: f'{k}: {m}')

# -- the whole way ----------------------------------------------------------------------------------------------------

def test_from_a_folder_to_a_student(mps, folder, tmp_path):
    how = dict(show_progress=False)
    t = train_teacher(folder, tmp_path/'t', arch='convnet3_8', size=32, epochs=2, early_epoch=1, bs=6, precision='float32', **how)
    assert next(t.model.parameters()).is_mps and next(load_teacher(tmp_path/'t').model.parameters()).is_mps
    ds = distill(folder, t, ipc=1, factor=2, preflight=False, precision='float32', **how)
    ds.save(tmp_path/'s')
    back = DistilledSet.load(tmp_path/'s', device='mps')
    assert next(back.teacher.model.parameters()).is_mps
    runs = dict(epochs=2, repeats=1, precision='float32', **how)
    for labels in ('online', 'stored', 'hard'): assert evaluate(back, folder, labels=labels, **runs).config['labels']==labels
    evaluate(with_view_labels(back, epochs=2), folder, labels='views', **runs)
    train_student(back, tmp_path/'student', epochs=2, precision='float32', **how)
    assert len(predict_files(load_teacher(tmp_path/'student'), [folder/'val']))==24

@pytest.mark.parametrize('method, more', (('grad_cam', dict(factor=2)), ('shapley_loss', dict(factor=2)), ('random_grad_norm', dict(factor=2)), ('rded', {}), ('random', {}),
                                          ('herding', {}), ('kmeans', {}), ('forgetting', {}), ('el2n', {})))
def test_every_method_chooses_what_it_chooses_on_the_cpu(method, more, kept, folder, mps):
    here, away = [distill(folder, load_teacher(kept, device=d), method=method, ipc=2, candidates=8, preflight=False, show_progress=False, **more) for d in ('cpu', 'mps')]
    assert [(p['source'], p['box']) for p in away.provenance]==[(p['source'], p['box']) for p in here.provenance]
    torch.testing.assert_close(away.labels.float(), here.labels.float(), rtol=1e-2, atol=1e-2)

def test_pictures_that_are_optimized(kept, folder, mps):
    ds = distill(folder, load_teacher(kept, device='mps'), method='sre2l', ipc=1, iterations=2, preflight=False, show_progress=False)
    assert ds.images.shape==(3, 3, 32, 32) and ds.images.float().std()>1

def test_a_tensor_that_is_left_behind_is_found(kept, folder, mps, monkeypatch):
    "What these tests are for: images that nobody moves to the teacher's device"
    t = load_teacher(kept, device='mps')
    monkeypatch.setattr(type(t), 'normalize', lambda self, px: (px.float()/255-.5).cpu())
    with pytest.raises(Elsewhere): distill(folder, t, method='shapley_loss', factor=2, ipc=1, candidates=4, preflight=False, show_progress=False)

def test_trial_and_commands(kept, folder, mps, tmp_path, capsys):
    states = dict(early=load_teacher(kept, 'early'), converged=load_teacher(kept))
    assert len(try_label_teachers(load_data(folder), states, 1, views=30, epochs=2, show_progress=False))>=2
    assert main(['distill', f'{folder}', '--teacher', f'{kept}', '-o', f'{tmp_path}/s', '--ipc', '1', '--candidates', '4', '--label-teacher', 'early', '--precision', 'float32', '--insist'])==0
    assert main(['evaluate', f'{tmp_path}/s', '--test', f'{folder}', '--epochs', '2', '--repeats', '1', '--precision', 'float32'])==0
    assert main(['train', f'{tmp_path}/s', '-o', f'{tmp_path}/k', '--epochs', '2', '--test', f'{folder}', '--precision', 'float32'])==0
    assert main(['predict', f'{tmp_path}/k', f'{folder}/val/a/0.png'])==0 and '%' in capsys.readouterr().out
