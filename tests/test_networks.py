"Networks from elsewhere: fastai learners and their sets, students that fastai uses, timm, and teachers fitted to other classes"
import re, sys, warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from fastai.data.transforms import RandomSplitter
from fastai.learner import Learner, load_learner
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, Normalize, Resize, imagenet_stats
from infoutil.basics import InfoUtilError, seeded, TeacherError
from infoutil.command_line import main
from infoutil.comparison import compare
from infoutil.distilled_set import DistilledSet
from infoutil.engine.other_networks import Unnormalized
from infoutil.evaluation import evaluate, test_dl as real_images
from infoutil.gradient_norms import grad_norms
from infoutil.learners import learner_data, learner_teacher, network_name
from infoutil.models import ConvNet, get_model, network, NETWORKS
from infoutil.teacher import load_teacher, teacher_states

WNIDS = ('n01440764', 'n02102040', 'n02979186')        # tench, English springer, cassette player
QUICK = ['--size', '32', '--precision', 'float32']

def paint(folder, names, n, seed):
    "Noise, brighter in one channel or dimmer in one, so that a network tells the classes apart at once"
    r = np.random.default_rng(seed)
    for c,name in enumerate(names):
        (folder/name).mkdir(parents=True)
        for i in range(n):
            a = r.integers(60, 160, (32, 32, 3))
            a[..., c%3] += 90 if c<3 else -60
            Image.fromarray(a.astype(np.uint8)).save(folder/name/f'{name}_{i:02d}.png')

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    paint(root/'train', WNIDS, 16, 0)
    paint(root/'test', WNIDS, 8, 1)
    return root

@pytest.fixture(scope='module')
def learner(photos):
    "A plain fastai learner without normalization, of a network that has a name"
    dls = ImageDataLoaders.from_folder(photos, train='train', valid='test', item_tfms=Resize(32), bs=16, num_workers=0, device='cpu')
    with seeded(0, 'weights'): net = ConvNet(3, depth=2, width=8)
    learn = Learner(dls, net)
    with learn.no_bar(), learn.no_logging(), seeded(0, 'fit'): learn.fit_one_cycle(4, 1e-2)
    return learn

@pytest.fixture(scope='module')
def judged(photos, learner, tmp_path_factory):
    "A set of that learner, on disk"
    return learner.distill(ipc=2, method='random', candidates=8, show_progress=False).save(tmp_path_factory.mktemp('set')/'s')

def run(*argv): return main([str(a) for a in argv])

# ------------------------------------------------------------------ learners

def test_loaders_of_every_kind_lead_to_their_files(photos):
    files = sorted((photos/'train').rglob('*.png'))
    kw = dict(item_tfms=Resize(32), bs=8, num_workers=0, device='cpu', valid_pct=.25, seed=0)
    norm = Normalize.from_stats(*imagenet_stats, cuda=False)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=lambda d: files, get_y=lambda f: f.parent.name, splitter=RandomSplitter(seed=0), item_tfms=Resize(32))
    made = [ImageDataLoaders.from_name_func(photos, files, lambda n: n.rpartition('_')[0], **kw),
            ImageDataLoaders.from_name_re(photos, files, r'(n\d+)_', batch_tfms=norm, **kw),
            ImageDataLoaders.from_folder(photos/'train', **kw), block.dataloaders(photos, bs=8, num_workers=0, device='cpu')]
    for dls in made:
        learn = Learner(dls, ConvNet(3, depth=2, width=4), loss_func=nn.functional.cross_entropy)
        data, t = learner_data(learn), learner_teacher(learn)
        assert len(data.train)+len(data.valid)==48 and t.classes==WNIDS and t.size==32
        assert t.arch.removeprefix('unnormalized/')=='convnet2_4' and t.arch.startswith('unn')==(dls is not made[1])

