"""Links between pages: all of them resolve, a page that prose names is linked, the start page leads to every chapter"""
import json, re
from functools import lru_cache
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
nbs = root/'nbs'
PAGES = sorted(p for p in nbs.rglob('*.ipynb') if not {'templates', '.ipynb_checkpoints'}&set(p.parts))
LINK = re.compile(r'(?<!!)\[([^\]\[]+)\]\(([^)\s]+)\)')
PICTURE = re.compile(r'!\[[^\]]*\]\(([^)\s]+)\)')

def without_code(text):
    "Text whose blocks of code, and links inside code, are gone"
    text = re.sub(r'```.*?```', '', text, flags=re.S)
    return re.sub(r'`[^`\n]+`', lambda code: 'code' if '](' in code[0] else code[0], text)

@lru_cache(maxsize=None)
def prose(page):
    "The Markdown cells of a page, without fenced code"
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    return [without_code(''.join(c['source'])) for c in cells if c['cell_type']=='markdown']

def title(page): return next(re.findall(r'^# (.+)$', t, re.M)[0] for t in prose(page) if re.search(r'^# ', t, re.M))

def slugs(page):
    "Anchors of a page's headings, as GitHub and Quarto make them"
    heads = [h for t in prose(page) for h in re.findall(r'^#+ (.+?)\s*$', t, re.M)]
    return {re.sub(r'[^\w\- ]', '', h.replace('`', '')).strip().lower().replace(' ', '-') for h in heads}

def is_here(link): return not re.match(r'[a-z][a-z+.-]*:', link)

def broken(text, page):
    "Relative links and pictures of a text that lead nowhere"
    out = []
    for link in [l for _,l in LINK.findall(text)]+PICTURE.findall(text):
        if not is_here(link): continue
        name, _, part = link.partition('#')
        to = (page.parent/name).resolve() if name else page
        if not to.exists() or (part and to.suffix=='.ipynb' and part not in slugs(to)): out.append(link)
    return out

def rel(page): return page.relative_to(nbs).as_posix()

@pytest.mark.parametrize('page', PAGES, ids=rel)
def test_links_of_a_page_resolve(page):
    assert [l for t in prose(page) for l in broken(t, page)]==[]

@pytest.mark.parametrize('name', ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md'])
def test_links_of_a_text_resolve(name):
    assert broken(without_code((root/name).read_text(encoding='utf-8')), root/name)==[]

def test_a_lost_page_and_a_lost_heading_are_found():
    text = ('[Crop](01_lost.ipynb) [here](index.ipynb#lost) [out](https://example.org) ![p](images/lost.png) '
            '[x](index.ipynb)')
    assert broken(text, nbs/'index.ipynb')==['01_lost.ipynb', 'index.ipynb#lost', 'images/lost.png']

# Names that pages once had: prose that uses one speaks of a page that is not there any more
FORMER = ('Choices that last', 'Gradient-norm scoring', 'Pipeline', 'Baselines', 'Synthesis', 'Store', 'Core', 'Score',
          'Label')

def unlinked(text, titles):
    "Pages that a text names as pages without a link, and names that no page has any more"
    said = [t for t,_ in LINK.findall(text)]
    bare = LINK.sub('', text)
    names = '|'.join(map(re.escape, sorted({*titles, *FORMER}, key=len, reverse=True)))
    lead = r'\b(?:see|page|pages|chapter|chapters|tutorial|notebook)(?: the)?(?: page| chapter)?'
    found = re.findall(rf'{lead} [*`"]*({names})\b', bare)+re.findall(rf'\*(Choices that last)\*', bare)
    return found+[t for t in said if t in FORMER]

@pytest.mark.parametrize('page', PAGES, ids=rel)
def test_a_page_that_prose_names_is_linked(page):
    titles = {title(p) for p in PAGES}
    assert [n for t in prose(page) for n in unlinked(t, titles)]==[]

def test_a_name_without_a_link_is_found():
    text = 'see *Crop*, the page Mosaics; [Store](22.ipynb), [Crop](c.ipynb)'
    assert unlinked(text, {'Crop', 'Mosaics'})==['Crop', 'Mosaics', 'Store']

@pytest.mark.parametrize('page', PAGES, ids=rel)
def test_a_link_with_the_name_of_a_page_leads_to_it(page):
    titles = {title(p): p for p in PAGES}
    assert len(titles)==len(PAGES), 'two pages have one title'
    for text in prose(page):
        for said, link in LINK.findall(text):
            if said in titles and is_here(link) and not link.startswith('#'):
                assert (page.parent/link.partition('#')[0]).resolve()==titles[said].resolve(), f'[{said}]({link})'

def test_the_start_page_leads_to_every_page():
    links = [l.partition('#')[0] for t in prose(nbs/'index.ipynb') for _,l in LINK.findall(t) if is_here(l)]
    linked = {(nbs/l).resolve() for l in links}
    chapters = [p for p in PAGES if p.parent.name!='fixtures' and rel(p)!='index.ipynb']
    assert [rel(p) for p in chapters if p.resolve() not in linked]==[]

WANTED = {'Algorithm 1': ('13_algorithm', 'class InfoUtil'), 'KernelSHAP': ('03_attribution', r'\arg\min_\phi'),
          'BatchNorm': ('engine/gradient_rules', '## BatchNorm'),
          'killed run': ('engine/class_runs', '## Where a killed run goes on'),
          'add a method': ('12_methods', '## A method')}

@pytest.mark.parametrize('words', WANTED)
def test_what_a_reader_looks_for_is_one_link_away(words):
    "A row of the README's first table names it, and the page it links to holds it"
    page, there = WANTED[words]
    rows = [l for l in (root/'README.md').read_text(encoding='utf-8').splitlines() if l.startswith('| ')]
    row = next(r for r in rows if words in r.split(' | ')[0])
    to = nbs/f'{page}.ipynb'
    assert to.resolve() in {(root/l.partition('#')[0]).resolve() for _,l in LINK.findall(row)}
    cells = json.loads(to.read_text(encoding='utf-8'))['cells']
    assert any(there in ''.join(c['source']) for c in cells)
