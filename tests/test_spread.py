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

def table(text): return [l for l in text.splitlines() if l.startswith('|')]

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

@pytest.mark.parametrize('how', [dict(method='infoutil'), dict(method='rded'), dict(method='infoutil', preset='paper'), dict(method='kmeans'), dict(method='el2n')], ids=lambda h: '-'.join(h.values()))
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
    assert [p['boxes'] if 'boxes' in p else p for p in got.provenance]==[p['boxes'] if 'boxes' in p else p for p in want.provenance]
    torch.testing.assert_close(got.images, want.images)
