"Same seed, same bytes; work that survives a kill; many processes, one engine"
import copy, json, os, random, shutil, socket, subprocess, sys, time, weakref
from other_processor import wrap
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest, torch
from PIL import Image
from infoutil.command_line import main
from infoutil.basics import InfoUtilError, OutputError
from infoutil.engine.runs import resumable
from infoutil.data import fetch_data
from infoutil.distillation import distill
from infoutil.models import get_model
import ready

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore', 'CUDA_VISIBLE_DEVICES': ''}

@pytest.fixture(scope='session')
def world(digits): return digits

@pytest.fixture(autouse=True)
def one_thread():
    "As in the processes that tests start: same settings, same bytes"
    had = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(had)

small = dict(ipc=1, candidates=4, factor=2, label_teacher='by_ipc', show_progress=False, preflight=False)

def tree(d):
    "Every file of a set but the one that holds times, byte for byte"
    return {p.relative_to(d).as_posix(): p.read_bytes() for p in Path(d).rglob('*') if p.is_file() and p.name!='run.json'}

def saved(ds, path): ds.save(path); return tree(path)

def command(world, out, *more): return ['distill', str(world['folder']), '--teacher', str(world['dir']/'teacher'), '-o', str(out), '--ipc', '1', '--factor', '2', '--candidates', '4', '--no-teacher', '--label-teacher', 'by_ipc', *map(str, more)]

def start(args, n=1, **kw):
    "The command in `n` processes"
    return ready.Process('module', ['infoutil', *args], ENV, **kw) if n==1 else ready.Group(n, 'module', ['infoutil', *args], ENV, **kw)

def finish(p, timeout=300):
    try: out, err = p.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        p.kill()
        raise
    return p.returncode, out+err

def torchrun(args, n, timeout=600):
    "The command in `n` processes that torchrun starts"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    launch = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(n), '--master-port', str(port), '-m', 'infoutil']
    p = subprocess.run([*launch, *args], env=ENV, capture_output=True, text=True, timeout=timeout)
    return p.returncode, p.stdout+p.stderr

# -- same seed, same settings, same kind of machine: same bytes; another batch size or processor: other digits at the end, and the same choices but for near ties

WORKERS, BATCHES = [dict(), dict(workers=1), dict(workers=7)], [dict(bs=3), dict(bs=50)]

def origins(ds): return [{k:v for k,v in p.items() if k not in ('score', 'maps')} for p in ds.provenance]

def check_alike(a, b):
    "Two sets of the same choices: records may differ by one in their last digit, labels by the rounding to 16 bits of logits of another last digit"
    assert torch.equal(a.images, b.images) and origins(a)==origins(b)
    torch.testing.assert_close(a.labels, b.labels, rtol=2e-3, atol=2e-3)
    for p,q in zip(a.provenance, b.provenance):
        assert p.get('score')==pytest.approx(q.get('score'), rel=.0101)                             # of three digits
        maps = [torch.tensor(r.get('maps') or 0., dtype=torch.float64) for r in (p, q)]
        torch.testing.assert_close(*maps, rtol=0, atol=.101*float(maps[0].abs().max()))             # of two digits of the largest value

def check_ways(run, out, workers, batches):
    want = run()
    files = saved(want, out/'want')
    for i,more in enumerate(workers): assert saved(run(**more), out/str(i))==files, more
    for more in batches: check_alike(run(**more), want)

@pytest.mark.parametrize('kw', [dict(), dict(factor=1, precision='float32')], ids=str)
def test_second_run_and_workers_change_no_byte_and_the_batch_size_no_choice(world, tmp_path, kw):
    check_ways(lambda **more: distill(world['data'], world['teacher'], world['early'], **{**small, **kw, **more}), tmp_path, WORKERS[2:], BATCHES[:1])

@pytest.mark.slow
@pytest.mark.parametrize('kw', [dict(), dict(factor=1, precision='float32'), dict(candidates=60, ipc=4), dict(method='random_grad_norm'), dict(method='grad_cam'), dict(precision='bfloat16'), dict(end='middle'),
                                dict(score='el2n', end='highest')], ids=str)
