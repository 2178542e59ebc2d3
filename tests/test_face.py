"What a newcomer sees: digits upon photographs, the strip, the demo's page"
import json, statistics
from pathlib import Path
import numpy as np
import pytest
import torch
from infoutil.data import candidates, SPECS
from infoutil.engine.photographed_digits import digit_place, photographed_digits, PLACES, SIDE
from infoutil.strip import follow, plot_strip

root = Path(__file__).parents[1]

@pytest.fixture(scope='module')
def some():
    "The first images, name -> pixels"
    return {n: np.asarray(im) for _,(n, im) in zip(range(120), photographed_digits())}

def test_places_stay_where_they_are():
    "By arithmetic of a hash: a change here changes the data set of everybody, and every figure measured on it"
    assert [digit_place(f'train/{c}/0012_1.png')[:3] for c in (0, 4, 9)]==[(4, 14, 32), (21, 2, 38), (19, 18, 35)]

def test_pixels_stay_what_they_are(some):
    "Only the decoder of the two JPEG files may move them, by a step of the scale"
    assert abs(float(np.mean([im.mean() for im in some.values()]))-67.703)<.05

def test_the_same_digit_is_in_one_part_alone(some):
    parts = {}
    for n in some: parts.setdefault((n.split('/')[1], n.split('/')[2][:4]), []).append(n.split('/')[0])
    assert {tuple(v) for k,v in list(parts.items())[:-1]}=={('train',)*PLACES['train'], ('test',)*PLACES['test']}

def test_another_seed_places_the_same_digits_elsewhere(some):
    other = {n: np.asarray(im) for _,(n, im) in zip(range(20), photographed_digits(seed=1))}
    assert list(other)==list(some)[:20] and all((other[n]!=some[n]).any() for n in other)

def test_digits_are_bright_where_they_are_said_to_be(some):
    inside = []
    for n,im in some.items():
        t, l, h, w = digit_place(n)
        bright = (im.min(2)>180).nonzero()
        inside.append(np.mean((t<=bright[0])&(bright[0]<t+h)&(l<=bright[1])&(bright[1]<l+w)))
    assert min(inside)>.95, min(inside)

def test_a_random_window_misses_what_a_place_finds():
    "What the data set is for: a quarter of the area at a random place holds the whole digit seldom"
    from infoutil.crop import random_windows
    names = [f'train/{c}/{i:04d}_0.png' for c in range(10) for i in range(100)]
    at, box = torch.tensor([digit_place(n) for n in names]), random_windows(range(1000), 1, SIDE)[:, 0]
    ink = at[:, 2]//10                              # the margin
    whole = ((box[:, :2]<=at[:, :2]+ink[:, None])&(box[:, :2]+box[:, 2:]>=at[:, :2]+at[:, 2:]-ink[:, None])).all(1)
    assert whole.float().mean()<.15, whole.float().mean()

def test_they_are_never_mirrored():
    assert not SPECS['digits_on_photos'].flip and SPECS['digits_on_photos'].size==SIDE

def test_the_strip_of_a_small_teacher(digits, tmp_path):
    "Two rows of five, 1,600 px wide; a class with a dollar in its name is a name"
    from dataclasses import replace
    from matplotlib import pyplot as plt
    cands = replace(candidates(digits['data'], 4, 32, n=12), name='a $4 of a very long name')
    fig = plot_strip(follow(digits['teacher'], cands), tmp_path/'strip.png')
    assert plt.imread(tmp_path/'strip.png').shape[1]==1600
    assert [a.get_title().split(' ')[0] for a in fig.axes[:10]]==['An', '1', '1', '2', '2', '3', '4', '4', '5', '6']
    plt.close(fig)

def test_figures_of_the_chapter_are_those_that_were_measured():
    rows = [json.loads(l) for l in (root/'results'/'digits_on_photos.jsonl').read_text().splitlines()]
    text = (root/'nbs'/'engine'/'photographed_digits.ipynb').read_text()
    for r in rows:
        if r['part']=='windows': assert f"| {r['windows']} | {r['n']} | {100*r['share']:.1f} % |" in text, r
    told = {n: [100*r['accuracy'] for r in rows if r.get('name')==n] for n in {r['name'] for r in rows if r['part']=='students'}}
    for n,a in told.items(): assert f'| `{n}` | {statistics.fmean(a):.1f} | {statistics.stdev(a):.1f} |' in text, (n, a)
    gap = lambda other: f"{statistics.fmean(told['infoutil, factor 2'])-statistics.fmean(told[other]):.1f} above"
    assert len(told)==8 and gap('rded, factor 2') in text and gap('random').replace(' above', ' points above') in text
