"What tests share: digits and teachers that are made once a run, and the other processor that all of them may run on"
import os, shutil, sys
from contextlib import contextmanager
from pathlib import Path
import pytest
try: import fcntl
except ImportError: fcntl = None

here = Path(__file__).parent
OTHER = str(here/'other_processor')
sys.path.insert(0, OTHER)

if os.environ.get('INFOUTIL_OTHER_PROCESSOR')=='1':
    if OTHER not in os.environ.get('PYTHONPATH', '').split(os.pathsep):                 # processes that tests start
        os.environ['PYTHONPATH'] = os.pathsep.join(p for p in (OTHER, os.environ.get('PYTHONPATH', '')) if p)
    import other_processor
    other_processor.install()

# files that come first, so that no process is left alone with a long one at the end
LONGEST = ('trust', 'teacher', 'bench', 'compare', 'cli', 'gradient_norms', 'evaluate', 'pipeline', 'report', 'formats', 'sre2l')

def pytest_configure(config):
    "xdist would begin with the file of most tests"
    if hasattr(config.option, 'loadscopereorder'): config.option.loadscopereorder = False

def pytest_collection_modifyitems(items):
    rank = {f'test_{name}': i for i,name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))

@contextmanager
def locked(file):
    "One process at a time"
    with open(file, 'w') as f:
        if fcntl: fcntl.flock(f, fcntl.LOCK_EX)
        yield

@pytest.fixture(scope='session')
def once(tmp_path_factory):
    "`once(name, make)`: a folder that `make(folder)` fills, once for all processes of a run; to be read, not written"
    root = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: root = root.parent
    def at(name, make):
        with locked(root/f'{name}.lock'):
            if not (root/name).exists():
                made = root/f'{name}.making'
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                make(made)
                made.rename(root/name)
        return root/name
    return at

@pytest.fixture(scope='session')
def digits(once):
    "The digits, and a teacher of them in both states"
    from safetensors.torch import load_file, save_file
    from infoutil.data import load_data
    from infoutil.fixtures.demo_teacher import demo_teacher
    from infoutil.teacher import load_teacher
    def make(d):
        _, x, y = demo_teacher(path=d/'teacher', data=load_data('digits', dest=d))
        save_file(dict(x=x, y=y), d/'held_out.safetensors')
    d = once('digits_world', make)
    teacher, early = (load_teacher(d/'teacher', which, device='cpu') for which in ('converged', 'early'))
    held = load_file(d/'held_out.safetensors')
    return dict(dir=d, folder=d/'digits', data=load_data('digits', dest=d), teacher=teacher, early=early, **held)

@pytest.fixture(scope='session')
def few(digits, once):
    "A folder of 20 digits a class to learn from and 8 to test on"
    def make(d):
        for part, n in (('train', 20), ('test', 8)):
            for c in sorted((digits['folder']/part).iterdir()):
                (d/part/c.name).mkdir(parents=True)
                for f in sorted(c.iterdir())[:n]: shutil.copy(f, d/part/c.name)
    return once('few', make)
