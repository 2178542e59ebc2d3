"""Every figure of the README is what the committed results say, and none stands there unchecked.

`FIGURES` holds a line for every sentence with figures: its words, with a group around each figure, and a function that
says from the files under results/ what the figures must be. A sentence that is worded anew makes its line fail: write
the new words down. A figure that is new makes the last test fail: add a line. What is no measurement stands in `GIVEN`."""
import json, re, statistics
from functools import lru_cache
from pathlib import Path
import pytest
from scipy.special import stdtrit
from infoutil.evaluation import difference
from infoutil.published import published

root = Path(__file__).parents[1]
README = (root/'README.md').read_text(encoding='utf-8')

@lru_cache
def lines(name): return [json.loads(l) for l in (root/'results'/name).read_text(encoding='utf-8').splitlines()]

@lru_cache
def rows(name): return json.loads((root/'results'/f'{name}.json').read_text(encoding='utf-8'))['rows']

def flat(text): return re.sub(r'\s+', ' ', text)

# --- what the files say: accuracies ------------------------------------------------------------------

def accuracies(data, ipc, recipe, method):
    "Top-1 % by seed, of results/tables.jsonl"
    want = (data, ipc, recipe, method)
    return {r['seed']: 100*r['accuracy'] for r in lines('tables.jsonl') if (r['data'], r['ipc'], r['protocol'], r['method'])==want}

def mean_of(*key): return statistics.fmean(accuracies(*key).values())

def lead(data, ipc, recipe, one, other):
    "Mean of the paired differences and its standard error"
    a, b = accuracies(data, ipc, recipe, one), accuracies(data, ipc, recipe, other)
    assert a.keys()==b.keys() and len(a)==3
    d = [v-b[s] for s,v in a.items()]
    return f'{statistics.fmean(d):.1f}', f'{statistics.stdev(d)/3**.5:.1f}'

def of_first_table(method):
    "Mean and standard deviation on CIFAR-10 by the default recipe at 1, 10 and 50 images"
    a = [list(accuracies('cifar10', ipc, 'best', method).values()) for ipc in (1, 10, 50)]
    return [f'{statistics.fmean(v):.1f} ± {statistics.stdev(v):.1f}' for v in a]

def of_judge():
    judge, = {r['judge_accuracy'] for r in lines('tables.jsonl') if r['data']=='cifar10'}
    return [f'{100*judge:.1f}']

def of_recipe_and_labels():
    "Points between `best` and RDED's recipe at 1, 10 and 50 images: least and most over the methods"
    out = []
    for ipc in (1, 10, 50):
        gains = [mean_of('cifar10', ipc, 'best', m)-mean_of('cifar10', ipc, 'rded', m) for m in ('random', 'rded', 'infoutil')]
        out += [f'{min(gains):.0f}', f'{max(gains):.0f}']
    return out

def of_images():
    leads = [lead('cifar10', i, 'best', 'infoutil', 'random') for i in (1, 10, 50)]
    return [*(d for d,_ in leads), *(e for _,e in leads), *lead('imagenette', 1, 'best', 'infoutil', 'rded')]

def of_all_sizes():
    "Sets of both methods at 1, 10 and 50 images, the mean of `best` and `best-long`: in how many of them, and by how much, infoutil is ahead"
    d = []
    for ipc in (1, 10, 50):
        a, b = [[accuracies('cifar10', ipc, p, m) for p in ('best', 'best-long')] for m in ('infoutil', 'random')]
        d += [statistics.fmean(x[s]-y[s] for x,y in zip(a, b) if s in x) for s in a[0]]
    leads = [difference(list(accuracies(*c, 'infoutil').values()), list(accuracies(*c, b).values()))
             for *c,b in [('cifar10', i, 'best', 'random') for i in (1, 10, 50)]+[('imagenette', 1, 'best', 'rded')]]
    assert not any(l.clear for l in leads) and difference(d, [0.]*len(d)).clear
    return [f'{stdtrit(2, .975):.1f}', NUMBERS[sum(v>0 for v in d)], NUMBERS[len(d)], f'{statistics.fmean(d):.1f} ± {statistics.stdev(d)/len(d)**.5:.1f}']

def as_published():
    p = [published(data=d, network='ConvNet', method='InfoUtil', table=1, ipc=i).accuracy.item() for d,i in (('CIFAR-10', 1), ('CIFAR-10', 10), ('CIFAR-10', 50), ('ImageNette', 1), ('ImageNette', 10))]
    return [f'{v:.1f}' for v in p]

