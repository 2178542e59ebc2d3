"What other people's data, networks, learners and machines bring along: each works, or ends in a sentence that helps"
import errno, json, multiprocessing, os, pickle, re, subprocess, sys, traceback
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from fastai.callback.core import Callback, CancelValidException
from infoutil.all import distill, evaluate, load_teacher, save_teacher, train_teacher
from infoutil.basics import DataError, InfoUtilError, OutputError, TeacherError, drawn, seeded, shown
from infoutil.command_line import main
from infoutil.data import load_folder
from infoutil.distilled_set import DistilledSet
from infoutil.engine.runs import resumable
from infoutil.export import DDRANKING, export_set
from infoutil.models import ConvNet, get_model
from infoutil.teacher import check_teacher, predict, preflight, Teacher, teacher_states
import infoutil.learners, infoutil.loaders

root = Path(__file__).parents[1]
SENTENCE = re.compile(r'.+; .+ (is|are) accepted.*; .+|.+ (is|are) accepted.*; .+', re.S)

def photos(folder, counts, parts=('train', 'val'), size=16):
    "Noise with a colour of its own for each class; `counts`: class -> images"
    draw = np.random.default_rng(0)
    for part in parts:
        for k,(c,n) in enumerate(counts.items()):
            (Path(folder)/part/c).mkdir(parents=True)
            for i in range(n):
                pixels = (draw.normal(100, 30, (size, size, 3))+80*np.eye(3)[k%3]).clip(0, 255).astype('uint8')
                Image.fromarray(pixels).save(Path(folder)/part/c/f'{i:03d}.png')
    return Path(folder)

@pytest.fixture(scope='session')
def three(tmp_path_factory): return photos(tmp_path_factory.mktemp('people')/'three', dict(a=12, b=12, c=12))

def net(n=3, size=16):
    with seeded(1): return ConvNet(n, 2, 8, size)

QUICK = dict(size=16, epochs=1, bs=12, device='cpu', show_progress=False)
STATS = (.5, .5, .5), (.3, .3, .3)

@pytest.fixture(scope='session')
def judge(three): return train_teacher(three, None, model=net(), **{**QUICK, 'epochs': 4, 'lr': .02})

def says(error, *words):
    "A sentence of three parts with these words"
    text = str(error.value)
    assert '\n' not in text and text.count(';')>=2 and ('accepted' in text), text
    for w in words: assert w in text, (w, text)

# ------------------------------------------------------------------ 1. DD-Ranking's order
def a_set(names, labels=True):
    "One image a class, all of one colour that tells the class; every label names its own class"
    n = len(names)
    images = torch.arange(n).remainder(251).byte().view(n, 1, 1, 1).expand(n, 3, 8, 8).contiguous()
    return DistilledSet(images, torch.arange(n), tuple(names), 9*torch.eye(n)[:, None] if labels else None, None,
                        dict(mean=[.4]*3, std=[.2]*3, method='random'), [])

CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
NETTE = ['tench', 'English springer', 'cassette player', 'chain saw', 'church', 'French horn', 'garbage truck', 'gas pump', 'golf ball', 'parachute']
WOOF = ['Australian terrier', 'Border terrier', 'Samoyed', 'beagle', 'Shih-Tzu', 'English foxhound', 'Rhodesian ridgeback', 'dingo', 'golden retriever', 'Old English sheepdog']
WNIDS = (root/'infoutil/data_files/imagenet_wnids.csv').read_text().split()[1:]
RIGHT = {'CIFAR-100 in folders 0 to 99': ('CIFAR100', list(map(str, range(100)))),
         'class_0 to class_9':           ('CIFAR10', [f'class_{i}' for i in range(10)]),
         'names as people write them':   ('CIFAR10', [c.capitalize() for c in CIFAR10]),
         'cars and planes':              ('CIFAR10', ['plane', 'car', *CIFAR10[2:]]),
         'English names of Imagenette':  ('ImageNette', NETTE),
         'with underscores':             ('ImageNette', [c.lower().replace(' ', '_') for c in NETTE]),
         'numbers of ImageNet':          ('ImageNette', '0 217 482 491 497 566 569 571 574 701'.split()),
         'English names of Imagewoof':   ('ImageWoof', WOOF),
         'WordNet numbers and words':    ('ImageWoof', [f'{w}-{c}' for w,c in zip(DDRANKING['ImageWoof'][3], WOOF)]),
         'Woof by numbers of ImageNet':  ('ImageWoof', '193 182 258 162 155 167 159 273 207 229'.split()),
         'ImageNet in folders':          ('ImageNet1K', list(map(str, range(1000)))),
         'ImageNet by WordNet':          ('ImageNet1K', WNIDS)}

