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
