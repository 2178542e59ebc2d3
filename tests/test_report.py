"Reports of every kind of comparison: the published figures are the paper's, the numbers on the page are those of the tables, and the page stands alone"
import html, json, os, re, shutil, signal, statistics, subprocess, threading, time
from html.parser import HTMLParser
from pathlib import Path
import matplotlib.pyplot as plt, nbformat, pandas as pd, pytest
import infoutil.report as R
from infoutil.basics import InfoUtilError, OutputError
from infoutil.fixtures.toy_comparison import toy_comparison
from infoutil.published import beside_published, PUBLISHED, published
from infoutil.plots import read_sets
from infoutil.report import make_report
from infoutil.methods import METHODS, method_label, reads
from infoutil.results import accuracy_table, best_first, best_recipes, claims, cost_table, difference_table, for_people, read_results, summary, yardsticks

root = Path(__file__).parents[1]

def first_regime(path):
    "The students that the tables of a report begin with"
    t = best_recipes(read_results(path))
    return t[t.labels==t.labels[0]].reset_index(drop=True)

# -- names and sentences ----------------------------------------------------------------------------------------------

def test_methods_have_names_for_people():
    said = {'infoutil': 'InfoUtil', 'infoutil:alpha=0.0': 'InfoUtil, no noise', 'infoutil:preset=paper': 'InfoUtil, paper preset', 'rded:crops=1': 'RDED, 1 crop',
            'random:factor=1': 'Random images, no mosaics', 'infoutil:end=highest:budget=64': 'InfoUtil, highest scores, 64 model calls', 'mine:a': 'mine:a', 'random_grad_norm': 'InfoUtil, random windows'}
    assert {s: method_label(s) for s in said}==said
    named = [method_label(f'{m}:{k}={v}') for m,c in METHODS.items() for k in reads(c) for v in ('1', '2', 'None', '{0}', 'a b')]+[method_label(m) for m in METHODS]
    assert len(set(named))==len(named)

def changed(tmp_path, accuracy, **keywords):
    "The students of an invented comparison with accuracies of one's own"
    t = read_results(toy_comparison(tmp_path/'c', sets=False, **keywords))
    return t.assign(accuracy=[accuracy(r)+.001*r.seed for r in t.itertuples()])

def test_the_best_cell_of_the_whole_grid_comes_first(tmp_path):
    "Once a report named 20.7 % with online labels and left out 29.0 % with hard ones"
    best = {('herding', 'hard'): .29, ('rded', 'online'): .207, ('random', 'hard'): .25}
    t = changed(tmp_path, lambda r: best.get((r.method, r.labels), .1), methods=('random', 'rded', 'herding'), ipcs=(1,), teachers=('early',))
    first, beside, unclear = claims(t)
    assert first=='Best of the whole grid: Herding with hard labels, 29.1 ± 0.1 %; RDED with online labels, 20.8 ± 0.1 % (label teacher early).'
    assert beside=='Beside random images of the same recipe, paired by seed, in points ± standard error: Herding with hard labels 4.0 ± 0.0 above; RDED with online labels 10.7 ± 0.0 above.'
    assert unclear.startswith('Not clear: 1 of 4 differences to random images') and '\n' not in unclear
    assert best_recipes(t).labels[0]=='hard' and best_first(t)==['herding', 'random', 'rded']
    table = for_people(accuracy_table(t, ['labels', 'method']), t)
    assert list(table.index)==[(l, m) for l in ('online', 'hard') for m in ('Herding', 'Random images', 'RDED')]

def test_random_images_may_be_the_best(tmp_path):
    t = changed(tmp_path, lambda r: .3+.1*(r.method=='random'), ipcs=(1,), labels=('online',), teachers=('early',))
    assert claims(t)[0].startswith('Best of the whole grid: Random images, 40.1') and '10.0 ± 0.0 below' in claims(t)[1]