@pytest.mark.parametrize('case', RIGHT)
def test_classes_are_put_in_ddrankings_order(tmp_path, case):
    data, names = RIGHT[case]
    out = export_set(a_set(sorted(names), len(names)<500), tmp_path/'x', 'ddranking', data=data)
    assert json.loads((out/'export.json').read_text(encoding='utf-8'))['classes']==names
    m, s = (torch.tensor(v).view(3, 1, 1) for v in DDRANKING[data][:2])
    colours = ((torch.load(out/'images.pt', weights_only=True)*s+m)*255).round()[:, 0, 0, 0].long().tolist()
    assert colours==[sorted(names).index(c)%251 for c in names]
    if len(names)<500: assert torch.load(out/'labels.pt', weights_only=True).argmax(1).tolist()==list(range(len(names)))
    assert f'of {data}' in (out/'README.md').read_text(encoding='utf-8')

NONE = {'another name':       ('CIFAR10', [*CIFAR10[:-1], 'lorry'], ('lorry', 'truck')),
        'in French':          ('ImageNette', [f'nom {c}' for c in 'abcdefghij'], ('nom a', 'tench')),
        'counted from 1':     ('CIFAR100', list(map(str, range(1, 101))), ('0 to 99',)),
        'numbers of Woof':    ('ImageWoof', list(map(str, range(10))), ('orders its own way',)),
        'another data set':   ('ImageNette', DDRANKING['ImageWoof'][3], ('n02086240',)),
        'two of one class':   ('CIFAR10', [*CIFAR10[:-1], 'Ship'], ('truck',)),
        'other numbers':      ('TinyImageNet', [f'n{i:08d}' for i in range(200)], ('goldfish',))}

@pytest.mark.parametrize('case', NONE)
def test_classes_that_cannot_be_told_are_refused(tmp_path, case):
    data, names, words = NONE[case]
    with pytest.raises(InfoUtilError) as e: export_set(a_set(sorted(names)), tmp_path/'x', 'ddranking', data=data)
    says(e, data, *words)
    assert not (tmp_path/'x').exists()

def test_a_set_without_a_name_keeps_its_order_and_says_so(tmp_path):
    names = sorted(map(str, range(12)))
    out = export_set(a_set(names), tmp_path/'x', 'ddranking')
    assert json.loads((out/'export.json').read_text(encoding='utf-8'))['classes']==names
    assert "the set's own" in (out/'README.md').read_text(encoding='utf-8')

# ------------------------------------------------------------------ 5. other ways to start processes
class NoValidation(Callback):
    def before_validate(self): raise CancelValidException

@pytest.mark.parametrize('how', [h for h in ('spawn', 'forkserver') if h in multiprocessing.get_all_start_methods()])
def test_processes_that_read_are_started_in_any_way(three, how):
    "spawn is the way of Windows and macOS, forkserver of Python 3.14 on Linux"
    from infoutil.training import ForgettingCounts, teacher_learner
    data, counts = load_folder(three), ForgettingCounts()
    learn = teacher_learner(data, model=net(), size=16, bs=12, workers=1, device='cpu')
    multiprocessing.set_start_method(how, force=True)
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=[counts, NoValidation()])
    finally: multiprocessing.set_start_method(None, force=True)
    assert sorted(counts.ids.tolist())==list(range(len(data.train))) and len(counts.counts(1))==36

def test_a_loader_takes_no_callback_along(three):
    "What the processes get, whatever else hangs onto the learner"
    from infoutil.training import ForgettingCounts, teacher_learner
    learn, sizes = teacher_learner(load_folder(three), model=net(), size=16, bs=12, device='cpu'), []
    class Sends(Callback):
        order = 90
        def before_batch(self):
            if self.training: sizes.append(len(pickle.dumps(self.dl.dataset))), pickle.loads(pickle.dumps(self.dl))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=[ForgettingCounts(), Sends()])
    assert len(sizes)>2

# ------------------------------------------------------------------ 12. one class that is most of the data
class Says(nn.Module):
    "Says a class for each image by `rule(pixel sums)`; there is one parameter, as networks have"
    def __init__(self, rule, n=2):
        super().__init__()
        self.rule, self.n, self.p = rule, n, nn.Parameter(torch.ones(()))
    def forward(self, x): return self.p*4*torch.nn.functional.one_hot(self.rule(x), self.n).float()

def of(rule, classes): return Teacher(Says(rule, len(classes)).eval(), 'custom', classes, 16, *STATS)

def always(x): return torch.zeros(len(x), dtype=torch.int64)
def redder(x): return (x[:, 1].mean((1, 2))>x[:, 0].mean((1, 2))).long()       # class 0 is red, class 1 green
def noisy(x): return ((x.sum((1, 2, 3))*1e4).long()%11==0).long()              # a few of class 1, without looking

@pytest.mark.parametrize('counts', [dict(healthy=90, ill=9), dict(healthy=60, ill=3), dict(healthy=40, ill=4, odd=4)], ids=str)
def test_the_majority_class_is_no_skill(tmp_path, counts):
    data, classes = load_folder(photos(tmp_path/'p', counts)), tuple(sorted(counts))
    for rule in (always, noisy):
        with pytest.raises(TeacherError) as e: check_teacher(of(rule, classes), data)
        says(e, 'balanced accuracy', "'healthy'", 'preflight=False')
    if len(classes)==2: assert check_teacher(of(redder, classes), data)>.9