def test_more_workers_and_batch_sizes(world, tmp_path, kw):
    check_ways(lambda **more: distill(world['data'], world['teacher'], world['early'], **{**small, **kw, **more}), tmp_path, WORKERS, BATCHES)

@pytest.mark.slow
@pytest.mark.parametrize('arch', ['resnet18', 'mobilenet_v2', 'swin_v2_t', 'vit_b_32', 'efficientnet_b0', 'convnext_tiny'])
def test_networks_whose_kernels_round_by_the_batch(world, tmp_path, arch):
    size = 64
    for p in ('train', 'test'):
        for c in '012': shutil.copytree(world['folder']/p/c, tmp_path/'three'/p/c)
    torch.manual_seed(0)
    model = get_model(arch, 3, size).eval()
    for p in model.parameters():
        if p.ndim>1 and float(p.abs().max())==0: torch.nn.init.normal_(p, 0, .05)       # torchvision starts some heads at zero
    t = replace(world['teacher'], model=model, arch=arch, size=size, classes=tuple('012'))
    run = lambda **more: distill(tmp_path/'three', t, t, **{**small, 'candidates': 6, 'precision': 'float32', **more})
    check_ways(run, tmp_path, WORKERS, BATCHES)

def test_threads_change_no_choice(world):
    out = []
    for n in (1, 2):
        torch.set_num_threads(n)
        out.append(distill(world['data'], world['teacher'], world['early'], **{**small, 'candidates': 4, 'factor': 1, 'precision': 'float32'}))
    check_alike(*out)

@pytest.mark.parametrize('kw', [dict(), dict(factor=1), pytest.param(dict(candidates=60, ipc=4), marks=pytest.mark.slow), pytest.param(dict(method='rded', candidates=60), marks=pytest.mark.slow)], ids=str)
def test_another_processor_changes_no_choice(world, monkeypatch, kw):
    "One whose linear layers are off by a ten-millionth, by another one for another number of rows"
    run = lambda: distill(world['data'], world['teacher'], world['early'], **{**small, 'precision': 'float32', **kw})
    want, x = run(), world['x']
    with torch.no_grad(): logits = world['teacher'].model(x)
    monkeypatch.setattr(torch.nn.functional, 'linear', wrap(torch.nn.functional.linear))
    with torch.no_grad(): assert not torch.equal(world['teacher'].model(x), logits)
    check_alike(run(), want)

class Answers(torch.nn.Module):
    def __init__(self, model, fn): super().__init__(); self.model, self.fn = model, fn
    def forward(self, x): return self.fn(self.model(x))

@pytest.mark.parametrize('fn,words', [(lambda z: (z, z), 'a tuple'), (lambda z: dict(logits=z), 'a dict'), (lambda z: z[..., None], '10, 1'), (lambda z: z.long(), 'int64'),
                                      (lambda z: torch.cat([z, z], 1), '20 outputs'), (lambda z: z[:, :9], '9 outputs')], ids=['tuple', 'dict', 'three axes', 'whole numbers', 'more', 'fewer'])
def test_a_network_of_ones_own_that_answers_otherwise_is_refused(world, fn, words):
    t = replace(world['teacher'], model=Answers(world['teacher'].model, fn).eval(), arch='custom')
    with pytest.raises(InfoUtilError, match=words) as e: distill(world['data'], t, **{**small, 'preflight': True})
    assert str(e.value).count(';')==2

class Trembling(torch.nn.Module):
    "A network whose float32 answers are off by the noise of another machine"
    def __init__(self, net, seed): super().__init__(); self.net, self.g, self.settled = net, np.random.default_rng(seed), False
    def __deepcopy__(self, memo): return type(self)(copy.deepcopy(self.net, memo), 0).eval()
    def forward(self, x):
        z = self.net(x)
        return z if z.dtype==torch.float64 else z*(1+2e-6*torch.from_numpy(self.g.uniform(-1, 1, z.shape)).float())

