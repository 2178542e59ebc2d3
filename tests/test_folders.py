"Folders as people lay them out: names of parts, two readings, what is left alone, and pictures that are passed over"
import warnings
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from infoutil.basics import DataError
from infoutil.data import list_split, load_folder, measuring_part, train_part
from infoutil.engine.part_names import part_of
from infoutil.evaluation import load_test

def fill(root, *folders, n=5, suffix='.png'):
    "Folders of pictures, no two alike"
    r = np.random.default_rng(len(folders))
    for f in folders:
        (Path(root)/f).mkdir(parents=True, exist_ok=True)
        for i in range(n): Image.fromarray(r.integers(0, 255, (8, 8, 3), np.uint8)).save(Path(root)/f/f'{i}{suffix}', 'PNG')
    return Path(root)

def parts(*names, classes=('cat', 'dog')): return [f'{p}/{c}' for p in names for c in classes]
def said(f, *args):
    "What came out, and the warnings"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        return f(*args), [str(w.message) for w in ws]

TRAIN = ('train', 'TRAIN', 'Training', 'train_set', 'trainset', 'training_set', 'TrainingSet', 'training-set', 'Training Set', 'seg_train', 'train_data', 'train_images', 'trainval', 'train2017')
VALID = ('val', 'Valid', 'VALIDATION', 'val_set', 'validation-set', 'dev', 'Dev Set', 'eval', 'Evaluation', 'holdout', 'hold_out', 'held-out', 'validate', 'seg_val')
TEST = ('test', 'TEST', 'Testing', 'test_set', 'testset', 'Test-Set', 'testing set', 'seg_test', 'test_data', 'test_images')

@pytest.mark.parametrize('name', TRAIN)
def test_names_of_the_training_part(name, tmp_path):
    data, w = said(load_folder, fill(tmp_path, *parts(name, 'test')))
    assert (data.classes, len(data.train), len(data.test), data.held_out, w)==(('cat', 'dog'), 10, 10, None, [])

@pytest.mark.parametrize('name', VALID+TEST)
def test_names_of_the_other_parts(name, tmp_path):
    data, w = said(load_folder, fill(tmp_path, *parts('training', name)))
    assert (data.classes, len(data.train), data.held_out, w)==(('cat', 'dog'), 10, None, []) and data.valid is data.test
    assert data.test.files[0].startswith(name) and part_of(name)==('valid' if name in VALID else 'test')

def test_three_parts_in_other_words(tmp_path):
    data = load_folder(fill(tmp_path, *parts('Training', 'Dev', 'Testing')))
    assert [s.files[0].split('/')[0] for s in (data.train, data.valid, data.test)]==['Training', 'Dev', 'Testing']

@pytest.mark.parametrize('name', ['trains', 'contest', 'protest', 'retrain', 'valley', 'devil', 'evaluator', 'cat', 'set', 'testament', 'latest'])
def test_what_is_no_part(name): assert part_of(name) is None

@pytest.mark.parametrize('name', ['train', 'Training', 'seg_train', 'training_set'])
def test_a_part_inside_a_folder_of_its_name(name, tmp_path):
    "As archives of Kaggle have it"
    fill(tmp_path, *parts(f'{name}/{name}', 'seg_test/seg_test'))
    (tmp_path/'seg_pred').mkdir()
    data = load_folder(tmp_path)
    assert (data.classes, len(data.train), len(data.test))==(('cat', 'dog'), 10, 10)

@pytest.mark.parametrize('two', [('train', 'training'), ('Train', 'train_set'), ('val', 'valid'), ('dev', 'validation'), ('test', 'Testing')])
def test_two_folders_of_one_part_are_refused_with_both_named(two, tmp_path):
    fill(tmp_path, *parts(*({'train'} if part_of(two[0])!='train' else ()), *two))
    a, b = sorted(two)
    with pytest.raises(DataError, match=f'holds both {a} and {b}.*rename or remove') as e: load_folder(tmp_path)
    assert str(e.value).count(';')==2

def test_an_empty_folder_beside_a_filled_one_counts_for_nothing(tmp_path):
    fill(tmp_path, *parts('train', 'val'))
    (tmp_path/'validation').mkdir()
    assert load_folder(tmp_path).valid.files[0].startswith('val/')

@pytest.mark.parametrize('some', [('val', 'test'), ('Testing', 'dev'), ('test', 'valid')])
def test_parts_without_one_to_train_on(some, tmp_path):
    fill(tmp_path, *parts(*some))
    with pytest.raises(DataError, match=f'holds {", ".join(sorted(some))} and no part to train on'): load_folder(tmp_path)
    assert measuring_part(tmp_path).name.lower().startswith('test')
    assert len(load_test(tmp_path, ('cat', 'dog')))==10            # but they can be measured on

