"A comparison over processes and machines, Hugging Face data sets as data, and a device without float64"
import json, os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest, torch
from infoutil.basics import DataError, InfoUtilError
from infoutil.command_line import main
import ready

# ------------------------------------------------------------------ a comparison that a group of processes shares

ENV = {**{k:v for k,v in os.environ.items() if k not in ('WORLD_SIZE', 'RANK')}, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'CUDA_VISIBLE_DEVICES': ''}

@pytest.fixture(scope='module')
def kit(few, digits, tmp_path_factory):
    "A folder of digits, a teacher of them, and a comparison by one process"
    d = tmp_path_factory.mktemp('spread')
    kit = dict(dir=d, folder=few, teacher=digits['dir']/'teacher')
    p = ready.run('module', ['infoutil', *command(kit, d/'one')], env=ENV)
    assert p.returncode==0, p.stderr
    return {**kit, 'rows': rows(d/'one'), 'said': p.stdout}

def command(kit, out, *more, epochs=2):
    return ['compare', kit['folder'], '--teacher', kit['teacher'], '--methods', 'rded,infoutil', '--ipc', '1,2', '--labels', 'online,hard', '--epochs', epochs, '--candidates', '6', '--budget', '32',
            '--repeats', '1', '--label-teachers', 'by_ipc', '-o', out, *more]

def rows(out):
    "Lines of a comparison without what a clock says, in an order of their own"
    found = [json.loads(l) for l in (Path(out)/'results.jsonl').read_text().splitlines()]
    return sorted(json.dumps({k:v for k,v in r.items() if k!='stages'}, sort_keys=True) for r in found)

def share(kit, out, n, *more): return ready.Group(n, 'module', ['infoutil', *command(kit, out, *more)], ENV)

def table(text):
    "The cells of the table that was printed; rows and columns stand in the order in which students ended"
    return sorted(sorted(c.strip() for c in l.split('|')) for l in text.splitlines() if l.startswith('|'))

def test_three_processes_find_what_one_finds(kit, tmp_path):
    "Sets and students as they come free; one table, printed once"
    p = share(kit, tmp_path/'c', 3)
    out, err = p.communicate()
    assert p.returncode==0, err
    assert rows(tmp_path/'c')==kit['rows'] and len(kit['rows'])==12
    assert table(out)==table(kit['said']) and len(table(out))>3

def lines(file): return file.read_text().count('\n') if file.exists() else 0

def kill_one(p, which, file, n):
    "Kill a process of a group as soon as `n` lines are there; the lines"
    end = time.time()+120
    while lines(file)<n and p.poll() is None and time.time()<end: time.sleep(.005)
    assert p.poll() is None, 'it ended before it could be killed'
    p.processes[which].send_signal(signal.SIGKILL)
    p.wait(60)