@pytest.mark.parametrize('kw', [dict(), pytest.param(dict(factor=1, candidates=40, ipc=3), marks=pytest.mark.slow), pytest.param(dict(candidates=100, ipc=4), marks=pytest.mark.slow), pytest.param(dict(method='shapley_loss'), marks=pytest.mark.slow)], ids=str)
def test_the_noise_of_another_machine_changes_no_choice(world, kw):
    "The labels are float16 of noisy logits and may differ; images and what is written down of them may not"
    def run(seed):
        model = Trembling(world['teacher'].model, seed).eval()
        t = replace(world['teacher'], model=model, arch='custom')
        return distill(world['data'], t, t, **{**small, 'precision': 'float32', **kw})
    a, *others = [run(s) for s in range(2)]
    for b in others: assert torch.equal(a.images, b.images) and a.provenance==b.provenance

# -- many processes

@pytest.mark.slow
@pytest.mark.parametrize('n', [2, 3, 16])
def test_processes_change_no_byte(world, tmp_path, n):
    "The page on many processes has two that torchrun starts, the test below three"
    assert main(command(world, tmp_path/'one'))==0
    code, text = torchrun(command(world, tmp_path/'many'), n)
    assert code==0, text
    assert tree(tmp_path/'one')==tree(tmp_path/'many') and not (tmp_path/'many.run').exists()

@pytest.mark.slow
@pytest.mark.parametrize('more', [('--method', 'rded'), ('--method', 'herding'), ('--method', 'random_grad_norm', '--factor', '2'), ('--method', 'sre2l', '--iterations', '5'), ('--on-error', 'skip')], ids=str)
def test_processes_change_no_byte_of_other_methods(world, tmp_path, more):
    data = world['folder']
    if '--on-error' in more:
        data = shutil.copytree(world['folder'], tmp_path/'digits')
        for p in sorted((data/'train'/'3').iterdir())[::5]: p.write_bytes(p.read_bytes()[:60])
    args = lambda out: ['distill', str(data), '--teacher', str(world['dir']/'teacher'), '-o', str(out), '--ipc', '2', '--label-teacher', 'by_ipc', *(() if 'sre2l' in more else ('--candidates', '40')), *more]
    assert main(args(tmp_path/'one'))==0
    code, text = finish(start(args(tmp_path/'many'), 3), 600)
    assert code==0, text
    assert tree(tmp_path/'one')==tree(tmp_path/'many')

@pytest.mark.slow
def test_accelerate_launches_the_same(world, tmp_path):
    assert main(command(world, tmp_path/'one'))==0
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--mixed_precision', 'no', '--dynamo_backend', 'no', '-m', 'infoutil']      # its CPU form asks for MPI
    p = subprocess.run([*launch, *command(world, tmp_path/'many')], env=ENV, capture_output=True, text=True, timeout=300)
    assert p.returncode==0 and tree(tmp_path/'one')==tree(tmp_path/'many'), p.stderr[-2000:]

@pytest.mark.slow
def test_three_processes_change_no_byte_and_fetch_a_named_data_set_once(world, tmp_path, monkeypatch):
    monkeypatch.setitem(ENV, 'FASTAI_HOME', str(tmp_path/'home'))
    args = lambda out: ['distill', 'digits', '--valid-frac', '.2', *command(world, tmp_path/out)[2:]]
    code, text = finish(start(args('three'), n=3, cwd=tmp_path))
    assert code==0 and finish(start(args('one'), cwd=tmp_path))[0]==0 and tree(tmp_path/'one')==tree(tmp_path/'three'), text
    assert [p.name for p in (tmp_path/'home'/'data').iterdir()]==['digits'], text

def test_a_data_set_that_another_process_fetched_first_is_taken(tmp_path, monkeypatch):
    import infoutil.data as D
    write, done = D._write_digits, []
    def slow(dest):
        if not done: done.append(1); fetch_data('digits', tmp_path)      # the other process
        write(dest)
    monkeypatch.setattr(D, '_write_digits', slow)
    assert fetch_data('digits', tmp_path)==tmp_path/'digits' and [p.name for p in tmp_path.iterdir()]==['digits']

