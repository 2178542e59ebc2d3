"How commands behave before those who type them: bars on terminals, lines in logs, answers at once, modes, what comes next"
import csv, os, re, select, signal, stat, struct, subprocess, sys
from pathlib import Path
import pytest
try: import fcntl, pty, termios
except ImportError: pty = None
import infoutil.all, infoutil.hub, infoutil.label_teachers, infoutil.report
from infoutil import command_line
from infoutil.command_line import main, settings_table
from infoutil.engine import progress
from infoutil.methods import METHODS
from test_cli import make_folder, three, user_env

root = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(pty is None, reason='a system without terminals')

# ------------------------------------------------------------------ a terminal, and a log
def screen(raw):
    "What a wide terminal shows of a text: a carriage return goes back, and what comes then covers what was there"
    lines, at = [''], 0
    for c in raw.replace('\r\n', '\n'):
        if c=='\n': lines.append('')
        if c in '\r\n': at = 0
        else:
            lines[-1] = lines[-1][:at].ljust(at)+c+lines[-1][at+1:]
            at += 1
    return [l.rstrip() for l in lines]

def test_what_the_small_terminal_shows():
    assert screen('abc\rx\r\nabcdef')==['xbc', 'abcdef']

def work(argv, umask, stop, cwd):
    "In a child: run a command whose output is file 1; its status"
    sys.stdout, sys.stderr = (open(fd, 'w', buffering=1, encoding='utf-8', closefd=False) for fd in (1, 2))
    os.environ.pop('COLUMNS', None)
    os.chdir(cwd)
    os.umask(umask)
    progress.LogLines.pause = progress.TerminalBar.blink = 0.
    if stop:                                                # Ctrl-C once a stage has come so far
        at = progress.Progress.at
        def press(self, n, note=None):
            at(self, n, note)
            if self.stage==stop and n>1: raise KeyboardInterrupt
        progress.Progress.at = press
    tried = infoutil.label_teachers.try_label_teachers
    infoutil.label_teachers.try_label_teachers = lambda *a, **kw: tried(*a, **{**kw, 'epochs': 2})
    infoutil.report.make_report = lambda folder, *a, **kw: Path(folder)/'report.html'     # its notebook has tests of its own
    infoutil.hub.push_to_hub = lambda *a, **kw: 'https://huggingface.co/datasets/me/set'
    return main([str(a) for a in argv])

def child(fn, *args):
    "Never returns"
    rc = 99
    try: rc = fn(*args)
    except SystemExit as e: rc = e.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(rc)

class Place:
    "Where commands run: a terminal of some columns, or with None a log"
    def __init__(self, columns, umask, cwd): self.columns, self.umask, self.cwd = columns, umask, cwd
    def __call__(self, *argv, status=0, stop=None):
        "Its lines"
        rc, raw = (self.on_terminal if self.columns else self.in_log)([work, argv, self.umask, stop, self.cwd])
        assert rc==status, raw
        assert 'Traceback' not in raw, raw
        if not self.columns:
            assert '\r' not in raw and '█' not in raw, raw
            return raw.splitlines()
        lines = screen(raw)
        for drawn in re.split('[\r\n]', raw):
            assert '█' not in drawn or len(drawn)<self.columns and re.fullmatch(r'[a-z0-9 ]+ █+-* +\d+/\d+.*', drawn), (drawn, raw)
        for l in lines: assert '█' not in l or re.fullmatch(r'[a-z0-9 ]+ █+-* +\d+/\d+.*', l), (l, raw)
        return lines
    def on_terminal(self, do):
        pid, fd = pty.fork()
        if pid==0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, self.columns, 0, 0))
            child(*do)
        out = b''
        while True:
            if not select.select([fd], [], [], 120)[0]: os.kill(pid, signal.SIGKILL)
            try: got = os.read(fd, 65536)
            except OSError: break                           # nobody holds the other end any more
            if not got: break
            out += got
        os.close(fd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out.decode(errors='replace')
    def in_log(self, do):
        log = self.cwd/'log'
        if (pid := os.fork())==0:
            with open(log, 'wb') as f: os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
            child(*do)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), log.read_text(encoding='utf-8')

def starts(lines, text): return [l for l in lines if l.startswith(text)]
def nexts(lines): return starts(lines, 'next: ')

