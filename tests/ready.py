"""Processes that have their imports behind them: forks of one that has loaded torch and infoutil and has computed nothing.

A process of one's own costs five seconds of imports, a fork some hundredths. It is a process like any other: with a number, a session, files, signals and an end of its own."""
import atexit, json, os, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

SERVER = '''
import importlib, json, os, pkgutil, runpy, sys
import torch, fastai.vision.all, infoutil
torch.set_num_threads(1)
for m in pkgutil.walk_packages(infoutil.__path__, 'infoutil.'):
    if not m.name.endswith('__main__'): importlib.import_module(m.name)

def serve():
    "Start and watch children; returns in them, with what they are to do"
    for line in sys.stdin:
        ask = json.loads(line)
        if 'watch' in ask:
            gone, status = os.waitpid(ask['watch'], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if gone else None
        elif pid:=os.fork(): answer = pid
        else: return ask
        print(json.dumps(answer), flush=True)
    os._exit(0)

ask = serve()
os.setsid()
for fd, file in enumerate((os.devnull, ask['out'], ask['err'])):
    f = os.open(file, os.O_RDONLY if fd==0 else os.O_WRONLY)
    os.dup2(f, fd); os.close(f)
sys.stdin = open(0, closefd=False)
os.environ.clear(); os.environ.update(ask['env']); os.chdir(ask['cwd'])
what, sys.argv = ask['what'], ask['argv']
if what=='code': exec(compile(sys.argv[0], '<code>', 'exec'), {'__name__': '__main__'})
elif what=='module': runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
else: sys.path.insert(0, os.path.dirname(sys.argv[0])); runpy.run_path(sys.argv[0], run_name='__main__')
'''

class Server:
    "The process that the others are forks of; it ends with this one"
    def __init__(self):
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore', 'CUDA_VISIBLE_DEVICES': ''}
        self.files = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen([sys.executable, '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.started = 0
        atexit.register(self.close)
    def ask(self, **what):
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())
    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.files.cleanup()

_server = []

class Process:
    "What `start` returns; to be used like `subprocess.Popen`"
    def __init__(self, what, argv, env=None, cwd=None):
        if not _server: _server.append(Server())
        server = _server[0]
        server.started += 1
        self.files = [Path(server.files.name)/f'{server.started}.{end}' for end in ('out', 'err')]
        for f in self.files: f.touch()
        self.returncode = None
        out, err = map(str, self.files)
        self.pid = server.ask(what=what, argv=list(map(str, argv)), env=dict(os.environ if env is None else env), cwd=str(cwd or os.getcwd()), out=out, err=err)
    def poll(self):
        if self.returncode is None: self.returncode = _server[0].ask(watch=self.pid)
        return self.returncode
    def wait(self, timeout=300):
        end = time.time()+timeout
        while self.poll() is None:
            if time.time()>end: raise subprocess.TimeoutExpired(self.pid, timeout)
            time.sleep(.01)
        return self.returncode
    def communicate(self, timeout=300):
        self.wait(timeout)
        self.stdout, self.stderr = (f.read_text() for f in self.files)
        return self.stdout, self.stderr
    def send_signal(self, what): os.kill(self.pid, what)
    def kill(self):
        "The process and what it has started"
        if self.poll() is None: os.killpg(self.pid, signal.SIGKILL)

class Group:
    "So many processes that a launcher would have started, told who they are as torchrun tells them"
    def __init__(self, n, what, argv, env=None, cwd=None):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        env = {**(os.environ if env is None else env), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(n), 'LOCAL_WORLD_SIZE': str(n)}
        self.processes = [Process(what, argv, {**env, 'RANK': str(i), 'LOCAL_RANK': str(i)}, cwd) for i in range(n)]
    def poll(self):
        codes = [p.poll() for p in self.processes]
        return None if None in codes else next((c for c in codes if c), 0)
    def wait(self, timeout=300):
        end = time.time()+timeout
        for p in self.processes: p.wait(max(0, end-time.time()))
        self.returncode = self.poll()
        return self.returncode
    def communicate(self, timeout=300):
        self.wait(timeout)
        self.stdout, self.stderr = map(''.join, zip(*(p.communicate() for p in self.processes)))
        return self.stdout, self.stderr
    def kill(self):
        for p in self.processes: p.kill()

def run(what, argv, timeout=600, **kw):
    "Start a process and wait for its end; what it says is in `stdout` and `stderr`"
    p = Process(what, argv, **kw)
    try: p.communicate(timeout)
    except subprocess.TimeoutExpired:
        p.kill()
        raise
    return p
