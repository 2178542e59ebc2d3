"The comparison: one grid, equal recipes, nothing done twice, and refusals before any work"
import json, os, signal, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
import infoutil.comparison as C, infoutil.label_teachers as L
from infoutil.command_line import main
from infoutil.comparison import compare, grid_of, paper_grid, parse_method, TABLES
from infoutil.distillation import distill
from infoutil.basics import InfoUtilError, OutputError, TeacherError
from infoutil.data import load_folder
from infoutil.methods import Choice, method, METHODS, opt, whole_images
from infoutil.results import as_published, method_label, read_grid, read_results, score_name
from infoutil.selection import Crops, top_crops
from infoutil.distilled_set import DistilledSet
from infoutil.teacher import load_teacher
from infoutil.models import own_arch
from infoutil.training import train_teacher
import ready

@pytest.fixture(scope='session')
def world(few, tmp_path_factory):
    d, data = tmp_path_factory.mktemp('compare'), load_folder(few)
    train_teacher(data, d/'teacher', 'convnet3_32', 32, epochs=4, early_epoch=1, checkpoints=(1, 2), bs=16, show_progress=False, device='cpu')
    return dict(dir=d, data=data, folder=str(few), teacher=str(d/'teacher'))

small = dict(ipc=[1], epochs=1, candidates=6, repeats=1, label_teachers=['by_ipc'], show_progress=False, device='cpu')

def lines(out): return [json.loads(l) for l in (Path(out)/'results.jsonl').read_text().splitlines()]

def bare(row): return {k:v for k,v in row.items() if k not in ('stages', 'device')}

def test_every_method_takes_part(world, tmp_path):
    "One keyword each, the same types, and no method's images are another's"
    frame = compare(world['data'], world['teacher'], tmp_path/'all', methods=list(METHODS), factor=2, iterations=3, budget=32, **small)
    assert set(frame.base)==set(METHODS) and frame.accuracy.between(0, 1).all()
    images = {m: DistilledSet.load(tmp_path/'all'/'sets'/s, with_teacher=False).images for m,s in zip(frame.method, frame['set'])}
    same = [(a, b) for a in images for b in images if a<b and torch.equal(images[a], images[b])]
    assert not same, same

def test_every_table_is_one_call(world):
    for n in TABLES:
        g = paper_grid(n)
        assert all(parse_method(m) for m in g['methods']) and any(parse_method(m).base=='random' for m in g['methods'])

def dark(cands, n, teacher, cfg):
    m, s = len(cands), cands.images.shape[-1]
    return top_crops(Crops(cands.files, torch.tensor([0, 0, s, s]).repeat(m, 1), cands.images.float().mean((1, 2, 3)), label=cands.label), n, 'lowest')

def test_workers_find_what_one_process_finds(world, tmp_path):
    "Ours and a function of one's own, which stays in this process"
    kw = dict(methods=[dark, 'infoutil'], labels=['online', 'stored', 'hard'], repeats=2, budget=32, **{k:v for k,v in small.items() if k!='repeats'})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                                  # workers have one each
    try: one = compare(world['data'], world['teacher'], tmp_path/'one', **kw)
    finally: torch.set_num_threads(threads)
    two = compare(world['data'], world['teacher'], tmp_path/'two', jobs=2, **kw)
    key = lambda t: t.sort_values(['method', 'labels', 'seed'])[['method', 'labels', 'seed', 'accuracy']].values.tolist()
    assert key(one)==key(two) and len(one)==3*3*2 and set(one.method)=={'random', 'dark', 'infoutil'}

def test_who_labels_is_tried_once_for_each_number_of_images(world, tmp_path, monkeypatch):
    "Cells, bytes and record name the winner; what was found out is kept when the comparison goes on or grows"
    asked, real = [], C.try_label_teachers
    def tried(data, known, ipc, **kw):
        asked.append(ipc)
        return real(data, known, ipc, views=10, images=30, **{**kw, 'epochs': 2})
    monkeypatch.setattr(C, 'try_label_teachers', tried)
    kw = {**{k:v for k,v in small.items() if k!='label_teachers'}, 'methods': ['random']}
    frame = compare(world['data'], world['teacher'], tmp_path/'c', **kw)
    text = (tmp_path/'c'/'compare.json').read_text()
    g = json.loads(text)
    assert 'NaN' not in text                                                  # which JSON does not know
    rows = g['label_trials']['1']
    assert asked==[1] and rows[0]['accuracy']==max(r['accuracy'] for r in rows) and len(rows)>3
    assert frame.label_teacher.item()==rows[0]['label_teacher']==g['config']['auto']['1']
    sizes = [(Path(world['teacher'])/f'{n}.safetensors').stat().st_size for n in rows[0]['label_teacher'].split('+')]
    assert lines(tmp_path/'c')[0]['bytes']['teacher']==sum(sizes)
    compare(world['data'], world['teacher'], tmp_path/'c', **kw)
    frame = compare(world['data'], world['teacher'], tmp_path/'c', **{**kw, 'ipc': [1, 2]}, extend=True)
    assert asked==[1, 2] and len(frame)==2
    assert set(json.loads((tmp_path/'c'/'compare.json').read_text())['label_trials'])=={'1', '2'}

