"A distilled set in other people's hands: image loaders, exports, the hub, and older formats"
import ast, hashlib, io, json, os, random, subprocess, sys, tarfile, types
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, ready, torch
from PIL import Image
from torchvision.datasets import ImageFolder
from infoutil.view_labels import ViewKey, ViewLabels
from infoutil.basics import InfoUtilError, OutputError
from infoutil.engine.outputs import seal_of
from infoutil.export import DDRANKING, export_set, FORMATS, image_logits
from infoutil.hub import fetch_set, hub_id, HubError, push_to_hub
from infoutil.labels import soften
from infoutil.models import ConvNet
from infoutil.distilled_set import DistilledSet
from infoutil.files import folder_name, StoreError
from make_sets import tiny_teacher

here, root = Path(__file__).parent, Path(__file__).parents[1]
# the order is not the sorted one, and more than ten of them, so that 10 comes after 9 only if somebody took care
NAMES = ('zebra', 'golden retriever', ' lead and trail ', 'crème brûlée', 'creme brulee', '猫', '犬', 'a/b\\c:d',
         '../../etc', '.hidden', 'CON', 'con', 'x'*300, 'x'*300+'y', 'Cat', 'cat', 'dots...', '*?"<>|', '10', '9',
         'train', 'test', 'test tube', 'pre-validation 3', 'Dev', 'a\tb', '🙂')

def made(names=NAMES, ipc=2, size=12, k=1, seed=0, **kw):
    "A set of random pixels and labels"
    g, n = torch.Generator().manual_seed(seed), len(names)*ipc
    return DistilledSet(torch.randint(256, (n, 3, size, size), generator=g, dtype=torch.uint8),
                        torch.arange(len(names)).repeat_interleave(ipc), tuple(names),
                        4*torch.randn(n, k, len(names), generator=g),
                        meta=dict(method='random', factor=int(k**.5), mean=[.4, .5, .6], std=[.2, .25, .3]), **kw)

def pixels(im): return torch.from_numpy(np.array(im.convert('RGB') if im.mode!='RGB' else im)).permute(2, 0, 1)
def tree(d):
    return {p.relative_to(d).as_posix():p.read_bytes() for p in Path(d).rglob('*') if p.is_file() and p.name[0]!='.'}
def digest(t): return hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16]
def equal(items, ds):
    "Images and class indices, one by one and in order"
    items = list(items)
    assert [int(c) for _,c in items]==ds.y.tolist()
    for (im, _), want in zip(items, ds.images): assert torch.equal(im, want)

@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    ds = made()
    return ds, ds.save(tmp_path_factory.mktemp('odd')/'a set of odd names')

