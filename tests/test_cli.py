"The command line as users meet it: every refusal is one sentence, comes before the work and leaves nothing; the whole way from teacher to picture"
import argparse, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from PIL import Image
from fastai.learner import Learner
import infoutil.data, infoutil.distillation, infoutil.label_teachers, infoutil.training
from infoutil.command_line import _parser, COMMANDS, main
from infoutil.brought_teachers import keep_outputs
from infoutil.basics import rng
from infoutil.data import load_data
from infoutil.models import get_model
from infoutil.distilled_set import DistilledSet
from infoutil.labels import patch_labels
from infoutil.teacher import load_teacher, save_teacher, Teacher
import ready

CLASSES = ('ant', 'bee', 'cat')
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))

def make_folder(root, classes=CLASSES, train=12, test=8, size=32):
    "Noisy squares whose colour is the class"
    for part,n in (('train', train), ('test', test)):
        for c,name in enumerate(classes):
            (root/part/name).mkdir(parents=True)
            for i in range(n):
                noise = 40*torch.randn(size, size, 3, generator=rng('cli', part, c, i))
                px = (torch.tensor(COLOURS[c%3]).float()+noise).clamp(0, 255).byte()
                Image.fromarray(px.numpy()).save(root/part/name/f'{i:02d}.png')
    return root

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Data, teacher and a distilled set, all made by the command line"
    d = tmp_path_factory.mktemp('cli')
    make_folder(d/'data')
    assert main(['teacher', f'{d}/data', '-o', f'{d}/teacher', '--size', '32', '--epochs', '2', '--early-epoch', '1', '--bs', '6', '--precision', 'float32'])==0
    assert main(['distill', f'{d}/data', '--teacher', f'{d}/teacher', '-o', f'{d}/set', '--ipc', '1', '--candidates', '4', '--label-teacher', 'by_ipc'])==0
    return d

def tree(d): return {p.relative_to(d).as_posix():(p.stat().st_size, p.stat().st_mtime_ns) for p in Path(d).rglob('*')}

def test_label_teachers_by_name_by_number_and_by_trial(world, tmp_path, capsys, monkeypatch):
    "The set says who labels it, and holds it"
    real = infoutil.label_teachers.try_label_teachers
    monkeypatch.setattr(infoutil.label_teachers, 'try_label_teachers', lambda *a, **kw: real(*a, **kw, views=1))
    def made(*more):
        out = tmp_path/f'{len(list(tmp_path.iterdir()))}'
        argv = ['distill', f'{world}/data', '--teacher', f'{world}/teacher', '-o', f'{out}', '--method', 'random', '--ipc', '1']
        assert main([*argv, *more])==0
        return DistilledSet.load(out, device='cpu')
    both = made('--label-teacher', 'early+converged')
    assert both.meta['label_teacher']=='early+converged' and len(both.teacher.model.nets)==2
    assert torch.equal(made('--label-teacher', 'early', '--label-teachers', '2').labels, both.labels)
    other = tmp_path/'other'                                     # states of another directory, by its name
    shutil.copytree(world/'teacher', other)
    apart = made('--label-teacher', f'{other}:early+converged')
    assert torch.equal(apart.labels, both.labels) and apart.teacher.sha256==both.teacher.sha256
    assert apart.meta['label_teacher']==apart.meta['config']['label_teacher']=='other:early+converged'
    one = [load_teacher(world/'teacher', n, device='cpu') for n in ('early', 'converged')]
    z = torch.stack([patch_labels(t.model, both.images, 1, t.mean, t.std) for t in one]).mean(0)
    torch.testing.assert_close(both.labels.float(), z, rtol=2e-3, atol=2e-3)
    found = made()                                               # by trial, unless asked otherwise
    assert [r['label_teacher'] for r in found.meta['label_trial']][0]==found.meta['label_teacher']
    assert 'labels of early+converged: ' in capsys.readouterr().out

def test_a_set_carries_labels_of_views(world, tmp_path):
    "What `--views` keeps is what Python keeps, and a student needs no teacher for it"
    args = ['distill', f'{world}/data', '--teacher', f'{world}/teacher', '--method', 'random', '--ipc', '1', '--label-teacher', 'early']
    assert main([*args, '-o', f'{tmp_path}/s', '--views', '2', '--no-teacher'])==0
    assert main([*args, '-o', f'{tmp_path}/plain'])==0
    ds, plain = (DistilledSet.load(tmp_path/n, device='cpu') for n in ('s', 'plain'))
    assert ds.teacher is None and ds.views.key.epochs==2 and plain.views is None and torch.equal(ds.images, plain.images)
    want = plain.with_view_labels(epochs=2, device='cpu', show_progress=False).views
    assert ds.views.recipe()==want.recipe() and torch.allclose(ds.views.logits, want.logits, rtol=2e-3, atol=2e-3)
    assert main(['train', f'{tmp_path}/s', '-o', f'{tmp_path}/student', '--arch', 'convnet2_8', '--epochs', '3', '--labels', 'views'])==0

@pytest.mark.parametrize('more, why', [(['0'], 'a whole number from 1'), (['2', '--images', 'jpeg'], 'png')])
def test_views_that_cannot_be_kept(world, tmp_path, refused, more, why):
    assert why in refused('distill', world/'data', '--teacher', world/'teacher', '-o', tmp_path/'o', '--ipc', '1', '--views', *more)

