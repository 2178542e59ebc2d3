"""What all benchmarks share: ways that take turns in one process, and the file that their figures go to"""
import json, platform, subprocess, sys, time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
import torch
from infoutil.engine.measure import measure

RESULTS = Path(__file__).resolve().parent.parent/'results'/'speed'

def cpu_name():
    "The processor's name, from Linux where there is one"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()

def machine(device='cpu'):
    "What the figures were measured on"
    dev = torch.device(device)
    return dict(device=torch.cuda.get_device_name(dev) if dev.type=='cuda' else cpu_name(), threads=torch.get_num_threads(), python=platform.python_version(),
                torch=torch.__version__, mkldnn_bf16=bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))

def versions(*names):
    "Versions of peers; None for one that is not installed"
    def one(n):
        try: return version(n)
        except PackageNotFoundError: return None
    return {n: one(n) for n in names}

def _wait(device):
    if torch.device(device).type=='cuda': torch.cuda.synchronize(device)

def interleaved(
    ways,            # name -> function without arguments
    reference,       # The name that the others are divided by
    rounds=7,        # Every way runs once a round; the order turns by one from round to round
    warm=1,          # Rounds that are not counted
    device='cpu',    # Waited for at the end of every call
)->dict:             # name -> seconds (median), ratio to the reference (median over rounds of the ratio within the round), and its quartiles
    "Time several ways of doing one thing in turn, so that a machine that is slow for a while is slow for all of them"
    names, seconds = list(ways), {n: [] for n in ways}
    for r in range(warm+rounds):
        for n in names[r%len(names):]+names[:r%len(names)]:
            _wait(device); t = time.perf_counter()
            ways[n]()
            _wait(device)
            if r>=warm: seconds[n].append(time.perf_counter()-t)
    quart = lambda v, q: sorted(v)[round(q*(len(v)-1))]
    ratios = {n: [a/b for a,b in zip(seconds[n], seconds[reference])] for n in names}
    return {n: dict(seconds=median(seconds[n]), ratio=median(ratios[n]), low=quart(ratios[n], .25), high=quart(ratios[n], .75), rounds=rounds) for n in names}

def peak(fn, device='cpu'):
    "Peak memory of one call beyond what was held before, bytes"
    with measure(device) as s: fn()
    return s.peak_bytes-s.before_bytes if s.peak_bytes is not None else None

def git_commit():
    "The commit that was measured"
    try: return subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError): return None

def save(name, rows, device='cpu', peers=(), out=None, **config):
    "Write rows (dicts) with the machine, the versions and the command beside them; returns the file"
    f = Path(out) if out else RESULTS/f'{name}.json'
    f.parent.mkdir(parents=True, exist_ok=True)
    command = ' '.join(['python', 'benchmarks/'+Path(sys.argv[0]).name, *[a if not Path(a).is_absolute() else Path(a).name.upper() for a in sys.argv[1:]]])
    f.write_text(json.dumps(dict(schema=1, name=name, command=command, commit=git_commit(), machine=machine(device), versions=versions('infoutil', *peers), config=config, rows=rows), indent=1)+'\n')
    return f

def show(rows, columns):
    "Print rows as a plain table"
    cell = lambda v: '' if v is None else f'{v:.3g}' if isinstance(v, float) else str(v)
    wide = [max(len(c), *(len(cell(r.get(c))) for r in rows)) if rows else len(c) for c in columns]
    for line in ([c for c in columns], *[[cell(r.get(c)) for c in columns] for r in rows]): print('  '.join(v.ljust(w) for v,w in zip(line, wide)))