def test_a_learner_of_two_images_is_refused(photos):
    pair = DataBlock((ImageBlock, ImageBlock, CategoryBlock), n_inp=2, get_items=lambda p: sorted((p/'train').rglob('*.png')),
                     getters=(lambda f: f, lambda f: f, lambda f: f.parent.name), splitter=RandomSplitter(.25, seed=0), item_tfms=Resize(32))
    with pytest.raises(TeacherError, match='takes 2 inputs; one image an item'):
        learner_teacher(Learner(pair.dataloaders(photos, bs=8, num_workers=0, device='cpu'), ConvNet(3, depth=2, width=8), loss_func=nn.CrossEntropyLoss()))

def test_a_network_is_known_by_its_answers():
    from torchvision.models import mobilenet_v2, resnet18
    from fastai.vision.learner import create_head, create_vision_model
    head = create_vision_model(resnet18, 4, pretrained=False).eval()
    assert network_name(head, resnet18, 4, 64)=='fastai/resnet18' and network_name(head, mobilenet_v2, 4, 64) is None
    head[1] = create_head(512, 4, concat_pool=False)
    assert network_name(head.eval(), resnet18, 4, 64) is None                               # a head of other options
    assert network_name(resnet18(num_classes=4).eval(), None, 4, 65)=='resnet18'
    sub = type('Sub', (ConvNet,), dict(forward=lambda self, x: 2*ConvNet.forward(self, x)))(3, depth=2, width=4).eval()
    assert network_name(sub, 'convnet2_4', 3, 32) is None                                   # same weights, other answers

def test_a_set_of_a_learner_is_complete_on_disk(learner, judged, photos, capsys):
    ds, x = DistilledSet.load(judged), learner.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    assert ds.teacher.arch=='unnormalized/convnet2_8'
    back = ds.teacher.model((x-torch.tensor(ds.mean).view(3, 1, 1))/torch.tensor(ds.std).view(3, 1, 1))
    torch.testing.assert_close(back, learner.model(x), atol=1e-4, rtol=1e-4)
    assert run('evaluate', judged, '--test', photos/'test', '--arch', 'convnet3_32', '--epochs', 2, '--repeats', 1)==0
    assert 'convnet3_32, 2 images per class, online labels' in capsys.readouterr().out
    assert run('evaluate', judged, '--test', photos/'test', '--epochs', 1, '--repeats', 1)==0
    assert 'convnet2_8, 2 images' in capsys.readouterr().out                                # the judge's own, for normalized pixels

def test_a_network_without_a_name_leaves_its_labels(learner, photos, tmp_path, capsys):
    own = Learner(learner.dls, nn.Sequential(learner.model, nn.Identity()))
    own.distill(ipc=1, method='random', candidates=8, show_progress=False).save(tmp_path/'s')
    with pytest.warns(UserWarning, match="network cannot be made by name.*students learn from the labels"): ds = DistilledSet.load(tmp_path/'s')
    assert ds.teacher is None and 'its label teacher unnormalized/custom not at hand' in repr(ds) or 'label teacher custom not at hand' in repr(ds)
    how = ['--test', photos/'test', '--epochs', 1]
    assert run('evaluate', tmp_path/'s', *how, '--arch', 'convnet2_8', '--repeats', 1)==0 and 'stored labels' in capsys.readouterr().out
    assert run('train', tmp_path/'s', '-o', tmp_path/'k', *how, '--arch', 'convnet2_8')==0
    capsys.readouterr()
    assert run('evaluate', tmp_path/'s', *how, '--labels', 'online', '--arch', 'convnet2_8')==1
    assert 'holds no teacher; stored and hard labels are accepted' in capsys.readouterr().err
    with warnings.catch_warnings():                                                         # and whoever has the network goes on
        warnings.simplefilter('error')
        again = DistilledSet.load(tmp_path/'s', model=Unnormalized(nn.Sequential(ConvNet(3, depth=2, width=8), nn.Identity())))
    assert again.teacher is not None

def test_a_changed_teacher_is_an_error_still(judged, tmp_path):
    "Only a name that cannot be made is done without"
    import shutil
    shutil.copytree(judged, tmp_path/'s')
    f = tmp_path/'s/teacher/label.safetensors'
    f.write_bytes(f.read_bytes()[:-1]+b'x')
    with pytest.raises(InfoUtilError, match='SHA-256 differs'): DistilledSet.load(tmp_path/'s')