def mosaics(method, label_teacher='early', where='imagenette64', ipc=1):
    "Top-1 % of students of ImageNette"
    return [100*r['accuracy'] for r in lines(f'{where}/results.jsonl')
            if (r['method'], r['label_teacher'], r['ipc'], r['labels'])==(method, label_teacher, ipc, 'online')]

def above_random(method): return statistics.fmean(mosaics(method))-statistics.fmean(mosaics('random:factor=1'))

LOWEST = ('infoutil', 'rded', 'random_grad_norm', 'shapley_loss')
NUMBERS = 'zero one two three four five six seven eight nine ten'.split()

def of_whole_images():
    "Whole images less mosaics of the lowest norms under `best`: level, up to six points above, level"
    more = [difference(mosaics('infoutil:factor=1', *at), mosaics('infoutil', *at))
            for at in (('early', 'imagenette64_best', 1), ('converged', 'imagenette64_best', 1), ('early', 'imagenette64_best10_300', 10),
                       ('converged', 'imagenette64_best10_300', 10), ('converged', 'imagenette128_best10', 10))]
    means = [d.mean for d in more]
    assert max(map(abs, (*means[:2], means[4])))<1 and means[3]>1 and not any(d.clear for d in more)
    return [NUMBERS[round(max(means[2:4]))]]

def of_lowest_norms():
    least = min(map(above_random, LOWEST))
    return [', '.join(f'`{m}`' for m in LOWEST), NUMBERS[int(least)]]

def of_other_mosaics():
    assert max(map(above_random, ('grad_cam', 'infoutil:end=highest', 'infoutil:preset=paper')))<min(map(above_random, LOWEST))
    return [f'{above_random(m):.1f}' for m in ('grad_cam', 'infoutil:end=highest', 'infoutil:preset=paper')]

def of_windows():
    "What is said in words of mosaics: above Grad-CAM in all draws, above the highest norms within the spread, labels count more"
    high, low, images = mosaics('infoutil:end=highest'), mosaics('infoutil'), [above_random(m) for m in (*LOWEST, 'grad_cam', 'infoutil:end=highest')]
    labels = [statistics.fmean(mosaics('infoutil', t)) for t in ('epoch_001', 'early', 'converged')]
    assert len(low)==3 and all(a>b for a,b in zip(low, mosaics('grad_cam')))
    ours, theirs = [mosaics(m, where='imagenette64_best') for m in ('infoutil', 'grad_cam')]      # and level with it under `best`
    assert len(ours)==len(theirs)==3 and abs(statistics.fmean(ours)-statistics.fmean(theirs))<.5
    assert 0<statistics.fmean(low)-statistics.fmean(high)<statistics.stdev(low)+statistics.stdev(high)
    assert max(labels)-min(labels)>max(images)-min(images)
    return []

def of_nine_draws():
    "Leads of whole images of lowest norm at ten images a class, with a teacher at hand and with hard labels; level with stored ones; then those at one"
    def lead_over(other, labels, seeds=range(10, 19), ipc=10):
        a, b = [{r['seed']: 100*r['accuracy'] for r in lines('images.jsonl') if r['part']=='windows' and r['seed'] in seeds
                 and (r['data'], r['ipc'], r['labels'], r['name'])==('cifar10', ipc, labels, n)} for n in ('whole, lowest norm', other)]
        d = [a[s]-b[s] for s in seeds]
        return difference(d, [0.]*len(d))
    told = [lead_over(other, labels) for labels in ('online', 'hard') for other in ('random', 'rded')]
    assert all(d.clear for d in told) and not lead_over('rded', 'stored').clear and not lead_over('rded', 'stored', (*range(9), *range(10, 19))).clear
    one = {other: [lead_over(other, l, range(20, 29), 1) for l in ('online', 'hard', 'stored')] for other in ('random', 'rded')}
    assert all(d.clear for d in one['random']) and all(d.mean<=0 for d in one['rded'])
    means = [d.mean for d in one['random']]
    return [f'{d.mean:.1f} ± {d.se:.1f}' for d in told]+[f'{min(means):.1f}', f'{max(means):.1f}']