def test_training_images_without_classes(tmp_path):
    fill(tmp_path, 'train', *parts('test'))
    with pytest.raises(DataError, match='holds test, train and no part to train on'): load_folder(tmp_path)

@pytest.mark.parametrize('names', [('train', 'test'), ('training', 'testing'), ('Test', 'Valid', 'cat'), ('dev', 'prod')])
def test_classes_that_are_called_like_parts(names, tmp_path):
    data, w = said(load_folder, fill(tmp_path, *names))
    assert (data.classes, data.held_out, w)==(tuple(sorted(names)), .2, [])

def test_classes_beside_a_test_part_are_refused_with_both_readings(tmp_path):
    fill(tmp_path, 'cat', 'dog', *parts('test'))
    with pytest.raises(DataError, match='may hold 3 classes .*, or 2 classes and their test part in test; .* into .*train, or rename test'): load_folder(tmp_path)

def test_a_class_called_test_with_folders_of_its_own(tmp_path):
    assert load_folder(fill(tmp_path, 'cat', 'dog', 'test/one', 'test/two')).classes==('cat', 'dog', 'test')

def test_parts_inside_classes_are_refused(tmp_path):
    fill(tmp_path, *parts('cat', 'dog', classes=('train', 'Test')))
    with pytest.raises(DataError, match='cat, dog.*hold Test, train, each of its own'): load_folder(tmp_path)

def test_pooled_folders_are_said(tmp_path):
    data, w = said(load_folder, fill(tmp_path, *parts('2023', '2024')))
    assert data.classes==('2023', '2024') and len(w)==1 and '2023, 2024) all hold cat, dog' in w[0]
    other, w = said(load_folder, fill(tmp_path/'x', 'cat/indoor', 'cat/outdoor', 'dog/indoor'))
    assert other.classes==('cat', 'dog') and not w

def test_folders_that_nobody_uses_are_said_once(tmp_path):
    fill(tmp_path, *parts('train', 'test', 'extra'), 'unlabelled')
    (tmp_path/'notes').mkdir()
    (tmp_path/'notes/a.txt').touch()
    data, w = said(load_folder, tmp_path)
    assert len(w)==1 and 'holds extra, unlabelled beside test, train' in w[0] and 'left alone' in w[0] and len(data.train)==10

@pytest.mark.parametrize('p', ['Train', 'train_set', 'SEG_TRAIN'])
def test_the_public_questions_know_the_table(p, tmp_path):
    assert train_part(fill(tmp_path, *parts(p, 'x'))).name==p
    assert measuring_part(tmp_path) is None

# ---- pictures that are passed over

@pytest.mark.parametrize('suffix', ['.jfif', '.JPE', '.jif', '.apng', '.pnm'])
def test_more_suffixes_of_known_formats(suffix, tmp_path):
    fill(tmp_path, 'cat', 'dog')
    for f in sorted((tmp_path/'cat').iterdir()): f.rename(f.with_suffix(suffix))
    data, w = said(list_split, tmp_path, tmp_path)
    assert len(data[1].of_class(0))==5 and not w

def test_pictures_that_are_passed_over_are_counted_and_said_once(tmp_path):
    fill(tmp_path, *parts('train', 'val'), n=6)
    for i,s in enumerate(('.heic', '.HEIC', '.avif', '')):
        f = tmp_path/'train/cat'/f'{i}.png'
        f.rename(f.with_suffix(s))
    (tmp_path/'val/dog/0.png').rename(tmp_path/'val/dog/0.jp2')
    data, w = said(load_folder, tmp_path)
    assert len(data.train)==8 and len(data.valid)==11 and len(w)==1
    assert '5 pictures' in w[0] and "4 of class 'cat'" in w[0] and '2 .heic' in w[0] and '1 without a suffix' in w[0] and '1 .jp2' in w[0]

def test_what_is_no_picture_is_not_announced(tmp_path):
    fill(tmp_path, 'cat', 'dog')
    for name in ('a.txt', 'b.csv', 'labels.json', 'Thumbs.db', '.DS_Store', '._0.png', 'desktop.ini', 'README', 'LICENSE', 'x.xml', 'v.mp4', 'w.npy'): (tmp_path/'cat'/name).write_bytes(b'text of some kind')
    data, w = said(load_folder, tmp_path)
    assert len(data.train)+len(data.valid)==10 and not w

def test_a_class_of_nothing_else_says_what_it_holds(tmp_path):
    fill(tmp_path, 'cat', 'dog')
    for f in sorted((tmp_path/'cat').iterdir()): f.rename(f.with_suffix('.heic'))
    with pytest.raises(DataError, match=r'class folder .*cat holds no image that can be read \(5 .heic\)'): load_folder(tmp_path)
