"From a folder to a student in one command, plans that write nothing, and sets kept in other image formats"
import json, shutil, signal, subprocess, sys, time
from functools import partial
from pathlib import Path
import pytest, torch
from infoutil.basics import DataError
from infoutil.command_line import main
from infoutil.comparison import compare
from infoutil.data import load_data
from infoutil.distilled_set import DistilledSet
from infoutil.label_teachers import try_label_teachers
from infoutil.labels import label_states
from infoutil.models import get_model
from infoutil.plans import student_pace
from infoutil.teacher import load_teacher, Teacher
from infoutil.training import train_teacher

HOW = ['--ipc', '1', '--arch', 'convnet3_32', '--size', '32', '--teacher-epochs', '10', '--epochs', '5', '--repeats', '1',
       '--label-teacher', 'converged', '--jobs', '1']

@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    "Three digits, a hundred images each, and a teacher of them where a set looks for one"
    home = tmp_path_factory.mktemp('home')
    digits, root = load_data('digits', dest=home/'data').root, home/'shapes'
    for part, n in dict(train=100, test=20).items():
        for c in '017':
            (root/part/c).mkdir(parents=True)
            for f in sorted((digits/part/c).iterdir())[:n]: shutil.copy(f, root/part/c)
    train_teacher(root, home/'shapes-teacher', 'convnet3_32', 32, epochs=10, early_epoch=2, show_progress=False)
    return root

def names(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file() and p.name[0]!='.')

def test_a_run_that_was_killed_goes_on(shapes, tmp_path, capsys):
    out = tmp_path/'out'
    cmd = [sys.executable, '-m', 'infoutil', 'run', str(shapes), '-o', str(out), *HOW]
    p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time()+120
    while not (out/'teacher').exists() and p.poll() is None and time.time()<end: time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert (out/'teacher').exists() and not (out/'report.html').exists()
    before = load_teacher(out/'teacher').sha256
    assert main(cmd[3:])==0
    assert load_teacher(out/'teacher').sha256==before
    said = capsys.readouterr().out
    assert 'random images' in said and 'chance 33.3 %' in said and 'infoutil predict' in said
    assert not [f for f in names(out) if '.run/' in f]
    rows = [json.loads(l) for l in (out/'students'/'results.jsonl').read_text().splitlines()]
    assert {r['method'] for r in rows}=={'infoutil', 'random'}
    assert load_teacher(out/'student').classes==('0', '1', '7')
    made = (out/'report.html').stat().st_mtime
    assert main(cmd[3:])==0 and (out/'report.html').stat().st_mtime==made           # nothing was left to do
    assert main([*cmd[3:], '--seed', '1'])==1
    assert 'seed was 0 and is 1' in capsys.readouterr().err

def test_images_that_cannot_be_read_are_left_out(shapes, tmp_path):
    "By the trial of label teachers, a comparison and its test images, and plans; without a word for it they are named"
    folder, judge = tmp_path/'shapes', shapes.with_name('shapes-teacher')
    shutil.copytree(shapes, folder)
    for part in ('train', 'test'):
        for c in '01': (folder/part/c/'0000_broken.png').write_text(f'no image {part} {c}')
    data, states = load_data(folder), label_states(load_teacher(judge), None, judge)
    trial = partial(try_label_teachers, data, states, 90, n=len(states), views=270, images=300, show_progress=False)
    grid = partial(compare, folder, judge, methods=('random',), ipc=(100,), labels='hard', epochs=1, repeats=1, show_progress=False)
    for what in (trial, partial(grid, tmp_path/'refused')):
        with pytest.raises(DataError, match='0000_broken.png'): what()
    assert len(trial(on_error='skip'))==1
    assert grid(tmp_path/'c', on_error='skip').test_images.tolist()==[60]
    for command in (['run', *HOW], ['compare', '--teacher', str(judge), '--ipc', '1', '--epochs', '3', '--label-teachers', 'converged']):
        assert main([command[0], str(folder), '-o', str(tmp_path/'no'), '--dry-run', '--on-error', 'skip', *command[1:]])==0

@pytest.mark.parametrize('command', ['teacher', 'distill', 'run', 'compare'])
def test_a_plan_writes_nothing(shapes, tmp_path, capsys, command):
    more = {'distill': ['--ipc', '1'], 'run': HOW, 'teacher': ['--arch', 'convnet3_32', '--epochs', '2'],
            'compare': ['--teacher', str(shapes.with_name('shapes-teacher')), '--ipc', '1', '--epochs', '3']}[command]
    if command=='distill': more += ['--teacher', str(shapes.with_name('shapes-teacher'))]
    before = names(shapes.parent)
    assert main([command, str(shapes), '-o', str(tmp_path/'out'), '--dry-run', '--processes', '4', *more])==0
    said = capsys.readouterr().out
    assert '4 processes' in said and 'in all' in said and 'on the disk' in said
    assert names(shapes.parent)==before and not list(tmp_path.iterdir())

def test_a_plan_refuses_what_the_run_would(shapes, tmp_path, capsys):
    teacher = str(shapes.with_name('shapes-teacher'))
    assert main(['distill', str(shapes), '--teacher', teacher, '-o', str(tmp_path/'o'), '--ipc', '500', '--dry-run'])==1
    assert 'are needed' in capsys.readouterr().err

def test_a_set_without_a_teacher_takes_the_one_beside_it(shapes, capsys):
    out = shapes.parent/'small'
    assert main(['distill', str(shapes), '-o', str(out), '--ipc', '1', '--label-teacher', 'converged'])==0
    said = capsys.readouterr().out
    assert 'shapes-teacher is taken' in said and 'on the disk' in said and '300 training images take' in said
    extra = next((shapes/'train'/'0').iterdir())
    shutil.copy(extra, extra.with_name('extra.png'))
    try:
        assert main(['distill', str(shapes), '-o', str(shapes.parent/'b'), '--ipc', '1'])==1
        assert '1 are new' in capsys.readouterr().err
    finally: extra.with_name('extra.png').unlink()

@pytest.mark.parametrize('kind', ['webp', 'jpeg'])
def test_images_are_kept_as_asked(shapes, tmp_path, kind):
    teacher = str(shapes.with_name('shapes-teacher'))
    for k in ('png', kind):
        assert main(['distill', str(shapes), '--teacher', teacher, '-o', str(tmp_path/k), '--ipc', '2', '--images', k,
                     '--label-teacher', 'converged'])==0
    png, other = [DistilledSet.load(tmp_path/k) for k in ('png', kind)]
    suffix = dict(webp='.webp', jpeg='.jpg')[kind]
    assert {p.suffix for p in (tmp_path/kind/'train').rglob('*.*') if p.is_file()}=={suffix}
    assert torch.equal(png.images, other.images)==(kind=='webp')
    assert torch.equal(png.labels, other.labels)==(kind=='webp')
    from infoutil.labels import patch_labels
    t = other.teacher
    assert torch.equal(other.labels, patch_labels(t.model, other.images, other.factor, t.mean, t.std).half())
    first = next((tmp_path/kind/'train').rglob('*'+suffix))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(Exception, match='has changed'): DistilledSet.load(tmp_path/kind)

def test_students_of_a_teacher_whose_network_has_no_name_are_planned():
    "As in a trial: the network of the size"
    judge = Teacher(get_model('convnet3_8', 3, 32).eval(), 'a name of my own', ('a', 'b', 'c'), 32, (.5,)*3, (.2,)*3)
    assert min(student_pace(judge, 3, 1))>0