def of_long_training():
    "Least and largest lead over random images at one image a class after the longest training of the map, by labels"
    found = [json.loads(l) for l in (root/'results/map_ipc1/results.jsonl').read_text(encoding='utf-8').splitlines()]
    last = [r for r in found if r['epochs']==3000==max(r['epochs'] for r in found)]
    acc = {(r['method'], r['labels'], r['seed']): 100*r['accuracy'] for r in last}
    kinds, seeds = sorted({r['labels'] for r in last}), range(3)
    assert len(kinds)==5 and len(last)==45
    leads = [statistics.fmean(acc['infoutil', l, s]-acc['random', l, s] for s in seeds) for l in kinds]
    return f'{min(leads):.1f}', f'{max(leads):.1f}'

def of_other_networks():
    "Lead over random images of three networks that did not choose them, on their mean by draw"
    found = [json.loads(l) for l in (root/'results/tables_narrow.jsonl').read_text(encoding='utf-8').splitlines()]
    acc = {(r['arch'], r['method'], r['seed']): 100*r['accuracy'] for r in found if r['arch']!='convnet3_32'}
    archs = {k[0] for k in acc}
    assert archs=={'resnet18', 'small_vgg', 'mobilenet_v2'} and len(acc)==27
    by_draw = [statistics.fmean(acc[a, 'infoutil', s]-acc[a, 'random', s] for a in archs) for s in range(3)]
    return [f'{statistics.fmean(by_draw):.1f} ± {statistics.stdev(by_draw)/3**.5:.1f}']

# --- what the files say: errors of estimators, speed, reliability ------------------------------------

def errors(budget):
    "By network: error of the default, and the least error of the other packages, for the logit"
    here = [r for r in rows('speed/estimators') if r['output']=='logit' and r['budget']==budget]
    least = lambda n, fine: min(r['error'] for r in here if r['network']==n and fine(r['way']))
    nets = sorted({r['network'] for r in here})
    return [least(n, lambda w: w=='infoutil prior') for n in nets], [least(n, lambda w: not w.startswith('infoutil')) for n in nets]

def about(v, room): return lambda text: abs(float(text)-v)<=room

def of_maps():
    mine, theirs = errors(64)
    assert len(mine)==3
    return [f'{min(mine):.2f}', f'{max(mine):.2f}', about(min(theirs), .0051), about(max(theirs), .0051)]

def of_more_calls():
    names = {20: 'a twentieth', 10: 'a tenth', 5: 'a fifth', 3: 'a third', 2: 'a half'}
    parts = [a/b for a,b in zip(*errors(1024))]
    return [names[round(1/min(parts))], names[round(1/max(parts))]]

USUAL = ('convnet3', 'convnet4', 'resnet18', 'resnet18 low-res', 'vit')

def span(name, digits, fine):
    "Least and most of some ratios of time"
    v = [r['ratio'] for r in rows(f'speed/{name}') if fine(r)]
    assert len(v)>=3
    return f'{min(v):.{digits}f}', f'{max(v):.{digits}f}'

def of_stages():
    student = [r['ratio'] for r in rows('speed/student') if r['kind']=='epoch' and r['way'].startswith('online')]
    bound = lambda text: max(student)<=float(text)<max(student)+.1       # a bound, less than a tenth above
    return [*span('attribution', 2, lambda r: r['way']=='infoutil float32' and r['reference']=='bare float32'),
            *span('gradients', 1, lambda r: r['way']=='infoutil' and r['network'] in USUAL),
            f'{min(student):.1f}', bound, *span('whole', 2, lambda r: r['way'].startswith('whole'))]

def tried(promise, unit):
    "Sum of what was tried of a promise, in one unit; none of it failed"
    mine = [r for r in rows('reliability') if r['promise']==promise and re.fullmatch(rf'[\d,]+ {unit}s?', r['tried'])]
    assert mine and not any(r['failed'] for r in mine)
    return sum(int(r['tried'].split()[0].replace(',', '')) for r in mine)

def told(pattern):
    "Figures of a description in results/reliability.json"
    found = re.search(pattern, ' '.join(r['what was tried'] for r in rows('reliability')))
    return found.groups()

def of_memory():
    mib = told(r'at 2,000, 8,000 and 32,000 candidates of two classes: (\d+), (\d+), (\d+)')
    return [f'{100*(int(mib[2])/int(mib[0])-1):.0f}', *mib]

def of_bad_input():
    made = next(r['tried'].split()[0] for r in rows('reliability') if r['command'].startswith('python tests/input_cases.py'))
    return [made, f"{tried('bad input', 'case')-int(made.replace(',', '')):,}"]