def test_a_mistake_ends_all_processes_with_its_sentence(world, tmp_path):
    (tmp_path/'full').mkdir(); (tmp_path/'full'/'thesis.txt').touch()
    code, text = finish(start(command(world, tmp_path/'full'), 2))
    mine = [l for l in text.splitlines() if l.startswith('infoutil: ')]
    assert code!=0 and len(mine)==2 and all('exists and is not empty' in l for l in mine) and 'Traceback' not in text
    assert not (tmp_path/'full.run').exists()

def test_a_lost_process_ends_the_run_and_its_work_is_kept(world, tmp_path):
    assert main(command(world, tmp_path/'want'))==0
    p, end = start(command(world, tmp_path/'out'), 2), time.time()+240
    while p.poll() is None and not list((tmp_path/'out.run').glob('class_*')) and time.time()<end: time.sleep(.005)
    assert p.poll() is None, 'the run ended before a process could be lost: give it more to do'
    p.processes[-1].kill()
    code, text = finish(p)
    assert code!=0 and 'was lost or did not answer' in text, text
    kept = [f for f in (tmp_path/'out.run').glob('class_*')]
    assert kept and not (tmp_path/'out').exists()
    before = {f.name: f.stat().st_mtime_ns for f in kept}
    code, text = finish(start(command(world, tmp_path/'out'), 2))
    assert code==0 and tree(tmp_path/'want')==tree(tmp_path/'out'), text

