"The site: every page is made, every link leads somewhere, every page has its title; what is not so is refused"
import ast
import json
import os
import re
import shutil
from pathlib import Path
import pytest
import ready

root = Path(__file__).parents[1]
BUILD = root/'tests'/'build_docs.py'

def build(folder, out):
    "Build the site of the project in `folder`, in one process"
    env = {**os.environ, 'PYTHONPATH': str(folder)}
    return ready.run('path', [BUILD, '--workers', '0', '--out', out], env=env, cwd=folder)

@pytest.fixture(scope='session')
def site(once):
    "The site of this project, built once for all processes of a run"
    def make(d):
        done = build(root, d/'_docs')
        (d/'said').write_text(done.stdout+done.stderr)
        (d/'code').write_text(str(done.returncode))
    return once('site', make)

@pytest.mark.slow
def test_site_is_whole(site):
    "`build_docs.py` itself ends with an error for a page that fails, a link into nothing, a page without a title"
    assert (site/'code').read_text()=='0', (site/'said').read_text()[-4000:]

@pytest.mark.slow
def test_every_notebook_has_a_page(site):
    "Pages, sidebar, search and Markdown copies know every notebook"
    pages = {p.relative_to(site/'_docs').as_posix():p.read_text() for p in (site/'_docs').rglob('*.html')}
    found = {(s['href'].partition('#')[0]) for s in json.loads((site/'_docs'/'search.json').read_text())}
    bar = re.search(r'<nav[^>]*id="quarto-sidebar".*?</nav>', pages['index.html'], re.S)[0]
    for nb in (root/'nbs').rglob('*.ipynb'):
        rel = nb.relative_to(root/'nbs')
        if '.ipynb_checkpoints' in rel.parts: continue
        page = rel.with_name(re.sub(r'^\d+_', '', rel.name)).with_suffix('.html').as_posix()
        texts = [''.join(c['source']) for c in json.loads(nb.read_text())['cells']]
        title = next(m[1] for t in texts if (m := re.match(r'# (.+)', t)))
        shown = re.search(r'<h1[^>]*>(.*?)</h1>', pages[page], re.S)[1]
        assert title.replace("'", '’')==re.sub('<[^>]+>', '', shown).strip().replace("'", '’')
        assert page in found or page=='engine/main.html'           # which has no text
        assert f'href="{page}"' in bar.replace('href="./', 'href="')
        assert (site/'_docs'/f'{page}.md').exists()
    assert [m for m in re.findall(r'>(Start|Method|Use and measure|Compare and report|Engine|Paper)<', bar)]==\
        ['Start', 'Method', 'Use and measure', 'Compare and report', 'Engine', 'Paper']

@pytest.mark.slow
def test_page_of_the_crop(site):
    "A chapter: cards with the line of their source, formulas without a script or another host, pictures, links by name"
    page = (site/'_docs'/'crop.html').read_text()
    lines = [int(n) for n in re.findall(r'blob/main/infoutil/crop\.py#L(\d+)', page)]
    text = (root/'infoutil'/'crop.py').read_text().splitlines()
    assert lines and all(text[n-1].startswith(('def ', 'class ', '@')) for n in lines)
    assert 'id="noisy_maps"' in page and '<math' in page and 'cdn.' not in page
    assert 'href="#windows"' in page or 'href="crop.html#windows"' in page           # a name in backticks
    assert 'src="data:image/png' in (site/'_docs'/'attribution.html').read_text()

def test_import_cells_stand_alone():
    "nbdev runs a cell that holds an import again when it makes a page, and what else stands in it, too"
    imports, wrong = (ast.Import, ast.ImportFrom), []
    for nb in (root/'nbs').rglob('*.ipynb'):
        for c in json.loads(nb.read_text())['cells']:
            source = ''.join(c['source'])
            if c['cell_type']!='code' or 'nbdev_export'+'()' in source: continue
            body = ast.parse(source).body
            top = [isinstance(s, imports) for s in body]
            exported = re.search(r'^#\| *export', source, re.M)
            inner = not exported and any(isinstance(n, imports) for s in body for n in ast.walk(s))
            if (any(top) or inner) and not all(top): wrong.append(f"{nb.name}: {source[:80]}")
    assert not wrong, wrong

# A small project, whole and with one fault at a time -----------------------------------------------------------------

PROJECT = """[project]
name = "small"
[project.urls]
Repository = "https://github.com/small/small"
Documentation = "https://small.github.io/small"
[tool.nbdev]
lib_path = "small"
"""
FIRST = ['# First\n> Whole', 'See [Second](01_second.ipynb#later) and `f`: $x^2$.', '#| default_exp one',
         '#| export\ndef f(x): "Twice"; return 2*x']
SECOND = ['# Second\n> Whole', '## Later\nBack to [First](index.ipynb).']
FAULTS = {'[Third](04_third.ipynb)': 'faulty.html links to third.html: no such page',
          '[First](index.ipynb#nowhere)': 'faulty.html links to index.html#nowhere: no such place',
          '[f](https://github.com/small/small/blob/main/small/one.py#L9)': 'one.py#L9: no such line',
          r'$\arc x$': 'faulty.html has a formula that is not drawn'}

def cell(i, source):
    code = dict(cell_type='code', outputs=[], execution_count=None) if source.startswith(('#|', 'show_doc')) else None
    return dict(code or dict(cell_type='markdown'), metadata={}, id=str(i), source=source)

def small(folder, **notebooks):
    "Build a project of these notebooks, lists of cells"
    (folder/'nbs').mkdir()
    (folder/'small').mkdir()
    (folder/'pyproject.toml').write_text(PROJECT)
    (folder/'small'/'__init__.py').write_text('__version__ = "0.0.1"\n')
    (folder/'small'/'one.py').write_text('def f(x): "Twice"; return 2*x\n')
    for n in ('_quarto.yml', 'styles.css'): shutil.copy(root/'nbs'/n, folder/'nbs'/n)
    meta = dict(kernelspec=dict(name='python3', language='python', display_name='python3'))
    for n, cells in notebooks.items():
        doc = dict(cells=[cell(i, s) for i,s in enumerate(cells)], metadata=meta, nbformat=4, nbformat_minor=5)
        (folder/'nbs'/f'{n}.ipynb').write_text(json.dumps(doc))
    return build(folder, folder/'_docs')

def test_small_site_is_whole(tmp_path):
    done = small(tmp_path, index=FIRST, **{'01_second': SECOND})
    assert done.returncode==0, done.stderr

def test_page_that_fails_is_seen(tmp_path):
    done = small(tmp_path, index=FIRST+['show_doc(g)'], **{'01_second': SECOND}, stray=SECOND)
    assert done.returncode and "index.ipynb fails: NameError: name 'g' is not defined" in done.stderr
    assert 'stray.ipynb is in no part of the sidebar' in done.stderr

def test_faults_are_seen(tmp_path):
    more = {'01_second': SECOND, '02_faulty': ['# Faulty', *FAULTS], '03_untitled': ['No title.', '## Later\nText.']}
    done = small(tmp_path, index=FIRST, **more)
    assert done.returncode
    for said in (*FAULTS.values(), 'untitled.html has no title'): assert said in done.stderr, done.stderr