def test_one_lucky_student_is_not_the_best(tmp_path):
    t = changed(tmp_path, lambda r: .9 if r.method=='rded' else .3, ipcs=(1,), labels=('online',), teachers=('early',))
    assert 'RDED' not in claims(t[(t.method!='rded')|(t.seed==0)])[0] and 'RDED' in claims(t)[0]

def test_what_accuracies_are_judged_by(tmp_path):
    t = changed(tmp_path, lambda r: .3, ipcs=(1,), labels=('online',), teachers=('early',))
    grid = dict(classes=list('abcd'), teacher=dict(arch='convnet3', test_accuracy=.8), label_teachers=dict(early=dict(test_accuracy=.5), other=dict(test_accuracy=.1)))
    assert {k: round(v, 1) for k,v in yardsticks(t, grid).items()}=={'chance': 25.0, 'random images by the recipe of the best': 30.1, 'label teacher early': 50.0, 'convnet3 on all real images': 80.0}
    assert set(yardsticks(t, {}))=={'chance', 'random images by the recipe of the best'}

# -- the picture of the README ----------------------------------------------------------------------------------------

def test_points_of_the_picture_are_those_of_the_results(monkeypatch):
    monkeypatch.chdir(root/'nbs'/'paper')
    code = [c.source for c in nbformat.read('tables.ipynb', 4).cells if c.cell_type=='code']
    names = {}
    for c in (next(c for c in code if w in c) for w in ('import json', 'def students', 'def points')): exec(c, names)
    rows = [json.loads(l) for l in (root/'results'/'tables.jsonl').read_text().splitlines()]
    recipes = {'InfoUtil, best recipe': ('best', 'infoutil'), 'RDED, best recipe': ('best', 'rded'), 'random images, best recipe': ('best', 'random'), "InfoUtil, RDED's recipe": ('rded', 'infoutil')}
    for data,title in (('cifar10', 'CIFAR-10'), ('imagenette', 'ImageNette')):
        got = names['points'](data)
        assert set(got)=={*recipes, 'InfoUtil, as published', 'RDED, as published'}
        for name,(recipe, method) in recipes.items():
            of = {}
            for r in rows:
                if (r['data'], r['protocol'], r['method'])==(data, recipe, method): of.setdefault(r['ipc'], []).append(100*r['accuracy'])
            assert of and set(got[name].index)==set(of)
            for ipc,a in of.items():
                assert got[name]['mean'][ipc]==pytest.approx(statistics.fmean(a))
                assert got[name]['std'][ipc]==pytest.approx(statistics.stdev(a)) if len(a)>1 else pd.isna(got[name]['std'][ipc])
        for method in ('InfoUtil', 'RDED'):
            p = PUBLISHED[(PUBLISHED.data==title)&(PUBLISHED.network=='ConvNet')&(PUBLISHED.method==method)&(PUBLISHED.table==1)]
            assert dict(zip(p.ipc, p.accuracy))==got[f'{method}, as published']['mean'].to_dict() and len(p)==3

# -- published figures ------------------------------------------------------------------------------------------------

def test_totals_of_the_tables():
    "Sums taken from the paper's tables by another way of reading them"
    main = PUBLISHED[(PUBLISHED.table==1)&PUBLISHED.method.isin(['SRe2L', 'RDED', 'InfoUtil'])].groupby(['method', 'network']).accuracy.sum().round(1).to_dict()
    assert main=={('SRe2L', 'ResNet-18'): 488.4, ('RDED', 'ResNet-18'): 864.3, ('InfoUtil', 'ResNet-18'): 1000.4, ('RDED', 'ResNet-101'): 772.7, ('InfoUtil', 'ResNet-101'): 903.9,
                  ('RDED', 'ConvNet'): 819.5, ('InfoUtil', 'ConvNet'): 910.4}
    assert PUBLISHED.groupby('table').accuracy.sum().round(1).to_dict()=={1: 6709.8, 2: 771.6, 3: 255.9, 4: 407.5, 5: 404.4, 6: 715.5, 7: 1091.6, 8: 195.4, 9: 395.7, 10: 41.1, 11: 739.4}