@pytest.fixture
def quiet(monkeypatch, tmp_path):
    "Hugging Face's datasets without a network and with its cache in tmp_path"
    datasets = pytest.importorskip('datasets')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('datasets.config.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    datasets.disable_progress_bars()
    return lambda *a, **kw: datasets.load_dataset(*a, cache_dir=str(tmp_path/'cache'), **kw)

# ---- the directory as it is

def test_torchvision(odd):
    ds, path = odd
    f = ImageFolder(path/'train')
    assert f.classes==[folder_name(c, n) for c,n in enumerate(NAMES)]
    equal(((pixels(im), c) for im,c in f), ds)

def test_fastai(odd):
    from fastai.vision.all import ImageDataLoaders
    ds, path = odd
    dls = ImageDataLoaders.from_folder(path, train='train', valid='train', bs=4, num_workers=0, device='cpu')
    assert list(dls.vocab)==[folder_name(c, n) for c,n in enumerate(NAMES)]
    by_file = {Path(dls.train_ds.items[i]).relative_to(path).as_posix():dls.train_ds[i]
               for i in range(len(dls.train_ds))}
    equal(((pixels(im), c) for _,(im,c) in sorted(by_file.items())), ds)

@pytest.mark.parametrize('how', ['train', 'data_dir', 'by path'])
def test_imagefolder_of_datasets(odd, quiet, how):
    ds, path = odd
    given = {'train': ('imagefolder', dict(data_dir=str(path/'train'))),
             'data_dir': ('imagefolder', dict(data_dir=str(path))), 'by path': (str(path), {})}[how]
    data = quiet(given[0], split='train', **given[1])
    assert data.features['label'].names==[folder_name(c, n) for c,n in enumerate(NAMES)]
    equal(((pixels(r['image']), r['label']) for r in data), ds)

def test_files_that_begin_with_a_dot_are_nobodys(odd, tmp_path):
    "They are neither read nor listed, in a set, in an export and in what would go to the hub"
    from infoutil.hub import _checked_files
    ds, _ = odd
    path = ds.save(tmp_path/'set')
    for name in ('.infoutil', 'train/.DS_Store', f'train/{folder_name(0, NAMES[0])}/.00000.png'):
        (path/name).write_bytes(b'mine')
    assert torch.equal(DistilledSet.load(path).images, ds.images)
    assert not [f for f in _checked_files(path) if Path(f).name[0]=='.']
    about = json.loads((put(path, tmp_path/'w', 'webdataset')/'export.json').read_text())
    assert not [f for f in about['files'] if Path(f).name[0]=='.']

@pytest.mark.slow
def test_methods_come_with_the_class():
    "Whoever imports the class alone has what later chapters give it, and labels of views are read"
    code = ("from infoutil.distilled_set import DistilledSet; import sys; "
            f"ds = DistilledSet.load({str(here/'sets/schema2')!r}); "
            "told = lambda: 'infoutil.student' in sys.modules; "
            "print(told(), ds.views.top_k, callable(ds.learner), told())")
    run = [sys.executable, '-W', 'ignore', '-c', code]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert out.split()==['False', '3', 'True', 'True']

def test_our_own_reader_knows_the_true_names(odd):
    ds, path = odd
    back = DistilledSet.load(path)
    assert back.classes==NAMES and torch.equal(back.images, ds.images) and torch.equal(back.labels, ds.labels)

def test_any_name_makes_a_safe_folder_in_class_order():
    "Whatever the names, folders are plain, different even where case does not count, and sort as the classes do"
    draw = random.Random(0)
    text = lambda: ''.join(chr(draw.choice([draw.randrange(32, 127), draw.randrange(0, 0x300),
                                            draw.randrange(0x4e00, 0x9fff), draw.randrange(0xd800, 0xe000),
                                            draw.randrange(0x1f300, 0x1f600)])) for _ in range(draw.randrange(80)))
    for _ in range(200):
        folders = [folder_name(c, text()) for c in range(12)]
        assert sorted(folders)==folders==sorted(folders, key=str.lower) and len({f.lower() for f in folders})==12
        assert all(f.isascii() and len(f)<=90 and not set(f)&set(' /\\:*?"<>|') and f[-1] not in '. '
                   and f[0].isdigit() for f in folders)

# ---- exports

def put(ds, out, to, **kw): return export_set(ds, out, to, **kw)

@pytest.mark.parametrize('to', FORMATS)
def test_same_set_same_bytes(odd, tmp_path, to, monkeypatch):
    ds, path = odd
    a = put(ds, tmp_path/'a', to)
    old = os.umask(0o077)
    try:
        monkeypatch.setattr('time.time', lambda: 2e9)
        b = put(path, tmp_path/'elsewhere'/'b', to)          # read from disk, another day, other rights
    finally: os.umask(old)
    assert tree(a)==tree(b)
    about = json.loads((a/'export.json').read_text())
    assert about['format']==to and about['classes']==list(NAMES) and {f:hashlib.sha256(b).hexdigest()
                                                                      for f,b in tree(a).items()
                                                                      if f in about['files']}==about['files']
    assert set(tree(a))==set(about['files'])|{'export.json',
                                              'README.md'} and str(tmp_path) not in (a/'export.json').read_text()

def test_exports_have_the_bytes_of_the_stored_images(odd, tmp_path):
    ds, path = odd
    d = put(ds, tmp_path/'d', 'ddranking')
    assert {f.replace('images/', 'train/', 1):b for f,b in tree(d).items()
            if f.startswith('images/')}=={f:b for f,b in tree(path).items() if f.startswith('train/')}

def test_webdataset(odd, tmp_path):
    wds = pytest.importorskip('webdataset')
    ds, _ = odd
    out = put(ds, tmp_path/'w', 'webdataset', shard=20)
    assert [p.name for p in sorted((out/'train').iterdir())]==['000000.tar', '000001.tar', '000002.tar']
    # the card's own address of the shards
    said = next(l for l in (out/'README.md').read_text().splitlines() if l.startswith('samples')).split("'")[1]
    rows = list(wds.WebDataset(str(out/said), shardshuffle=False).decode('pil'))
    equal(((pixels(r['png']), r['cls']) for r in rows), ds)
    assert [r['__key__'] for r in rows]==[f'{i:08d}' for i in range(len(ds))]
    assert [r['json']['class'] for r in rows]==[NAMES[c] for c in ds.y]
    assert torch.equal(torch.stack([torch.from_numpy(r['npy']) for r in rows]), ds.labels)

def test_tar_headers_hold_nothing_of_this_machine(odd, tmp_path):
    out = put(odd[0], tmp_path/'w', 'webdataset')
    with tarfile.open(out/'train/000000.tar') as tar: heads = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in heads}=={(0, 0, 0, '', '', 0o644)}
    stems = [m.name.split('.')[0] for m in heads]
    assert stems==sorted(stems) and [m.name.split('.')[1] for m in heads[:4]]==['png', 'cls', 'json', 'npy']

