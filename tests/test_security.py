"Files from outside are data: no pickle, no code, no path out of the directory, no connection that nobody asked for"
import ast, inspect, io, json, os, pickle, re, shutil, socket, subprocess, sys, textwrap
from dataclasses import replace
from pathlib import Path
import nbformat, numpy as np, pytest, torch
from safetensors.torch import load_file
sys.path.insert(0, str(Path(__file__).parent))
import input_cases as ic
from infoutil.basics import InfoUtilError, seeded
from infoutil.engine.outputs import sealed
from infoutil.engine.seen_images import sha256
from infoutil.models import get_model
from infoutil.distilled_set import DistilledSet
from infoutil.files import StoreError
from infoutil.teacher import load_record, load_teacher, save_teacher, Teacher

root = Path(__file__).parents[1]

# --- no pickle, no code from files -------------------------------------------------------------------------------------------

MODULES = {'pickle', '_pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal', 'jsonpickle'}
CALLS   = {('torch', 'load'), ('yaml', 'load'), ('yaml', 'unsafe_load'), ('yaml', 'full_load'), ('os', 'system'), ('os', 'popen'), ('hub', 'load'), ('pd', 'read_pickle'), ('pandas', 'read_pickle'), ('runpy', 'run_path')}
NAMES   = {'eval', 'exec', '__import__', 'load_learner', 'load_pickle', 'read_pickle', 'torch_load'}

def finds(tree):
    "What in a syntax tree reads a pickle, runs text as code, or hands text to a shell"
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): yield from (a.name for a in n.names if a.name.split('.')[0] in MODULES)
        if isinstance(n, ast.ImportFrom):
            if (n.module or '').split('.')[0] in MODULES: yield n.module
            yield from (f'{n.module}.{a.name}' for a in n.names if ((n.module or '').removeprefix('torch.') if n.module=='torch.hub' else n.module, a.name) in CALLS or a.name in NAMES)
        if not isinstance(n, ast.Call): continue
        f, kw = n.func, {k.arg:getattr(k.value, 'value', '?') for k in n.keywords}
        if isinstance(f, ast.Name) and f.id in NAMES: yield f.id
        if isinstance(f, ast.Attribute):
            owner = f.value.id if isinstance(f.value, ast.Name) else getattr(f.value, 'attr', '')
            safe = (owner, f.attr)==('torch', 'load') and kw.get('weights_only') is True       # tensors and plain containers alone
            if (owner, f.attr) in CALLS and not safe or (f.attr in NAMES-{'eval'}): yield f'{owner}.{f.attr}'
        if kw.get('shell', False) is not False: yield 'shell='
        if kw.get('allow_pickle', False) is not False: yield 'allow_pickle='
        if kw.get('weights_only', True) is not True: yield 'weights_only='

def sources():
    for folder in ('infoutil', 'benchmarks'): yield from ((str(p.relative_to(root)), p.read_text(encoding='utf-8')) for p in sorted((root/folder).rglob('*.py')))
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in p.parts: continue
        code = [re.sub(r'^(\s*)[%!].*', r'\1pass', c.source, flags=re.M) for c in nbformat.read(p, 4).cells if c.cell_type=='code']
        yield from ((f'{p.relative_to(root)} cell {i}', c) for i,c in enumerate(code))

def test_nothing_reads_a_pickle_or_runs_text():
    """Package, benchmarks and notebooks. `compare` sends work to processes of its own through Python's multiprocessing, which pickles between a process and the children that it started: nothing from a file or a
    network gets there. numpy refuses pickles unless told otherwise, in all versions that we accept."""
    assert inspect.signature(np.load).parameters['allow_pickle'].default is False
    found, n = [], 0
    for where,text in sources(): n += 1; found += [(where, f) for f in finds(ast.parse(text))]
    assert not found and n>200, found

@pytest.mark.parametrize('bad', ['import pickle', 'from joblib import load', 'torch.load(f)', 'from torch import load', 'np.load(f, allow_pickle=True)', 'np.load(f, allow_pickle=flag)', 'yaml.load(s)', 'eval(s)', 'exec(s)',
    'subprocess.run(s, shell=True)', 'torch.hub.load(s)', 'os.system(s)', 'pd.read_pickle(f)', 'torch.serialization.load_learner(f)',
    'torch.load(f, weights_only=False)', 'torch.load(f, weights_only=flag)', 'torch.load(f, None, object())'])
def test_the_search_finds(bad): assert list(finds(ast.parse(bad)))