SPOTS = [(1, 'cifar10', 'convnet3', 'infoutil', 10, '', 54.1), (1, 'imagenet100', 'resnet101', 'rded', 50, '', 66.0), (1, 'imagenet1k', 'resnet18', 'sre2l', 1, '', 0.1), (1, 'cifar10', 'convnet3', 'tesla', 1, '', 48.5),
         (2, 'imagenet1k', 'mobilenet_v2', 'infoutil', 10, 'teacher ResNet-18', 37.1), (2, 'imagenet1k', 'swin_v2_t', 'rded', 10, 'teacher VGG-11', 7.8), (3, 'imagenet1k', 'resnet18', 'd3s', 50, '', 50.3),
         (4, 'imagenette', '', 'rded', 50, 'continual, step 3', 20.1), (5, 'tinyimagenet', 'resnet18', 'infoutil', 200, '', 62.0), (6, 'imagenette', 'resnet18', 'infoutil', 50, 'random crop, gradient norm', 85.0),
         (7, 'imagewoof', 'resnet18', 'infoutil', 10, 'without noise', 40.0), (8, 'imagenet1k', 'resnet18', 'grad_cam', 10, '', 30.4), (9, 'cifar100', 'convnet3', 'herding', 50, '', 33.7),
         (9, 'cifar10', 'convnet3', 'forgetting', 1, '', 13.5), (10, 'tinyimagenet', 'resnet18', 'kmeans', 10, '', 8.9), (11, 'imagewoof', 'resnet18', 'infoutil', 50, 'converged label teacher', 69.2)]

@pytest.mark.parametrize('table, data, network, method, ipc, note, accuracy', SPOTS)
def test_spots(table, data, network, method, ipc, note, accuracy):
    p = published(data, network, table, method, ipc)
    assert p[p.note==note].accuracy.tolist()==[accuracy]

@pytest.mark.parametrize('table, note', [(7, 'with noise'), (11, 'converged label teacher'), (6, 'Shapley crop, gradient norm')])
def test_tables_agree_where_the_paper_repeats_itself(table, note):
    p = PUBLISHED[(PUBLISHED.table==table)&(PUBLISHED.note==note)]
    if table==11: p = p[p.method=='RDED']
    if table==6:  p = p[~((p.data=='ImageWoof')&(p.ipc==1))]       # the paper's own slip: another number of images under that head
    both = p.merge(PUBLISHED[PUBLISHED.table==1], on=['data', 'ipc', 'network', 'method'])
    assert len(both)==len(p) and (both.accuracy_x==both.accuracy_y).all()

# -- every kind of directory ------------------------------------------------------------------------------------------

def rewritten(path, rows=None, grid=None):
    "A comparison whose rows, or whose settings, are changed"
    f = path/'results.jsonl'
    if rows: f.write_text(''.join(json.dumps(r)+'\n' for r in (rows(json.loads(l)) for l in f.read_text().splitlines()) if r))
    if grid: (path/'compare.json').write_text(json.dumps(grid(json.loads((path/'compare.json').read_text()))))
    return path

def template(path, monkeypatch):
    "What the template shows for a directory, as HTML, run in this process"
    before = plt.get_fignums()                 # of other tests
    shown = []
    monkeypatch.setattr(R, '_display', shown.append)
    monkeypatch.chdir(path)
    names = {}
    for c in R._fresh_notebook().cells:
        if c.cell_type=='code': exec(compile(c.source, c.source.split('\n')[0], 'exec'), names)
    assert plt.get_fignums()==before, 'a figure was left open'
    return '\n'.join(shown)

NASTY = '<script>alert(1)</script>|$x$'

def named(r):
    if r['method']=='rded': r.update(method='my_method', base='my_method')
    return r