def test_parquet_in_datasets(odd, tmp_path, quiet):
    ds, _ = odd
    out = put(ds, tmp_path/'p', 'parquet', shard=20)
    assert [p.name for p in sorted((out/'data').iterdir())]==[f'train-0000{i}-of-00003.parquet' for i in range(3)]
    for data in (quiet('parquet', data_files=str(out/'data/*.parquet'), split='train'), quiet(str(out), split='train')):
        assert data.features['label'].names==list(NAMES)                       # the true names, not those of folders
        equal(((pixels(r['image']), r['label']) for r in data), ds)
        assert torch.equal(torch.tensor(data['soft_labels'][:]), ds.labels.float())

def test_parquet_in_pandas(tmp_path):
    pytest.importorskip('pyarrow')
    ds = made(k=4, size=8)
    t = pd.concat(map(pd.read_parquet, sorted((put(ds, tmp_path/'p', 'parquet', shard=7)/'data').iterdir())))
    equal(((pixels(Image.open(io.BytesIO(b['bytes']))), c) for b,c in zip(t.image, t.label)), ds)
    assert torch.equal(torch.tensor([[row.tolist() for row in rows] for rows in t.soft_labels]), ds.labels.float())

def test_ddranking_files(tmp_path):
    from torch import load
    ds = made(names=[f'c{i}' for i in range(10)], k=4)
    out = put(ds, tmp_path/'d', 'ddranking', data='CIFAR10', temperature=3.)
    images, labels = (load(out/f, weights_only=True) for f in ('images.pt', 'labels.pt'))
    m, s = (torch.tensor(v).view(3, 1, 1) for v in DDRANKING['CIFAR10'][:2])
    assert torch.equal((images*s+m).mul(255).round().byte(), ds.images) and images.dtype==labels.dtype==torch.float32
    torch.testing.assert_close((labels/3).softmax(1), soften(ds.labels, 3.).mean(1))
    assert labels.shape==(20, 10) and torch.equal(image_logits(ds.labels[:, :1]), ds.labels[:, 0].float())
    own = load(put(ds, tmp_path/'own', 'ddranking')/'images.pt', weights_only=True)
    m, s = torch.tensor([.4, .5, .6]).view(3, 1, 1), torch.tensor([.2, .25, .3]).view(3, 1, 1)
    torch.testing.assert_close(own, (ds.images.float()/255-m)/s)

def test_ddranking_orders_the_columns_of_labels_as_it_orders_classes(tmp_path):
    "ImageWoof, whose order is not the sorted one: labels that name each image's own class go on naming it"
    from torch import load
    ds = made(names=sorted(DDRANKING['ImageWoof'][3]), k=1)
    out = put(replace(ds, labels=9*torch.eye(10)[ds.y][:, None]), tmp_path/'w', 'ddranking', data='ImageWoof')
    labels = load(out/'labels.pt', weights_only=True)
    assert labels.argmax(1).tolist()==[c for c in range(10) for _ in range(ds.ipc)]

@pytest.mark.parametrize('t', [float('inf'), float('nan'), 0, -1])
def test_a_temperature_is_finite(tmp_path, t):
    with pytest.raises(InfoUtilError, match='temperature'): put(made(), tmp_path/'d', 'ddranking', temperature=t)
    assert not (tmp_path/'d').exists()

def test_far_logits_stay_finite(): assert image_logits(torch.tensor([[[6e4, -6e4]]*4]), 1e-3).isfinite().all()

@pytest.mark.parametrize('to', FORMATS)
def test_without_labels(tmp_path, to):
    out = put(replace(made(), labels=None), tmp_path/'x', to)
    assert json.loads((out/'export.json').read_text())['labels'] is None
    assert 'Soft labels: the set has none' in (out/'README.md').read_text()
    assert not (out/'labels.pt').exists()
    assert 'soft_labels' not in (pd.read_parquet(next((out/'data').iterdir())).columns if to=='parquet' else ())