@pytest.mark.parametrize('fine', ['model.eval()', 'np.load(f)', 'json.load(f)', 'subprocess.run([s])', 'load_file(f)', 'learn.load(x)', "torch.load(f, 'cpu', weights_only=True)"])
def test_the_search_leaves(fine): assert not list(finds(ast.parse(fine)))

class Evil:
    "Writes a file when it is unpickled"
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return os.mkdir, (self.mark,)

def evil_bytes(mark, how):
    if how=='torch': f = io.BytesIO(); torch.save(Evil(mark), f); return f.getvalue()
    return pickle.dumps(Evil(mark), protocol=2 if how=='old' else 4)

def test_the_pickle_is_armed(tmp_path):
    pickle.loads(evil_bytes(tmp_path/'mark', 'new')); assert (tmp_path/'mark').exists()

@pytest.mark.parametrize('how', ['new', 'old', 'torch'])
@pytest.mark.parametrize('file', ['teacher/converged.safetensors', 'teacher/training.safetensors', 'set/labels/patch_logits.safetensors', 'set/labels/views.safetensors', 'set/teacher/label.safetensors'])
def test_a_pickle_in_the_place_of_tensors_is_refused_unread(file, how, tmp_path):
    "Refused by its digest, and with a digest that was made to fit by the reader of safetensors; never executed"
    part = file.split('/')[0]
    shutil.copytree(ic.Kept.at()/part, tmp_path/part)
    f, load = tmp_path/file, getattr(ic.Kept, f'load_{part}')
    f.write_bytes(evil_bytes(tmp_path/'mark', how))
    with pytest.raises(InfoUtilError): load(tmp_path/part)
    j = f.with_suffix('.json')
    if j.exists(): m = json.loads(j.read_text()); m['sha256'] = sha256(f); j.write_text(ic.teacher_sealed(m))
    if part=='set': refit(tmp_path/'set')
    with pytest.raises(InfoUtilError) as e: load(tmp_path/part)
    ic.refused(e.value, f.name, j.name, f.stem)
    assert not (tmp_path/'mark').exists()

@pytest.mark.parametrize('how', ['new', 'old', 'torch'])
@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors'])
def test_weights_from_elsewhere_are_read_as_data(how, name, tmp_path):
    from infoutil.brought_teachers import read_weights
    (tmp_path/name).write_bytes(evil_bytes(tmp_path/'mark', how))
    with pytest.raises(InfoUtilError, match='cannot be read as weights'): read_weights(tmp_path/name)
    torch.save({'state_dict': {'a': torch.ones(2), 'b': Evil(tmp_path/'mark')}}, tmp_path/name.replace('safetensors', 'pt'))
    with pytest.raises(InfoUtilError, match='cannot be read as weights'): read_weights(tmp_path/name.replace('safetensors', 'pt'))
    assert not (tmp_path/'mark').exists()

def refit(folder, change=lambda m: None):
    "Give a set's manifest the digests of the files as they are now, and a seal that fits"
    m = json.loads((folder/'infoutil.json').read_text())
    m['files'] = {f:sha256(folder/f) for f in m['files']}
    change(m); (folder/'infoutil.json').write_text(ic.sealed(m))

# --- paths -------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def kept(tmp_path):
    shutil.copytree(ic.Kept.at()/'set', tmp_path/'set')
    (tmp_path/'secret').mkdir(); (tmp_path/'secret/00000.png').write_bytes((tmp_path/'set/train/00000_ant/00000.png').read_bytes())
    return tmp_path/'set'

opened = []        # what is opened while a test watches
watching = False
def hook(event, args):
    if watching and event=='open' and isinstance(args[0], (str, bytes)): opened.append(os.path.realpath(os.fsdecode(args[0])))
sys.addaudithook(hook)

class Watch:
    "Record the files that a block opens"
    def __enter__(self): global watching; opened.clear(); watching = True; return opened
    def __exit__(self, *_): global watching; watching = False

WAYS_OUT = ('../secret/00000.png', '/etc/passwd', '..\\secret\\00000.png', 'C:\\x.png', 'train/../../secret/00000.png', 'train/00000_ant/../../../secret/00000.png', './secret', '', '.', '..', 'train//00000.png', 'a\0b')

@pytest.mark.parametrize('way', WAYS_OUT)
def test_a_listed_file_cannot_leave_the_set(way, kept):
    def add(m): m['files'][way] = '0'*64
    def move(m): m['files'][way] = m['files'].pop('train/00000_ant/00000.png')
    for change in (add, move):
        refit(kept, change)
        with Watch() as seen, pytest.raises(StoreError) as e: DistilledSet.load(kept, model=ic.net())
        assert 'infoutil.json' in str(e.value) and not [p for p in seen if 'secret' in p or p=='/etc/passwd']
        shutil.copy(ic.Kept.at()/'set/infoutil.json', kept)

