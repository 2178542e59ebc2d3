"""No image that was held out, from the teacher or from the set, is trained on or chosen, and none that was is measured on: images are known by all of their bytes here, which the library does not look at

The property test makes random folders, decides by one entrance, changes the folder as people do, and comes back by another entrance; networks are untrained, since only files count."""
import hashlib, os, random, shutil, warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from infoutil.basics import BudgetError, DataError, InfoUtilError
from infoutil.data import ImageData, load_data, load_folder, Split
from infoutil.distillation import distill, teacher_data
from infoutil.distilled_set import DistilledSet
from infoutil.engine.membership import Members, members_of
from infoutil.evaluation import evaluate, real_dl, test_dl
from infoutil.learners import learner_data
from infoutil.teacher import load_teacher, save_teacher, Teacher
from infoutil.training import train_teacher

SIZE = 8

def network(n): return nn.Sequential(nn.Flatten(), nn.Linear(3*SIZE**2, n)).eval()
def teacher_for(classes, members): return Teacher(network(len(classes)), 'custom', tuple(classes), SIZE, (.5,)*3, (.2,)*3, members=members)
def whole(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()
def bytes_of(split): return {whole(p) for p in split.paths()}
def picture(path, r):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.frombuffer(r.randbytes(3*SIZE**2), np.uint8).reshape(SIZE, SIZE, 3)).save(path, 'PNG')

def photos(root, parts=('train', 'val'), classes=('a', 'b', 'c'), n=20, seed=0):
    "Noise, no two alike"
    r = random.Random(seed)
    shutil.rmtree(root, ignore_errors=True)
    for p in parts:
        for c in classes:
            for i in range(n): picture(Path(root)/p/c/f'{i:03d}.png', r)
    return Path(root)

