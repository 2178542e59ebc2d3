"""Every figure of the README that comes from the committed results is what they say.

A sentence that is worded anew makes its test fail: write the new words down here, with the same numbers behind them."""
import json, re, statistics
from functools import lru_cache
from pathlib import Path
import pytest
from infoutil.published import published

root = Path(__file__).parents[1]
README = re.sub(r'\s+', ' ', (root/'README.md').read_text(encoding='utf-8'))

@lru_cache
def lines(name): return [json.loads(l) for l in (root/'results'/name).read_text(encoding='utf-8').splitlines()]

@lru_cache
def rows(name): return json.loads((root/'results'/f'{name}.json').read_text(encoding='utf-8'))['rows']

def said(pattern):
    "What the README says where `pattern` stands, which it must, and once"
    found = re.findall(pattern, README)
    assert len(found)==1, f'the README says {len(found)} times: {pattern}'
    return found[0] if isinstance(found[0], tuple) else (found[0],)

def number(text): return float(text.replace(',', ''))

# --- accuracies --------------------------------------------------------------------------------------

RECIPES = {"RDED's recipe": 'rded', '`best`': 'best', '`best-long`': 'best-long'}
METHODS = {**{f'`{m}`': m for m in ('random', 'rded', 'infoutil')}, '`infoutil --preset paper`': 'paper'}
CELLS = [('cifar10', 1), ('cifar10', 10), ('cifar10', 50), ('imagenette', 1), ('imagenette', 10)]

def of_table(data, ipc, recipe, method):
    "Accuracies by seed"
    want = (data, ipc, recipe, method)
    return {r['seed']: 100*r['accuracy'] for r in lines('tables.jsonl') if (r['data'], r['ipc'], r['protocol'], r['method'])==want}

def test_readme_quotes_the_tables():
    text = (root/'README.md').read_text(encoding='utf-8')
    quoted = [[c.strip() for c in l.strip('|').split('|')] for l in text.splitlines() if l.startswith(('| `best', "| RDED's recipe"))]
    assert len(quoted)==10 and len({tuple(q[:2]) for q in quoted})==10
    for recipe, method, *cells in quoted:
        assert len(cells)==len(CELLS)
        for (data, ipc), cell in zip(CELLS, cells):
            a = list(of_table(data, ipc, RECIPES[recipe], METHODS[method]).values())
            assert len(a) in (0, 1, 3), (recipe, method, data, ipc)
            want = {0: '', 1: f'{a[0]:.1f}, one student' if a else '', 3: f'{statistics.fmean(a):.1f} ± {statistics.pstdev(a)*1.5**.5:.1f}' if a else ''}
            assert cell==want[len(a)], (recipe, method, data, ipc, a)

def lead(data, ipc, recipe, one, other):
    "Mean of the paired differences and its standard error, rounded as the README says them"
    a, b = of_table(data, ipc, recipe, one), of_table(data, ipc, recipe, other)
    assert a.keys()==b.keys() and len(a)==3
    d = [v-b[s] for s,v in a.items()]
    return round(statistics.fmean(d), 1), round(statistics.stdev(d)/3**.5, 1)

def test_what_recipe_and_images_bring():
    mean = lambda *key: statistics.fmean(of_table('cifar10', *key).values())
    spans = said(r'recipe and labels bring (\d+) to (\d+) points at one image a class, (\d+) to (\d+) at ten and (\d+) to (\d+) at fifty')
    for ipc, low, high in zip((1, 10, 50), spans[::2], spans[1::2]):
        gains = [mean(ipc, 'best', m)-mean(ipc, 'rded', m) for m in ('random', 'rded', 'infoutil')]
        assert (round(min(gains)), round(max(gains)))==(int(low), int(high)), ipc
    figures = said(r'bring ([\d.]+), ([\d.]+) and ([\d.]+) points over random ones under `best` \(standard errors ([\d.]+), ([\d.]+) and ([\d.]+)\), '
                   r"and ([\d.]+) over RDED's on ImageNette \(([\d.]+)\)")
    *means, over = [float(f) for f in (*figures[:3], figures[6])]
    *errors, of_over = [float(f) for f in (*figures[3:6], figures[7])]
    assert list(zip(means, errors))==[lead('cifar10', i, 'best', 'infoutil', 'random') for i in (1, 10, 50)]
    assert (over, of_over)==lead('imagenette', 1, 'best', 'infoutil', 'rded')