KINDS = dict(
    usual        = (dict(), None, None, ['Best of the whole grid: InfoUtil', 'Points above RDED', 'points above random images', 'attribution maps with the window', 'To judge by: chance 10.0']),
    one_cell     = (dict(methods=('random',), ipcs=(1,), labels=('hard',), seeds=1, sets=False), None, None, ['Compared is 1 method', '1 image per class', 'hard labels', '(n=1)']),
    one_ipc      = (dict(ipcs=(3,), labels=('online',), teachers=('converged',)), None, None, ['3 images per class', 'online labels']),
    two_seeds    = (dict(seeds=2, sets=False), None, None, ['too few seeds to tell from random images', '(n=2)']),
    own_method   = (dict(ipcs=(1, 2)), named, None, ['my_method']),
    published    = (dict(ipcs=(1, 10), sets=False), lambda r: {**r, 'data': 'cifar10', 'epochs': 300}, None, ['54.1 (Table 1)', '23.5 (Table 1)', 'context, not competitors', '82.2 %']),
    many_teachers= (dict(methods=('random', 'infoutil'), labels=('online', 'hard'), teachers=('epoch_001', 'epoch_005', 'converged'), sets=False), None, None, ['Figure 4', 'epoch_005']),
    hard_is_best = (dict(seeds=2, sets=False), lambda r: {**r, 'accuracy': r['accuracy']/2+.5*(r['labels']=='hard'), 'label_epoch': r['label_epoch'] or None}, None, ['Figure 4', 'Top-1 on the test images, hard labels']),
    a_map        = (dict(ipcs=(1,), seeds=4, sets=False), lambda r: {**r, 'epochs': 300 if r['seed']%2 else 100}, None, ['InfoUtil above Random images in points', 'RDED above Random images in points', 'length of training']),
    no_costs     = (dict(sets=False), lambda r: {**r, 'stages': None, 'bytes': None, 'best': None, 'label_epoch': None}, None, ['top-1 %']),
    no_memory    = (dict(sets=False), lambda r: {**r, 'stages': {k: dict(seconds=v['seconds'], peak_bytes=None) for k,v in r['stages'].items()}}, None, ['does not report peak memory']),
    bare_grid    = (dict(sets=False), None, lambda g: dict(schema=1), ['unknown']),
    two_archs    = (dict(ipcs=(1,), sets=False), lambda r: {**r, 'arch': 'convnet3' if r['seed'] else 'resnet18'}, None, ['Top-1 of every recipe with the same labels', 'resnet18']),
    nasty        = (dict(ipcs=(1,), seeds=1, sets=False), lambda r: {**r, 'method': r['method'] if r['method']=='random' else NASTY+r['method'], 'data': NASTY, 'set': '../../../etc'}, lambda g: {**g, 'note': NASTY, 'config': {NASTY: NASTY}}, []))

RARE = {'two_seeds', 'own_method', 'one_ipc', 'no_memory', 'two_archs'}

@pytest.mark.parametrize('kind', [pytest.param(k, marks=[pytest.mark.slow]*(k in RARE)) for k in KINDS])
def test_template_adapts(kind, tmp_path, monkeypatch):
    keywords, rows, grid, wanted = KINDS[kind]
    text = template(rewritten(toy_comparison(tmp_path/'c', **keywords), rows, grid), monkeypatch)
    plain = html.unescape(text).replace('\u00a0', ' ')
    for w in wanted: assert w in plain, w
    assert '<script' not in text and 'nan' not in re.sub('base64,[^"]*', '', text)
    monkeypatch.chdir(root)                        # the tables on the page are those of the functions
    for v in accuracy_table(first_regime(tmp_path/'c')).to_numpy().flat: assert html.escape(v) in text

def test_published_figures_of_other_conditions_stay_out(tmp_path):
    "Table 2 has this student, under teachers of other networks"
    t = read_results(toy_comparison(tmp_path/'c', ipcs=(1, 10), labels=('online',), teachers=('converged',), sets=False)).assign(epochs=300)
    assert len(published('imagenet1k', 'mobilenet_v2', ipc=10))==10 and not len(beside_published(t.assign(data='imagenet1k', arch='mobilenet_v2')))