def test_skill_among_few_is_seen(tmp_path):
    "A teacher that finds some of the rare class at the price of more mistakes than the constant answer makes"
    data = load_folder(photos(tmp_path/'p', dict(healthy=90, ill=9)))
    def careful(x):
        said = redder(x)
        said[(x.sum((1, 2, 3))*1e4).long()%9==0] = 1          # a ninth of the healthy ones are taken for ill
        return said
    assert check_teacher(of(careful, ('healthy', 'ill')), data)<.95

def test_few_of_a_class_are_all_tried(tmp_path):
    "Of 600 and 3, where a draw by hash of 500 may hold none of the three"
    data = load_folder(photos(tmp_path/'p', dict(a=600, b=3), parts=('train',), size=8), .5)
    with pytest.raises(TeacherError, match='balanced'): preflight(of(always, ('a', 'b')), data)

def test_even_data_are_judged_as_before(three, judge):
    data = load_folder(three)
    with pytest.raises(TeacherError, match='chance is 33.3%'): check_teacher(of(always, data.classes), data)
    assert check_teacher(judge, data)>.9

# ------------------------------------------------------------------ 13. little shared memory
def test_processes_that_read_fit_into_shared_memory(three, monkeypatch):
    from infoutil.training import teacher_learner
    def workers(free):
        monkeypatch.setattr(infoutil.loaders, 'shared_memory_free', lambda: free)
        return infoutil.loaders.loading_processes(10**4, 64, 224)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 5)
    assert [workers(f) for f in (None, 2**35)]==[4, 4]
    with pytest.warns(UserWarning, match='64 MB of shared memory'): assert workers(2**26)==2
    with pytest.warns(UserWarning, match='--shm-size'): assert workers(0)==0
    assert infoutil.loaders.loading_processes(100, 64, 224)==0
    for odd in (-1, 1.5):
        with pytest.raises(InfoUtilError) as e: teacher_learner(load_folder(three), model=net(), size=16, workers=odd)
        says(e, 'workers')

@pytest.mark.parametrize('error', [RuntimeError('unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)'),
                                   RuntimeError('DataLoader worker (pid(s) 77) exited unexpectedly'),
                                   RuntimeError('DataLoader worker (pid 77) is killed by signal: Bus error.'),
                                   OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.ENOMEM, 'Cannot allocate memory')], ids=str)
def test_a_lost_process_ends_in_a_sentence(three, tmp_path, monkeypatch, error):
    from infoutil.training import TidyLearner
    def lost(self): raise error
    monkeypatch.setattr(TidyLearner, 'all_batches', lost)
    with pytest.raises(DataError) as e: train_teacher(three, tmp_path/'t', model=net(), workers=2, **QUICK)
    says(e, '--workers', '--shm-size')
    assert not (tmp_path/'t').exists()
    with pytest.raises(type(error), match=re.escape(str(error)) if isinstance(error, RuntimeError) else None):
        train_teacher(three, None, model=net(), workers=0, **QUICK)

def test_the_command_takes_a_number_of_processes(three, tmp_path):
    assert main(['teacher', f'{three}', '-o', f'{tmp_path}/t', '--size', '16', '--arch', 'convnet2_8', '--epochs', '1', '--bs', '12', '--workers', '1'])==0
    assert main(['teacher', f'{three}', '-o', f'{tmp_path}/u', '--size', '16', '--arch', 'convnet2_8', '--workers', '-1'])==1
    assert 'converged' in teacher_states(tmp_path/'t')

# ------------------------------------------------------------------ 14. learners of other tasks, and without data
def other_learners(folder):
    "What fastai makes besides single-label classifiers"
    from fastai.vision.all import (CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock, Learner, MaskBlock, MultiCategoryBlock, PointBlock, RegressionBlock,
                                   Resize, ResizeMethod, get_image_files, parent_label, MSELossFlat)
    how = dict(get_items=get_image_files, splitter=GrandparentSplitter('train', 'val'), item_tfms=Resize(16))
    def learner(*blocks, y, n_inp=1, get_x=None, **kw):
        b = DataBlock(blocks, get_y=y, get_x=get_x, n_inp=n_inp, **how|kw)
        return Learner(b.dataloaders(folder, bs=8, num_workers=0, device='cpu'), net(), loss_func=MSELossFlat())
    label = lambda f: [f.parent.name]
    yield 'several labels', learner(ImageBlock, MultiCategoryBlock, y=label)
    yield 'encoded labels', learner(ImageBlock, MultiCategoryBlock(encoded=True, vocab=['a', 'b', 'c']), y=lambda f: [float(c==f.parent.name) for c in 'abc'])
    yield 'a number', learner(ImageBlock, RegressionBlock, y=lambda f: float(len(f.name)))
    yield 'three numbers', learner(ImageBlock, RegressionBlock(n_out=3), y=lambda f: [1., 2., 3.])
    yield 'points', learner(ImageBlock, PointBlock, y=lambda f: torch.tensor([[1., 2.], [3., 4.]]))
    yield 'a mask', learner(ImageBlock, MaskBlock(codes=['a', 'b']), y=lambda f: np.zeros((16, 16), dtype='uint8'))
    yield 'two classes', learner(ImageBlock, CategoryBlock, CategoryBlock, y=[parent_label, parent_label])
    yield 'another image', learner(ImageBlock, ImageBlock, y=lambda f: f)