def of_loaders(): return told(r'(\d+) awkward class names.*fastai and datasets (\d+)\.\d')
def of_ddranking(): return *told(r'DD-Ranking ([\d.]+) scores'), f"{tried('formats', 'input')}", *told(r'\((\d+) to (\d+) % on digits\)')
def no_failure(): return ['0']*5 if not any(r['failed'] for r in rows('reliability')) else ['some']*5

# --- the README, sentence by sentence ----------------------------------------------------------------

FIGURES = {
    r'\| `infoutil`, default recipe \| ([\d.]+ ± [\d.]+) % \| ([\d.]+ ± [\d.]+) % \| ([\d.]+ ± [\d.]+) % \|': lambda: of_first_table('infoutil'),
    r'\| random images, trained and labelled in the same way \| ([\d.]+ ± [\d.]+) % \| ([\d.]+ ± [\d.]+) % \| ([\d.]+ ± [\d.]+) % \|': lambda: of_first_table('random'),
    r"\| the InfoUtil paper's own figures \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|": lambda: as_published()[:3],
    r'the same network trained on 45,000 images, is right on ([\d.]+) % of the other 5,000': of_judge,
    r'recipe and labels bring (\d+) to (\d+) points at one image a class, (\d+) to (\d+) at ten and (\d+) to (\d+) at fifty': of_recipe_and_labels,
    r'bring ([\d.]+), ([\d.]+) and ([\d.]+) points over random ones under `best` \(standard errors ([\d.]+), ([\d.]+) and ([\d.]+)\), '
    r"and ([\d.]+) over RDED's on ImageNette \(([\d.]+)\)": of_images,
    r'establish none of these leads alone, which takes ([\d.]+) standard errors; taken together, `infoutil` is ahead of random images in (\w+) of (\w+) '
    r'sets of CIFAR-10, by ([\d.]+ ± [\d.]+) points': of_all_sizes,
    r'\| as published \| InfoUtil \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|': as_published,
    r"nine draws, `infoutil` is ([\d.]+ ± [\d.]+) points above random images and ([\d.]+ ± [\d.]+) above RDED's crops with a teacher at hand, "
    r"([\d.]+ ± [\d.]+) and ([\d.]+ ± [\d.]+) with hard labels, and level with RDED's where each image has one stored label; "
    r"at one image a class it is ([\d.]+) to ([\d.]+) points above random images with every kind of labels, and not above RDED's": of_nine_draws,
    r'after 3,000 epochs it is still ([\d.]+) to ([\d.]+) points ahead of random ones': of_long_training,
    r'chosen by a narrow ConvNet, end ([\d.]+ ± [\d.]+) points above those that learn random ones, on the mean of the three': of_other_networks,
    r'are level with such mosaics at one image a class, up to (\w+) points above them at ten, in short runs, and at 128 px level at ten; '
    r'three draws make none of these differences clear': of_whole_images,
    r'mosaics of the lowest norms or losses \((.+?)\) are (\w+) points and more above whole random images': of_lowest_norms,
    r'those of `grad_cam` ([\d.]+), of the highest norms ([\d.]+) and of the paper preset (\d+\.\d)': of_other_mosaics,
    r"Shapley windows are above Grad-CAM's there in all three draws, under RDED's recipe, and level with them under `best`; the lowest norms are above the highest only within the spread; "
    r'and the choice of the label teacher moves accuracy more than the choice of images does': of_windows,
    r'they are off by ([\d.]+) to ([\d.]+) of the norm of the exact map \(of the class\'s logit\), '
    r'where the best of captum, shap and shapiq reaches ([\d.]+) to ([\d.]+) with as many calls': of_maps,
    r'with 1,024 calls it is (a \w+) to (a \w+) of theirs': of_more_calls,
    r'attribution takes ([\d.]+) to ([\d.]+) of its bare forward passes, exact gradient norms of ConvNets, a ResNet-18 and a transformer '
    r"([\d.]+) to ([\d.]+) of a plain forward and backward pass, a student's epoch ([\d.]+) to ([\d.]+) of its training loop and its "
    r"label teacher's passes, and the whole run ([\d.]+) to ([\d.]+) of the sum": of_stages,
    r'\| (\d+) comparisons with a twin': lambda: [str(tried('same bytes', 'comparison')+tried('processes', 'comparison'))],
    r'\| (\d+) kills at random moments, (\d+) damaged states': lambda: [str(tried('resume', 'kill')), str(tried('resume', 'state'))],
    r'\| ([\d,]+) generated cases, ([\d,]+) cut or altered files': of_bad_input,
    r'memory does not grow with the number of images \((\d+) % over the sixteenfold\) \| (\d+), (\d+) and (\d+) MiB at 2,000, 8,000 and 32,000 candidates': of_memory,
    r'(?s)fastai and Hugging Face datasets (?P<version>\d+) \| (?P<names>\d+) awkward class names': lambda: of_loaders()[::-1],
    r'DD-Ranking ([\d.]+) scores an export \| (\d+) kinds of input, (\d+) to (\d+) % on digits': of_ddranking,
    r'comparisons with a twin[^|]* \| (0) \|.*? damaged states \| (0) \|.*? altered files \| (0) \|.*? pixel for pixel \| (0) \|.*? % on digits \| (0) \|': no_failure}