def test_a_comparison_of_an_older_version_goes_on(world, tmp_path):
    "Its `auto` was the rule by the number of images"
    compare(world['data'], world['teacher'], tmp_path/'c', methods=['random'], **small)
    file = tmp_path/'c'/'compare.json'
    g = json.loads(file.read_text())
    del g['config']['auto']
    g['config']['label_teachers'] = ['auto']
    file.write_text(json.dumps(g))
    assert len(compare(world['data'], world['teacher'], tmp_path/'c', methods=['random'], **small))==1

@pytest.mark.slow
def test_killed_and_started_again(world, tmp_path):
    "SIGKILL between two students: what is finished stays, is not repeated, and the rest comes out as in an undisturbed run"
    kw = ['compare', world['folder'], '--teacher', world['teacher'], '--methods', 'rded', '--ipc', '1,2', '--epochs', '2', '--candidates', '6', '--repeats', '1', '--jobs', '1', '--label-teachers', 'by_ipc']
    out, whole = tmp_path/'killed', tmp_path/'whole'
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    p = ready.Process('module', ['infoutil', *kw, '-o', out], env)
    t0 = time.time()
    while (not (out/'results.jsonl').exists() or (out/'results.jsonl').read_text().count('\n')<2) and p.poll() is None and time.time()-t0<120: time.sleep(.01)
    assert p.poll() is None, 'it ended before it could be killed'
    p.send_signal(signal.SIGKILL)
    p.wait()
    before = (out/'results.jsonl').read_bytes()
    kept = before[:before.rfind(b'\n')+1].splitlines()
    (out/'results.jsonl').write_bytes(before+b'{"schema": 1, "data"')               # and the worst place to be killed at
    stamps = {f:f.stat().st_mtime_ns for f in (out/'sets').rglob('*') if f.is_file()}
    for o in (out, whole): assert (p := ready.run('module', ['infoutil', *kw, '-o', o], env=env)).returncode==0, p.stderr
    after = (out/'results.jsonl').read_bytes().splitlines()
    assert after[:len(kept)]==kept and len(after)==4
    assert all(f.stat().st_mtime_ns==s for f,s in stamps.items())
    key = lambda r: (r['method'], r['ipc'], r['seed'])
    assert [bare(r) for r in sorted(lines(out), key=key)]==[bare(r) for r in sorted(lines(whole), key=key)]

def test_label_teachers_share_images(world, tmp_path):
    frame = compare(world['data'], world['teacher'], tmp_path/'c', methods=['random'], **{**small, 'label_teachers': ['early', 'converged', 'epoch_001']})
    assert frame['set'].nunique()==1 and frame.label_epoch.tolist()==[1, 4, 1]
    a, b = [frame[frame.label_teacher==t].accuracy.item() for t in ('early', 'epoch_001')]
    assert a==b                                                # the same state under two names
    g = read_grid(tmp_path/'c')
    assert g['label_teachers']['early']['test_accuracy']<g['teacher']['test_accuracy']

def test_bytes_are_those_on_disk(world, tmp_path):
    frame = compare(world['data'], world['teacher'], tmp_path/'c', methods=['random'], labels=['online', 'stored', 'hard', 'views', 'views:1'], **small).set_index('labels')
    folder = tmp_path/'c'/'sets'/frame['set'].iloc[0]
    assert all(b['images']==sum(f.stat().st_size for f in (folder/'train').rglob('*.png')) for b in frame.bytes)
    assert frame.bytes['online']['teacher']==(Path(world['teacher'])/'early.safetensors').stat().st_size
    assert (frame.bytes['stored']['labels'], frame.bytes['hard']['labels'], frame.bytes['stored']['teacher'])==(10*10*2, 0, 0) and frame.bytes['views']['labels']>0
    assert frame.bytes['views:1']['labels']*frame.epochs['views']==frame.bytes['views']['labels']     # one view an image, again and again
    assert frame.accuracy['views']==frame.accuracy['online']
    for l in ('views:0', 'views:x', 'online:3', 'views:'):
        with pytest.raises(InfoUtilError, match='unknown labels'): compare(world['data'], world['teacher'], tmp_path/'d', methods=['random'], labels=[l], **small)