def test_label_teachers_that_are_not_there(world, tmp_path, refused):
    err = refused('distill', world/'data', '--teacher', world/'teacher', '-o', tmp_path/'o', '--ipc', '1', '--label-teacher', 'early+convergd')
    assert "did you mean 'converged'" in err
    shutil.copytree(world/'teacher', other := tmp_path/'other')
    (other/'early.safetensors').write_bytes(b'')
    for who,why in ((f'{other}:early', 'early.safetensors'), (f'{tmp_path}/none:early', "no teacher 'early'")):
        assert why in refused('distill', world/'data', '--teacher', world/'teacher', '-o', tmp_path/'o', '--ipc', '1', '--label-teacher', who)
    assert 'keep more states' in refused('distill', world/'data', '--teacher', world/'teacher', '-o', tmp_path/'o', '--ipc', '1', '--label-teachers', '9')

def foreign(world, folder):
    "The world's teacher as a file of another program: wrapped names, outputs in reverse"
    teacher = load_teacher(world/'teacher', device='cpu')
    order = [*range(len(teacher.classes))][::-1]
    head = keep_outputs(teacher.model, teacher.arch, order, teacher.size).state_dict()
    torch.save({'state_dict': {f'module.{k}': v for k,v in head.items()}}, folder/'w.pth')
    (folder/'names.txt').write_text('\n'.join(teacher.classes[i] for i in order))
    return teacher, ['--weights', f'{folder}/w.pth', '--arch', teacher.arch, '--size', f'{teacher.size}']

def test_a_teacher_is_brought_by_its_weights(world, tmp_path, capsys):
    teacher, argv = foreign(world, tmp_path)
    assert main(['teacher', f'{world}/data', '-o', f'{tmp_path}/t', *argv, '--classes', f'{tmp_path}/names.txt'])==0
    got, x = load_teacher(tmp_path/'t', device='cpu'), torch.randn(4, 3, teacher.size, teacher.size)
    assert torch.allclose(got.model(x), teacher.model(x), atol=1e-4) and got.classes==teacher.classes
    assert main(['distill', f'{world}/data', '--teacher', f'{tmp_path}/t', '-o', f'{tmp_path}/s', '--ipc', '1', '--method', 'random'])==0

def test_what_comes_with_weights_is_read_or_refused(world, tmp_path, refused):
    _, argv = foreign(world, tmp_path)
    run = lambda *more: refused('teacher', world/'data', '-o', tmp_path/'o', *more)
    for more, why in ((['--epochs', '3'], '--epochs came with --weights'), (['--mean', '.5,.5,.5'], 'one of mean and std'), ([], 'another order|chance is')):
        assert re.search(why, run(*argv, *more))
    assert 'without the network' in run(*argv[:2]) and '--classes came without --weights' in run('--classes', tmp_path/'names.txt')
    assert 'one of them is accepted' in run(*argv, '--pretrained') and "no weights of 'convnet3'" in run('--pretrained', '--arch', 'convnet3')
    assert not (tmp_path/'o').exists()

def test_a_student_is_trained_kept_and_asked(world, tmp_path, capsys):
    s, test = f'{tmp_path}/s', f'{world}/data/test'
    assert main(['train', f'{world}/set', '-o', s, '--arch', 'convnet3_32', '--epochs', '3', '--test', test])==0
    said = capsys.readouterr().out
    assert 'convnet3_32 of 3 images, 3 epochs: ' in said and f'infoutil predict {s} FILES' in said
    assert 'beside it: chance 33.3 %; its label teacher' in said
    assert main(['predict', s, test, '--top', '2'])==0
    lines = [l.split('\t') for l in capsys.readouterr().out.splitlines()]
    files = sorted(Path(test).rglob('*.png'))
    student = load_teacher(s, device='cpu')
    assert [l[0] for l in lines]==[str(f) for f in files] and all(len(l)==3 for l in lines)
    right = sum(l[1].rpartition(' ')[0].rpartition(' ')[0]==f.parent.name for l,f in zip(lines, files))
    assert right==round(student.accuracy*len(files))
    assert main(['train', f'{world}/set', '-o', s, '--epochs', '1'])==1                # never over an older one
    assert main(['evaluate', f'{world}/set', '--test', test, '--arch', 'convnet3_32', '--epochs', '3', '--repeats', '2', '--keep', f'{tmp_path}/k'])==0
    for a,b in zip(load_teacher(tmp_path/'k/seed_0', device='cpu').model.parameters(), student.model.parameters()): assert torch.allclose(a, b, atol=1e-6)
    assert main(['predict', s, f'{tmp_path}/none.png'])==1 and load_teacher(tmp_path/'k/seed_1').epoch==3

class Worked(Exception): "Long work began"

@pytest.fixture
def no_work(monkeypatch):
    "Training and choosing crops end the test"
    def stop(*args, **kwargs): raise Worked
    for name in ('fit', 'fit_one_cycle'): monkeypatch.setattr(Learner, name, stop)
    for name in ('run_classes', '_run_maker'): monkeypatch.setattr(infoutil.distillation, name, stop)

@pytest.fixture
def refused(world, tmp_path, capsys, no_work):
    "Run a command that must be refused; returns the sentence"
    def run(*argv, **extra):
        before = tree(world), tree(tmp_path)
        argv = [str(a) for a in argv]
        capsys.readouterr()
        try: status = main(argv)
        except Worked: pytest.fail('refused only after long work, or not at all')
        err = capsys.readouterr().err
        assert status==1, f'exit status {status}'
        assert 'Traceback' not in err
        assert err.startswith('infoutil: ') and err.count('\n')==1 and err.endswith('\n'), f'not one sentence: {err}'
        assert (tree(world), tree(tmp_path))==before, 'something was left behind'
        return err
    return run