# numbers that were chosen, not measured: versions, sizes, settings; and figures that others published (their sources are on the page of the tables)
GIVEN = (r'RaT-BPTT at one, Inf-Match \| 53\.2 \| 72\.5 \| 78\.1 \|', r'Top-1 %', r'Python 3\.10', r'Apache 2\.0', r'chance is 0\.1', r'assert result\.mean > 0\.3')

@pytest.mark.parametrize('words', FIGURES, ids=lambda w: re.sub(r'\W+', ' ', re.sub(r'\\\w|\(.*?\)', '', w)).strip()[:50])
def test_figures_of_a_sentence(words):
    found = list(re.finditer(words, flat(README)))
    assert len(found)==1, f'the README says {len(found)} times: {words}'
    said, want = found[0].groups(), list(FIGURES[words]())
    assert len(said)==len(want) and all(w(s) if callable(w) else s==w for s,w in zip(said, want)), (said, want)

# --- the table of accuracies -------------------------------------------------------------------------

RECIPES = {"RDED's recipe": 'rded', '`best`': 'best', '`best-long`': 'best-long'}
METHODS = {**{f'`{m}`': m for m in ('random', 'rded', 'infoutil')}, '`infoutil --preset paper`': 'paper'}
CELLS = [('cifar10', 1), ('cifar10', 10), ('cifar10', 50), ('imagenette', 1), ('imagenette', 10)]

def table_rows(): return [l for l in README.splitlines() if l.startswith(tuple(f'| {r} |' for r in RECIPES))]

def test_the_table_of_accuracies():
    quoted = [[c.strip() for c in l.strip('|').split('|')] for l in table_rows()]
    assert quoted and len({tuple(q[:2]) for q in quoted})==len(quoted)
    for recipe, method, *cells in quoted:
        assert len(cells)==len(CELLS)
        for (data, ipc), cell in zip(CELLS, cells):
            a = list(accuracies(data, ipc, RECIPES[recipe], METHODS[method]).values())
            want = '' if not a else f'{a[0]:.1f}, one student' if len(a)==1 else f'{statistics.fmean(a):.1f} ± {statistics.stdev(a):.1f}'
            assert cell==want, (recipe, method, data, ipc, a)

# --- nothing is left over ----------------------------------------------------------------------------

def unchecked(text):
    "Figures of a README, with the words before them, that no line above checks"
    text = re.sub(r'(?s)```.*?```', ' ', text)
    text = '\n'.join(l for l in text.splitlines() if l not in table_rows() and not l.startswith('    '))
    text = flat(re.sub(r'\]\([^)]*\)', ']', text))
    for words in FIGURES:
        for m in list(re.finditer(words, text))[::-1]:
            for i in range(m.re.groups, 0, -1): text = text[:m.start(i)]+' '+text[m.end(i):]
    for words in GIVEN: text = re.sub(words, ' ', text)
    figure = r'\d[\d,.]*\s?(?:%|percent|points?\b|times\b|[KMG]i?B\b|seconds|minutes|hours)|±|\d+\.\d+'
    return [text[max(0, m.start()-50):m.end()+15] for m in re.finditer(figure, text)]

def test_no_figure_is_unchecked(): assert unchecked(README)==[]

def test_a_new_figure_is_seen():
    assert len(unchecked(README+'\nIt is right in 93 % of all cases, 3.5 times as often, and takes 20 minutes.\n'))==3
    assert len(unchecked(README+'\nInfoUtil reaches 71.0 ± 0.8.\n'))>=1