def test_learners_of_other_tasks_are_refused(three):
    seen = []
    for name, learn in other_learners(three):
        for ask in (lambda l: l.distill(ipc=1), infoutil.learners.learner_teacher, infoutil.learners.learner_data):
            with pytest.raises(TeacherError) as e: ask(learn)
            says(e, 'one class an image')
        seen.append(name)
    assert len(seen)==8

@pytest.fixture
def classifier(three):
    from fastai.vision.all import CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock, Learner, Normalize, Resize, get_image_files, parent_label, imagenet_stats
    b = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=GrandparentSplitter('train', 'val'),
                  item_tfms=Resize(16), batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False))
    return Learner(b.dataloaders(three, bs=8, num_workers=0, device='cpu'), net())

def test_a_loaded_learner_has_no_images(classifier, tmp_path):
    from fastai.vision.all import load_learner
    classifier.path, dls = tmp_path, classifier.dls
    classifier.export('l.pkl')
    again = load_learner(tmp_path/'l.pkl')
    for ask in (lambda l: l.distill(ipc=1), infoutil.learners.learner_teacher, infoutil.learners.learner_data):
        with pytest.raises(DataError) as e: ask(again)
        says(e, 'no images', 'learn.dls = dls')
    again.dls = dls
    assert len(again.distill(ipc=1, method='random', preflight=False, show_progress=False))==3

def test_learners_whose_loaders_cannot_serve(classifier, three):
    from fastai.vision.all import DataLoaders, ImageBlock, CategoryBlock, DataBlock, Learner, RandomSplitter, Resize, get_image_files, parent_label, TfmdDL
    sizes = photos(three.parent/'sizes', dict(a=4, b=4), parts=('train',), size=12)
    for i in range(4): Image.new('RGB', (20, 20)).save(sizes/f'train/a/{i:03d}.png')
    block = lambda split, **kw: DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=split, **kw)
    unsized = block(RandomSplitter(.9, seed=0)).dataloaders(sizes, bs=9, num_workers=0, device='cpu')
    with pytest.raises(TeacherError) as e: Learner(unsized, net(2)).distill(ipc=1)
    says(e, 'Resize')
    small = block(RandomSplitter(.5, seed=0), item_tfms=Resize(8)).dataloaders(sizes, bs=4, num_workers=0, device='cpu')
    with pytest.raises(TeacherError) as e: Learner(small, net(2)).distill(ipc=1, preflight=False)
    says(e, '(2, 3, 8, 8)')
    sized = block(RandomSplitter(.5, seed=0), item_tfms=Resize(16)).dataloaders(sizes, bs=4, num_workers=0, device='cpu')
    for model, words in ((net(3), '3 outputs'), (Wrapped(lambda z, m: (z, z), 2), 'a tuple')):
        with pytest.raises(InfoUtilError) as e: Learner(sized, model).distill(ipc=1, preflight=False)
        says(e, words)
    rows = [(torch.zeros(3, 16, 16), 0)]*4
    memory = DataLoaders.from_dsets(rows, rows, bs=2)
    memory.vocab = ['a', 'b']
    with pytest.raises(InfoUtilError) as e: infoutil.learners.learner_data(Learner(memory, net(2), loss_func=nn.CrossEntropyLoss()))
    says(e, 'not image files')
    no_valid = block(RandomSplitter(0.), item_tfms=Resize(16)).dataloaders(sizes, bs=4, num_workers=0, device='cpu')
    assert len(infoutil.learners.learner_data(Learner(no_valid, net(2))).valid)==0
    assert len(Learner(no_valid, net(2)).distill(ipc=1, method='random', preflight=False, show_progress=False))==2

# ------------------------------------------------------------------ 16. names of any kind in pictures and tables
ODD = {'no UTF-8': os.fsdecode(b'caf\xe9'), 'two escapes': os.fsdecode(b'\xff\xfe'), 'an accent under an ASCII locale': 'caf\udcc3\udca9', 'a lone surrogate': '\ud800x',
       'dollars': '$$', 'mathematics': '$\\frac{', 'half of it': 'a$b', 'a backslash': '\\$\\', 'lines': 'a\nb\r\tc', 'control': 'a\x00\x1b[31m', 'blank': ' ', 'long': 'ab$'*40}

@pytest.mark.parametrize('kind', ODD)
def test_pictures_of_any_name(tmp_path, kind):
    import matplotlib.pyplot as plt
    from infoutil.plots import plain_text, plot_sets
    ds = replace(a_set([ODD[kind], 'b']), meta=dict(mean=[.4]*3, std=[.2]*3, method='random'))
    ds.show(path=tmp_path/'grid.png')
    ds.show_labels(0)[0].figure.savefig(tmp_path/'labels.png')
    plot_sets({ODD[kind]: ds, 'random': ds}).figure.savefig(tmp_path/'sets.svg')
    plt.close('all')
    assert {p.name for p in tmp_path.iterdir()}=={'grid.png', 'labels.png', 'sets.svg'}
    text = plain_text(ODD[kind])
    text.encode()
    assert text.replace('\\$', '').isprintable() and '$' not in text.replace('\\$', '')