def test_one_set_repeats_the_student_alone(world, tmp_path):
    kw = dict(methods=['random'], **{**small, 'repeats': 2})
    assert compare(world['data'], world['teacher'], tmp_path/'a', one_set=True, **kw)['set'].nunique()==1
    assert compare(world['data'], world['teacher'], tmp_path/'b', **kw)['set'].nunique()==2

def test_another_function_under_the_same_name_is_another_grid(world, tmp_path):
    compare(world['data'], world['teacher'], tmp_path/'c', methods=[dark], **small)
    def other(cands, n, teacher, cfg): return top_crops(Crops((), torch.zeros(0, 4), torch.zeros(0)), n)
    with pytest.raises(OutputError, match='methods: dark: function was'): compare(world['data'], world['teacher'], tmp_path/'c', methods={'dark': other}, **small)

def test_two_runs_in_one_directory(world, tmp_path):
    fcntl = pytest.importorskip('fcntl')
    compare(world['data'], world['teacher'], tmp_path/'c', methods=['random'], **small)
    fd = os.open(tmp_path/'c', os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    for kw in ({}, dict(extend=True, labels=['online', 'hard'])):
        with pytest.raises(OutputError, match='another process is making'): compare(world['data'], world['teacher'], tmp_path/'c', methods=['random'], **kw, **small)
    os.close(fd)
    left = [tmp_path/'c'/n for n in ('sets/.random-ipc1-seed0.x3k_9a0b', 'cache/.0123.safetensors.77', 'compare.json.tmp1')]          # by a run that was killed
    own  = [tmp_path/'c'/n for n in ('.ipynb_checkpoints', 'sets/.ipynb_checkpoints', 'sets/notes', 'cache/.DS_Store', 'compare.json.bak', 'report.md')]      # by the user
    for p in [*left, *own]: p.mkdir(parents=True)
    assert len(compare(world['data'], world['teacher'], tmp_path/'c', methods=['random'], **small))==1
    assert not any(p.exists() for p in left) and all(p.exists() for p in own)

def test_refused_on_the_command_line(world, tmp_path, capsys):
    run = lambda *more: (main(['compare', world['folder'], '--teacher', world['teacher'], '-o', str(tmp_path/'c'), '--epochs', '1', '--candidates', '6', '--ipc', '1', '--label-teachers', 'by_ipc', *more]), capsys.readouterr().err)
    for more, words in ((('--methods', 'rdde'), "did you mean 'rded'"), (('--archs', 'convnet33'), "did you mean 'convnet3'"), (('--table', '5'), 'table 5 came'), (('--ipc', '1,x'), 'whole number'),
                        (('--ipc', '7'), 'lower ipc'), (('--repeats', '0'), '1 or more'), (('--test', str(Path(world['folder'])/'train')), 'trained on'), (('--methods', 'sre2l', '--label-teachers', 'late'), "unknown label teacher 'late'")):
        status, err = run(*more)
        assert status==1 and words in err and 'Traceback' not in err and not (tmp_path/'c').exists(), (more, err)

def test_classes_that_differ(world, tmp_path):
    other = tmp_path/'other'
    for c in 'abc': (other/c).mkdir(parents=True); (other/c/'x.png').write_bytes(next((Path(world['folder'])/'test'/'0').glob('*.png')).read_bytes())
    with pytest.raises(InfoUtilError, match='3 classes and the distilled set 10'): compare(world['data'], world['teacher'], tmp_path/'c', test=other, **small)
    with pytest.raises(TeacherError, match='class 0 is'): compare(replace(world['data'], classes=tuple('abcdefghij')), world['teacher'], tmp_path/'c', **small)

def test_another_early_teacher_is_another_grid(world, tmp_path):
    run = lambda teacher: compare(world['data'], teacher, tmp_path/'c', methods=['random'], **small)
    run(world['teacher'])
    import shutil
    shutil.copytree(world['teacher'], tmp_path/'other')
    for end in ('json', 'safetensors'): shutil.copy(tmp_path/'other'/f'converged.{end}', tmp_path/'other'/f'early.{end}')
    with pytest.raises(OutputError, match='teachers: early was'): run(tmp_path/'other')

@pytest.mark.parametrize('part,word', [('train', 'training_files was'), ('test', 'evaluation_labels was')])
def test_images_that_went_to_another_class_make_another_grid(world, tmp_path, part, word):
    import shutil
    folder = shutil.copytree(world['folder'], tmp_path/'digits')
    run = lambda **kw: compare(str(folder), world['teacher'], tmp_path/'c', methods=['random'], **small, **kw)
    frame = run()
    kept = json.loads((tmp_path/'c'/'compare.json').read_text())
    for k in ('training_files', 'evaluation_labels'): kept['config'].pop(k)
    (tmp_path/'c'/'compare.json').write_text(json.dumps(kept))                   # as an older version wrote it
    assert run().accuracy.tolist()==frame.accuracy.tolist()
    shutil.rmtree(tmp_path/'c'); run()
    assert len(run(test=str(folder/'test')))==1                                 # the same images, named otherwise
    f = sorted((folder/part/'3').iterdir())[0]; f.rename(folder/part/'5'/f'moved{f.name}')
    with pytest.raises(OutputError, match=word): run()

def test_evaluation_images_among_the_candidates(world, tmp_path):
    data, teacher = world['data'], tmp_path/'bare'
    import shutil
    shutil.copytree(world['teacher'], teacher)
    for f in teacher.glob('training.*'): f.unlink()                       # a teacher of which nothing is known
    with pytest.raises(InfoUtilError, match='among the training images'): compare(data, teacher, tmp_path/'c', test=Path(world['folder'])/'train', methods=['random'], **small)

def test_what_grows_and_what_does_not(world, tmp_path):
    run = lambda **kw: compare(world['data'], world['teacher'], tmp_path/'c', **{**small, 'methods': ['random'], **kw})
    first = run()
    with pytest.raises(OutputError, match='repeats was 1 and is 2'): run(repeats=2)
    with pytest.raises(OutputError, match='settings: candidates was 6 and is 7'): run(candidates=7)
    grown = run(repeats=2, methods=['random', 'rded'], extend=True)
    assert len(grown)==4 and grown.accuracy[0]==first.accuracy[0]
    with pytest.raises(InfoUtilError, match='seed was 0 and is 1'): run(repeats=2, seed=1, extend=True)
    with pytest.raises(OutputError, match='epochs was 1 and is 2'): run(repeats=2, methods=['random', 'rded'], epochs=2)
    longer = run(epochs=2, extend=True)
    assert sorted(longer.epochs)==[1, 1, 1, 1, 2] and longer.accuracy[:4].tolist()==grown.accuracy.tolist()
    assert len(run(repeats=2, methods=['random', 'rded'], epochs=[2, 1]))==8
    with pytest.raises(OutputError, match='epochs was 1, 2 and is 1'): run(repeats=2, methods=['random', 'rded'])

def test_a_grid_that_grows_keeps_its_own_random_images(world, tmp_path):
    run = lambda **kw: compare(world['data'], world['teacher'], tmp_path/'c', **{**small, 'methods': ['random:factor=1'], **kw})
    run()
    grown = run(methods=['rded'], extend=True)
    assert sorted(grown.method)==['random:factor=1', 'rded']
    assert set(grid_of(world['data'], world['teacher'], tmp_path/'c', **{**small, 'methods': ['el2n']}, extend=True)[0].methods)=={'random:factor=1', 'el2n'}

# -- a method is one class, and everything else is derived from it

@pytest.fixture
def brightest():
    "A method as a cell of a chapter declares it"
    @method('brightest', 'Brightest images')
    class Brightest(Choice):
        "Whole images of greatest brightness"
        score_name = 'brightness'
        power:float = opt(1., 'exponent of the brightness', least=.1, most=10)
        def score_part(self, cands, teacher, maps=None, bs=None):
            return whole_images(cands, -cands.images.float().mean((1, 2, 3))**self.power)
    yield Brightest
    METHODS.pop('brightest')

def help_of(command, capsys):
    "What `infoutil COMMAND --help` says, its line breaks left out"
    with pytest.raises(SystemExit) as e: main([command, '--help'])
    assert e.value.code==0
    return ' '.join(capsys.readouterr().out.split())

def test_a_method_is_declared_in_one_place(world, brightest, tmp_path, capsys):
    "A class with one setting: distill, the command line, compare, results and reports know it, and no other line was touched"
    teacher, out = load_teacher(world['teacher'], device='cpu'), tmp_path/'c'
    run = lambda **kw: distill(world['data'], teacher, method='brightest', ipc=1, candidates=6, label_teacher='converged', show_progress=False, preflight=False, **kw)
    ds, other = run(), run(power=2.)
    assert ds.meta['method']=='brightest' and (ds.meta['config']['power'], other.meta['config']['power'])==(1, 2)
    assert [q['score'] for q in other.provenance]==pytest.approx([-p['score']**2 for p in ds.provenance])
    for command in ('distill', 'compare'):
        text = help_of(command, capsys)
        assert '--power X exponent of the brightness, 0.1 to 10; for brightest; without it 1.0' in text
        if command=='distill': assert 'brightest: whole images of greatest brightness' in text
    argv = ['distill', world['folder'], '--teacher', world['teacher'], '-o', str(tmp_path/'set'), '--method', 'brightest', '--ipc', '1', '--candidates', '6', '--label-teacher', 'converged']
    assert main([*argv, '--power', '2'])==0 and torch.equal(DistilledSet.load(tmp_path/'set').images, other.images)
    for wrong, words in (('20', 'power 20.0 came; 10 or less is accepted'), ('much', 'a number is accepted')):
        assert main([*argv[:5], str(tmp_path/'no'), *argv[6:], '--power', wrong])==1 and words in capsys.readouterr().err
    assert main([*argv[:5], str(tmp_path/'no'), *argv[6:-6], '--method', 'rded', '--power', '2'])==1 and 'choose brightest' in capsys.readouterr().err
    frame = compare(world['data'], world['teacher'], out, methods=['brightest', 'brightest:power=2'], power=1., **small)
    assert set(frame.method)=={'random', 'brightest', 'brightest:power=2.0'}
    assert [s['power'] for b,s in zip(frame.base, frame.settings) if b=='brightest']==[1, 2]
    assert read_results(out).base.tolist().count('brightest')==2
    assert (method_label('brightest'), score_name('brightest', {}), as_published('brightest', {}))==('Brightest images', 'brightness', True)

def test_a_setting_is_declared_in_one_place(world, brightest, tmp_path, capsys):
    "A line more in a class, and every place that knows the method knows its new setting"
    @method('brightest', 'Brightest images')
    class Brighter(brightest):
        "Whole images of greatest brightness"
        channel:str = opt('all', 'which colour counts', choices=('all', 'red'), maps=False)
        def score_part(self, cands, teacher, maps=None, bs=None):
            one = cands if self.channel=='all' else replace(cands, images=cands.images[:, :1])
            return super().score_part(one, teacher)
    ds = distill(world['data'], load_teacher(world['teacher'], device='cpu'), method='brightest', channel='red', ipc=1, candidates=6, label_teacher='converged', show_progress=False, preflight=False)
    assert (ds.meta['config']['channel'], ds.meta['config']['power'])==('red', 1)
    for command in ('distill', 'compare'): assert '--channel NAME which colour counts, all or red; for brightest; without it all' in help_of(command, capsys)
    frame = compare(world['data'], world['teacher'], tmp_path/'c', methods=['brightest:channel=red'], **small)
    assert [s['channel'] for b,s in zip(frame.base, frame.settings) if b=='brightest']==['red']
    with pytest.raises(InfoUtilError, match="did you mean 'red'"): parse_method('brightest:channel=rad').config(1, 0, {})

@pytest.mark.parametrize('arch,student', [('convnet3_16', 'convnet3_16'), ('convnet4_32', 'convnet4_32'), ('resnet18', 'resnet18'),
                                          ('unnormalized/convnet3_8', 'convnet3_8'), ('convnet3_16+convnet3_16', 'convnet3'), ('custom', 'convnet3')])
def test_trials_and_comparisons_train_the_network_of_the_teacher(arch, student):
    "Of any width: the trial of a narrow teacher once trained networks of sixteen times the arithmetic, and compare refused them"
    judge = SimpleNamespace(arch=arch, size=32)
    assert L._student_of(judge, None)==student and L._student_of(judge, 'vgg11')=='vgg11'
    if own_arch(arch): assert C._own_arch(judge)==[student]
    else:
        with pytest.raises(InfoUtilError, match='no network came for the students'): C._own_arch(judge)

def test_a_label_teacher_that_guesses_is_refused_unless_a_trial_found_it():
    "A trial has its own check, on images that were held out; chance on the evaluation images is no reason to stop a grid"
    class Same(torch.nn.Module):
        "The same answer to every image"
        def forward(self, x): return torch.eye(2)[torch.zeros(len(x), dtype=torch.long)]
    teacher, y = SimpleNamespace(model=Same().eval(), classes=('a', 'b')), torch.arange(40)%2
    class Loader(list): dataset = range(40)
    dl = Loader([(torch.zeros(40, 3, 8, 8), y)])
    with pytest.raises(TeacherError, match="label teacher 'early' is right on 20 of 40 evaluation images"): C._test_accuracy(teacher, dl, 'early')
    assert C._test_accuracy(teacher, dl, 'early', named=False)==.5