def test_older_weights_of_unnormalized_networks_are_read():
    net, own = ConvNet(3, depth=2, width=4), Unnormalized(ConvNet(3, depth=2, width=4), (.5, .4, .3), (.2, .2, .1))
    own.load_state_dict({f'net.{k}': v for k,v in net.state_dict().items()})                # they had no statistics in them
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own.eval()(x), net.eval()(x*own.std+own.mean))

# ------------------------------------------------------------------ students in fastai's hands

@pytest.fixture(scope='module')
def student(judged, photos):
    ds = DistilledSet.load(judged)
    return ds.learner(real_images(ds, photos/'test', device='cpu'), 'convnet2_8', epochs=30, lr=.01, device='cpu').fit_distilled(False)

def picture(photos, c=2): return sorted((photos/'test'/WNIDS[c]).iterdir())[0]

def test_a_student_predicts_a_file_with_a_name_for_people(student, photos):
    said, i, p = student.predict(picture(photos))
    assert list(student.dls.vocab)==['tench', 'English springer', 'cassette player']
    assert str(said)==student.dls.vocab[int(i)] and float(p.sum())==pytest.approx(1, abs=1e-5) and int(p.argmax())==int(i)
    right = sum(int(student.predict(str(f))[1])==WNIDS.index(f.parent.name) for f in sorted((photos/'test').rglob('*.png')))
    with student.no_bar(): accuracy = student.validate()[1]
    assert right==round(accuracy*24) and right>12

def test_a_student_shows_its_results(student):
    import matplotlib.pyplot as plt
    with student.no_bar(): student.show_results(max_n=4)
    titles = [a.get_title() for a in plt.gcf().axes if a.get_title()]
    assert len(titles)==4 and all(set(t.split('\n'))<=set(student.dls.vocab) for t in titles)
    plt.close('all')

def test_a_student_without_real_images_predicts_too(judged, photos):
    learn = DistilledSet.load(judged).learner(arch='convnet2_8', epochs=1, device='cpu').fit_distilled(False)
    assert len(learn.predict(picture(photos))[2])==3
    with pytest.raises(InfoUtilError, match='no real images'): learn.show_results()
    with pytest.raises(InfoUtilError, match='the path of an image file is accepted'): learn.predict(torch.zeros(3, 32, 32))

def test_an_exported_student_is_fastais(student, photos, tmp_path):
    student.path = tmp_path
    student.export()
    assert (tmp_path/'export.pkl').stat().st_size<100_000                                   # neither the set nor its teacher
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                                                     # that one should load only what one trusts
        loaded = load_learner(tmp_path/'export.pkl')
    with loaded.no_bar(): said = loaded.predict(picture(photos))
    assert type(loaded) is Learner and str(said[0])==str(student.predict(picture(photos))[0]) and [*loaded.dls.vocab]==[*student.dls.vocab]
    assert student.opt is not None and len(student.dls.train)                               # the student itself goes on

# ------------------------------------------------------------------ a network of one's own, by name