def test_what_is_drawn():
    assert (shown(ODD['no UTF-8']), shown('caf\udcc3\udca9'), shown('caf\udcc3')) == (r'caf\udce9', 'café', r'caf\udcc3')
    assert [drawn(v, 5) for v in ('a$b', 'abcdefg', 'a\n b', 12)]==[r'a\$b', 'abcd…', 'a b', '12']

def test_a_strip_of_any_name(judge, three):
    from infoutil.data import candidates
    from infoutil.strip import follow, plot_strip
    import matplotlib.pyplot as plt
    odd = tuple(ODD[k] for k in ('no UTF-8', 'dollars', 'lines'))
    fig = plot_strip(replace(follow(replace(judge, classes=odd), candidates(load_folder(three), 0, 16, n=6)), name=odd[0], classes=odd))
    fig.canvas.draw()
    plt.close('all')

@pytest.mark.skipif(sys.platform!='linux', reason='names are bytes on Linux alone')
def test_commands_with_names_that_are_no_utf8(tmp_path):
    "In an ASCII locale, from the folder to the picture"
    photos(tmp_path/'p', {os.fsdecode(b'caf\xe9'): 6, 'caf\u00e9': 6, '$$': 6})
    script = ("import sys; from infoutil.command_line import main\n"
              "a = '--size 16 --arch convnet2_8 --epochs 3 --bs 6 --lr .02'.split()\n"
              "for argv in (['teacher', 'p', '-o', 't', *a], ['distill', 'p', '--teacher', 't', '--method', 'random', '--ipc', '1', '--label-teacher', 'converged', '-o', 's'], ['show', 's', '-o', 'g.png'],\n"
              "             ['predict', 't', 'p/val'], ['evaluate', 's', '--test', 'p', '--epochs', '1', '--repeats', '1', '--labels', 'hard']):\n"
              "    assert main(argv)==0, argv\n")
    env = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONPATH': str(root), 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1'}
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], env=env, capture_output=True, cwd=tmp_path)
    assert r.returncode==0, (r.stdout[-800:], r.stderr[-1500:])
    assert (tmp_path/'g.png').stat().st_size>1000

@pytest.mark.parametrize('kind', ['no UTF-8', 'dollars', 'lines'])
def test_tables_of_a_folder_of_any_name(tmp_path, kind):
    "A comparison of data in such a folder: its rows are read, and its tables and pictures made"
    import matplotlib.pyplot as plt
    from infoutil.fixtures.toy_comparison import toy_comparison
    from infoutil.plots import plot_accuracy
    from infoutil.report import to_markdown
    from infoutil.results import accuracy_table, for_people, read_results
    d = toy_comparison(tmp_path/'c')
    f = Path(d)/'results.jsonl'
    rows = [json.dumps({**json.loads(l), 'data': ODD[kind]}) for l in f.read_text().splitlines()]
    f.write_text('\n'.join(rows)+'\n')
    frame = read_results(d)
    assert set(frame.data)=={shown(ODD[kind])}
    to_markdown(for_people(accuracy_table(frame), frame)).encode()
    plot_accuracy(frame).figure.savefig(tmp_path/'p.png')
    plt.close('all')

def test_predictions_of_any_name(judge, three, tmp_path):
    from infoutil.kept_students import predict_files
    odd = tuple(ODD[k] for k in ('no UTF-8', 'dollars', 'lines'))
    t = predict_files(replace(judge, classes=odd), [three/'val'])
    assert set(t['class'])<=set(odd) and t.probability.dtype.kind=='f'

# ------------------------------------------------------------------ 17. nobody listens
LEARN = '--size 16 --arch convnet2_8 --epochs 2 --bs 12 --lr .02'.split()
COMMANDS = [['teacher', 'p', '-o', 't', *LEARN], ['distill', 'p', '--teacher', 't', '--method', 'random', '--ipc', '1', '--label-teacher', 'converged', '-o', 's'], ['show', 's', '-o', 'g.png'],
            ['evaluate', 's', '--test', 'p', '--epochs', '1', '--repeats', '1', '-o', 'r.json'], ['predict', 't', 'p/val'], ['export', 's', '--to', 'ddranking', '-o', 'x'],
            ['train', 's', '-o', 'st', '--epochs', '1'], ['teacher', '--help'], ['show', 'nowhere']]
MADE = {'t', 's', 'g.png', 'r.json', 'x', 'st'}

def reopened(fd):
    "What Python makes of a file descriptor when it starts"
    try: os.fstat(fd)
    except OSError: return None
    return open(fd, 'w' if fd else 'r', encoding='utf-8', closefd=False)

def run(argv):
    try: return main(argv)
    except SystemExit as e: return e.code or 0