def test_published_figures_beside_ours():
    cells = said(r'\| as published \| InfoUtil \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|')
    for (data, ipc), cell in zip([('CIFAR-10', i) for i in (1, 10, 50)]+[('ImageNette', i) for i in (1, 10)], cells):
        p = published(data=data, network='ConvNet', method='InfoUtil', table=1, ipc=ipc)
        assert float(cell)==p.accuracy.item(), (data, ipc)

def imagenette(method, label_teacher='early'):
    return [100*r['accuracy'] for r in lines('imagenette64/results.jsonl')
            if (r['method'], r['label_teacher'], r['ipc'], r['labels'])==(method, label_teacher, 1, 'online')]

MOSAICS = ('infoutil', 'rded', 'random_grad_norm', 'shapley_loss')

def test_what_is_said_of_imagenette():
    mean = lambda *key: statistics.fmean(imagenette(*key))
    who, words = said(r'mosaics of the lowest norms or losses \((.+?)\) '
                      r'are (\w+) points and more above whole random images')
    assert set(who.split(', '))=={f'`{m}`' for m in MOSAICS}
    least = dict(five=5, six=6, seven=7, eight=8, nine=9)[words]
    for m in MOSAICS: assert mean(m)-mean('random:factor=1')>=least, m
    others = said(r'those of `grad_cam` ([\d.]+), of the highest norms ([\d.]+) and of the paper preset (\d+\.\d)')
    for m,v in zip(('grad_cam', 'infoutil:end=highest', 'infoutil:preset=paper'), others):
        assert v==f"{mean(m)-mean('random:factor=1'):.1f}"
        assert float(v)<least, f'{m} belongs to those above'
    said(r"Shapley windows are clearly above Grad-CAM's")
    assert mean('infoutil')>mean('grad_cam')+1
    said(r'the lowest norms are above the highest only within the spread')
    high, low = imagenette('infoutil:end=highest'), imagenette('infoutil')
    assert 0<statistics.fmean(low)-statistics.fmean(high)<statistics.stdev(low)+statistics.stdev(high)
    said(r'the choice of the label teacher moves accuracy more than the choice of images does')
    images = [mean(m) for m in (*MOSAICS, 'grad_cam', 'infoutil:end=highest')]
    labels = [mean('infoutil', t) for t in ('epoch_001', 'early', 'converged')]
    assert max(labels)-min(labels)>max(images)-min(images)

# --- errors of estimators, and speed -----------------------------------------------------------------

def errors(budget):
    "By network: error of the default, and the least error of the other packages, for the logit"
    here = [r for r in rows('speed/estimators') if r['output']=='logit' and r['budget']==budget]
    nets = sorted({r['network'] for r in here})
    def least(n, fine): return min(r['error'] for r in here if r['network']==n and fine(r['way']))
    def mine(way): return way=='infoutil prior'
    def theirs(way): return not way.startswith('infoutil')
    return {n: (least(n, mine), least(n, theirs)) for n in nets}

def test_errors_of_shapley_maps():
    mine, theirs = zip(*errors(64).values())
    span = said(r'they are off by ([\d.]+) to ([\d.]+) of the norm of the exact map')
    assert span==(f'{min(mine):.2f}', f'{max(mine):.2f}') and len(mine)==3
    span = said(r'the best of captum, shap and shapiq reaches ([\d.]+) to ([\d.]+) with as many calls')
    assert [abs(number(s)-v)<=.0051 for s,v in zip(span, (min(theirs), max(theirs)))]==[True, True]
    words = said(r'with 1,024 calls it is (a \w+) to (a \w+) of theirs')
    parts = [a/b for a,b in errors(1024).values()]
    names = {'a twentieth': 20, 'a tenth': 10, 'a fifth': 5, 'a third': 3, 'a half': 2}
    assert [names[w] for w in words]==[round(1/min(parts)), round(1/max(parts))]