def test_the_later_of_two_lines_counts(tmp_path):
    d = toy_comparison(tmp_path/'c', sets=False)
    lines = (d/'results.jsonl').read_text().splitlines()
    again = dict(json.loads(lines[0]), accuracy=.123)
    with open(d/'results.jsonl', 'a') as f: f.write(json.dumps(again)+'\n'+lines[1][:40])        # and a torn line
    t = read_results(d)
    assert len(t)==len(lines) and t.accuracy.iloc[-1]==.123

def test_sets_are_read_from_their_folder_alone(tmp_path):
    d = toy_comparison(tmp_path/'c', methods=('random',), ipcs=(2,), seeds=1)
    (d/'sets'/'random-ipc2-seed0').rename(d/'elsewhere')
    sets, gone = read_sets(d, read_results(d).assign(set='../elsewhere'))
    assert sets=={} and 'no set of 2 images' in gone[0]

def test_no_part_is_empty_and_no_method_is_a_spec(tmp_path, monkeypatch):
    "Without sets, bytes and stages their parts are left out of the page; methods have names"
    d = rewritten(toy_comparison(tmp_path/'c', methods=('random', 'infoutil', 'infoutil:alpha=0.0'), ipcs=(1,), labels=('online',), teachers=('early',), sets=False),
                  lambda r: {**r, 'stages': None, 'bytes': None, 'best': None, 'base': r['method'].partition(':')[0]}, lambda g: dict(schema=1))
    text = template(d, monkeypatch)
    assert 'InfoUtil, no noise' in text and not re.search('(random|infoutil|alpha=0)(?!_)', re.sub('base64,[^"]*', '', text).replace('random images', '').replace('infoutil compare', '').replace('infoutil report', ''))
    monkeypatch.chdir(root)
    text = make_report(d).read_text()
    parts = re.findall('<h2 [^>]*>([^<]*)', text)
    assert parts==['In short', 'What was compared', 'Accuracy', 'How to make this again'] and '<h3' not in text
    assert text.index('In short')<text.index('<nav')<text.index('What was compared', text.index('</nav'))
    best = summary(read_results(d)).sort_values('mean', ascending=False).method.map(method_label).tolist()
    table = text[text.index('Top-1 on the test images'):]
    assert re.findall('<tr><th>([^<]*)</th>', table)[:3]==best

def test_a_missing_random_row(tmp_path, monkeypatch):
    "The contract has one always; a directory without is told so in a sentence"
    d = rewritten(toy_comparison(tmp_path/'c', sets=False), lambda r: {**r, 'method': 'x'+r['method'], 'base': 'x'+r['base']})
    assert 'no random row' in template(d, monkeypatch)

# -- the files --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A comparison with its report"
    d = toy_comparison(tmp_path_factory.mktemp('report')/'c', ipcs=(1, 4), seeds=3)
    assert make_report(d)==d/'report.html'
    return d

class Outline(HTMLParser):
    "Tags that are opened and closed, attributes, and text"
    VOID = {'meta', 'img', 'br', 'hr', 'input', 'link'}
    def __init__(self, text):
        super().__init__(); self.open, self.tags, self.texts = [], [], []
        self.feed(text); self.close()
        assert not self.open, f'never closed: {self.open}'
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID: self.open.append(tag)
    def handle_endtag(self, tag):
        if tag in self.VOID: return
        assert self.open and self.open[-1]==tag, f'</{tag}> inside {self.open[-3:]}'
        self.open.pop()
    def handle_data(self, data): self.texts.append(data)