def in_a_child(setup, folder, argvs=COMMANDS):
    "The status of each command, run in a child whose file descriptors `setup` arranges"
    pid = os.fork()
    if not pid:
        try:
            os.chdir(folder)
            setup()
            sys.stdin, sys.stdout, sys.stderr = map(reopened, range(3))
            codes = [run(a) for a in argvs]
            for s in (sys.stdout, sys.stderr): s and s.flush()                   # as Python does in the end
            Path('codes.json').write_text(json.dumps(codes))
        except BaseException: Path('traceback.txt').write_text(traceback.format_exc())
        finally: os._exit(0)
    return pid

def closed(*fds): return lambda: [os.close(fd) for fd in fds]

def reader_gone(*fds):
    def setup():
        r, w = os.pipe()
        for fd in fds: os.dup2(w, fd)
        os.close(r), os.close(w)
    return setup

def onto(path, *fds):
    def setup():
        for fd in fds: os.dup2(os.open(path, os.O_WRONLY|os.O_CREAT), fd)
    return setup

HOW = {'output closed': [closed(1)], 'all closed': [closed(0, 1, 2)], 'reader gone': [reader_gone(1)], 'of errors, too': [reader_gone(1, 2)], 'a full disk': [onto('/dev/full', 1)]}

@pytest.mark.skipif(not hasattr(os, 'fork') or not os.path.exists('/dev/full'), reason='file descriptors of Unix')
@pytest.mark.parametrize('how', HOW)
def test_commands_go_on_where_nobody_listens(three, tmp_path, how):
    (tmp_path/'p').symlink_to(three)
    def setup():
        onto('err.txt', 2)()
        for f in HOW[how]: f()
    os.waitpid(in_a_child(setup, tmp_path), 0)
    assert not (tmp_path/'traceback.txt').exists(), (tmp_path/'traceback.txt').read_text()
    assert json.loads((tmp_path/'codes.json').read_text())==[0]*8+[1]
    assert MADE<={p.name for p in tmp_path.iterdir()} and not list(tmp_path.glob('*.run'))
    said = [l for l in (tmp_path/'err.txt').read_text().splitlines() if 'Warning' not in l and not l.startswith(' ')]
    if how=='a full disk': assert sum('No space left' in l and 'work goes on' in l for l in said)==len(said)-1>0, said
    elif how in ('output closed', 'reader gone'): assert len(said)==1 and 'no directory at nowhere' in said[0], said
    assert len(torch.load(tmp_path/'x/images.pt', weights_only=True))==3            # and no line of output in a file

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='pipes of Unix')
def test_a_reader_that_has_seen_enough(three, tmp_path):
    "infoutil teacher ... | head -1"
    (tmp_path/'p').symlink_to(three)
    r, w = os.pipe()
    pid = in_a_child(lambda: (os.dup2(w, 1), os.close(r), os.close(w)), tmp_path, COMMANDS[:1])
    os.close(w)
    with open(r) as f: first = f.readline()
    os.waitpid(pid, 0)
    assert first.startswith('training the teacher') and json.loads((tmp_path/'codes.json').read_text())==[0] and (tmp_path/'t').is_dir()

def test_a_service_without_streams(three, tmp_path, monkeypatch):
    "sys.stdout is None under pythonw and in some services"
    monkeypatch.chdir(tmp_path)
    for name in ('stdin', 'stdout', 'stderr'): monkeypatch.setattr(sys, name, None)
    assert main(['teacher', f'{three}', '-o', 't', '--size', '16', '--arch', 'convnet2_8', '--epochs', '1', '--bs', '12'])==0
    assert main(['show', 'nowhere', '-o', 'g.png'])==1
    assert (sys.stdout, sys.stderr)==(None, None)
    train_teacher(three, None, model=net(), **{**QUICK, 'show_progress': True})

@pytest.mark.parametrize('error', [BrokenPipeError(errno.EPIPE, 'Broken pipe'), ConnectionResetError(errno.ECONNRESET, 'reset'), OSError(errno.EMFILE, 'Too many open files'),
                                   FileNotFoundError(errno.ENOENT, 'No such file', '/elsewhere/x.csv'), PermissionError(errno.EACCES, 'denied', '/elsewhere/log'), TimeoutError('slow')], ids=str)
def test_an_error_of_the_run_is_not_blamed_on_its_output(three, tmp_path, error):
    class Breaks(Callback):
        order = 95
        def after_batch(self): raise error
    with pytest.raises(type(error)) as e: train_teacher(three, tmp_path/'t', model=net(), cbs=[Breaks()], **QUICK)
    assert not isinstance(e.value, InfoUtilError)
    with pytest.raises(type(error)), resumable(tmp_path/'r', {}): raise error
    assert not (tmp_path/'r').exists() and not (tmp_path/'r.run').exists()

def test_an_error_of_the_output_is(tmp_path):
    for number in (errno.ENOSPC, errno.EROFS):
        with pytest.raises(OutputError, match='/r cannot be written'), resumable(tmp_path/'r', {}): raise OSError(number, 'no')
    with pytest.raises(OutputError, match='/r cannot be written'), resumable(tmp_path/'r', {}) as run: (run.out/'a/b').touch()