@pytest.mark.parametrize('to', FORMATS)
def test_labels_of_views_travel_or_are_said_to_stay(tmp_path, to):
    from safetensors.torch import load_file
    ds = DistilledSet.load(here/'sets/schema2')
    out = put(here/'sets/schema2', tmp_path/'x', to)
    about = json.loads((out/'export.json').read_text())['views']
    if to=='ddranking':
        assert about=='left out' and 'left out' in (out/'README.md').read_text()
        return
    back = ViewLabels.restore({k:v for k,v in about.items() if k!='file'}, load_file(out/about['file']))
    assert torch.equal(back.fill(1, torch.arange(10)),
                       ds.views.fill(1, torch.arange(10))) and back.images==ds.views.images

@pytest.mark.parametrize('to', FORMATS)
def test_whole_or_not_at_all(odd, tmp_path, to, monkeypatch):
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(dict(ddranking='pathlib.Path.write_bytes', webdataset='tarfile.TarFile.addfile',
                             parquet='pyarrow.parquet.write_table')[to], full)
    with pytest.raises(OutputError, match='No space left.*a place with room'): put(odd[0], tmp_path/'x', to)
    assert list(tmp_path.iterdir())==[]
    with pytest.raises(OutputError, match='No space left'), monkeypatch.context() as m:
        m.setattr('pathlib.Path.write_bytes', full)
        odd[0].save(tmp_path/'x')
    assert list(tmp_path.iterdir())==[]

def test_an_export_is_replaced_by_force_alone(odd, tmp_path):
    out = put(odd[0], tmp_path/'x', 'webdataset')
    with pytest.raises(OutputError, match='--force'): put(odd[0], out, 'parquet')
    assert (put(odd[0], out, 'parquet', force=True)/'data').exists() and not (out/'train').exists()
    (out/'mine.txt').write_text('x')
    with pytest.raises(OutputError, match='did not write'): put(odd[0], out, 'parquet', force=True)

# ---- optional libraries

EXTRAS = ('datasets', 'webdataset', 'pyarrow', 'huggingface_hub', 'accelerate')

def test_a_missing_extra_is_named_with_its_command(odd, tmp_path, monkeypatch):
    for m in ('pyarrow', 'huggingface_hub'): monkeypatch.setitem(sys.modules, m, None)
    for call, extra in ((lambda: put(odd[0], tmp_path/'x', 'parquet'), 'export'),
                        (lambda: fetch_set('hf://ann/x'), 'hub'),
                        (lambda: push_to_hub(odd[1], 'ann/x', token='t'), 'hub')):
        with pytest.raises(InfoUtilError, match=rf"is not installed.*accepted; run: pip install 'infoutil\[{extra}\]'"):
            call()
    assert not (tmp_path/'x').exists()
    put(odd[0], tmp_path/'w', 'webdataset')
    put(odd[0], tmp_path/'d', 'ddranking')                     # these need no extra

@pytest.mark.parametrize('module', sorted((root/'infoutil').rglob('*.py')), ids=lambda p: p.stem)
def test_no_module_imports_an_extra(module):
    "An import of infoutil needs none of them: extras are imported when they are asked for"
    for node in ast.parse(module.read_text(encoding='utf-8')).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level: names = [node.module or '']
        assert not [n for n in names if n.split('.')[0] in EXTRAS], names

def test_extras_are_declared():
    from configparser import ConfigParser
    cp = ConfigParser(delimiters=['='], interpolation=None)
    cp.read(root/'settings.ini', encoding='utf-8')
    cfg = cp['DEFAULT']
    bare = lambda text: {r.partition('>=')[0] for r in text.split()}
    assert bare(cfg['hub_requirements'])=={'huggingface_hub'}
    assert bare(cfg['export_requirements'])=={'pyarrow', 'webdataset'}
    assert bare(cfg['distributed_requirements'])=={'accelerate'}
    assert set(EXTRAS)<=bare(cfg['dev_requirements']) and not set(EXTRAS)&bare(cfg['requirements'])
    pinned = {l.partition('==')[0] for l in (root/'constraints.txt').read_text().splitlines()}
    assert set(EXTRAS)<={p.replace('-', '_') for p in pinned}

# ---- older and newer formats; tests/make_sets.py wrote these

tiny = lambda: ConvNet(10, depth=1, width=2, size=16)