def test_page_is_sound_and_stands_alone(made):
    text = (made/'report.html').read_text(encoding='utf-8')
    page = Outline(text)
    find = lambda tag: [a for t,a in page.tags if t==tag]
    assert text.startswith('<!DOCTYPE html>') and find('html')==[{'lang': 'en'}] and len(find('title'))==1 and len(find('h1'))==1
    assert any(a.get('name')=='viewport' for a in find('meta')) and '@media print' in text
    assert not {t for t,_ in page.tags} & {'script', 'link', 'iframe', 'object', 'embed', 'base', 'form'}
    assert find('img') and all(a['src'].startswith('data:image/png;base64,') and a['alt'] and not a['alt'].startswith('No description') for a in find('img'))
    ids = [a['id'] for _,a in page.tags if 'id' in a]
    assert len(ids)==len(set(ids))
    assert find('a') and all(a['href'][:1]=='#' and a['href'][1:] in ids for a in find('a'))
    assert not [v for _,a in page.tags for k,v in a.items() if k in ('src', 'href', 'srcset', 'style', 'data') and re.search('https?:|//', v.partition('base64,')[0])]
    style = re.search('<style>(.*?)</style>', text, re.S)[1]
    assert 'url(' not in style and '@import' not in style
    assert str(made) not in text and 'Traceback' not in text

def test_the_package_carries_the_template():
    "The page of the template is the one that is read and tried; `make export` copies it"
    source, carried = root/'nbs'/'templates'/'report.ipynb', root/'infoutil'/'templates'/'report.ipynb'
    assert source.read_bytes()==carried.read_bytes()

def test_notebook_can_be_opened_and_made_again(made):
    nb = nbformat.read(made/'report.ipynb', 4)
    nbformat.validate(nb)
    assert not [c for c in nb.cells if c.source.startswith('#| hide')] and all(c.get('outputs') is not None for c in nb.cells if c.cell_type=='code')
    assert not [p for p in made.iterdir() if '.tmp' in p.name]

def test_made_again_and_the_changed_notebook_is_kept(made, tmp_path, monkeypatch):
    d = shutil.copytree(made, tmp_path/'c')
    monkeypatch.setattr(R, '_execute', lambda nb, folder: nb)              # what runs is tested above
    before = (d/'report.ipynb').read_bytes()
    make_report(d)                                                         # unchanged: replaced
    nb = nbformat.reads(before.decode(), 4)
    for c in nb.cells: c.pop('outputs', None) if c.cell_type!='code' else c.update(outputs=[])
    nbformat.write(nb, d/'report.ipynb'); make_report(d)                   # other outputs are no change
    nb.cells[3].source += '\n# mine'
    nbformat.write(nb, d/'report.ipynb')
    mine, page = (d/'report.ipynb').read_bytes(), (d/'report.html').read_bytes()
    with pytest.raises(OutputError, match='was changed'): make_report(d)
    assert (d/'report.ipynb').read_bytes()==mine and (d/'report.html').read_bytes()==page
    make_report(d, execute=False)
    assert (d/'report.ipynb').read_bytes()==mine
    make_report(d, force=True)
    assert b'# mine' not in (d/'report.ipynb').read_bytes()

def test_other_places(made, tmp_path, monkeypatch):
    monkeypatch.setattr(R, '_execute', lambda nb, folder: nb)
    d = shutil.copytree(made, tmp_path/'c')
    (d/'report.html').unlink()
    assert make_report(d, out=tmp_path/'page.html')==tmp_path/'page.html' and not (d/'report.html').exists()
    make_report(d, out=tmp_path/'page.html')
    (tmp_path/'letter.html').write_text('<p>Dear')
    with pytest.raises(OutputError, match='was not written by'): make_report(d, out=tmp_path/'letter.html', force=True)
    with pytest.raises(OutputError, match='is a directory'): make_report(d, out=tmp_path)
    with pytest.raises(InfoUtilError, match='no file'): make_report(tmp_path/'nowhere')

def test_a_failing_cell_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    d = toy_comparison(tmp_path/'c', sets=False)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('two\\nlines')")])
    monkeypatch.setattr(R, '_fresh_notebook', lambda: nb)
    with pytest.raises(InfoUtilError, match='stopped with ValueError: two lines; .*nothing was written') as e: make_report(d)
    assert '\n' not in str(e.value)
    assert sorted(p.name for p in d.iterdir() if p.name!='.infoutil')==['compare.json', 'results.jsonl']