def test_an_own_network_teaches_and_learns(monkeypatch, photos, judged, tmp_path):
    begun = []
    @network('tiny_net')
    def tiny(n_classes, size):
        m = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3*(size//8)**2, n_classes))
        begun.append(m[-1].weight[0, :4].tolist())
        return m
    monkeypatch.setitem(NETWORKS, 'tiny_net', tiny)                       # taken out again after the test
    ds, how = DistilledSet.load(judged, device='cpu'), dict(epochs=2, repeats=2, show_progress=False)
    r = evaluate(ds, photos/'test', 'tiny_net', **how)
    assert r.config['arch']=='tiny_net' and len(begun)==2 and begun[0]!=begun[1]   # each student has weights of its own
    assert evaluate(ds, photos/'test', 'tiny_net', **how).accuracies==r.accuracies and begun[2:]==begun[:2]
    t = tmp_path/'t'
    assert run('teacher', photos, '-o', t, '--arch', 'tiny_net', '--epochs', 4, '--lr', .1, '--bs', 12, *QUICK)==0
    assert load_teacher(t, device='cpu').arch=='tiny_net'
    how = dict(methods='random', ipc=1, archs='tiny_net+convnet2_8', label_teachers='converged', show_progress=False)
    with pytest.raises(InfoUtilError, match="'tiny_net' of your own came with several jobs"): compare(photos, t, tmp_path/'c', jobs=2, **how)
    c = compare(photos, t, tmp_path/'c', epochs=1, repeats=1, **how)
    assert c.arch.tolist()==['tiny_net+convnet2_8']
    monkeypatch.delitem(NETWORKS, 'tiny_net')
    with pytest.raises(InfoUtilError, match="unknown network 'tiny_net'"): load_teacher(t)

# ------------------------------------------------------------------ timm

def stand_in():
    "As much of timm as is asked for"
    def create_model(name, pretrained, num_classes, img_size=None):
        assert not pretrained and (img_size is not None)==name.startswith('tiny_vit')
        side = img_size or 1
        return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.BatchNorm1d(3*side**2), nn.Linear(3*side**2, num_classes))
    t = ModuleType('timm')
    t.list_models, t.create_model = lambda: ['tiny_vit', 'tiny_net'], create_model
    t.is_model, t.get_pretrained_cfg = lambda n: n.partition('.')[0] in t.list_models(), lambda n: SimpleNamespace(fixed_input_size='vit' in n)
    return t

def test_timm_by_name(monkeypatch, photos, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'timm', stand_in())
    t = tmp_path/'t'
    assert run('teacher', photos, '-o', t, '--arch', 'timm/tiny_net', '--epochs', 6, '--lr', .1, '--bs', 12, *QUICK)==0
    assert load_teacher(t, device='cpu').arch=='timm/tiny_net'
    assert run('distill', photos, '--teacher', t, '-o', tmp_path/'s', '--ipc', 1, '--budget', 32, '--candidates', 4, '--label-teacher', 'converged')==0
    assert run('evaluate', tmp_path/'s', '--test', photos/'test', '--arch', 'timm/tiny_vit', '--epochs', 1, '--repeats', 1)==0
    capsys.readouterr()
    assert run('evaluate', tmp_path/'s', '--test', photos/'test', '--arch', 'timm/tinyvit')==1 and "did you mean 'timm/tiny_vit'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'timm', None)
    assert run('teacher', photos, '-o', tmp_path/'u', '--arch', 'timm/tiny_net')==1 and 'pip install infoutil[timm]' in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r'timm is not installed: pip install infoutil\[timm\]'): ds = DistilledSet.load(tmp_path/'s')
    assert ds.teacher is None and ds.labels is not None

def test_a_name_of_timm_reaches_for_nothing(monkeypatch, tmp_path):
    "A teacher from a stranger may say any name; those of timm that download or read folders are no names here"
    t = stand_in()
    t.is_model = lambda n: True
    monkeypatch.setitem(sys.modules, 'timm', t)
    for name in ('hf-hub:some/body', 'hf_hub:some/body', 'local-dir:/tmp/x', '../x', 'a/b'):
        with pytest.raises(InfoUtilError, match='unknown network'): get_model(f'timm/{name}', 2, 32)

def test_the_real_timm():
    pytest.importorskip('timm')
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for name in ('resnet10t', 'vit_tiny_patch16_224'):
        with seeded(0): m = get_model(f'timm/{name}', 5, 64).eval()
        torch.testing.assert_close(grad_norms(m, x, y), grad_norms(m, x, y, method='loop').float())
    assert network_name(m, None, 5, 64)=='timm/vit_tiny_patch16_224'

def test_timm_is_an_extra():
    cfg = (Path(__file__).parent.parent/'settings.ini').read_text()
    assert re.search(r'^timm_requirements = timm', cfg, re.M) and 'timm' not in re.search(r'^requirements = .*', cfg, re.M)[0]
    assert "'timm'" in (Path(__file__).parent.parent/'setup.py').read_text()

# ------------------------------------------------------------------ teachers that are adapted