def ratios(name, fine): return [r['ratio'] for r in rows(f'speed/{name}') if fine(r)]

USUAL = ('convnet3', 'convnet4', 'resnet18', 'resnet18 low-res', 'vit')
COSTS = {
    'attribution': (r'attribution takes ([\d.]+) to ([\d.]+) of its bare forward passes', 2,
                    lambda r: r['way']=='infoutil float32' and r['reference']=='bare float32'),
    'gradients':   (r'a ResNet-18 and a transformer ([\d.]+) to ([\d.]+) of a plain forward and backward pass', 1,
                    lambda r: r['way']=='infoutil' and r['network'] in USUAL),
    'whole':       (r'the whole run ([\d.]+) to ([\d.]+) of the sum', 2, lambda r: r['way'].startswith('whole'))}

@pytest.mark.parametrize('name', COSTS)
def test_what_every_stage_costs(name):
    pattern, digits, fine = COSTS[name]
    v = ratios(name, fine)
    assert len(v)>=3 and said(pattern)==(f'{min(v):.{digits}f}', f'{max(v):.{digits}f}')

def test_what_a_students_epoch_costs():
    "Beside the loop that asks a label teacher; the upper figure is a bound, less than a tenth above what was measured"
    span = said(r"a student's epoch ([\d.]+) to ([\d.]+) of its training loop and its label teacher's passes")
    low, high = map(number, span)
    v = ratios('student', lambda r: r['kind']=='epoch' and r['way'].startswith('online'))
    assert len(v)>=20 and low==round(min(v), 1) and max(v)<=high<max(v)+.1

# --- what was tried ----------------------------------------------------------------------------------

def tried(promise, unit):
    "Sum of what was tried of a promise, in one unit; none of it failed"
    mine = [r for r in rows('reliability') if r['promise']==promise and re.fullmatch(rf'[\d,]+ {unit}s?', r['tried'])]
    assert mine and not any(r['failed'] for r in mine)
    return sum(number(r['tried'].split()[0]) for r in mine)

def test_what_was_tried_and_how_often_it_failed():
    sets, = said(r'\| (\d+) comparisons with a twin')
    assert number(sets)==tried('same bytes', 'comparison')+tried('processes', 'comparison')
    kills, states = said(r'\| (\d+) kills at random moments, (\d+) damaged states')
    assert number(kills)==tried('resume', 'kill') and number(states)==tried('resume', 'state')
    cases, files = said(r'\| ([\d,]+) generated cases, ([\d,]+) cut or altered files')
    assert number(cases)+number(files)==tried('bad input', 'case')
    assert cases in {r['tried'].split()[0] for r in rows('reliability')}
    mib = said(r'\| (\d+), (\d+) and (\d+) MiB at 2,000, 8,000 and 32,000 candidates')
    about = ' '.join(r['what was tried'] for r in rows('reliability'))
    assert f"at 2,000, 8,000 and 32,000 candidates of two classes: {', '.join(mib)}" in about
    growth, = said(r'memory does not grow with the number of images \((\d+) % over the sixteenfold\)')
    assert round(100*(number(mib[2])/number(mib[0])-1))==number(growth)
    names, = said(r'\| (\d+) awkward class names')
    assert f'{names} awkward class names' in about
    low, high = said(r'3 kinds of input, (\d+) to (\d+) % on digits')
    assert f'({low} to {high} % on digits)' in about
    zeros = re.findall(r'\| (\d+) \| ', README.split('What you can rely on')[1])
    assert set(zeros)=={'0'} and not any(r['failed'] for r in rows('reliability'))