@pytest.mark.parametrize('schema', [1, 2])
def test_older_schemas_stay_readable(schema):
    ds = DistilledSet.load(here/f'sets/schema{schema}', model=tiny())
    assert json.loads((here/f'sets/schema{schema}/infoutil.json').read_text())['schema']==schema
    assert (len(ds), ds.ipc, ds.size, ds.factor, ds.classes, ds.meta['method'],
            len(ds.provenance))==(10, 1, 16, 2, tuple('0123456789'), 'random', 40)
    assert (digest(ds.images), digest(ds.labels))==('9ada151c8fd7b466', '32ec1fd5d179b64f')
    assert ds.images[3, 0, 4:6, 2:7].tolist()==[[61, 147, 181, 145, 44], [11, 41, 112, 184, 103]]
    assert ds.labels[3, 1, :3].tolist()==[0.45849609375, -0.2022705078125, -0.14111328125]
    equal(((pixels(im), c) for im,c in ImageFolder(here/f'sets/schema{schema}/train')), ds)
    if schema==1:
        assert ds.views is None                 # initial weights differ in last digits between processors
        for a,b in zip(ds.teacher.model.parameters(), tiny_teacher(ds.classes, ds.mean, ds.std).model.parameters()):
            torch.testing.assert_close(a, b)
    else:
        assert (digest(ds.views.logits), digest(ds.views.index), ds.views.key.epochs,
                ds.views.top_k)==('57a06d1d30e64108', 'b4912089b6ce21d5', 2, 3)

@pytest.mark.parametrize('schema', [1, 2])
def test_an_older_set_is_written_again_as_it_was(schema, tmp_path):
    old = here/f'sets/schema{schema}'
    new = tree(DistilledSet.load(old, model=tiny()).save(tmp_path/'again'))
    # the card's wording and what is said of a teacher may grow, and with it the digests in the manifest
    differ = {f for f,b in tree(old).items() if new.get(f)!=b}
    assert differ<={'README.md', 'teacher/label.json', 'infoutil.json'}, differ
    was, now = (json.loads(t['infoutil.json']) for t in (tree(old), new))
    drop = lambda m: {k:v for k,v in m.items() if k not in ('digest', 'bytes', 'files')}
    assert drop(was)==drop(now) and set(was['files'])==set(now['files'])

def with_schema(value, to):
    import shutil
    shutil.copytree(here/'sets/schema1', to)
    m = {k:v for k,v in json.loads((to/'infoutil.json').read_text()).items()
         if k!='digest'} | ({} if value is ... else dict(schema=value))
    if value is ...: del m['schema']
    (to/'infoutil.json').write_text(json.dumps(dict(m, digest=seal_of(m, 'digest'))))
    return to

@pytest.mark.parametrize('value', [4, 999, 2**70])
def test_a_newer_schema_is_refused_with_advice(value, tmp_path):
    with pytest.raises(StoreError,
                       match=rf'has schema {value}; .* reads 1 to 3; upgrade infoutil \(pip install -U infoutil\)'):
        DistilledSet.load(with_schema(value, tmp_path/'x'))

@pytest.mark.parametrize('value', [True, False, '1', '2', 0, -1, 1.0, 2.5, None, [], {}, ...])
def test_what_is_no_schema_is_refused(value, tmp_path):
    with pytest.raises(StoreError, match='1 to 3 is accepted; restore the directory'):
        DistilledSet.load(with_schema(value, tmp_path/'x'))

def test_schema_1_with_labels_of_views_of_schema_2(tmp_path):
    "A manifest may not pass for an older one, nor lose a part"
    assert DistilledSet.load(with_schema(2, tmp_path/'x'), with_teacher=False).views is None

# ---- the hub