def three(err): assert err.count(';')>=2, f'not "what came; what is accepted; what to do": {err}'

# ------------------------------------------------------------------ distill
distill_args = {
    'ipc 0':             ['--ipc', '0'],
    'negative ipc':      ['--ipc', '-3'],
    'budget too small':  ['--budget', '31'],
    'negative budget':   ['--budget', '-1'],
    'too few images':    ['--ipc', '13'],
    'too few candidates':['--ipc', '3', '--candidates', '2'],
    'too few for tiles': ['--ipc', '4', '--factor', '2'],
    'too few, paper':    ['--ipc', '61', '--preset', 'paper'],
    'too few, random':   ['--ipc', '13', '--method', 'random'],
    'too few, rded':     ['--ipc', '13', '--method', 'rded'],
    'no candidates':     ['--candidates', '0'],
    'factor 0':          ['--ipc', '1', '--factor', '0'],
    'factor above size': ['--ipc', '1', '--factor', '33', '--crops', '100', '--preset', 'paper'],
    'no crops':          ['--crops', '0'],
    'area 0':            ['--min-area', '0'],
    'area above 1':      ['--max-area', '1.5'],
    'areas crossed':     ['--min-area', '.6', '--max-area', '.5'],
    'area nan':          ['--min-area', 'nan'],
    'negative alpha':    ['--ipc', '1', '--alpha', '-1'],
    'alpha nan':         ['--ipc', '1', '--alpha', 'nan'],
    'alpha infinite':    ['--ipc', '1', '--alpha', 'inf'],
    'valid-frac 0':      ['--valid-frac', '0'],
    'valid-frac 1':      ['--valid-frac', '1'],
    'valid-frac nan':    ['--valid-frac', 'nan'],
}
@pytest.mark.parametrize('case', distill_args)
def test_distill_refuses_settings(world, tmp_path, refused, case):
    three(refused('distill', world/'data', '--teacher', world/'teacher', '-o', tmp_path/'o', *distill_args[case]))

choices = [('distill', o, v) for o,v in (('method', 'rde'), ('preset', 'papers'), ('score', 'norm'), ('end', 'top'), ('estimator', 'captum'), ('label-teacher', 'late'), ('precision', 'half'))]
choices += [('teacher', o, v) for o,v in (('arch', 'resnet19'), ('schedule', 'cosine'), ('precision', 'half'))]
choices += [('evaluate', o, v) for o,v in (('arch', 'resnet19'), ('labels', 'soft'), ('protocol', 'rd4'), ('precision', 'half'))]

def command(world, tmp_path, cmd):
    return {'distill':  ['distill', world/'data', '--teacher', world/'teacher', '-o', tmp_path/'o', '--ipc', '1'],
            'teacher':  ['teacher', world/'data', '-o', tmp_path/'o', '--size', '32'],
            'evaluate': ['evaluate', world/'set', '--test', world/'data/test', '-o', tmp_path/'r.json']}[cmd]

@pytest.mark.parametrize('cmd,option,value', choices)
def test_unknown_names(world, tmp_path, refused, cmd, option, value):
    err = refused(*command(world, tmp_path, cmd), f'--{option}', value)
    assert f"'{value}'" in err and 'known: ' in err

def test_unknown_name_has_three_parts(world, tmp_path, refused):
    "What came, what is accepted, what to do, even where no known name is near"
    three(refused(*command(world, tmp_path, 'distill'), '--method', 'zzz'))

def test_labels_are_checked_under_every_protocol(world, tmp_path, refused):
    refused(*command(world, tmp_path, 'evaluate'), '--protocol', 'hard', '--labels', 'sotf')

def test_labels_that_the_protocol_would_ignore(world, tmp_path, refused):
    "No option is accepted and ignored: 'hard' trains on hard labels whatever --labels says"
    refused(*command(world, tmp_path, 'evaluate'), '--protocol', 'hard', '--labels', 'stored')