@pytest.mark.parametrize('way', [*WAYS_OUT, '00000_..', '00000_', '00000_a/../..', '00000_a/b', '00001_ant', '00000_.hidden'])
def test_a_class_folder_cannot_leave_the_set(way, kept):
    def change(m): m['classes'][0]['folder'] = way; m['files'][f'train/{way}/00000.png'] = m['files'].pop('train/00000_ant/00000.png')
    refit(kept, change)
    with Watch() as seen, pytest.raises(StoreError, match='class 0'): DistilledSet.load(kept, model=ic.net())
    assert not [p for p in seen if 'secret' in p]

def test_a_link_out_of_the_set_shows_nothing_new(kept):
    "Links are followed, since downloads from the hub are kept as links; but only bytes whose digest is in the manifest get in, so whoever wrote the manifest knows them already"
    f = kept/'train/00000_ant/00000.png'; f.unlink(); f.symlink_to(kept.parent/'secret/00000.png')
    ic.same_set(DistilledSet.load(kept, model=ic.net()), ic.Kept.set)
    (kept.parent/'secret/00000.png').write_bytes(ic.PNG)
    with pytest.raises(StoreError, match='has changed'): DistilledSet.load(kept, model=ic.net())
    f.unlink(); f.symlink_to('/etc/passwd')
    with pytest.raises(StoreError, match='has changed') as e: DistilledSet.load(kept, model=ic.net())
    assert 'root:' not in str(e.value)

@pytest.mark.parametrize('name', ['C:', 'C:\\x', '\\\\server\\share'])
def test_a_class_folder_like_a_drive_is_a_class_folder(name, tmp_path):
    ds = ic.DistilledSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), (name, 'z'), meta=dict(factor=1, mean=[.5]*3, std=[.5]*3, skipped=[dict(file=f'{name}/b.png', reason='cut')]),
                         provenance=[dict(image=0, tile=0, source=f'{name}/a.png')])
    back = DistilledSet.load(ds.save(tmp_path/'set'))
    assert back.provenance[0]['source']==f'{name}/a.png' and back.classes[0]==name
    for where in ('/etc/passwd', name):
        with pytest.raises(InfoUtilError, match='absolute path'): replace(ds, meta={**ds.meta, 'data': where if where!='C:' else 'C:/x'})

NUMBERS = [dict(size=10**9), dict(size=10**30), dict(held_out='a'), dict(held_out=[.2]), dict(held_out=2),
           dict(held_out=float('nan')), dict(accuracy=float('inf')), dict(accuracy=10**400), dict(mean=[10**400]*3),
           dict(std=[1e300]*3), dict(std=[0.]*3), dict(size=2), dict(classes=['ant'])]

@pytest.fixture(scope='module')
def convnet_at(tmp_path_factory):
    "A teacher whose network is known by name, so that nobody has to bring it"
    with seeded(0): model = get_model('convnet3', 2, 8).eval()
    d = tmp_path_factory.mktemp('strangers')
    save_teacher(Teacher(model, 'convnet3', ('ant', 'bee'), 8, ic.MEAN, ic.STD, 3, .75), d/'teacher')
    return d/'teacher'

@pytest.mark.parametrize('change', [None, *NUMBERS], ids=lambda c: next((f'{k} {str(v)[:12]}' for k,v in (c or {}).items()), 'unaltered'))
@pytest.mark.parametrize('schema', [1, 2])
def test_numbers_of_a_strangers_teacher_end_in_a_sentence(change, schema, convnet_at, tmp_path):
    "The file is one that loads but for the number, which the sentence names"
    kept = shutil.copytree(convnet_at, tmp_path/'teacher')
    f = kept/'converged.json'
    m = {**{k:v for k,v in json.loads(f.read_text()).items() if k!='seal'}, 'schema': schema, **(change or {})}
    f.write_text(json.dumps(m if schema==1 else sealed(m)))
    if change is None: return ic.same_teacher(load_teacher(kept, device='cpu'), load_teacher(convnet_at, device='cpu'))
    huge = change.get('size', 0)>10**6                                # no field out of range, but no network for it
    with pytest.raises(InfoUtilError, match=f"convnet3 .*{change['size']} px" if huge else f"{f.name} lacks {next(iter(change))} or") as e:
        load_teacher(kept, device='cpu')
    ic.refused(e.value, 'converged', 'convnet3')