HUB = '''
import json, os, sys, traceback
from pathlib import Path
sys.path.insert(0, TESTS)
from hub_stub import Hub
hub = Hub()
os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=WORK+'/hf', HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1')
for k in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_HUB_OFFLINE'): os.environ.pop(k, None)
import torch
from infoutil.basics import InfoUtilError
from infoutil.export import export_set
from infoutil.distilled_set import DistilledSet
from infoutil.engine.outputs import seal_of
from infoutil.hub import fetch_set, push_to_hub
assert not hub.asked
def said(f, *a, **kw):
    try: f(*a, **kw)
    except InfoUtilError as e: return str(e)
tree = lambda d: {p.relative_to(d).as_posix():p.read_bytes() for p in Path(d).rglob('*') if p.is_file()
                  and p.name[0]!='.'}
r, set1, work = {}, Path(TESTS)/'sets/schema2', Path(WORK)
r['no token'] = said(push_to_hub, set1, 'ann/digits')
r['asked without a token'] = [p for _,p in hub.asked if p.startswith(('/api/repos', '/api/datasets'))]
r['url'] = push_to_hub(set1, 'ann/digits', token='good')==hub.url+'/datasets/ann/digits'
r['equal'] = {f:b for f,b in hub.files('ann/digits').items()
              if f!='.gitattributes'}=={f:b for f,b in tree(set1).items()}
hub.asked.clear()
here = DistilledSet.load(set1)
r['path first'] = hub.asked==[]
back = DistilledSet.load('hf://ann/digits')
same = [torch.equal(getattr(back, k), getattr(here, k)) for k in ('images', 'labels')]
r['same set'] = all(same) and torch.equal(back.views.logits, here.views.logits) and back.classes==here.classes
fetched = {p.split('/', 6)[6] for m,p in hub.asked if m=='GET' and '/resolve/' in p}
listed = set(json.loads((set1/'infoutil.json').read_text())['files'])
r['fetched'] = sorted(fetched^listed^{'infoutil.json', 'run.json'})
hub.asked.clear()
DistilledSet.load('hf://ann/digits@'+f'{1:040x}')
r['a commit that is here is not asked for again'] = [p for _,p in hub.asked]
r['exists'] = said(push_to_hub, set1, 'ann/digits', token='good')
hub.commit('ann/digits', dict(hub.files('ann/digits'), **{'old.bin': b'x'}))
light = DistilledSet.load(set1)
light.save(work/'light')
push_to_hub(export_set(light, work/'wds', 'webdataset'), 'ann/digits', token='good', force=True)
r['replaced'] = {f:b for f,b in hub.files('ann/digits').items() if f!='.gitattributes'}==tree(work/'wds')
r['older commit'] = torch.equal(DistilledSet.load('hf://datasets/ann/digits@'+f'{1:040x}').images, here.images)
r['an export is no set'] = said(DistilledSet.load, 'hf://ann/digits')
push_to_hub(light, 'ann/secret', private=True, token='good')
r['private'] = said(fetch_set, 'ann/secret', cache=work/'c1')
r['private with token'] = DistilledSet.load(fetch_set('ann/secret', token='good',
                                                      cache=work/'c2')).classes==light.classes
r['forbidden'], r['bad token'] = said(push_to_hub, light, 'bob/x', token='good'), said(push_to_hub, light, 'ann/y',
                                                                                       token='bad')
r['none'], r['revision'] = said(DistilledSet.load, 'hf://ann/none'), said(DistilledSet.load, 'hf://ann/digits@nope')
(work/'light/private.txt').write_text('mine')
push_to_hub(work/'light', 'ann/light', token='good')
r['stray'] = sorted(set(hub.files('ann/light'))-set(tree(set1)))
f = work/'light/labels/views.safetensors'
f.write_bytes(f.read_bytes()[:-1])
hub.asked.clear()
r['changed'], r['asked for a changed set'] = said(push_to_hub, work/'light', 'ann/other', token='good'), hub.asked
def forged(name, **change):
    m = {**{k:v for k,v in json.loads((set1/'infoutil.json').read_text()).items() if k!='digest'}, **change}
    hub.commit(name, {**tree(set1), '../../../../evil.png': b'x', 'extra.py': b'x',
                      'infoutil.json': json.dumps(dict(m, digest=seal_of(m, 'digest'))).encode()})
    return 'hf://'+name
files = json.loads((set1/'infoutil.json').read_text())['files']
hub.asked.clear()
DistilledSet.load(forged('eve/extra'))
r['extra files'] = [p for _,p in hub.asked if 'evil' in p or 'extra.py' in p]
hub.asked.clear()
r['outside'] = said(DistilledSet.load,
                    forged('eve/outside', files={**files, '../../../../evil.png': files['provenance.jsonl']}))
r['asked for outside'] = [p for _,p in hub.asked if 'evil' in p]
r['newer'] = said(DistilledSet.load, forged('eve/newer', schema=999))
hub.commit('eve/bits', {**tree(set1), 'train/00003_3/00000.png': b'other bytes'})
r['bits'] = said(DistilledSet.load, 'hf://eve/bits')
hub.commit('eve/race', tree(set1))
hub.race = {**tree(set1), 'train/00003_3/00000.png': b'newer bytes'}
r['one commit'] = torch.equal(DistilledSet.load('hf://eve/race').images, here.images) and len(hub.repos['eve/race'])==2
r['nothing outside'] = [p for p in map(str, work.rglob('*')) if 'evil' in p]
import huggingface_hub.constants as c
c.HF_HUB_OFFLINE = True
hub.asked.clear()
r['offline again'] = torch.equal(DistilledSet.load('hf://ann/digits@'+f'{1:040x}').images, here.images)
r['offline'], r['offline push'], r['asked offline'] = said(DistilledSet.load,
                                                           'hf://ann/new'), said(push_to_hub, set1, 'ann/new',
                                                                                 token='good'), hub.asked
print('RESULT', json.dumps(r))
'''