# ------------------------------------------------------------------ 18. networks of any kind
class Wrapped(nn.Module):
    "A network that answers in some other way"
    def __init__(self, answer, n=3):
        super().__init__()
        self.m, self.answer = net(n), answer
    def forward(self, x): return self.answer(self.m(x), self)

class NoAxis(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Linear(3, 3)
    def forward(self, x): return self.m(x)

OTHERS = {'a dictionary':  (lambda: Wrapped(lambda z, m: dict(logits=z)), 'a dict'),
          'a tuple':       (lambda: Wrapped(lambda z, m: (z, z)), 'a tuple'),
          'in training':   (lambda: Wrapped(lambda z, m: (z, z) if m.training else z), 'a tuple'),
          'nothing':       (lambda: Wrapped(lambda z, m: None), 'a NoneType'),
          'one number':    (lambda: Wrapped(lambda z, m: z[:, 0]), 'of torch.float32'),
          'a map':         (lambda: Wrapped(lambda z, m: z[..., None]), '(2, 3, 1)'),
          'classes':       (lambda: Wrapped(lambda z, m: z.argmax(1, keepdim=True)), 'torch.int64'),
          'two outputs':   (lambda: net(2), '2 outputs'),
          'five outputs':  (lambda: net(5), '5 outputs'),
          'one output':    (lambda: net(1), '1 outputs'),
          'frozen':        (lambda: net().requires_grad_(False), 'requires_grad'),
          'no weights':    (lambda: nn.Flatten(), 'requires_grad'),
          'float64':       (lambda: net().double(), 'model.float()'),
          'float16':       (lambda: net().half(), 'model.float()'),
          'bfloat16':      (lambda: net().bfloat16(), 'model.float()'),
          'half of it':    (lambda: nn.Sequential(net(), nn.Linear(3, 3).double()), 'model.float()'),
          'another size':  (lambda: net(size=32), '(2, 3, 16, 16)'),
          'grey':          (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(3)), '(2, 3, 16, 16)'),
          'no image':      (NoAxis, '(2, 3, 16, 16)')}

@pytest.mark.parametrize('case', OTHERS)
def test_a_network_that_cannot_learn_the_classes_is_refused(three, tmp_path, case):
    make, words = OTHERS[case]
    with pytest.raises(InfoUtilError) as e: train_teacher(three, tmp_path/'t', model=make(), **QUICK)
    says(e, words)
    assert list(tmp_path.iterdir())==[]

def test_networks_that_can(three):
    "Partly frozen, lazy, with buffers of another type, in eval mode: they train, and random states do not move"
    body = net()
    body[0].requires_grad_(False)
    before = body[0][0].weight.clone()
    assert torch.equal(train_teacher(three, None, model=body, **QUICK).model[0][0].weight, before)
    train_teacher(three, None, model=nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), **QUICK)
    odd = net()
    odd.register_buffer('count', torch.zeros(1, dtype=torch.float64))
    train_teacher(three, None, model=odd.eval(), **QUICK)
    state = torch.get_rng_state()
    from infoutil.models import check_network
    check_network(nn.Sequential(nn.Dropout(), net()), 'custom', 3, 16)
    assert torch.equal(torch.get_rng_state(), state)

@pytest.mark.parametrize('kind', ['double', 'half', 'bfloat16'])
def test_a_teacher_of_another_type_is_refused_everywhere(three, judge, kind):
    odd = replace(judge, model=getattr(Wrapped(lambda z, m: z), kind)().eval())
    ds = distill(three, judge, ipc=1, method='random', preflight=False, show_progress=False)
    for ask in (lambda: distill(three, odd, ipc=1, method='random', preflight=False, show_progress=False), lambda: distill(three, odd, ipc=1, show_progress=False),
                lambda: distill(three, odd, ipc=1, preflight=False, show_progress=False), lambda: distill(three, judge, early=odd, ipc=1, preflight=False, show_progress=False),
                lambda: check_teacher(odd, load_folder(three)), lambda: predict(odd.model, torch.zeros(1, 3, 16, 16)),
                lambda: evaluate(replace(ds, teacher=odd), three, arch='convnet2_8', epochs=1, repeats=1, device='cpu', show_progress=False)):
        with pytest.raises(TeacherError) as e: ask()
        says(e, 'model.float()')

def test_a_double_torch_is_refused_everywhere(three, judge):
    ds = distill(three, judge, ipc=1, method='random', preflight=False, show_progress=False)
    torch.set_default_dtype(torch.float64)
    try:
        for ask in (lambda: train_teacher(three, None, arch='convnet2_8', **QUICK), lambda: train_teacher(three, None, model=net(), **QUICK),
                    lambda: distill(three, judge, ipc=1, show_progress=False), lambda: distill(three, judge, ipc=1, method='random', preflight=False, show_progress=False),
                    lambda: evaluate(ds, three, arch='convnet2_8', epochs=1, repeats=1, device='cpu', show_progress=False),
                    lambda: evaluate(ds, three, arch='convnet2_8', labels='hard', epochs=1, repeats=1, device='cpu', show_progress=False)):
            with pytest.raises(TeacherError) as e: ask()
            says(e, 'set_default_dtype')
    finally: torch.set_default_dtype(torch.float32)