def test_other_commands_refuse_a_group(world, monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(['show', str(world['dir'])])==1 and 'runs in one' in capsys.readouterr().err

# -- killed and started again

def kill_and_finish(world, tmp_path, moments, n=1, want=None):
    "Kill the command at random moments, one after the other, then let it finish; the bytes that it ends with, and how many kills it lived through"
    shutil.rmtree(tmp_path/'out', ignore_errors=True); shutil.rmtree(tmp_path/'out.run', ignore_errors=True)
    kills = 0
    for wait in moments:
        p = start(command(world, tmp_path/'out'), n)
        try: p.wait(wait)
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
            kills += 1
        if (tmp_path/'out').exists(): assert tree(tmp_path/'out')==want          # there whole, or not at all
    if not (tmp_path/'out').exists() or (tmp_path/'out.run').exists():
        code, text = finish(start(command(world, tmp_path/'out'), n))
        assert code==0, text
    assert not (tmp_path/'out.run').exists() and not [p for p in tmp_path.iterdir() if p.name.startswith('.out')]
    return tree(tmp_path/'out'), kills

def duration(world, tmp_path):
    t0 = time.time()
    code, text = finish(start(command(world, tmp_path/'want')))
    assert code==0, text
    return time.time()-t0, tree(tmp_path/'want')

@pytest.mark.slow
def test_killed_when_a_class_is_finished_and_at_a_random_moment(world, tmp_path):
    seconds, want = duration(world, tmp_path)
    p, end = start(command(world, tmp_path/'out')), time.time()+120
    while p.poll() is None and not list((tmp_path/'out.run').glob('class_*')) and time.time()<end: time.sleep(.01)
    p.kill()
    p.wait()
    if not (tmp_path/'out').exists(): assert list((tmp_path/'out.run').glob('class_*'))
    code, text = finish(start(command(world, tmp_path/'out'))) if (tmp_path/'out.run').exists() else (0, '')
    assert code==0 and tree(tmp_path/'out')==want and not (tmp_path/'out.run').exists(), text
    assert kill_and_finish(world, tmp_path, [seconds*(.3+.5*random.Random(0).random())], want=want)[0]==want

@pytest.mark.slow
def test_killed_at_twenty_random_moments(world, tmp_path):
    seconds, want = duration(world, tmp_path)
    g, kills = random.Random(1), 0
    while kills<20:
        got, k = kill_and_finish(world, tmp_path, [seconds*(.3+.75*g.random()) for _ in range(2)], want=want)
        assert got==want
        kills += k
    print(f'\n{kills} kills survived')

@pytest.mark.slow
def test_two_processes_killed_at_random_moments(world, tmp_path):
    _, want = duration(world, tmp_path)
    g = random.Random(2)
    for _ in range(3): assert kill_and_finish(world, tmp_path, [10+15*g.random()], n=2, want=want)[0]==want

def stop_after(monkeypatch, n, error=KeyboardInterrupt):
    "Let `n` classes be written, and the next one end the run"
    import infoutil.engine.class_runs as class_runs
    save, done = class_runs.save_part, []
    def once(file, *args):
        if len(done)==n: raise error
        done.append(file); save(file, *args)
    monkeypatch.setattr(class_runs, 'save_part', once)

def watch_classes(monkeypatch):
    "The classes that are made from now on"
    from infoutil.distillation import Job
    made, finish_class = [], Job.finish
    monkeypatch.setattr(Job, 'finish', lambda job, table, parts: made.append(table.label) or finish_class(job, table, parts))
    return made

def test_finished_classes_are_not_made_again(world, tmp_path, monkeypatch):
    run = lambda: distill(world['data'], world['teacher'], world['early'], work=tmp_path/'work', **small)
    want = saved(distill(world['data'], world['teacher'], world['early'], **small), tmp_path/'want')
    with monkeypatch.context() as m:
        stop_after(m, 4)
        with pytest.raises(KeyboardInterrupt): run()
    assert len(list((tmp_path/'work').glob('class_*')))==4
    made = watch_classes(monkeypatch)
    assert saved(run(), tmp_path/'got')==want and made==[4, 5, 6, 7, 8, 9]

def test_a_class_whose_file_was_cut_or_altered_or_whose_images_changed_is_made_again(world, tmp_path, monkeypatch):
    folder = shutil.copytree(world['folder'], tmp_path/'digits')
    run = lambda **kw: distill(folder, world['teacher'], world['early'], **{**small, **kw})
    run(work=tmp_path/'work')
    cut, altered = sorted((tmp_path/'work').iterdir())[:2]
    cut.write_bytes(cut.read_bytes()[:-100])
    raw = bytearray(altered.read_bytes()); raw[-50] ^= 1; altered.write_bytes(raw)
    for p in sorted((folder/'train'/'7').iterdir()): shutil.copy(sorted((folder/'train'/'1').iterdir())[0], p)
    made = watch_classes(monkeypatch)
    got = run(work=tmp_path/'work')
    assert made==[0, 1, 7]
    assert saved(got, tmp_path/'got')==saved(run(), tmp_path/'want')

def test_a_run_goes_on_whatever_its_data_are_called_by(world, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        stop_after(m, 2)
        assert main(command(world, tmp_path/'out'))==130
    monkeypatch.chdir(world['folder'].parent)
    assert main(['distill', 'digits', *command(world, tmp_path/'out')[2:]])==0 and main(command(world, tmp_path/'want'))==0
    assert tree(tmp_path/'out')==tree(tmp_path/'want') and not (tmp_path/'out.run').exists()

def test_one_changed_byte_of_an_image_makes_its_class_again(world, tmp_path, monkeypatch):
    for c in world['data'].classes:
        for f in sorted((world['folder']/'train'/c).iterdir())[:6]:
            (tmp_path/'bmp'/c).mkdir(parents=True, exist_ok=True)
            Image.open(f).resize((64, 64)).save(tmp_path/'bmp'/c/f'{f.stem}.bmp')
    run = lambda **kw: distill(tmp_path/'bmp', world['teacher'], world['early'], **{**small, 'candidates': 4, 'valid_frac': .2, **kw})
    run(work=tmp_path/'work')
    for p in sorted((tmp_path/'bmp'/'7').iterdir()):                # as long as before, with the same beginning and end
        raw = bytearray(p.read_bytes()); raw[len(raw)//2] ^= 255; p.write_bytes(raw)
    made = watch_classes(monkeypatch)
    got = run(work=tmp_path/'work')
    assert made==[7]
    assert saved(got, tmp_path/'got')==saved(run(), tmp_path/'want')

def test_other_settings_do_not_go_on_with_a_run(world, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as m:
        stop_after(m, 2)
        assert main(command(world, tmp_path/'out'))==130
    assert main(command(world, tmp_path/'out', '--seed', 1))==1
    err = capsys.readouterr().err
    assert 'config.seed was 0 and is 1' in err and 'out.run' in err
    assert main(command(world, tmp_path/'out'))==0 and not (tmp_path/'out.run').exists()

@pytest.mark.parametrize('text', ['', '[]', 'null', '{"settings": null}', '{"settings": 5}', '{"settings": [1]}', '{"settings": "x"}', '{"settings": {"config": 3}}', '['*10**5])
def test_settings_that_were_altered_are_refused(tmp_path, text):
    (tmp_path/'out.run').mkdir()
    (tmp_path/'out.run'/'settings.json').write_text(text); (tmp_path/'out.run'/'class_00000.safetensors').touch()
    with pytest.raises(OutputError, match='out.run'):
        with resumable(tmp_path/'out', dict(config=dict(seed=0))): pass

def test_a_full_disk_loses_nothing_that_was_finished(world, tmp_path, monkeypatch, capsys):
    import errno, infoutil.engine.outputs as outputs
    save, room = outputs.save_file, [3]
    def full(tensors, file, **kw):
        if not room[0]: Path(file).write_bytes(b'half'); raise OSError(errno.ENOSPC, 'No space left on device')
        room[0] -= 1; save(tensors, file, **kw)
    with monkeypatch.context() as m:
        m.setattr(outputs, 'save_file', full)
        assert main(command(world, tmp_path/'out'))==1
    assert 'No space left on device' in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path/'out.run').iterdir() if p.name!='lock')==[f'class_0000{i}.safetensors' for i in range(3)]+['settings.json']
    assert main(command(world, tmp_path/'out'))==0 and main(command(world, tmp_path/'want'))==0 and tree(tmp_path/'out')==tree(tmp_path/'want')

def test_an_error_of_the_disk_names_the_output(tmp_path):
    import errno
    with pytest.raises(OutputError, match=r'/out cannot be written \(No space'):
        with resumable(tmp_path/'out', {}) as run: raise OSError(errno.ENOSPC, 'No space left on device')      # as where the set's last files are written
    assert not list(tmp_path.iterdir())

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()!=0, reason='only root may mount a small disk')
@pytest.mark.slow
def test_a_disk_that_really_fills_up(world, tmp_path):
    disk = tmp_path/'disk'; disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=60k', 'tmpfs', str(disk)], capture_output=True).returncode: pytest.skip('this machine lets nobody mount')
    try:
        code, text = finish(start(command(world, disk/'out')))
        assert code==1 and 'No space left' in text and 'Traceback' not in text, text
        kept = list((disk/'out.run').glob('class_*'))
        assert kept and not (disk/'out').exists()
        subprocess.run(['mount', '-o', 'remount,size=8m', str(disk)], check=True)
        code, text = finish(start(command(world, disk/'out')))
        assert code==0 and main(command(world, tmp_path/'want'))==0 and tree(disk/'out')==tree(tmp_path/'want'), text
    finally: subprocess.run(['umount', str(disk)])

# -- policy for images that cannot be read

def test_skip_takes_the_next_image_and_lists_the_broken_ones(world, tmp_path, capsys):
    folder = shutil.copytree(world['folder'], tmp_path/'digits')
    broken = sorted((folder/'train'/'3').iterdir())[::5]
    for p in broken: p.write_bytes(p.read_bytes()[:60])
    args = lambda out, *more: ['distill', str(folder), '--teacher', str(world['dir']/'teacher'), '-o', str(tmp_path/out), '--ipc', '1', '--candidates', '20', '--label-teacher', 'by_ipc', *more]
    assert main(args('a'))==1 and not (tmp_path/'a').exists() and not (tmp_path/'a.run').exists()
    assert broken[0].parent.name in (err:=capsys.readouterr().err) and 'cannot be read as an image' in err
    assert main(args('a', '--on-error', 'skip'))==0
    skipped = json.loads((tmp_path/'a'/'infoutil.json').read_text())['skipped']
    assert {s['file'] for s in skipped}<={p.relative_to(folder).as_posix() for p in broken} and skipped and all(s['reason'] for s in skipped)
    for p in broken: p.unlink()                                  # as if they had never been there
    assert main(args('b', '--on-error', 'skip'))==0
    a, b = tree(tmp_path/'a'), tree(tmp_path/'b')
    assert {k:v for k,v in a.items() if k!='infoutil.json'}=={k:v for k,v in b.items() if k!='infoutil.json'}

# -- large inputs

PEAK = '''
import random, sys, tempfile
from pathlib import Path
import torch
from PIL import Image
from infoutil.basics import seeded
from infoutil.models import ConvNet
from infoutil.distillation import distill
from infoutil.teacher import Teacher
n, classes, size, hold = map(int, sys.argv[1:5])
import infoutil.engine.class_runs
if hold>=0: infoutil.engine.class_runs.HELD = hold
with tempfile.TemporaryDirectory() as d:
    for i in range(n):
        p = Path(d)/f'{i%classes:04d}'/f'{i:06d}.png'
        p.parent.mkdir(exist_ok=True)
        Image.frombytes('RGB', (8, 8), random.Random(i).randbytes(192)).resize((size, size)).save(p, compress_level=1)
    with seeded(0): model = ConvNet(classes, depth=2, width=8, size=size).eval()
    t = Teacher(model, 'custom', tuple(f'{c:04d}' for c in range(classes)), size, (.5,)*3, (.25,)*3)
    kw = dict(method='random_grad_norm') if hold>=0 else dict(budget=32)
    run = lambda k: distill(d, t, ipc=1, factor=2, **kw, candidates=k, valid_frac=.0001, show_progress=False, preflight=False)
    run(8)                                                        # what torch itself takes
    ds = run(n)
    print(len(ds), next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))//1024)      # ru_maxrss would know the parent's peak
'''

def peak(n, classes, size=16, hold=-1):
    "MiB of the process at the end, for `n` candidates of so many classes"
    p = subprocess.run([sys.executable, '-c', PEAK, str(n), str(classes), str(size), str(hold)], env=ENV, capture_output=True, text=True)
    assert p.returncode==0, p.stderr[-2000:]
    made, after = map(int, p.stdout.split()[-2:])
    assert made==classes
    return after

on_linux = pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='the peak is read from Linux')