def result_of(code, *argv, python=sys.executable, env=None, timeout=600):
    "What a script prints as its result"
    run = subprocess.run([python, '-c', code, *map(str, argv)], capture_output=True, text=True, timeout=timeout,
                         env=env)
    lines = [l for l in run.stdout.splitlines() if l.startswith('RESULT ')]
    assert lines, run.stdout[-1000:]+run.stderr[-3000:]
    return json.loads(lines[-1][7:])

def forked(code, env):
    "The same in a fork of a process that has its imports behind it"
    run = ready.run('code', [code], env=env)
    lines = [l for l in run.stdout.splitlines() if l.startswith('RESULT ')]
    assert lines, run.stdout[-1000:]+run.stderr[-3000:]
    return json.loads(lines[-1][7:])

def three_parts(s):
    return s and s.count(';')>=2 and ('accepted' in s or 'this version of infoutil reads' in s) and '\n' not in s

def test_push_and_load(tmp_path):
    pytest.importorskip('huggingface_hub')
    r = forked(f'TESTS, WORK = {str(here)!r}, {str(tmp_path)!r}\n'+HUB,
                  env={**os.environ, 'PYTHONPATH': str(root), 'NO_PROXY': '127.0.0.1', 'no_proxy': '127.0.0.1'})
    for k in ('url', 'equal', 'path first', 'same set', 'replaced', 'older commit', 'private with token', 'one commit',
              'offline again'):
        assert r[k] is True, k
    for k in ('asked without a token', 'fetched', 'a commit that is here is not asked for again',
              'asked for a changed set', 'extra files', 'asked for outside', 'nothing outside', 'asked offline'):
        assert r[k]==[], (k, r[k])
    assert r['stray']==['.gitattributes']
    for k, words in {'no token': 'no access token came.*hf auth login',
                     'exists': 'ann/digits exists on the hub.*--force',
                     'an export is no set': 'a file of the set is not there',
                     'private': 'none of that name, or the hub was shown no valid token',
                     'forbidden': 'no right to do this.*bob', 'bad token': 'no valid token',
                     'none': 'none of that name', 'revision': 'no such revision', 'changed': 'SHA-256 differs',
                     'outside': 'no part of a distilled set', 'newer': 'upgrade infoutil',
                     'bits': 'SHA-256 differs', 'offline': 'HF_HUB_OFFLINE', 'offline push': 'HF_HUB_OFFLINE'}.items():
        assert three_parts(r[k]), (k, r[k])
        assert __import__('re').search(words, r[k]), (k, r[k])

@pytest.mark.parametrize('fails, words', [('httpx', 'cannot be reached.*HF_ENDPOINT'),
                                          (OSError(28, 'No space left on device'), 'No space left'),
                                          (RuntimeError("Error while uploading 'train/0.png' to the Hub."),
                                           "uploading 'train/0.png'")])