def quiet(f, *args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(*args, **kw)

def random_set(data, teacher, ipc=1, **kw):
    return quiet(distill, data, teacher, ipc=ipc, method='random', factor=1, preflight=False, show_progress=False, **kw)

def sources(ds, root): return {whole(Path(root)/p['source']) for p in ds.provenance}
def measured(ds, test, **kw): return quiet(test_dl, ds, test, device='cpu', **kw).dataset.split

# ---- the property

PARTS = dict(train=('train', 'Train', 'training', 'TRAINING_SET', 'seg_train', 'train-set'), valid=('val', 'Valid', 'validation', 'dev', 'Eval'),
             test=('test', 'Test', 'testing', 'test_set'))

def make_tree(root, r):
    "A folder of some layout; names of its parts, None for one without"
    classes, layout = [f'c{i}' for i in range(r.choice((2, 2, 3)))], r.choice(('plain', 'plain', 'train', 'train', 'val', 'test', 'both'))
    named = {k:r.choice(v) for k,v in PARTS.items()}
    parts = dict(plain=(), train=('train',), val=('train', 'valid'), test=('train', 'test'), both=('train', 'valid', 'test'))[layout]
    for part in parts or ('',):
        for c in classes:
            d, n = root/named.get(part, '')/c, r.randint(4, 8) if part in ('', 'train') else r.randint(2, 3)
            for i in range(n): picture(d/r.choice(('', '', 'more', 'more/Deep'))/f"{r.choice(('img', 'IMG_'))}{i}{r.choice(('.png', '.PNG', '.Png'))}", r)
            if r.random()<.3: shutil.copy(r.choice([p for p in d.rglob('*') if p.is_file()]), d/'copy.png')
    return classes, named['train'] if parts else None

def from_learner(folder, r, frame):
    "A fastai learner over all images of class folders, divided by chance; of lists, or of a data frame"
    import pandas as pd
    from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    kw = dict(valid_pct=.3, seed=r.randint(0, 99), item_tfms=Resize(SIZE), bs=2, num_workers=0, device='cpu', batch_tfms=Normalize.from_stats((.5,)*3, (.2,)*3, cuda=False))
    label = lambda p: p.relative_to(folder).parts[0]
    if frame:
        df = pd.DataFrame(dict(name=[str(p.relative_to(folder)) for p in files], label=[label(p) for p in files])).sample(frac=1.2, replace=True, random_state=0)
        dls = ImageDataLoaders.from_df(df, folder, **kw)
    else: dls = ImageDataLoaders.from_lists(folder, files, [label(p) for p in files], **kw)
    return Learner(dls, network(len(dls.vocab)))

def decided(root, train, r):
    "The data of a teacher, by some entrance"
    folder = root/train if train else root
    how = r.choice(('root', 'root', 'folder', 'fraction', 'lists', 'learner', 'frame'))
    if how=='root': return load_folder(root)
    if how=='folder': return load_folder(folder)
    if how=='fraction': return load_folder(r.choice((root, folder)), r.choice((.2, .4)))
    if how in ('learner', 'frame'):
        try: data = learner_data(from_learner(folder, r, how=='frame'))
        except KeyError: return load_folder(folder)              # a class has no training image
        if len(set(data.train.labels))<data.n_classes: return load_folder(folder)
        return data
    data = load_folder(folder)
    pairs = list(zip((*data.train.files, *data.valid.files), (*data.train.labels, *data.valid.labels)))
    r.shuffle(pairs)
    first = {c:next(i for i,(_,l) in enumerate(pairs) if l==c) for c in range(data.n_classes)}
    inside = {*first.values(), *range(len(pairs)//2)}
    split = lambda at: Split(data.root, *map(tuple, zip(*sorted((pairs[i] for i in at), key=lambda p: p[::-1])))) if at else Split(data.root, (), ())
    valid = split(set(range(len(pairs)))-inside)
    return ImageData(data.root, data.classes, split(inside), valid, valid)

def changed(root, train, to, r):
    "A copy of the folder as people change them; its root and the name of its training part"
    folder = root/train if train else root
    how = r.choice(('same', 'copied', 'bare', 'above', 'again divided', 'flat'))
    if how=='same': to, new = root, train
    elif how=='copied': new = shutil.copytree(root, to) and train
    elif how=='bare': new = shutil.copytree(folder, to) and None
    else:
        new = r.choice(PARTS['train'])
        shutil.copytree(folder, to/new)
        for c in sorted((to/new).iterdir()):
            files = sorted(p for p in c.rglob('*') if p.is_file())
            if how=='flat':
                for i,p in enumerate(files): p.rename(c/f'renamed {i}.PNG')
            if how=='again divided':
                for p in files[::3]:
                    other = to/'Validation'/c.name/f'{len(p.parts)} {p.name}'
                    other.parent.mkdir(parents=True, exist_ok=True)
                    if not other.exists(): p.rename(other)
    inside = to/new if new else to
    for c in sorted(p for p in inside.iterdir() if p.is_dir()):
        files = sorted(p for p in c.rglob('*') if p.is_file())
        r.shuffle(files)
        if r.random()<.3:
            for i in range(r.randint(1, 6)): picture(c/f'new {i}.png', r)
        if r.random()<.3:
            for i,p in enumerate(files[:3]): shutil.copy(p, c/f'another {i}.jpg')
        if r.random()<.3 and len(files)>3:                        # names change hands
            a, b = files[:2]
            a.rename(c/'x'), b.rename(a), (c/'x').rename(b)
        if r.random()<.2 and len(files)>4: files[-1].unlink()
    return to, new

def entrance(root, train, r):
    "The folder, or what stands for it"
    folder = root/train if train else root
    how = r.choice(('root', 'root', 'folder', 'text', 'loaded', 'fraction', 'learner', 'frame'))
    if how in ('learner', 'frame'):
        try: return quiet(learner_data, from_learner(folder, r, how=='frame'))
        except KeyError: return root
    return dict(root=lambda: root, folder=lambda: folder, text=lambda: str(root), loaded=lambda: load_folder(r.choice((root, folder))),
                fraction=lambda: load_folder(root, .3))[how]()

def place(data): return data.root if isinstance(data, ImageData) else Path(data)

def one_case(seed, at):
    "What became of it: a Counter of what was measured, distilled, refused"
    r, told = random.Random(seed), Counter()
    root = at/'photos'
    classes, train = make_tree(root, r)
    data = quiet(decided, root, train, r)
    learned = bytes_of(data.train)
    held = (bytes_of(data.valid)|bytes_of(data.test))-learned
    teacher = teacher_for(data.classes, members_of(data))
    if r.random()<.3:
        save_teacher(teacher, at/'teacher')
        teacher = load_teacher(at/'teacher', model=network(len(classes)), device='cpu')
    root, train = changed(root, train, at/'elsewhere', r)
    refused = lambda what, e: told.update([f'{what} refused'])
    try:
        data = quiet(entrance, root, train, r)
        ds = random_set(data, teacher, valid_frac=r.choice((None, None, .3)) if not isinstance(data, ImageData) else None)
    except (DataError, BudgetError, InfoUtilError) as e: return told+Counter(['set refused'])
    used = sources(ds, place(data))
    assert not used&held, f'case {seed}: {len(used&held)} images held out from the teacher are in the set'
    knows = quiet(teacher_data, data, teacher)
    drawn = bytes_of(knows.train)
    assert not drawn&held and (drawn<=learned or not drawn&learned), f'case {seed}: candidates'
    assert not bytes_of(knows.valid)&learned&bytes_of(knows.train), f'case {seed}: chosen on what was learned'
    told['set'] += 1
    if r.random()<.3:
        ds.save(at/'set')
        ds = DistilledSet.load(at/'set', model=network(len(classes)))
    for _ in range(3):
        try: test = quiet(entrance, root, train, r)
        except DataError: continue
        if isinstance(test, ImageData) and r.random()<.5: test = r.choice((test.train, test.valid, test.test))
        try: split = measured(ds, test, **(dict(valid_frac=.3) if isinstance(test, (str, Path)) and r.random()<.2 else {}))
        except InfoUtilError as e:
            told['test refused'] += 1
            continue
        seen = bytes_of(split)
        assert not seen&learned, f'case {seed}: measured on {len(seen&learned)} of {len(seen)} images that the teacher was trained on'
        assert not seen&used, f'case {seed}: measured on {len(seen&used)} images of the set'
        told['test'] += 1
        if r.random()<.2:                                        # a loader of other images
            some = real_dl(knows.train, SIZE, ds.mean, ds.std, device='cpu')
            with pytest.raises(DataError, match='in the set or known to its teacher'): test_dl(ds, some)
    return told

def many(seeds, at):
    told = Counter()
    for seed in seeds:
        d = at/str(seed)
        d.mkdir()
        told += one_case(seed, d)
        shutil.rmtree(d)
    return told

def test_no_path_breaks_the_promise(tmp_path):
    told = many(range(100), tmp_path)
    assert told['set']>50 and told['test']>60, told              # most of it works, and is not only refused

@pytest.mark.slow
def test_two_thousand_paths_keep_the_promise(tmp_path):
    told = many(range(1000, 3000), tmp_path)
    print(f'2,000 random folders: {dict(told)}')
    assert told['set']>1000 and told['test']>1200, told

# ---- by hand

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A plain training folder, and teachers that were trained on it under both of its names"
    d = tmp_path_factory.mktemp('world')
    photos(d/'p', ('train',), n=20)
    kw = dict(arch='convnet3_4', size=SIZE, epochs=1, show_progress=False)
    return d, {k:quiet(train_teacher, d/k, d/f'teacher {i}', **kw) for i,k in enumerate(('p', 'p/train'))}

@pytest.mark.parametrize('a', ['p', 'p/train'])
@pytest.mark.parametrize('b', ['p', 'p/train'])
@pytest.mark.parametrize('c', ['p', 'p/train'])
def test_a_folder_and_its_train_are_one(a, b, c, world):
    d, teachers = world
    seen = {whole(d/a/f) for f in teachers[a].record.files}
    ds = random_set(d/b, teachers[a], ipc=8)
    used, test = sources(ds, d/b), bytes_of(measured(ds, d/c))
    assert used<=seen and len(seen)==48 and len(test)==12 and not test&seen

def test_both_names_are_divided_alike(world):
    d, teachers = world
    bare = lambda fs: {Path(f).as_posix().removeprefix('train/') for f in fs}
    assert bare(teachers['p'].record.files)==bare(teachers['p/train'].record.files)

def test_a_teacher_on_disk_knows_both_sides(world):
    d, teachers = world
    for which in ('converged', 'early'):
        t = load_teacher(d/'teacher 0', which, device='cpu')
        assert torch.equal(t.members.learned, teachers['p'].members.learned) and len(t.members.held)==12

@pytest.mark.parametrize('kind', ['copies', 'new'])
def test_pictures_that_are_added_move_nothing(kind, world, tmp_path):
    d, teachers = world
    shutil.copytree(d/'p/train', tmp_path/'q')
    r = random.Random(5)
    for c in 'abc':
        for i in range(10):
            if kind=='copies': shutil.copy(tmp_path/'q'/c/f'{i:03d}.png', tmp_path/'q'/c/f'{i+40:03d}.png')
            else: picture(tmp_path/'q'/c/f'{i+40:03d}.png', r)
    t = teachers['p']
    seen = {whole(d/'p'/f) for f in t.record.files}
    ds = random_set(tmp_path/'q', t, ipc=8)
    assert sources(ds, tmp_path/'q')<=seen and not bytes_of(measured(ds, tmp_path/'q'))&seen
    held = {whole(p) for p in (d/'p').rglob('*.png')}-seen
    if kind=='copies': assert not bytes_of(load_folder(tmp_path/'q', .2).train)&held      # without a teacher, too

def test_new_pictures_are_said(world, tmp_path):
    d, teachers = world
    shutil.copytree(d/'p', tmp_path/'q')
    picture(tmp_path/'q/train/a/new.png', random.Random(7))
    with pytest.warns(UserWarning, match='1 of 61 images .* are no candidates; train another teacher'):
        distill(tmp_path/'q', teachers['p'], ipc=1, method='random', preflight=False, show_progress=False)

def test_a_learner_of_its_own_division(tmp_path):
    "Its set is measured on what the learner had not seen, under the name of the folder above"
    root = photos(tmp_path/'p', ('train',), n=10)
    learn = from_learner(root/'train', random.Random(1), False)
    learn.model = network(3)
    ds = quiet(learn.distill, ipc=2, method='random', preflight=False, show_progress=False)
    files = lambda part: {whole(p) for p,_ in part.items}
    seen, test = files(learn.dls.train_ds), bytes_of(measured(ds, root))
    assert test==files(learn.dls.valid_ds) and not test&seen and sources(ds, learner_data(learn).root)<=seen

@pytest.mark.parametrize('parts', [('train', 'test'), ('Train', 'Test'), ('training_set', 'Test-Set')])
def test_the_test_part_is_measured_on_where_a_fraction_was_held_out(parts, tmp_path):
    root = photos(tmp_path/'p', parts, n=8)
    data = load_folder(root, .25)
    ds = random_set(root, replace(teacher_for(data.classes, members_of(data)), held_out=.25))
    split = measured(ds, root)
    assert len(split)==24 and split.files[0].startswith(parts[1]) and ds.meta['held_out']==.25

def test_what_was_held_out_is_no_candidate_alone_either(world, tmp_path):
    "A folder of nothing but held-out images, and one with new ones beside them"
    d, teachers = world
    t, r = teachers['p'], random.Random(9)
    for f in load_folder(d/'p').valid.files:
        (tmp_path/'held'/Path(f).parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(d/'p'/f, tmp_path/'held'/Path(f).parent.name)
    with pytest.raises(DataError, match='trained on none of them .* were held out from it'): random_set(tmp_path/'held', t)
    for c in 'abc':
        for i in range(6): picture(tmp_path/'held'/c/f'new {i}.png', r)
    held = {whole(d/'p'/f) for f in load_folder(d/'p').valid.files}
    assert not sources(random_set(tmp_path/'held', t, ipc=3), tmp_path/'held')&held

def test_measuring_on_what_was_learned_is_refused_with_counts(world):
    d, teachers = world
    ds = random_set(d/'p', teachers['p'])
    data = load_folder(d/'p')
    with pytest.raises(DataError, match='48 of its 48 are in it or its teacher was trained on them'): evaluate(ds, data.train)
    with pytest.raises(DataError, match='a loader of 48 images came, 48 of which'):
        ds.learner(real_dl(data.train, SIZE, ds.mean, ds.std, device='cpu'), 'convnet3_4', 'hard', device='cpu')
    both = Split(data.root, data.train.files[:3]+data.valid.files, data.train.labels[:3]+data.valid.labels)
    with pytest.warns(UserWarning, match='3 of 15 images to measure on are in the set or its teacher was trained on them'): assert len(test_dl(ds, both).dataset)==12

def test_a_student_passes_on_what_was_held_out(world, tmp_path):
    from infoutil.kept_students import train_student
    d, teachers = world
    ds = random_set(d/'p', teachers['p'], ipc=2)
    quiet(train_student, ds, tmp_path/'s', 'convnet3_4', 'hard', epochs=1, device='cpu', show_progress=False)
    student = load_teacher(tmp_path/'s', device='cpu')
    assert torch.equal(student.members.held, teachers['p'].members.held)
    held = {whole(d/'p'/f) for f in load_folder(d/'p').valid.files}
    assert not sources(random_set(d/'p/train', student, ipc=3), d/'p/train')&held

def test_another_label_teacher_brings_its_images_along(world):
    from infoutil.label_teachers import relabel
    d, teachers = world
    ds, data = random_set(d/'p', teachers['p']), load_folder(d/'p')
    other = replace(teachers['p'], members=Members(members_of(data).held, members_of(data).learned))     # knows the other side
    with pytest.raises(DataError, match='name a folder of test images'): test_dl(relabel(ds, other, 'other'), d/'p')

def test_teachers_and_sets_of_earlier_versions_go_by_path(tmp_path):
    root = photos(tmp_path/'p', ('.',), n=10)
    old = load_folder(root, .2, by='path')
    t = replace(teacher_for(old.classes, None), held_out=.2)
    ds = random_set(root, t, ipc=8)
    assert sources(ds, root)<=bytes_of(old.train) and measured(replace(ds, members=None), root).files==old.valid.files
    assert measured(ds, root).files==old.valid.files              # and a set that is made today knows more

def test_the_record_of_an_earlier_version(world, tmp_path):
    "Its fingerprints are those of the training images alone, which is enough; a sample of them is not"
    d, teachers = world
    record = replace(teachers['p'].record, held=None)
    assert torch.equal(record.members.learned, teachers['p'].members.learned) and not len(record.members.held)
    assert replace(record, prints=torch.arange(2**16)).members is None
    t = replace(teachers['p'], record=record, members=record.members)
    assert set(teacher_data(d/'p/train', t).train.files)=={Path(f).as_posix().removeprefix('train/') for f in record.files}

def test_copies_of_an_image_fall_on_one_side(tmp_path):
    root = photos(tmp_path/'p', ('.',), n=10)
    for c in 'abc':
        for i in range(0, 10, 2): shutil.copy(root/c/f'{i:03d}.png', root/c/f'copy {i}.png')
    data = load_folder(root)
    assert not bytes_of(data.train)&bytes_of(data.valid) and len(bytes_of(data.valid))==6

def test_repeated_rows_are_one_candidate(tmp_path):
    from infoutil.data import draw_candidates, draw_readable
    data = load_folder(photos(tmp_path/'p', n=20))
    s = data.train
    ten = replace(data, train=Split(s.root, tuple(f for f in s.files for _ in range(10)), tuple(l for l in s.labels for _ in range(10))))
    assert draw_candidates(ten, 0, 12)==draw_candidates(data, 0, 12) and len(set(draw_candidates(ten, 0, 50)))==20
    assert draw_readable(ten, 0, 50)[0]==draw_candidates(data, 0, 50)
    with pytest.raises(BudgetError, match='20 crops of 20 candidate images'): random_set(ten, teacher_for(data.classes, None), ipc=21)