@pytest.mark.parametrize('which', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_page_is_run_is_a_stop(which, tmp_path, caplog):
    "nbclient takes both signals; afterwards they are whose they were"
    def stop(*_): raise KeyboardInterrupt
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        "import time, pathlib\npathlib.Path('here').touch()\ntime.sleep(60)")])
    def send():
        while not (tmp_path/'here').exists(): time.sleep(.05)
        os.kill(os.getpid(), which)
    old, waiting = signal.signal(which, stop), threading.Thread(target=send, daemon=True)
    try:
        waiting.start()
        begin = time.time()
        with pytest.raises(KeyboardInterrupt): R._execute(nb, tmp_path)
        assert time.time()-begin<40 and signal.getsignal(which) is stop and not caplog.records
    finally: signal.signal(which, old)

def test_an_interrupted_write_leaves_the_old_page(made, tmp_path, monkeypatch):
    monkeypatch.setattr(R, '_execute', lambda nb, folder: nb)
    d = shutil.copytree(made, tmp_path/'c')
    page = (d/'report.html').read_bytes()
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(R.os, 'replace', full)
    with pytest.raises(OutputError, match='No space left'): make_report(d)
    assert (d/'report.html').read_bytes()==page and not [p for p in d.iterdir() if '.tmp' in p.name]

# -- a real browser ---------------------------------------------------------------------------------------------------

CHROMIUM = next((p for n in ('chromium', 'chromium-browser', 'google-chrome', 'chrome') if (p:=shutil.which(n))), None)
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP * ~NOTFOUND']
INNER = '''<script>addEventListener('load', () => { const r = document.documentElement; parent.postMessage({ wide: r.scrollWidth, room: r.clientWidth, reach: Math.max(...[...document.images].map(i => i.getBoundingClientRect().right)), lost: [...document.images].filter(i => !i.naturalWidth).length,
  loads: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')) }, '*') })</script></body>'''
OUTER = '''<!DOCTYPE html><html><body><iframe src="inner.html" style="width:%dpx;height:800px;border:0"></iframe>
<script>addEventListener('message', e => { document.documentElement.dataset.probe = JSON.stringify(e.data) })</script></body></html>'''

def dump(page, home):
    "The DOM of a page after it has run"
    run = subprocess.run([CHROMIUM, *FLAGS, f'--user-data-dir={home}', '--virtual-time-budget=5000', '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120)
    assert run.returncode==0, run.stderr[-500:]
    return run.stdout

def probe(text, width, tmp_path):
    "What a browser says of a page in a frame of `width` pixels: it refuses narrow windows, and the page's own policy refuses the probe"
    home = tmp_path/f'w{width}'
    home.mkdir()
    (home/'inner.html').write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', '', text).replace('</body>', INNER), encoding='utf-8')
    (home/'outer.html').write_text(OUTER%width)
    return json.loads(html.unescape(re.search('data-probe="([^"]*)"', dump(home/'outer.html', home/'user'))[1]))

@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine (Debian: apt-get install chromium)')
class TestBrowser:
    def test_numbers_are_there(self, made, tmp_path):
        dom = dump(made/'report.html', tmp_path/'user')
        head = first_regime(made)
        shown = re.findall('<td>([^<]*)</td>', dom)
        for t in (accuracy_table(head), difference_table(head), cost_table(head)):
            for v in t.to_numpy().flat: assert v in shown, v

    @pytest.mark.parametrize('width', [320, 390, 1200])
    def test_nothing_is_wider_than_the_window(self, made, tmp_path, width):
        got = probe((made/'report.html').read_text(encoding='utf-8'), width, tmp_path)
        assert width-20<=got['room']<=width and got['wide']<=got['room'] and got['reach']<=got['room'] and got['lost']==0

    def test_nothing_is_loaded(self, made, tmp_path):
        text = (made/'report.html').read_text(encoding='utf-8')
        assert probe(text, 390, tmp_path)['loads']==[]
        seen = probe(text.replace('</main>', '<img src="http://example.invalid/a.png"></main>'), 391, tmp_path)      # the probe would notice
        assert seen['loads']==['http://example.invalid/a.png'] and seen['lost']==1