@pytest.mark.parametrize('columns,umask', [(80, 0o022), (40, 0o027), (None, 0o022)])
def test_every_command(tmp_path, columns, umask):
    "Begun and stopped, resumed, run again when finished: bars or lines, errors and results on lines of their own, modes, what comes next"
    make_folder(tmp_path/'data')
    run = Place(columns, umask, tmp_path)
    def stage(lines, name, n, unit, first=0):
        "A stage from its beginning to its end"
        if columns:
            assert len(seen := starts(lines, name+' '))==1, lines
            assert f' {n}/{n}' in seen[0], seen
        else:
            before = f', {first} of them finished before' if first else ''
            assert lines.count(f'{name}: {n} {unit}{before}')==1, lines
            assert starts(lines, f'{name}: {n}/{n} {unit}'), lines
    # teacher
    teach = ['teacher', 'data', '-o', 't', '--size', 32, '--epochs', 2, '--early-epoch', 1, '--bs', 6, '--precision', 'float32']
    lines = run(*teach, stop='training the teacher', status=130)
    assert starts(lines, 'infoutil: stopped'), lines
    lines = run(*teach)
    stage(lines, 'training the teacher', 2, 'epochs', 1)
    assert starts(lines, 'Teacher(') and starts(nexts(lines), 'next: infoutil distill data --teacher t -o s'), lines
    # distill
    shrink = ['distill', 'data', '--teacher', 't', '-o', 's', '--ipc', 1, '--candidates', 4, '--label-teacher', 'converged']
    lines = run(*shrink, stop='distilling', status=130)
    assert starts(lines, 'infoutil: stopped'), lines
    lines = run(*shrink)
    stage(lines, 'distilling', 3, 'classes', 2)
    assert starts(lines, 'DistilledSet('), lines
    assert nexts(lines)==['next: infoutil evaluate s --test data', 'next: infoutil train s -o student'], lines
    assert starts(run(*shrink, status=1), 'infoutil: s exists')
    lines = run('distill', 'data', '--teacher', 't', '-o', 's2', '--ipc', 1, '--method', 'random')      # who labels is tried
    tried = len(starts(lines, 'labels of '))
    assert [l for l in starts(lines, 'trying label teachers') if f' {tried}/{tried}' in l] and nexts(lines), lines
    # students
    lines = run('evaluate', 's', '--test', 'data', '--epochs', 2, '--repeats', 2, '-o', 'r.json', '--keep', 'kept')
    for k in 1, 2: stage(lines, f'student {k} of 2', 2, 'epochs')
    assert len(nexts(lines))==2 and starts(lines, 'convnet3, 1 image per class'), lines
    lines = run('train', 's', '-o', 'student', '--epochs', 2, '--test', 'data')
    stage(lines, 'training the student', 2, 'epochs')
    assert nexts(lines)==['next: infoutil predict student FILES'], lines
    assert len([l for l in run('predict', 'student', 'data/test/ant') if '%' in l])==8
    assert nexts(run('show', 's', '-o', 'g.png'))==['next: infoutil evaluate s --test DATA']
    assert nexts(run('export', 's', '--to', 'ddranking', '-o', 'x'))==['next: infoutil push x OWNER/NAME']
    assert starts(run('push', 's', 'me/set'), 'https://')
    # compare
    grid = ['compare', 'data', '--teacher', 't', '-o', 'c', '--methods', 'random', '--ipc', 1, '--epochs', 1, '--repeats', 3, '--jobs', 1,
            '--label-teachers', 'converged']
    lines = run(*grid, stop='comparing', status=130)
    assert starts(lines, 'infoutil: stopped'), lines
    lines = run(*grid)
    stage(lines, 'comparing', 3, 'students', 1)
    assert nexts(lines)==['next: infoutil report c'] and starts(lines, '|'), lines
    lines = run(*grid)
    assert nexts(lines)==['next: infoutil report c'] and not starts(lines, 'infoutil: '), lines
    assert starts(lines, 'comparing '+'█'*6 if columns else 'comparing: 3 students, 3 of them finished before'), lines
    assert nexts(run('report', 'c'))==['next: open it in a browser']
    # all of it in one
    whole = ['run', 'data', '-o', 'w', '--teacher', 't', '--ipc', 1, '--epochs', 1, '--repeats', 2, '--jobs', 1, '--label-teacher', 'converged']
    assert starts(run(*whole, stop='comparing', status=130), 'infoutil: stopped')
    lines = run(*whole)
    stage(lines, 'comparing', 4, 'students', 1)
    assert starts(lines, 'the page: '), lines
    lines = run(*whole)                                          # nothing is left to do
    assert starts(lines, 'the page: ') and not starts(lines, 'infoutil: '), lines
    # as the umask says, and nothing else left
    given = {'data', 'log'}
    made = [p for p in tmp_path.rglob('*') if p.relative_to(tmp_path).parts[0] not in given]
    assert {p.name for p in tmp_path.iterdir()}-given=={'t', 's', 's2', 'r.json', 'kept', 'student', 'g.png', 'x', 'c', 'w'}
    odd = {p.relative_to(tmp_path): oct(stat.S_IMODE(p.stat().st_mode)) for p in made
           if stat.S_IMODE(p.stat().st_mode)!=(0o777 if p.is_dir() else 0o666)&~umask}
    assert len(made)>30 and not odd, odd

# ------------------------------------------------------------------ one display
def shown(columns, code):
    "What code shows on a terminal of some columns, or in a log"
    def do():
        sys.stdout = open(1, 'w', buffering=1, encoding='utf-8', closefd=False)
        os.environ.pop('COLUMNS', None)
        code(progress.Progress)
        return 0
    place = Place(columns, 0o022, Path('/'))
    return place.on_terminal([do])[1]