@pytest.mark.slow
def test_no_more_than_a_few_blocks_of_images_are_held(world, monkeypatch):
    import infoutil.distillation as distillation, infoutil.engine.class_runs as class_runs
    monkeypatch.setattr(class_runs, 'BLOCK', 4); monkeypatch.setattr(class_runs, 'HELD', 0)       # what a class may hold until its crops are cut set aside
    read, most = distillation.read_ahead, {}
    def counted(n):
        alive = []
        def watched(*args, **kw):
            for c in read(*args, **kw):
                alive.append(weakref.ref(c.images))
                most[n] = max(most.get(n, 0), sum(r() is not None for r in alive))
                yield c
        return watched
    for n in (12, 36):
        monkeypatch.setattr(distillation, 'read_ahead', counted(n))
        distill(world['data'], world['teacher'], method='random_grad_norm', factor=2, ipc=1, candidates=n, show_progress=False, preflight=False)
    assert most[12]==most[36]<=3, most

@on_linux
@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(world):
    few, many = [peak(n, 2, 96, hold=0) for n in (300, 1200)]       # what a class may hold until its crops are cut (64 MiB) set aside: 24 MiB of pixels more
    assert many-few<12, (few, many)

@on_linux
@pytest.mark.slow
def test_memory_at_2000_8000_and_32000_images(world):
    peaks = {n: peak(n, 2) for n in (2000, 8000, 32000)}
    wide  = {n: peak(n, 1000) for n in (6000, 18000)}
    print(f'\nMiB by candidates of 2 classes: {peaks}; of 1,000 classes: {wide}')
    assert peaks[32000]-peaks[2000]<40 and wide[18000]-wide[6000]<40, (peaks, wide)

@pytest.mark.slow
def test_copies_across_the_parts_are_counted(few, tmp_path):
    folder = shutil.copytree(few, tmp_path/'digits')
    for p in sorted((folder/'train'/'1').iterdir())[:3]: shutil.copy(p, folder/'test'/'1'/f'copy_{p.name}')
    from infoutil.training import train_teacher
    with pytest.warns(UserWarning, match='3 of 83 valid images are training images too'):
        train_teacher(folder, arch='convnet3', size=32, epochs=1, early_epoch=1, show_progress=False)