# ------------------------------------------------------------------ 19. wrapped networks
def compiled(m): return torch.compile(m, backend='eager')

def inner(m):
    m[0] = compiled(m[0])
    return m

WRAPS = {'DataParallel': nn.DataParallel, 'compiled': compiled, 'both': lambda m: compiled(nn.DataParallel(m)), 'the other way': lambda m: nn.DataParallel(compiled(m)),
         'averaged': torch.optim.swa_utils.AveragedModel, 'a part of it': inner, 'DataParallel inside': lambda m: nn.Sequential(*list(m)[:-1], nn.DataParallel(m[-1])),
         'compiled in place': lambda m: (m.compile(backend='eager'), m)[1]}

@pytest.mark.parametrize('how', WRAPS)
def test_wrapped_networks_are_saved_under_their_own_names(three, tmp_path, how):
    t = train_teacher(three, tmp_path/'t', arch='convnet2_8', model=WRAPS[how](net()), **QUICK)
    back = load_teacher(tmp_path/'t', device='cpu')
    assert set(back.model.state_dict())==set(net().state_dict())
    x = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(predict(back.model, x), predict(t.model, x))
    again = load_teacher(tmp_path/'t', device='cpu', model=WRAPS[how](net()))                 # into one that is wrapped, too
    torch.testing.assert_close(predict(again.model, x), predict(t.model, x))
    early = load_teacher(tmp_path/'t', 'early', device='cpu')
    assert early.arch=='convnet2_8'

def test_a_wrapped_run_goes_on_bare(three, tmp_path):
    from infoutil.engine.resumed_fits import StopAfter, Stopped
    how = dict(QUICK, epochs=3, arch='convnet2_8')
    with pytest.raises(Stopped): train_teacher(three, tmp_path/'t', model=nn.DataParallel(net()), cbs=[StopAfter(1)], **how)
    train_teacher(three, tmp_path/'t', model=net(), **how)
    train_teacher(three, tmp_path/'u', model=net(), **how)
    assert (tmp_path/'t/converged.safetensors').read_bytes()==(tmp_path/'u/converged.safetensors').read_bytes()

@pytest.mark.parametrize('front', ['module.', '_orig_mod.', '_orig_mod.module.'])
def test_files_of_earlier_versions_are_read(three, tmp_path, judge, front):
    from infoutil.engine.outputs import sealed, write_json
    from infoutil.engine.seen_images import sha256
    from safetensors.torch import load_file, save_file
    save_teacher(replace(judge, arch='convnet2_8'), tmp_path/'t')
    f = tmp_path/'t/converged.safetensors'
    save_file({front+k: v for k,v in load_file(f).items()}, f)
    meta = json.loads(f.with_suffix('.json').read_text())
    write_json(f.with_suffix('.json'), sealed({**{k: v for k,v in meta.items() if k!='seal'}, 'sha256': sha256(f)}))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(predict(load_teacher(tmp_path/'t', device='cpu').model, x), predict(judge.model, x))

def test_modules_of_that_name_keep_it(three, tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = net()
        def forward(self, x): return self.module(x)
    t = train_teacher(three, tmp_path/'t', model=Own(), **QUICK)
    back = load_teacher(tmp_path/'t', device='cpu', model=Own())
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(predict(back.model, x), predict(t.model, x))

@pytest.mark.parametrize('make', [lambda: nn.utils.parametrizations.weight_norm(net()[-1]) and net(), lambda: ConvNet(3, 2, 16, 16), lambda: nn.Sequential(net())], ids=['width', 'wider', 'nested'])
def test_a_network_under_the_name_of_another(three, tmp_path, make):
    m = make()
    if [*m.state_dict()]==[*net().state_dict()] and m[0][0].out_channels==8: nn.utils.parametrizations.weight_norm(m[-1])
    with pytest.raises(TeacherError) as e: train_teacher(three, tmp_path/'t', arch='convnet2_8', model=m, **QUICK)
    says(e, "'convnet2_8'", 'leave arch out')
    assert list(tmp_path.iterdir())==[]

# ------------------------------------------------------------------ 20. names of timm
def test_a_name_is_what_answers_alike(classifier):
    from fastai.vision.learner import create_vision_model
    from torchvision.models import resnet18
    from infoutil.learners import learner_teacher
    classifier.arch = 'convnet3'                                          # text that names another network
    assert learner_teacher(classifier).arch=='convnet2_8'
    classifier.model = create_vision_model(resnet18, 3, pretrained=False)
    for hint in ('resnet18', resnet18):                                   # as fastai leaves it for timm's and for torchvision's
        classifier.arch = hint
        assert learner_teacher(classifier).arch=='fastai/resnet18'
    classifier.model, classifier.arch = nn.Sequential(net()), 'resnet18'
    t = learner_teacher(classifier)
    assert t.arch=='custom'
    classifier.model = nn.DataParallel(net())
    assert learner_teacher(classifier).arch=='convnet2_8'
    classifier.model = net().half()
    with pytest.raises(TeacherError, match='model.float'): learner_teacher(classifier)
