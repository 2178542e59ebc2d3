"Figures that the README quotes are those of the committed results"
import json, re, statistics
from pathlib import Path

root = Path(__file__).parents[1]

def test_readme_quotes_the_results():
    rows = [json.loads(l) for l in (root/'results'/'cifar10.jsonl').read_text().splitlines()]
    text = (root/'README.md').read_text(encoding='utf-8')
    quoted = re.findall(r'^\| `(.+?)` \| (.+?) \| (.+?) \|$', text, re.M)
    names = {'random': 'random', 'rded': 'rded', 'infoutil': 'infoutil', 'infoutil --preset paper': 'infoutil (paper preset)'}
    quoted = [q for q in quoted if q[0] in names]
    assert {q[0] for q in quoted}==set(names)
    for name, *cells in quoted:
        for ipc, cell in zip((1, 10), cells):
            a = [100*r['accuracy'] for r in rows if (r['name'], r['ipc'], r['label_teacher'])==(names[name], ipc, 'early')]
            assert len(a)==3 and cell==f'{statistics.fmean(a):.1f} ± {statistics.stdev(a):.1f}', (name, ipc, a)