@pytest.mark.parametrize('which', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_all_and_any_number_goes_on(kit, tmp_path, which):
    "The others stop with a sentence; then one process with workers, or three, finish what is left and nothing else"
    out = tmp_path/'c'
    p = share(kit, out, 2)
    kill_one(p, which, out/'results.jsonl', 2)
    said, err = p.communicate()
    assert p.processes[1-which].returncode==1 and 'was lost or did not answer' in err and 'start the same command again' in err, err
    assert 'Traceback' not in err and not table(said)
    before = (out/'results.jsonl').read_text()
    kept = before[:before.rfind('\n')+1].splitlines()
    (out/'results.jsonl').write_text(before+'{"schema": 1, "da')
    stamps = {f: f.stat().st_mtime_ns for f in (out/'sets').glob('*/infoutil.json')}
    p = share(kit, out, 3) if which else ready.Process('module', ['infoutil', *command(kit, out, '--jobs', '2')], ENV)
    text = p.communicate()
    assert p.returncode==0, text
    assert rows(out)==kit['rows'] and (out/'results.jsonl').read_text().splitlines()[:len(kept)]==kept
    assert all(f.stat().st_mtime_ns==t for f,t in stamps.items()) and not [f for f in (out/'sets').iterdir() if f.name.startswith('.')]

def test_what_one_process_refuses_all_refuse(kit, tmp_path):
    "Before the first student, and in the middle; jobs beside processes"
    for more, why in ((('--jobs', '2'), '2 jobs came with 2 processes'), (('--candidates', '1'), 'lower ipc'), (('--archs', 'convnet9'), 'unknown network')):
        p = share(kit, tmp_path/'no', 2, *more)
        out, err = p.communicate()
        assert [q.returncode for q in p.processes]==[1, 1] and err.count(why)==2 and 'Traceback' not in err, err
        assert not (tmp_path/'no').exists()

FULL = """
import sys, infoutil.comparison as C
from infoutil.command_line import main
real = C.append_row
C.append_row = lambda file, row: real('/dev/full', row)
sys.exit(main({args}))
"""

@pytest.mark.slow
def test_a_full_disk_ends_all(kit, tmp_path):
    "The first process, which writes the lines, cannot: all end with its sentence"
    p = ready.Group(2, 'code', [FULL.format(args=list(map(str, command(kit, tmp_path/'c'))))], ENV)
    out, err = p.communicate()
    assert [q.returncode for q in p.processes]==[1, 1], err
    assert err.count('make room and run the same command again')==2 and 'Traceback' not in err

def test_sigterm_ends_all(kit, tmp_path):
    "As a batch system ends a job: a sentence of each, nothing half-written"
    out = tmp_path/'c'
    p = share(kit, out, 2)
    end = time.time()+120
    while lines(out/'results.jsonl')<1 and p.poll() is None and time.time()<end: time.sleep(.005)
    p.processes[1].send_signal(signal.SIGTERM)
    text = p.communicate(60)
    assert [q.returncode for q in p.processes]==[1, 130], text
    assert 'process 1 of the group was stopped' in text[1]
    assert not [f for f in (out/'sets').iterdir() if f.name.startswith('.')]

def two_nodes(args, cwd=None):
    "The command on two nodes of two processes each, both on this machine; what each has said"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    launch = lambda i: [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '2', '--node-rank', str(i), '--master-addr', '127.0.0.1', '--master-port', str(port), '-m', 'infoutil']
    ps = [subprocess.Popen([*launch(i), *map(str, args)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in (0, 1)]
    return ps, [p.communicate(timeout=300) for p in ps]

@pytest.mark.slow
def test_two_nodes(kit, tmp_path):
    "Two launches of torchrun that share a folder"
    ps, said = two_nodes(command(kit, tmp_path/'c'))
    assert [p.returncode for p in ps]==[0, 0], said
    assert rows(tmp_path/'c')==kit['rows']
    assert table(said[0][0])==table(kit['said']) and not table(said[1][0])

# ------------------------------------------------------------------ data sets of the Hugging Face hub

def encoded(v, kind='PNG'):
    from io import BytesIO
    import numpy as np
    from PIL import Image
    b = BytesIO()
    Image.fromarray(np.full((32, 32, 3), v, np.uint8)).save(b, kind)
    return b.getvalue()

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "The hub is a folder of this machine: `put(repo, splits, ...)` lays a data set there as parquet"
    import datasets
    monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path/'cache'))
    real, asked = datasets.load_dataset, []
    def put(repo, splits, label=None, paths=False, n=6):
        label = label or datasets.ClassLabel(names=['ant', 'bee'])
        kinds = datasets.Features(dict(image=datasets.Image(), label=label, other=datasets.ClassLabel(names=['a', 'b'])) if paths is None else dict(image=datasets.Image(), label=label))
        for at,split in enumerate(splits):
            rows = dict(image=[dict(bytes=None if paths else encoded((20*i+at)%256, 'JPEG' if i%2 else 'PNG'), path='/etc/passwd' if paths else None) for i in range(n)],
                        label=[i%2 if isinstance(label, datasets.ClassLabel) else f'n/{i%2}' for i in range(n)])
            if paths is None: rows['other'] = rows['label']
            (tmp_path/'hub'/repo).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(rows, kinds).to_parquet(tmp_path/'hub'/repo/f'{split}-00000-of-00001.parquet')
    def load(repo, config=None, revision=None, **kw):
        asked.append((repo, config, revision))
        return real(str(tmp_path/'hub'/repo), config, **kw)
    monkeypatch.setattr(datasets, 'load_dataset', load)
    put.asked = asked
    return put

def test_a_command_takes_a_data_set_of_the_hub(hub, tmp_path, monkeypatch, capsys):
    "Fetched once, in the bytes that it holds, and every later command finds it"
    import infoutil.data as D
    monkeypatch.setattr(D, 'fastai_path', lambda kind: tmp_path/'kept')
    hub('owner/ants', ('train', 'validation'), n=20)
    name = 'hf://owner/ants@v1'
    assert main(['teacher', name, '-o', str(tmp_path/'t'), '--epochs', '1', '--arch', 'convnet3_32', '--size', '32', '--bs', '10'])==0, capsys.readouterr()
    capsys.readouterr()
    folder = tmp_path/'kept/hf/owner/ants,revision=v1'
    assert (folder/'train/bee/00000001.jpg').read_bytes()==encoded(20, 'JPEG') and len(list(folder.glob('val/*/*')))==20
    assert not [p for p in folder.rglob('.*')] and not list(folder.parent.glob('.*'))
    assert main(['distill', name, '--teacher', str(tmp_path/'t'), '-o', str(tmp_path/'s'), '--method', 'random', '--ipc', '1', '--label-teacher', 'converged'])==1      # a teacher that guesses
    assert 'cannot be fetched' not in capsys.readouterr().err
    assert hub.asked==[('owner/ants', None, 'v1')]

def test_what_the_hub_cannot_give_is_said(hub, tmp_path, monkeypatch):
    import datasets
    from infoutil.data import fetch_data, load_data
    hub('owner/texts', ['train', 'test'], datasets.Value('string'))
    hub('owner/two', ['train'], paths=None)
    hub('owner/evil', ['train'], paths=True)
    for name, why in (('owner/texts', 'no column of type ClassLabel .*label=COLUMN'), ('owner/two', r'2 columns of type ClassLabel \(label, other\)'), ('owner/evil', 'of this machine'), ('owner/none', 'cannot be fetched'),
                      ('owner', 'came as a data set of the Hugging Face hub'), ('owner/two?label=image', "unknown label column 'image'")):
        with pytest.raises(InfoUtilError, match=why): fetch_data(f'hf://{name}', tmp_path/'d')
    assert [p.name for p in (tmp_path/'d').rglob('*') if p.is_file() and p.suffix!='.json']==[]
    data = load_data('hf://owner/texts?label=label', dest=tmp_path/'d')
    assert len(data.classes)==2 and all(c.startswith('n_') for c in data.classes) and (len(data.train), len(data.test))==(6, 6)
    assert len(load_data('hf://owner/two?label=other', dest=tmp_path/'d').train)<6         # one split: a part is held out
    def refuse(*a, **kw): raise ConnectionError("Couldn't reach 'owner/x' on the Hub (LocalEntryNotFoundError)")
    monkeypatch.setattr(datasets, 'load_dataset', refuse)
    with pytest.raises(DataError, match='the hub cannot be reached'): fetch_data('hf://owner/x', tmp_path/'d')
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(InfoUtilError, match=r"pip install 'infoutil\[datasets\]'"): fetch_data('hf://owner/x', tmp_path/'d')
    assert fetch_data('hf://owner/texts?label=label', tmp_path/'d').exists()               # what was fetched needs no library

KILLED = """
import os, sys, datasets, infoutil.engine.hub_datasets as H
real, write, n = datasets.load_dataset, H._write, []
datasets.load_dataset = lambda repo, config=None, revision=None, **kw: real(sys.argv[-2], **kw)
H._EVERY = 4
def stop(*a):
    if len(n)==int({kill}): os.kill(os.getpid(), 9)
    n.append(a)
    return write(*a)
H._write = stop
H.fetch_hub_data('hf://owner/ants', sys.argv[-1])
print(len(n))
"""

def test_a_fetch_that_was_killed_goes_on(hub, tmp_path):
    "SIGKILL in the middle: nothing is there under its name; the next fetch writes what is missing and at most the last few again"
    hub('owner/ants', ['train', 'test'], n=30)
    env = {**ENV, 'HF_DATASETS_CACHE': str(tmp_path/'cache')}
    go = lambda kill: ready.run('code', [KILLED.format(kill=kill), tmp_path/'hub/owner/ants', tmp_path/'d'], env=env)
    assert go(13).returncode==-signal.SIGKILL and [p.name for p in (tmp_path/'d/hf/owner').iterdir()]==['.ants.part']
    p = go(-1)
    assert p.returncode==0 and int(p.stdout.split()[-1])<=60-12, p.stderr
    folder = tmp_path/'d/hf/owner/ants'
    assert sorted(f.read_bytes() for f in folder.glob('train/*/*'))==sorted(encoded(20*i%256, 'JPEG' if i%2 else 'PNG') for i in range(30))
    assert len(list(folder.glob('test/*/*')))==30 and not [f for f in folder.rglob('.*')]

def test_a_folder_of_test_alone_is_the_test_part(few, tmp_path):
    from infoutil.evaluation import load_test
    want = load_test(few/'test', tuple('0123456789'))
    for name in ('test', 'Val'):
        (tmp_path/name).mkdir()
        shutil.copytree(few/'test', tmp_path/name/name)
        got = load_test(tmp_path/name, tuple('0123456789'))
        assert got.labels==want.labels and [p.read_bytes() for p in got.paths()]==[p.read_bytes() for p in want.paths()]

# ------------------------------------------------------------------ a device without float64

from contextlib import contextmanager
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

class Far(torch.Tensor):
    "A tensor of a device that this machine lacks: it says that it lies on `meta`, and its numbers are kept beside it"
    @staticmethod
    def __new__(cls, kept):
        return torch.Tensor._make_wrapper_subclass(cls, kept.size(), strides=kept.stride(), storage_offset=kept.storage_offset(), dtype=kept.dtype, device='meta')
    def __init__(self, kept): self.kept = kept
    def __repr__(self): return f'Far({self.kept})'
    def as_subclass(self, cls): return self                   # fastai's kinds of tensors
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return far_call(func, args, kwargs or {})

LEAKS = []

def far_call(func, args, kwargs):
    "Compute on the CPU; float64 on the device, and tensors of two devices in one operation, are refused as a GPU of Apple refuses them"
    flat = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
    far = [a for a in flat if isinstance(a, Far)]
    name, to = func.__name__.split('.')[0], kwargs.get('device')
    moved = name in ('_to_copy', 'copy_')
    if far and not moved and any(not isinstance(a, Far) and a.ndim for a in flat) and 'index' not in name: raise RuntimeError(f'{name}: Expected all tensors to be on the same device')
    lands = torch.device(to).type=='meta' if to is not None else bool(far)
    if to is not None and lands: kwargs = {**kwargs, 'device': 'cpu'}
    own = lambda a: a.kept if isinstance(a, Far) else a
    out = func(*tree_map(own, args), **tree_map(own, kwargs))
    if name.endswith('_') and not name.endswith('__'): return args[0]
    if 'out' in kwargs: return kwargs['out']
    def land(t):
        if not isinstance(t, torch.Tensor) or isinstance(t, Far): return t
        if t.dtype==torch.float64:
            import traceback
            LEAKS.append(''.join(traceback.format_stack(limit=14)))
            raise TypeError(f'{name}: this device has no float64')
        return Far(t)
    return tree_map(land, out) if lands else out

class Calls(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return far_call(func, args, kwargs or {})

class Made(TorchFunctionMode):
    "Tensors of Python's numbers, which are made without an operation"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get('device') is not None: return func(*args, **{**kwargs, 'device': 'cpu'}).to(kwargs['device'])
        if func is torch.Tensor.tolist: args = args[0].cpu(),
        return func(*args, **kwargs)

@contextmanager
def Apple():
    "While it is open, there is such a device"
    with Made(), Calls(): yield

@pytest.fixture
def apple(monkeypatch):
    import infoutil.basics as B
    monkeypatch.setattr(B, '_NARROW', {'mps', 'meta'})
    def enter(self):                                          # inference tensors cannot be wrapped
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
    monkeypatch.setattr(torch.inference_mode, '__enter__', enter)
    monkeypatch.setattr(torch.inference_mode, '__exit__', lambda self, *a: torch.set_grad_enabled(self.before))
    from infoutil.engine.fast_copies import FastCopy
    monkeypatch.setattr(FastCopy, 'widest', lambda self, x: 1<<16)          # all such tensors have the same address
    LEAKS.clear()
    return torch.device('meta')

def test_the_stand_in_refuses_float64(apple):
    with Apple():
        x = torch.zeros(3, device='meta')
        assert isinstance(x, Far) and (x+1).sum().item()==3 and x.device==apple
        for wrong in (lambda: x.double(), lambda: torch.zeros(2, dtype=torch.float64, device='meta')):
            with pytest.raises(TypeError, match='no float64'): wrong()
        with pytest.raises(RuntimeError, match='same device'): x+torch.ones(3)
        net = torch.nn.Linear(3, 2).to('meta')
        net(torch.ones(4, 3, device='meta')).sum().backward()
        assert net.weight.grad.cpu().tolist()==[[4.]*3]*2

def test_mps_is_taken_where_it_is(monkeypatch):
    from infoutil.basics import default_device, fast_bfloat16
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert default_device().type=='mps' and not fast_bfloat16('mps')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert default_device().type=='cuda'

METHODS = [dict(method='rded'), dict(method='infoutil')]+[pytest.param(how, marks=pytest.mark.slow) for how in (dict(method='infoutil', preset='paper'), dict(method='kmeans'), dict(method='el2n'))]

@pytest.mark.parametrize('how', METHODS, ids=lambda h: '-'.join(h.values()))
def test_a_set_is_made_without_float64_on_the_device(apple, digits, few, how):
    "No float64 there, no mixed devices; the set of the CPU, whose arithmetic the stand-in borrows"
    from infoutil.data import load_folder
    from infoutil.distillation import distill
    from infoutil.methods import make_config
    from infoutil.teacher import load_teacher
    cfg = make_config(how.get('preset', 'default'), how['method'], ipc=1, candidates=6, label_teacher='converged', **(dict(budget=32, factor=2) if how['method']=='infoutil' else {}))
    data = load_folder(few)
    want = distill(data, load_teacher(digits['dir']/'teacher', device='cpu'), cfg=cfg, preflight=False, show_progress=False)
    with Apple():
        teacher = load_teacher(digits['dir']/'teacher', device=apple)
        assert isinstance(next(teacher.model.parameters()), torch.Tensor) and next(teacher.model.parameters()).device==apple
        try: got = distill(data, teacher, cfg=cfg, preflight=False, show_progress=False)
        finally: assert not LEAKS, LEAKS[0]
    bare = lambda ds: [{k:v for k,v in p.items() if k not in ('score', 'maps')} for p in ds.provenance]
    assert bare(got)==bare(want) and torch.equal(got.images, want.images)
    for p,q in zip(got.provenance, want.provenance): assert p.get('score')==pytest.approx(q.get('score'), rel=.0101)

def test_the_stand_in_finds_a_leak(apple, digits, few, monkeypatch):
    "Were float64 taken to be everywhere, the same work would be stopped"
    import infoutil.basics as B
    from infoutil.data import load_folder
    from infoutil.distillation import distill
    from infoutil.teacher import load_teacher
    monkeypatch.setattr(B, '_NARROW', {'mps'})
    with Apple(), pytest.raises(Exception):
        distill(load_folder(few), load_teacher(digits['dir']/'teacher', device=apple), method='infoutil', ipc=1, candidates=6, budget=32, label_teacher='converged', preflight=False, show_progress=False)
    assert LEAKS

@pytest.mark.parametrize('labels', ['online', *(pytest.param(l, marks=pytest.mark.slow) for l in ('stored', 'hard'))])
def test_a_student_learns_without_float64_on_the_device(apple, digits, few, labels, tmp_path):
    from infoutil.data import load_folder
    from infoutil.distillation import distill
    from infoutil.kept_students import train_student
    from infoutil.teacher import load_teacher
    data, kw = load_folder(few), dict(method='random', ipc=1, candidates=6, label_teacher='converged', preflight=False, show_progress=False)
    with Apple():
        ds = distill(data, load_teacher(digits['dir']/'teacher', device=apple), **kw)
        try: train_student(ds, tmp_path/'student', labels=labels, epochs=2, device=apple, **(dict(protocol='hard') if labels=='hard' else {}))
        finally: assert not LEAKS, LEAKS[0]
    assert load_teacher(tmp_path/'student', device='cpu').classes==data.classes