def test_the_way_to_the_hub(fails, words, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    def fail(*a, **kw): raise type(fails)(*fails.args) if fails!='httpx' else hub.errors.HTTPError('connection refused')
    monkeypatch.setattr(hub, 'hf_hub_download', fail)
    with pytest.raises(HubError, match=words) as e: DistilledSet.load('hf://ann/x')
    assert three_parts(str(e.value))

def test_a_hub_id_is_contacted_only_when_asked_for(monkeypatch, tmp_path):
    hub = pytest.importorskip('huggingface_hub')
    def fail(*a, **kw): pytest.fail('the hub was asked')
    monkeypatch.setattr(hub, 'hf_hub_download', fail)
    monkeypatch.chdir(tmp_path)
    for name in ('ann/digits', 'datasets/ann/digits', './hf:/ann/digits', Path('hf://ann/digits')):
        with pytest.raises(StoreError, match='hf://owner/name'): DistilledSet.load(name)

# ---- DD-Ranking itself, in an environment of its own (it pins numpy below 2)

DDR = '''
import json, os, sys
from pathlib import Path
import torch, torchvision
from torch import load
from torchvision import transforms
out, real, work = map(Path, sys.argv[1:4])
os.chdir(work)
class Digits(torchvision.datasets.ImageFolder):          # stands in for CIFAR-10, which would have to be downloaded
    def __init__(self, root, train, download, transform):
        super().__init__(Path(root)/('train' if train else 'test'), transform=transform)
torchvision.datasets.CIFAR10 = Digits
from ddranking.metrics import LabelRobustScoreSoft, soft_label
from ddranking.utils import build_model, train_and_eval
arch, size = 'ConvNet-3', (32, 32)
f = work/'teachers/CIFAR10'/arch/'ckpt_best.pt'
f.parent.mkdir(parents=True)
torch.manual_seed(0)
# a teacher must be there; this one knows nothing
torch.save(build_model(arch, num_classes=10, im_size=size, device='cpu').state_dict(), f)
about = json.loads((out/'export.json').read_text())
train_and_eval.REAL_DATA_ACC_CACHE[f'CIFAR10-{arch}'] = 90.         # so that nothing is trained on real data
seen = []
for name in ('_compute_hard_label_metrics_helper', '_compute_soft_label_metrics_helper'):
    def noted(self, *, ask=getattr(LabelRobustScoreSoft, name), **kw):
        found = ask(self, **kw)
        seen.append(found[0])
        return found
    setattr(LabelRobustScoreSoft, name, noted)
def score(mode, random, trans=None, **given):
    metric = LabelRobustScoreSoft(dataset='CIFAR10', real_data_path=str(real), ipc=about['ipc'], model_name=arch,
                                  soft_label_criterion='kl', loss_fn_kwargs=dict(temperature=1., scale_loss=False),
                                  data_aug_func=None, soft_label_mode=mode,
                                  optimizer='adam', lr_scheduler='step', step_size=500, num_eval=1, im_size=size,
                                  num_epochs=20, random_data_format=random, random_data_path=str(work/mode),
                                  syn_batch_size=32, num_workers=0,
                                  teacher_dir=str(work/'teachers'), teacher_model_names=[arch], device='cpu',
                                  custom_train_trans=trans, save_path=str(work/'scores.csv'))
    if mode=='S': metric.teacher_model = metric.teacher_models[0]   # 0.2.0 asks for the one and keeps the other
    return metric.compute_metrics(syn_lr=.001, **given)
norm = transforms.Compose([transforms.ToTensor(), transforms.Normalize(about['mean'], about['std'])])
folder = score('M', 'image', norm, image_path=str(out/'images'))    # 0.2.0 as it is
draw = soft_label.get_random_data_tensors                           # 0.2.0 leaves the class map out of this call
soft_label.get_random_data_tensors = lambda name, data, at, n, i, path: draw(name, data, at, n,
                                                                             {c:c for c in range(10)}, i, path)
tensors = score('S', 'tensor', image_tensor=load(out/'images.pt', weights_only=True),
                soft_labels=load(out/'labels.pt', weights_only=True))
print('RESULT', json.dumps(dict(folder=seen[:3], tensors=seen[3:], scores=[folder, tensors])))
'''

@pytest.mark.skipif('DDRANKING_PYTHON' not in os.environ,
                    reason='DDRANKING_PYTHON names no interpreter with ddranking 0.2: python -m venv d && d/bin/pip '
                           'install ddranking==0.2.0 "numpy<2", then DDRANKING_PYTHON=d/bin/python')
def test_ddranking_scores_an_export(tmp_path):
    "Its own metric trains its own network on the export, far from chance only if pixels, order and labels are right"
    from infoutil.data import candidates, load_data
    from infoutil.labels import patch_labels
    from infoutil.fixtures.demo_teacher import demo_teacher
    data = load_data('digits', dest=tmp_path/'data')
    t, *_ = demo_teacher(data=data)
    images = torch.cat([candidates(data, c, 32, n=5).images for c in range(10)])
    ds = DistilledSet(images, torch.arange(10).repeat_interleave(5), data.classes,
                      patch_labels(t.model, images, 1, t.mean, t.std), t, dict(method='random'))
    (tmp_path/'work').mkdir()
    r = result_of(DDR, export_set(ds, tmp_path/'out', 'ddranking', data='CIFAR10'), data.root, tmp_path/'work',
                  python=os.environ['DDRANKING_PYTHON'], env={k:v for k,v in os.environ.items() if k!='PYTHONPATH'},
                  timeout=1800)
    print(r)
    # hard labels by folder and by tensor, soft labels; chance is 10
    assert r['folder'][0]>60 and r['tensors'][0]>60 and r['tensors'][1]>60
    # random images under a teacher that knows nothing
    assert r['tensors'][2]<30
    assert all(np.isfinite(list(s.values())).all() for s in r['scores'])