def break_data(world, tmp_path, how):
    d = tmp_path/'data'
    if how!='missing': shutil.copytree(world/'data', d)
    if how=='empty class': [p.unlink() for p in (d/'train/bee').iterdir()]
    if how=='new empty class': (d/'train/dog').mkdir()
    if how=='one class': [shutil.rmtree(d/part/c) for part in ('train', 'test') for c in ('bee', 'cat')]
    if how=='text as image': (d/'train/cat/03.png').write_text('no image')
    if how=='half an image':
        raw = (d/'train/cat/03.png').read_bytes()
        (d/'train/cat/03.png').write_bytes(raw[:len(raw)//2])
    if how=='other names': [os.rename(d/part/'bee', d/part/'wasp') for part in ('train', 'test')]
    if how=='one class more': [shutil.copytree(d/part/'bee', d/part/'dog') for part in ('train', 'test')]
    if how=='one class less': [shutil.rmtree(d/part/'cat') for part in ('train', 'test')]
    if how=='test without a class': shutil.rmtree(d/'test/bee')
    if how=='a file': shutil.rmtree(d); d.write_text('x')
    return d

@pytest.mark.parametrize('how', ['missing', 'a file', 'empty class', 'new empty class', 'one class', 'text as image', 'half an image', 'other names', 'one class more', 'one class less',
                                 'test without a class'])
def test_distill_refuses_data(world, tmp_path, refused, how):
    three(refused('distill', break_data(world, tmp_path, how), '--teacher', world/'teacher', '-o', tmp_path/'o', '--ipc', '1'))

def break_teacher(world, tmp_path, how):
    t, good = tmp_path/'t', load_teacher(world/'teacher', device='cpu')
    kw = {k:getattr(good, k) for k in ('model', 'arch', 'classes', 'size', 'mean', 'std', 'epoch', 'accuracy')}
    if how=='missing': return t
    if how=='empty': t.mkdir()
    if how=='other order': save_teacher(Teacher(**{**kw, 'classes':CLASSES[::-1]}), t)
    if how=='untrained':
        blind = get_model('convnet3', 3, 32).eval()
        for p in blind[-1].parameters(): p.data.zero_()      # random weights would do by luck: many do tell three colours apart
        save_teacher(Teacher(**{**kw, 'model':blind}), t)
    if how in ('early of another size', 'early of other colours'):
        save_teacher(good, t)
        save_teacher(Teacher(**{**kw, **(dict(model=get_model('convnet3', 3, 64).eval(), size=64) if 'size' in how else dict(mean=(.1, .1, .1)))}), t, 'early')
    if how in ('changed weights', 'changed json', 'text schema', 'no json object'):
        shutil.copytree(world/'teacher', t)
        meta = json.loads((t/'converged.json').read_text())
        if how=='changed weights': (t/'converged.safetensors').write_bytes((t/'converged.safetensors').read_bytes()[:-4]+b'oops')
        if how=='changed json': (t/'converged.json').write_text('{"schema"')
        if how=='text schema': (t/'converged.json').write_text(json.dumps({**meta, 'schema':'1'}))
        if how=='no json object': (t/'converged.json').write_text('[]')
    return t

@pytest.mark.parametrize('how', ['missing', 'empty', 'other order', 'untrained', 'early of another size', 'early of other colours', 'changed weights', 'changed json', 'text schema', 'no json object'])
def test_distill_refuses_teachers(world, tmp_path, refused, how):
    three(refused('distill', world/'data', '--teacher', break_teacher(world, tmp_path, how), '-o', tmp_path/'o', '--ipc', '1'))

def test_early_labels_without_an_early_teacher(world, tmp_path, refused):
    save_teacher(load_teacher(world/'teacher', device='cpu'), tmp_path/'t')
    refused('distill', world/'data', '--teacher', tmp_path/'t', '-o', tmp_path/'o', '--ipc', '1', '--label-teacher', 'early')

# ------------------------------------------------------------------ output places
def occupy(d, how):
    if how=='in use': (d/'o').mkdir(); (d/'o'/'mine.txt').write_text('mine')
    if how=='a file': (d/'o').write_text('mine')
    if how=='below a file': (d/'f').write_text('mine'); return d/'f'/'o'
    return d/'o'

@pytest.mark.parametrize('how', ['in use', 'a file', 'below a file'])
@pytest.mark.parametrize('cmd', ['teacher', 'distill', 'demo'])
def test_output_places(world, tmp_path, refused, cmd, how):
    o = occupy(tmp_path, how)
    argv = {'teacher': ['teacher', world/'data', '--size', '32'], 'distill': ['distill', world/'data', '--teacher', world/'teacher', '--ipc', '1'], 'demo': ['demo']}[cmd]
    three(refused(*argv, '-o', o))

@pytest.mark.parametrize('cmd', ['teacher', 'distill'])
@pytest.mark.parametrize('where', ['the data', 'above the data', 'the teacher', 'foreign files'])
def test_force_never_takes_the_users_files(world, tmp_path, refused, cmd, where):
    "--force replaces an older result, not the data, the teacher or files that infoutil did not write"
    if cmd=='teacher' and where=='the teacher': pytest.skip('that is what --force is for')
    shutil.copytree(world/'data', tmp_path/'all/data'); shutil.copytree(world/'teacher', tmp_path/'teacher')
    (tmp_path/'letters').mkdir(); (tmp_path/'letters/mine.txt').write_text('mine')
    o = tmp_path/{'the data':'all/data', 'above the data':'all', 'the teacher':'teacher', 'foreign files':'letters'}[where]
    argv = {'teacher': ['teacher', tmp_path/'all/data', '--size', '32'], 'distill': ['distill', tmp_path/'all/data', '--teacher', tmp_path/'teacher', '--ipc', '1']}[cmd]
    refused(*argv, '-o', o, '--force')

@pytest.mark.parametrize('cmd', ['teacher', 'distill'])
@pytest.mark.parametrize('n', [252, 255, 300])
def test_too_long_a_name(world, tmp_path, refused, cmd, n):
    said = refused(*command(world, tmp_path, cmd)[:2], *(['--teacher', world/'teacher'] if cmd=='distill' else []), '-o', tmp_path/('x'*n))
    three(said); assert 'too long' in said

def test_images_too_large_for_the_memory(world, tmp_path, refused):
    said = refused('teacher', world/'data', '-o', tmp_path/'t', '--size', 10**7)
    three(said); assert 'GB' in said and '--size' in said

@pytest.mark.parametrize('argv,where', [(['evaluate', 'SET', '--test', 'TEST'], 'no/r.json'), (['evaluate', 'SET', '--test', 'TEST'], 'folder'),
                                        (['show', 'SET'], 'no/g.png'), (['show', 'SET'], 'folder'), (['show', 'SET'], 'g.nonsense')])
def test_output_files(world, tmp_path, refused, argv, where):
    (tmp_path/'folder').mkdir()
    three(refused(*[{'SET':world/'set', 'TEST':world/'data/test'}.get(a, a) for a in argv], '-o', tmp_path/where))

def test_a_failed_run_leaves_no_parents(world, tmp_path, capsys, monkeypatch):
    "An error in the middle of the work takes the folders along that the run made"
    from infoutil.basics import InfoUtilError
    def fail(*args, **kwargs): raise InfoUtilError('it broke; it should not; mend it')
    monkeypatch.setattr(infoutil.training, '_fit_schedule', fail)
    assert main(['teacher', f'{world}/data', '-o', f'{tmp_path}/new/deep/o', '--size', '32'])==1
    assert not list(tmp_path.iterdir())

# ------------------------------------------------------------------ teacher
teacher_args = {
    'no epochs':        ['--epochs', '0'],
    'early too late':   ['--epochs', '3', '--early-epoch', '4'],
    'early 0':          ['--epochs', '3', '--early-epoch', '0'],
    'deep for size':    ['--arch', 'convnet6'],
    'size 0':           ['--size', '0'],
    'size 4':           ['--size', '4'],
    'negative size':    ['--size', '-32'],
    'batch of 0':       ['--bs', '0'],
    'negative batch':   ['--bs', '-8'],
    'rate 0':           ['--lr', '0'],
    'negative rate':    ['--lr', '-1'],
    'rate nan':         ['--lr', 'nan'],
    'valid-frac 2':     ['--valid-frac', '2'],
}
@pytest.mark.parametrize('case', teacher_args)
def test_teacher_refuses_settings(world, tmp_path, refused, case):
    three(refused('teacher', world/'data', '-o', tmp_path/'o', '--size', '32', *teacher_args[case]))

@pytest.mark.parametrize('how', ['a file', 'new empty class', 'half an image', 'test without a class'])
def test_teacher_refuses_data(world, tmp_path, refused, how):
    three(refused('teacher', break_data(world, tmp_path, how), '-o', tmp_path/'o', '--size', '32'))

def test_unreadable_validation_image(world, tmp_path, refused):
    d = break_data(world, tmp_path, '')
    (d/'test/cat/03.png').write_text('no image')
    three(refused('teacher', d, '-o', tmp_path/'o', '--size', '32'))

def test_a_diverged_teacher_is_not_written(world, tmp_path, capsys):
    assert main(['teacher', f'{world}/data', '-o', f'{tmp_path}/o', '--size', '32', '--epochs', '1', '--early-epoch', '1', '--lr', '1e30', '--schedule', 'paper', '--precision', 'float32'])==1
    assert not list(tmp_path.iterdir())

def test_unreadable_image_in_a_worker(world, tmp_path, capsys):
    "What a decoding process raises is the same sentence"
    from infoutil.basics import DataError
    from infoutil.loaders import image_dls
    data = load_data(break_data(world, tmp_path, 'text as image'))
    with pytest.raises(DataError) as e: list(image_dls(data, 32, 4, stats=((.5,)*3, (.5,)*3), workers=1, device='cpu').train)
    assert '\n' not in str(e.value)

# ------------------------------------------------------------------ evaluate, show
evaluate_args = {'no repeats': ['--repeats', '0'], 'no epochs': ['--epochs', '0'], 'negative epochs': ['--epochs', '-2'], 'small for the net': ['--arch', 'convnet6'], 'valid-frac 0': ['--valid-frac', '0']}
@pytest.mark.parametrize('case', evaluate_args)
def test_evaluate_refuses_settings(world, tmp_path, refused, case):
    three(refused('evaluate', world/'set', '--test', world/'data', '-o', tmp_path/'r.json', *evaluate_args[case]))

@pytest.mark.parametrize('how', ['missing', 'empty class', 'text as image', 'half an image', 'other names', 'one class less'])
def test_evaluate_refuses_test_images(world, tmp_path, refused, how):
    d = break_data(world, tmp_path, how)
    three(refused('evaluate', world/'set', '--test', d/'train', '-o', tmp_path/'r.json'))

@pytest.mark.parametrize('how', ['missing', 'another folder', 'a file lost', 'a pixel changed', 'manifest cut', 'newer'])
@pytest.mark.parametrize('cmd', ['evaluate', 'show'])
def test_damaged_sets(world, tmp_path, refused, cmd, how):
    s = tmp_path/'s'
    if how=='another folder': s = world/'data'
    elif how!='missing': shutil.copytree(world/'set', s)
    png = next(s.glob('train/*/*.png'), None) if how!='another folder' else None
    if how=='a file lost': png.unlink()
    if how=='a pixel changed':
        with Image.open(png) as im: im = im.copy()
        im.putpixel((0, 0), (1, 2, 3)); im.save(png)
    if how=='manifest cut': (s/'infoutil.json').write_bytes((s/'infoutil.json').read_bytes()[:40])
    if how=='newer': (s/'infoutil.json').write_text(json.dumps({**json.loads((s/'infoutil.json').read_text()), 'schema':99}))
    three(refused(*{'evaluate':['evaluate', s, '--test', world/'data/test'], 'show':['show', s, '-o', tmp_path/'g.png']}[cmd]))

def test_show_refuses_an_empty_grid(world, tmp_path, refused): three(refused('show', world/'set', '-o', tmp_path/'g.png', '--max-classes', '0'))

def test_online_labels_of_a_set_without_teacher(world, tmp_path, refused):
    DistilledSet.load(world/'set').save(tmp_path/'s', keep_teacher=False)
    three(refused('evaluate', tmp_path/'s', '--test', world/'data/test', '--labels', 'online'))

# ------------------------------------------------------------------ the whole way
def evaluated(path, labels, protocol, repeats, seed=0):
    "The result file, with everything that it must say"
    r = json.loads(Path(path).read_text(encoding='utf-8'))
    assert {'accuracies', 'mean', 'std', 'config', 'seconds'}<=set(r)
    assert len(r['accuracies'])==len(r['seconds'])==repeats and all(0<=a<=1 for a in r['accuracies'])
    assert r['mean']==pytest.approx(sum(r['accuracies'])/repeats)
    sd = torch.tensor(r['accuracies'], dtype=torch.float64).std().item() if repeats>1 else 0.
    assert r['std']==pytest.approx(sd)
    c = r['config']
    assert (c['labels'], c['protocol'], c['repeats'], c['seed'])==(labels, protocol, repeats, seed) and c['test_images']==24 and c['epochs']>0 and c['arch']=='convnet3'
    assert c['distilled']['config']['ipc']==1 and c['distilled']['judge']['sha256']
    return r

@pytest.mark.parametrize('method', ['infoutil', 'rded', 'random'])
def test_each_method_end_to_end(world, tmp_path, capsys, method):
    s = tmp_path/'s'
    assert main(['distill', f'{world}/data', '--teacher', f'{world}/teacher', '-o', f'{s}', '--method', method, '--ipc', '1', '--candidates', '4', '--label-teacher', 'by_ipc'])==0
    about = json.loads((s/'infoutil.json').read_text(encoding='utf-8'))
    assert about['method']==method and about['config']['candidates']==4 and about['label_teacher']=='early' and about['factor']==1
    assert len(list((s/'train').glob('*/*.png')))==3 and len((s/'provenance.jsonl').read_text().splitlines())==3
    for labels, repeats in (('online', 2), ('stored', 1), ('hard', 1)):
        assert main(['evaluate', f'{s}', '--test', f'{world}/data/test', '--labels', labels, '--epochs', '3', '--repeats', str(repeats), '--seed', '5', '-o', f'{tmp_path}/{labels}.json'])==0
        evaluated(tmp_path/f'{labels}.json', labels, 'best', repeats, 5)
    assert main(['show', f'{s}', '-o', f'{tmp_path}/g.png'])==0
    with Image.open(tmp_path/'g.png') as im: assert im.format=='PNG' and min(im.size)>50
    assert 'written to' in capsys.readouterr().out and sorted(p.name for p in tmp_path.iterdir())==['g.png', 'hard.json', 'online.json', 's', 'stored.json']

@pytest.mark.parametrize('protocol,labels', [('paper', 'online'), ('hard', 'hard')])
def test_protocols(world, tmp_path, protocol, labels):
    argv = ['evaluate', f'{world}/set', '--test', f'{world}/data', '--protocol', protocol, '--epochs', '2', '--repeats', '1', '-o', f'{tmp_path}/r.json']
    assert main(argv+([] if protocol=='hard' else ['--labels', labels]))==0
    r = evaluated(tmp_path/'r.json', labels, protocol, 1)
    assert r['config']['recipe']['autoaugment']==(protocol=='paper')

def test_teacher_directory(world):
    for which, epoch in (('early', 1), ('converged', 2)):
        meta = json.loads((world/'teacher'/f'{which}.json').read_text())
        assert meta['classes']==list(CLASSES) and meta['size']==32 and meta['epoch']==epoch and 0<=meta['accuracy']<=1 and meta['arch']=='convnet3' and len(meta['sha256'])==64

def test_a_set_without_teacher_trains_on_stored_labels(world, tmp_path, capsys):
    assert main(['distill', f'{world}/data', '--teacher', f'{world}/teacher', '-o', f'{tmp_path}/s', '--ipc', '1', '--factor', '2', '--candidates', '4', '--no-teacher', '--label-teacher', 'by_ipc'])==0
    assert not (tmp_path/'s/teacher').exists()
    assert [l.endswith(' --labels stored') for l in capsys.readouterr().out.splitlines() if l.startswith('next: ')]==[True, True]
    assert main(['evaluate', f'{tmp_path}/s', '--test', f'{world}/data/test', '--labels', 'stored', '--epochs', '2', '--repeats', '1'])==0

def test_force_replaces_an_older_result(world, tmp_path):
    argv = ['distill', f'{world}/data', '--teacher', f'{world}/teacher', '-o', f'{tmp_path}/s', '--method', 'random', '--candidates', '4', '--label-teacher', 'by_ipc']
    assert main([*argv, '--ipc', '1'])==0
    assert main([*argv, '--ipc', '2', '--force'])==0
    assert DistilledSet.load(tmp_path/'s').ipc==2 and [p.name for p in tmp_path.iterdir()]==['s']

def test_another_student_and_held_out_images(world, tmp_path):
    "A student of another network, measured on the part of the training images that --valid-frac held out"
    frac = ['--valid-frac', '.25']
    assert main(['teacher', f'{world}/data', '-o', f'{tmp_path}/t', '--size', '32', '--epochs', '8', '--early-epoch', '1', '--bs', '6', '--precision', 'float32', *frac])==0
    assert main(['distill', f'{world}/data', '--teacher', f'{tmp_path}/t', '-o', f'{tmp_path}/s', '--method', 'random', '--ipc', '1', '--label-teacher', 'by_ipc', *frac])==0
    held = {f for f in load_data(world/'data', .25).valid.files}
    used = {json.loads(l)['source'] for l in (tmp_path/'s/provenance.jsonl').read_text().splitlines()}
    assert len(held)==9 and not used&held
    assert main(['evaluate', f'{tmp_path}/s', '--test', f'{world}/data', '--arch', 'convnet4', '--epochs', '1', '--repeats', '1', *frac, '-o', f'{tmp_path}/r.json'])==0
    c = json.loads((tmp_path/'r.json').read_text())['config']
    assert c['arch']=='convnet4' and c['test_images']==9

def test_two_classes_and_few_validation_images(tmp_path, capsys):
    "Few images prove little: a perfect teacher passes the preflight, one that is right on them by luck does not"
    def distil(data, *more): return main(['distill', f'{tmp_path}/{data}', '--teacher', f'{tmp_path}/t', '-o', f'{tmp_path}/s_{data}',
                                   '--method', 'random', '--ipc', '1', '--label-teacher', 'by_ipc', *more])
    make_folder(tmp_path/'data', CLASSES[:2], train=6, test=3)
    assert main(['teacher', f'{tmp_path}/data', '-o', f'{tmp_path}/t', '--size', '32', '--epochs', '8', '--early-epoch', '1', '--bs', '6', '--precision', 'float32'])==0
    assert load_teacher(tmp_path/'t').accuracy==1
    assert distil('data')==0
    luck = shutil.copytree(tmp_path/'data', tmp_path/'luck')             # the same validation images, half of the others mislabelled
    ants, bees = [sorted((luck/'train'/c).iterdir())[:3] for c in CLASSES[:2]]
    for a,b in zip(ants, bees):
        for here,there in ((a, b), (b, a)): here.rename(there.with_name(f'wrong_{there.name}'))
    capsys.readouterr()
    assert distil('luck')==1 and not (tmp_path/'s_luck').exists()
    assert 'the teacher is right on 12 of 18 real images and chance is 50.0%' in capsys.readouterr().err
    assert distil('luck', '--insist')==0                                # the user's word

def test_a_plain_folder_is_not_measured_on_its_training_images(tmp_path, capsys):
    "`--test photos` after `distill photos` means the images that were held out, not those that were distilled"
    make_folder(tmp_path/'d', train=20, test=1)
    photos = tmp_path/'d/train'
    assert main(['teacher', f'{photos}', '-o', f'{tmp_path}/t', '--size', '32', '--epochs', '4', '--early-epoch', '1', '--bs', '12', '--precision', 'float32'])==0
    assert main(['distill', f'{photos}', '--teacher', f'{tmp_path}/t', '-o', f'{tmp_path}/s', '--method', 'random', '--ipc', '1', '--label-teacher', 'by_ipc'])==0
    status = main(['evaluate', f'{tmp_path}/s', '--test', f'{photos}', '--epochs', '1', '--repeats', '1', '-o', f'{tmp_path}/r.json'])
    assert status==1 or json.loads((tmp_path/'r.json').read_text())['config']['test_images']==12

def test_a_set_of_an_unknown_network_can_be_shown_and_used(world, tmp_path, capsys):
    "A label teacher of the user's own (a fastai learner's) is needed for online labels only"
    t = load_teacher(world/'teacher', device='cpu')
    ds = DistilledSet.load(world/'set')
    own = Teacher(torch.nn.Sequential(t.model).eval(), 'custom', t.classes, t.size, t.mean, t.std)
    DistilledSet(ds.images, ds.y, ds.classes, ds.labels, own, {**ds.meta, 'judge':dict(arch='custom')}).save(tmp_path/'s')
    assert main(['show', f'{tmp_path}/s', '-o', f'{tmp_path}/g.png'])==0
    for labels in ('stored', 'hard'):
        assert main(['evaluate', f'{tmp_path}/s', '--test', f'{world}/data/test', '--labels', labels, '--arch', 'convnet3', '--epochs', '1', '--repeats', '1'])==0
    capsys.readouterr()
    assert main(['evaluate', f'{tmp_path}/s', '--test', f'{world}/data/test', '--labels', 'stored', '--epochs', '1', '--repeats', '1'])==1   # which network to train is not guessed
    three(err:=capsys.readouterr().err); assert '--arch' in err

# ------------------------------------------------------------------ help, processes
def subcommands(): return next(a for a in _parser(COMMANDS)._actions if isinstance(a, argparse._SubParsersAction)).choices

def test_help(capsys):
    "Every command and every option explains itself"
    assert set(subcommands())=={'demo', 'run', 'teacher', 'distill', 'evaluate', 'train', 'predict', 'show', 'compare', 'report', 'export', 'push'}
    for name,p in subcommands().items():
        for a in p._actions: assert a.help, f'{name} {a.option_strings or a.dest} has no help'
        with pytest.raises(SystemExit) as e: main([name, '--help'])
        assert e.value.code==0
    assert 'usage: infoutil' in capsys.readouterr().out

def test_help_names_every_choice():
    from infoutil import attribution, gradient_norms, methods, selection, student, training
    text = {(n, a.dest):a.help for n,p in subcommands().items() for a in p._actions}
    known = {('distill', 'method'): methods.METHODS, ('distill', 'preset'): methods.presets(methods.METHODS['infoutil']), ('distill', 'score'): gradient_norms.SCORES, ('distill', 'end'): selection.ENDS,
             ('distill', 'estimator'): attribution.ESTIMATORS, ('distill', 'label_teacher'): methods.LABEL_TEACHERS, ('teacher', 'schedule'): training.SCHEDULES,
             ('evaluate', 'protocol'): student.PROTOCOLS, ('evaluate', 'labels'): student.LABELS,
             ('compare', 'protocols'): student.PROTOCOLS, ('compare', 'labels'): student.LABELS}
    for k,names in known.items():
        for n in names: assert n in text[k], f"help of {k} does not name '{n}'"

@pytest.mark.parametrize('argv', [['distill', 'd', '--teacher', 't', '-o', 'o', '--ipc', 'ten'], ['teacher', 'd', '-o', 'o', '--lr', 'low'], ['teacher'], ['distil', 'd'], ['show', 's', '--nonsense']])
def test_mistyped_options(capsys, argv):
    assert main(argv)==1
    err = capsys.readouterr().err
    three(err); assert err.startswith('infoutil: ') and err.count('\n')==1 and '--help' in err

@pytest.mark.parametrize('extra', [['--method', 'random', '--budget', '64'], ['--method', 'rded', '--alpha', '1'], ['--method', 'random', '--preset', 'paper']])
def test_options_that_the_method_would_ignore(world, tmp_path, refused, extra):
    err = refused(*command(world, tmp_path, 'distill'), *extra)
    three(err); assert extra[2] in err

def test_set_folder_is_no_place_for_results(world, tmp_path, refused):
    shutil.copytree(world/'set', tmp_path/'s')
    three(refused('show', tmp_path/'s', '-o', tmp_path/'s/grid.png'))
    three(refused('evaluate', tmp_path/'s', '--test', world/'data/test', '-o', tmp_path/'s/infoutil.json'))

def test_force_spares_a_result_with_files_added(world, tmp_path, refused):
    shutil.copytree(world/'set', tmp_path/'s'); (tmp_path/'s/notes.txt').write_text('mine')
    three(refused('distill', world/'data', '--teacher', world/'teacher', '-o', tmp_path/'s', '--ipc', '1', '--force'))

def test_too_long_paths(world, tmp_path, refused):
    long = tmp_path/('x'*300)
    three(refused('teacher', long, '-o', tmp_path/'o'))
    three(refused('teacher', world/'data', '-o', long, '--size', '32'))
    three(refused('distill', world/'data', '--teacher', long, '-o', tmp_path/'o'))
    three(refused('show', world/'set', '-o', f'{long}.png'))

def test_download_without_network(tmp_path, refused, monkeypatch):
    def offline(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr(infoutil.data, 'untar_data', offline)
    err = refused('teacher', 'imagenette', '-o', tmp_path/'o')
    three(err); assert 'could not be downloaded from http' in err

def test_epochs_alone(world, tmp_path):
    assert main(['teacher', f'{world}/data', '-o', f'{tmp_path}/t', '--size', '32', '--epochs', '1', '--precision', 'float32'])==0
    assert load_teacher(tmp_path/'t', 'early').epoch==1

def user_env():
    env = {k:v for k,v in os.environ.items() if k not in ('PYTHONWARNINGS', 'PYTHONPATH')}
    return {**env, 'OMP_NUM_THREADS':'1'}

def test_help_does_not_wait_for_torch():
    commands = [[], *([c] for c in COMMANDS)]
    code = f"""
import sys, io, contextlib
from infoutil.command_line import main
for argv in {commands}:
    with contextlib.redirect_stdout(io.StringIO()):
        try: main([*argv, '--help'])
        except SystemExit as e: assert e.code==0
    if 'torch' in sys.modules: sys.exit('torch for '+str(argv))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=user_env())
    assert done.returncode==0, done.stderr

@pytest.mark.slow
def test_a_process_says_one_sentence(tmp_path):
    r = subprocess.run([sys.executable, '-m', 'infoutil', 'show', str(tmp_path/'nowhere')], capture_output=True, text=True, env=user_env(), cwd=tmp_path)
    assert r.returncode==1 and r.stdout==''
    assert r.stderr.count('\n')==1 and r.stderr.startswith('infoutil: '), r.stderr

def test_ctrl_c_leaves_nothing(world, tmp_path, capsys, monkeypatch):
    def press(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(infoutil.training, '_fit_schedule', press)
    assert main(['teacher', f'{world}/data', '-o', f'{tmp_path}/o', '--size', '32'])==130
    assert 'stopped' in capsys.readouterr().err and not list(tmp_path.iterdir())

def test_a_terminated_process_leaves_nothing_half_written(world, tmp_path):
    "SIGTERM, as batch systems and containers send it"
    argv = ['infoutil', 'teacher', world/'data', '-o', tmp_path/'o', '--size', '32', '--epochs', '100000']
    p = ready.Process('module', argv, user_env(), tmp_path)
    try:
        end = time.time()+60
        while not list(tmp_path.glob('o.run/*')) and time.time()<end and p.poll() is None: time.sleep(.01)
        p.send_signal(signal.SIGTERM)
        err = p.communicate(timeout=30)[1]
    finally: p.kill()
    assert p.returncode and 'Traceback' not in err and {q.name for q in tmp_path.iterdir()}<={'o.run'}, err
    assert not [q for q in tmp_path.rglob('*') if q.name.startswith('.')]           # finished epochs, and nothing half-written