@pytest.mark.parametrize('way', WAYS_OUT[:4])
def test_origins_are_text_and_never_opened(way, kept):
    "`source` in provenance.jsonl and `files` in training.json say where something came from; nothing follows them"
    lines = [{**json.loads(l), 'source': way} for l in (kept/'provenance.jsonl').read_text().splitlines()]
    (kept/'provenance.jsonl').write_text(''.join(json.dumps(l)+'\n' for l in lines)); refit(kept)
    with Watch() as seen:
        try: repr(DistilledSet.load(kept, model=ic.net()).show())
        except InfoUtilError as e: assert 'absolute path' in str(e)
    shutil.copytree(ic.Kept.at()/'teacher', kept.parent/'teacher')
    f = kept.parent/'teacher/training.json'; m = json.loads(f.read_text()); m['files'] = [way]*2; f.write_text(ic.teacher_sealed(m))
    with Watch() as more:
        try: load_record(f.parent)
        except InfoUtilError: pass
    assert seen and more and not [p for p in [*seen, *more] if 'secret' in p or p=='/etc/passwd']

@pytest.mark.parametrize('which', ['../set/teacher/label', '/etc/passwd', '..', 'a/../converged', ''])
def test_a_state_of_a_teacher_is_a_name(which, kept):
    shutil.copytree(ic.Kept.at()/'teacher', kept.parent/'teacher')
    try: t = load_teacher(kept.parent/'teacher', which, device='cpu', model=ic.net())     # given by the caller, not by a file: a path is theirs to give
    except InfoUtilError as e: ic.refused(e, 'teacher')
    else: assert t.classes==('ant', 'bee')

# --- the network -------------------------------------------------------------------------------------------------------------

@pytest.fixture
def offline(monkeypatch):
    def no(*a, **kw): pytest.fail(f'a connection was tried: {a}')
    for name in ('connect', 'connect_ex', 'sendto'): monkeypatch.setattr(socket.socket, name, no)
    for name in ('create_connection', 'getaddrinfo', 'gethostbyname'): monkeypatch.setattr(socket, name, no)

@pytest.mark.parametrize('name', ['owner/name', 'owner/name@main', 'datasets/owner/name', 'https://example.org/set'])
def test_a_path_is_never_looked_up_on_the_hub(name, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match='is no directory'): DistilledSet.load(name)
    with pytest.raises(InfoUtilError): load_teacher(name)

@pytest.mark.slow
def test_importing_and_distilling_open_no_connection(tmp_path):
    "In a process of its own, in which an attempt ends the run"
    code = f'''
    import sys
    def no(event, args):
        if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto', 'urllib.Request'): sys.stderr.write(f'tried {{event}} {{args}}'); sys.stderr.flush(); import os; os._exit(3)
    sys.addaudithook(no)
    import pkgutil, importlib, infoutil
    for m in pkgutil.walk_packages(infoutil.__path__, 'infoutil.'):
        if not m.name.rpartition('.')[2].startswith('_'): importlib.import_module(m.name)
    import torch; torch.set_num_threads(1)
    from pathlib import Path
    from PIL import Image
    from infoutil.distillation import distill
    from infoutil.training import train_teacher
    d = Path({str(tmp_path)!r})
    for part in ('train', 'test'):
        for c in range(2):
            (d/'data'/part/str(c)).mkdir(parents=True)
            for i in range(6): Image.new('RGB', (16, 16), (250*c, 10*i, 0)).save(d/'data'/part/str(c)/f'{{i}}.png')
    t = train_teacher(d/'data', d/'teacher', size=16, epochs=2, show_progress=False, device='cpu')
    distill(d/'data', t, ipc=1, candidates=3, show_progress=False, preflight=False, precision='float32').save(d/'set')
    from infoutil.distilled_set import DistilledSet
    print(len(DistilledSet.load(d/'set')))
    '''
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''})
    assert out.returncode==0 and out.stdout.split()[-1]=='2', out.stderr[-2000:]

def test_a_link_in_a_strangers_set_uploads_no_file_of_yours(tmp_path):
    from infoutil.hub import _checked_files
    from infoutil.files import StoreError
    d = shutil.copytree(Path(__file__).parent/'sets'/'schema1', tmp_path/'set')
    assert 'README.md' in _checked_files(d)
    (tmp_path/'secret').write_text('of yours'); (d/'README.md').unlink(); (d/'README.md').symlink_to(tmp_path/'secret')
    with pytest.raises(StoreError, match='README.md is no file of this directory'): _checked_files(d)