@pytest.fixture(scope='module')
def other_weights(tmp_path_factory):
    "A network that tells five other classes apart"
    root = tmp_path_factory.mktemp('five')
    paint(root/'train', 'abcde', 12, 2)
    paint(root/'test', 'abcde', 6, 3)
    assert run('teacher', root, '-o', f'{root}_t', '--arch', 'convnet2_8', '--epochs', 4, '--lr', .01, '--bs', 12, *QUICK)==0
    torch.save({'state_dict': load_teacher(f'{root}_t', device='cpu').model.state_dict()}, root/'w.pth')
    return ['--weights', root/'w.pth', '--arch', 'convnet2_8', *QUICK]

def test_weights_of_other_classes_are_fitted(other_weights, photos, tmp_path, capsys):
    t = tmp_path/'t'
    assert run('teacher', photos, '-o', t, *other_weights, '--finetune', 4, '--bs', 12)==0
    assert re.search(rf'Teacher\(convnet2_8, 3 classes, 32 px, epoch 5, accuracy .*\nwritten to {t}: converged, early', capsys.readouterr().out)
    got = load_teacher(t, device='cpu')
    assert got.accuracy>.6 and got.classes==WNIDS and len(got.record.curve)==5 and load_teacher(t, 'early', device='cpu').epoch==1
    assert run('distill', photos, '--teacher', t, '-o', tmp_path/'s', '--ipc', 1, '--method', 'random', '--candidates', 4, '--label-teacher', 'by_ipc')==0
    assert DistilledSet.load(tmp_path/'s').teacher.epoch==1

def test_a_judge_gets_label_teachers(photos, tmp_path, capsys):
    assert run('teacher', photos, '-o', tmp_path/'j', '--arch', 'convnet2_8', '--epochs', 4, '--lr', .01, '--bs', 12, *QUICK)==0
    torch.save(load_teacher(tmp_path/'j', device='cpu').model.state_dict(), tmp_path/'w.pth')
    t, how = tmp_path/'t', ['--weights', tmp_path/'w.pth', '--arch', 'convnet2_8', *QUICK]
    capsys.readouterr()
    assert run('teacher', photos, '-o', t, *how, '--label-teachers', 'convnet2_4', '--epochs', 3, '--early-epoch', 1, '--bs', 12)==0
    assert 'converged, early, label_converged' in capsys.readouterr().out and not (tmp_path/'t.label_teachers').exists()
    states = {n: load_teacher(t, n, device='cpu') for n in teacher_states(t)}
    assert states['converged'].arch=='convnet2_8' and {s.arch for n,s in states.items() if n!='converged'}=={'convnet2_4'}
    assert len({(s.mean, s.std, s.size, s.held_out) for s in states.values()})==1
    assert run('distill', photos, '--teacher', t, '-o', tmp_path/'s', '--ipc', 1, '--method', 'random', '--candidates', 4, '--label-teacher', 'early+label_converged')==0
    assert DistilledSet.load(tmp_path/'s').teacher.arch=='convnet2_4+convnet2_4'

@pytest.mark.parametrize('more, why', [
    (['--finetune', '0'], '0 epochs came'), (['--finetune', '2', '--epochs', '3'], '--epochs came with --finetune'),
    (['--finetune', '2', '--classes', 'x'], '--finetune came with --classes'), (['--finetune', '2', '--label-teachers'], '--finetune came with --label-teachers'),
    (['--finetune', '2', '--mean', '.5,.5,.5'], 'one of mean and std came'), (['--finetune', '2', '--schedule', 'paper'], '--schedule came with --finetune'),
    (['--bs', '64'], '--bs came with --weights, with which nothing is trained'), (['--label-teachers', 'convnte3'], 'unknown network')])
def test_options_that_say_nothing_together_are_refused(other_weights, photos, tmp_path, capsys, more, why):
    assert run('teacher', photos, '-o', tmp_path/'t', *other_weights, *more)==1
    said = capsys.readouterr().err
    assert re.search(why, said) and said.count(';')==2 and not (tmp_path/'t').exists()

def test_they_belong_to_weights(photos, tmp_path, capsys):
    for more in (['--finetune', '2'], ['--label-teachers']):
        assert run('teacher', photos, '-o', tmp_path/'t', *more)==1
        assert f'{more[0]} came without --weights or --pretrained' in capsys.readouterr().err