@pytest.mark.parametrize('columns', [80, 40, 12])
def test_a_bar_is_one_line_whatever_the_width(columns):
    def code(P):
        progress.TerminalBar.blink = 0.
        with P('student 2 of 3', 300, 'epochs', done=100) as p:
            for i in range(200): p(f'accuracy {i/200:.3f}')
        print('a result')
    raw = shown(columns, code)
    assert len(screen(raw))==3 and screen(raw)[1]=='a result' and all(len(d)<columns for d in re.split('[\r\n]', raw)), raw

def test_a_stage_that_fails_and_a_line_of_results():
    def code(P):
        try:
            with P('scoring', 3, 'classes') as p:
                p()
                p.say('half a result')
                raise ValueError
        except ValueError: print('it failed')
        print('so be it')
    lines = screen(shown(80, code))
    assert lines[0]=='half a result' and lines[1].startswith('scoring █') and lines[2:]==['it failed', 'so be it', ''], lines

def test_a_log_is_short(monkeypatch, capsys):
    "Ten hours of a thousand steps"
    now = [0.]
    monkeypatch.setattr(progress.time, 'time', lambda: now[0])
    with progress.Progress('scoring', 1000, 'classes') as p:
        for _ in range(1000):
            now[0] += 36
            p()
    lines = capsys.readouterr().out.splitlines()
    assert 40<len(lines)<80 and lines[0]=='scoring: 1000 classes' and lines[-1].startswith('scoring: 1000/1000 classes, in 10:00:00'), lines
    assert re.fullmatch(r'scoring:  *\d+/1000 classes, \d+:\d\d:\d\d left, 1\.7/min', lines[5]), lines[5]

# ------------------------------------------------------------------ answers at once
def test_answers_do_not_wait_for_torch(tmp_path):
    "Help, what is mistyped, and directories that are not there"
    there = tmp_path/'there'
    there.mkdir()
    asked = [[], ['--help'], ['--version'], *([c, '--help'] for c in command_line.COMMANDS)]
    wrong = [['distil'], ['distill', 'd', '--icp', '3'], ['distill', 'd', '--teacher', 't', '-o', 'o', '--ipc', 'ten'], ['teacher'], ['show', 's', '-force'],
             ['distill', f'{there}/no', '--teacher', f'{there}', '-o', 'o'], ['distill', f'{there}', '--teacher', 'no', '-o', 'o'],
             ['evaluate', 'no', '--test', f'{there}'], ['evaluate', f'{there}', '--test', './no'], ['train', 'no', '-o', 'o'], ['predict', 'no', 'f'],
             ['show', 'no'], ['compare', f'{there}/no', '--teacher', f'{there}', '-o', 'o'], ['report', 'no'], ['export', 'no', '--to', 'parquet', '-o', 'o'],
             ['push', 'no', 'me/set'], ['teacher', './no', '-o', 'o']]
    code = f'''
import sys, io, contextlib
from infoutil.command_line import main
for argv, status in [*((a, 0) for a in {asked}), *((a, 1) for a in {wrong})]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try: got = main(argv)
        except SystemExit as e: got = e.code
    assert got==status, (argv, got)
    assert status or 'infoutil' in out.getvalue(), argv
    if 'torch' in sys.modules: sys.exit('torch for '+str(argv))
'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**user_env(), 'PYTHONPATH': str(root)}, cwd=tmp_path)
    assert r.returncode==0, r.stderr
    said = r.stderr.splitlines()
    assert len(said)==len(wrong), said
    for line in said:
        three(line)
        assert line.startswith('infoutil: ')
    assert 'did you mean distill?' in said[0] and 'did you mean --ipc?' in said[1] and "'ten' came" in said[2] and 'did you mean --force?' in said[4]

def test_alone_it_shows_its_help(capsys):
    assert main([])==0
    out = capsys.readouterr()
    assert 'commands:' in out.out and not out.err

def test_the_table_of_settings_is_what_methods_declare(monkeypatch):
    for k in [k for k,c in METHODS.items() if not c.__module__.startswith('infoutil.')]: monkeypatch.delitem(METHODS, k)      # of other tests
    with open(root/'infoutil/data_files/settings.csv', encoding='utf-8', newline='') as f: kept = [tuple(r) for r in csv.reader(f)]
    assert kept==settings_table(), 'run `python tests/check_settings.py --write`'

# ------------------------------------------------------------------ files that are there
@pytest.mark.parametrize('argv', [['evaluate', 's', '--test', 't', '-o', 'r.json'], ['show', 's', '-o', 'grid.png'], ['show', 's']])
def test_a_file_that_is_there_is_spared(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    for name in 's', 't': (tmp_path/name).mkdir()
    for name in 'r.json', 'grid.png': (tmp_path/name).write_text('mine')
    assert main(argv)==1
    err = capsys.readouterr().err
    three(err)
    assert 'exists; a new file for the' in err and '--force' in err
    assert main([*argv, '--force'])==1                           # now the set is looked at, which is none
    assert 'infoutil.json' in capsys.readouterr().err and {f.read_text() for f in tmp_path.glob('*.*')}=={'mine'}
