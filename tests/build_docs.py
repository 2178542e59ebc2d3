"""The site, from the notebooks, without Quarto: `python tests/build_docs.py` in the root of the project writes _docs/

nbdev makes a page of each notebook (cards in place of exported cells), smalldocs makes a website of the pages,
and what a reader would trip over (a page that failed, a link into nothing, a page without a title) ends the build."""
import argparse
import ast
import html
import re
import shutil
import sys
import tempfile
from functools import lru_cache, partial
from html.parser import HTMLParser
from importlib import import_module
from inspect import getsourcelines, unwrap
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from urllib.parse import unquote, urlsplit

import yaml
from fastcore.nbio import read_nb, write_nb
from fastcore.parallel import parallel
from latex2mathml.converter import convert
from nbdev import processors
from nbdev.config import create_output, get_config, nbpath2html
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, exec_show_docs
from nbdev.quarto import refresh_quarto_yml
from nbdev.showdoc import BasicMarkdownRenderer, show_doc
from smalldocs import highlight
from smalldocs.config import load
from smalldocs.site import Site

# part of the sidebar: its chapters by number, or by folder; a chapter that is new finds its place by itself
PARTS = {'Start': ('index', 'tutorials', 'symbols'), 'Method': range(0, 19), 'Use and measure': range(19, 40),
         'Compare and report': (*range(40, 100), 'templates'), 'Engine': ('engine',), 'Fixtures': ('fixtures',),
         'Paper': ('paper',)}
FIRST = ('index', 'quickstart', 'your_own_folder', 'images', 'tables', 'recipe')     # in their part, before the others

# what is asked for every cell and every word, and stays the same during a build
processors.get_config = lru_cache(get_config)
highlight.css_class = lru_cache(None)(highlight.css_class)

# Pages ---------------------------------------------------------------------------------------------------------------

def number(nb):
    "4 of 04_crop.ipynb; None where a notebook has none"
    m = re.match(r'(\d+)_', nb.name)
    return int(m[1]) if m else None

def key(nb):
    "What PARTS names a notebook by: its number, its folder, or its name"
    if len(nb.parts)>1: return nb.parts[0]
    return nb.stem if number(nb) is None else number(nb)

def notebooks(nbs):
    "The notebooks of the site, relative to `nbs`, in the order of the book"
    found = [p.relative_to(nbs) for p in nbs.rglob('*.ipynb')]
    found = [p for p in found if not any(q.startswith(('.', '_')) for q in p.parts)]
    rank = {name:i for i,name in enumerate(FIRST)}
    return sorted(found, key=lambda p: (len(p.parts), rank.get(p.stem, len(rank)), p.as_posix()))

def page_path(nb):
    "crop.ipynb of 04_crop.ipynb: pages have the names that nbdev links to, numbers may change"
    return Path(nbpath2html(nb)).with_suffix('.ipynb')

class Card(BasicMarkdownRenderer):
    "nbdev's card, with the line at which the source stands"
    def _repr_markdown_(self):
        line = getsourcelines(unwrap(self.sym))[1]
        text = super()._repr_markdown_().replace('#LNone', f'#L{line}').removeprefix('---\n\n')
        return f':::: {{.card-of-name}}\n{text}\n::::'

class cards_of_module(Processor):
    """Cards of what the package holds: no cell is run but `show_doc`

    nbdev's own `exec_show_docs` runs every cell that is exported or holds an import once more,
    and knows no name yet that a later cell defines."""
    def begin(self):
        self.names = dict(show_doc=partial(show_doc, renderer=Card))
        for c in self.nb.cells:
            if c.cell_type=='code' and 'default_exp' in c.directives_:
                module = import_module(f"{get_config().lib_path.name}.{c.directives_['default_exp']}")
                self.names |= {k:v for k,v in vars(module).items() if not k.startswith('__')}
    def cell(self, cell):
        if cell.cell_type=='code' and re.search(r'^show_doc\(', cell.source, re.M):
            cell.outputs = create_output(eval(cell.source, self.names)._repr_markdown_(), 'markdown')

class folded_exports(Processor):
    "In place of nbdev's `rm_export`: exported code stays, folded, below the cards of what it defines; imports go"
    def cell(self, cell):
        if cell.cell_type!='code': return
        if cell.directives_.keys()&{'hide', 'default_exp'}: del cell['source']
        elif cell.directives_.keys()&{'export', 'exporti'}:
            if all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in ast.parse(cell.source).body): del cell['source']
            else:
                cell.source = f'#| code-fold: true\n#| code-summary: "Code"\n{cell.source}'
                cell.folded = True
    def end(self):
        waiting, out = [], []
        for c in self.nb.cells:
            card = getattr(c, 'has_sd', 0)
            if not card: out, waiting = out+waiting, []
            if getattr(c, 'folded', False): waiting.append(c)
            else: out.append(c)
        self.nb.cells = out+waiting

class Processors(FilterDefaults):
    def base_procs(self):
        ours = {exec_show_docs: cards_of_module, processors.rm_export: folded_exports}
        return [ours.get(p, p) for p in super().base_procs()]

def make_page(args):
    "One notebook through nbdev's processors -> None, or what went wrong"
    src, dst = args
    dst.parent.mkdir(parents=True, exist_ok=True)
    try:
        nb = read_nb(src)
        Processors()(nb)
    except BaseException as e:                          # a cell may end the process, too
        return f'{src.name} fails: {type(e).__name__}: {e}'
    write_nb(nb, dst)

def texts(nb):
    "Holders of Markdown in a notebook: (dict, key) of every Markdown cell and Markdown output"
    for c in nb.cells:
        if c.cell_type=='markdown': yield c, 'source'
        for o in c.get('outputs', []):
            if 'text/markdown' in o.get('data', {}): yield o['data'], 'text/markdown'

def rewrite(nb, change):
    "`change` every Markdown text of a notebook"
    for holder, k in texts(nb):
        text = holder[k]
        holder[k] = change(''.join(text) if isinstance(text, list) else text)

def cards(nb):
    "Anchors of the cards of a page"
    shown = [''.join(h[k]) for h,k in texts(nb) if k=='text/markdown']
    return {n.lower() for text in shown for n in re.findall(r'^### (\S+)$', text, re.M)}

def link_pages(pages, cfg):
    "Links between notebooks and links of names in backticks lead to the pages of this site"
    nbs = {p:read_nb(p) for p in pages}
    anchors = {page.as_posix():cards(nbs[p]) for p,page in pages.items()}
    base = re.escape(cfg.doc_host+cfg.doc_baseurl.rstrip('/'))
    def name(m):
        page, anchor = m[1]+'.ipynb', m[2] or ''
        while anchor and anchor not in anchors.get(page, ()): anchor = anchor.rpartition('.')[0]
        return f"](/{page}{'#' if anchor else ''}{anchor})"
    def file(m): return f'({m[1]}{page_path(Path(m[2]))}'
    def change(text):
        text = re.sub(rf'\]\({base}/([\w/]+)\.html(?:#([^)\s]*))?\)', name, text)
        return re.sub(r'(?<=\])\(((?![a-z]+:)[^)\s#]*?)([^/)\s#]+\.ipynb)', file, text)
    for p,nb in nbs.items():
        rewrite(nb, change)
        front = nb.cells[0]
        front['source'] = re.sub(r'^output-file:.*\n', '', front.source, flags=re.M)        # the page has that name
        write_nb(nb, p)

# Website -------------------------------------------------------------------------------------------------------------

def sidebar(files):
    "Contents of the sidebar: a section for each part that has pages"
    out = []
    for part, keys in PARTS.items():
        inside = [f for k in keys for f in files if key(f)==k]
        contents = [page_path(f).as_posix() for f in inside]
        if contents: out.append(dict(section=part, contents=contents))
    left = [f.as_posix() for f in files if all(key(f) not in keys for keys in PARTS.values())]
    return out, [f'{f} is in no part of the sidebar' for f in left]

def config(cfg, contents):
    "One _quarto.yml of nbs/_quarto.yml, nbdev.yml and the sidebar"
    refresh_quarto_yml()
    own, theirs = (yaml.safe_load((cfg.nbs_path/n).read_text()) for n in ('_quarto.yml', 'nbdev.yml'))
    own['website'] = {**theirs['website'], **own['website'], 'llms-txt': True}
    own['website']['sidebar']['contents'] = contents
    del own['metadata-files']
    return own

# what latex2mathml does not know, or knows only where it stands in braces
MENDED_TEX = {r'\\arg\b': r'\\operatorname{arg}', r'\\not\\ni\b': '∌', r'\\setminus\b': r'\\backslash',
              r'\\binom\{([^{}]*)\}\{([^{}]*)\}': r'{\\binom{\1}{\2}}'}
PARTS_OF = dict(msup=2, msub=2, mfrac=2, mover=2, munder=2, msubsup=3, munderover=3)

def undrawn(page):
    "Whether a formula is left as TeX, or is no formula to a browser"
    if re.search(r'class="math |katex', page): return True
    for formula in re.findall(r'<math.*?</math>', page, re.S):
        for e in ElementTree.fromstring(formula).iter():
            if len(e)!=PARTS_OF.get(e.tag.rpartition('}')[2], len(e)): return True
            if re.match(r'\\[a-zA-Z]', e.text or ''): return True
    return False

def mathml(page):
    "Formulas as MathML, which browsers draw themselves: no script, no other host"
    def formula(m):
        tex = html.unescape(m[2])
        for a,b in MENDED_TEX.items(): tex = re.sub(a, b, tex)
        return convert(tex, display='block' if m[1]=='display' else 'inline')
    page = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', formula, page, flags=re.S)
    return re.sub(r'\s*<(?:link|script)[^>]*katex[^>]*>(?:</script>)?', '', page)

def finish(out):
    "What smalldocs leaves to us: formulas, and the names that nbdev gives to Markdown copies"
    for p in out.rglob('*.html'): p.write_text(mathml(p.read_text(encoding='utf-8')), encoding='utf-8')
    for p in [*out.rglob('*.llms.md'), out/'llms.txt']:
        p.write_text(p.read_text(encoding='utf-8').replace('.llms.md', '.html.md'), encoding='utf-8')
        if p.suffix=='.md': p.rename(p.with_name(p.name.replace('.llms.md', '.html.md')))

# Checks --------------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    "Title, first heading, anchors and links of a page"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.title, self.heading, self.inside = set(), [], '', '', None
        self.feed(re.sub(r'"data:[^"]*"', '""', text))        # pictures are long
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        if 'id' in d: self.ids.add(d['id'])
        self.links += [d[k] for k in ('href', 'src') if d.get(k)]
        if tag in ('title', 'h1'): self.inside = tag
    def handle_endtag(self, tag):
        if tag==self.inside: self.inside = None
    def handle_data(self, data):
        if self.inside=='title': self.title += data
        if self.inside=='h1': self.heading += data

def line_of(root, path, fragment):
    "What is wrong with a link to a line of a source file, or None"
    f = root/path
    if not f.exists(): return 'no such file'
    m = re.fullmatch(r'L(\d+)', fragment)
    if fragment and not m: return 'no such line'
    if m and int(m[1])>len(f.read_text(encoding='utf-8').splitlines()): return 'no such line'

def problems(out, cfg):
    "What a reader of the site would trip over, a sentence each"
    pages = {p:Page(p.read_text(encoding='utf-8')) for p in sorted(out.rglob('*.html'))}
    source = f'{cfg.git_url}/blob/{cfg.branch}/'
    for p,page in pages.items():
        me = p.relative_to(out).as_posix()
        text = p.read_text(encoding='utf-8')
        if not page.heading.strip() or not page.title.startswith(page.heading.strip()): yield f'{me} has no title'
        if 'cell-output-error' in text: yield f'{me} shows an error'
        if undrawn(text): yield f'{me} has a formula that is not drawn'
        for link in page.links:
            url = urlsplit(link)
            if link.startswith(source):
                wrong = line_of(cfg.config_path, unquote(urlsplit(link[len(source):]).path), url.fragment)
            elif url.scheme or url.netloc: continue
            else:
                to = (p.parent/unquote(url.path)).resolve() if url.path else p.resolve()
                if to.is_dir(): to = to/'index.html'
                wrong = None if to.exists() and out.resolve() in to.parents else 'no such page'
                if not wrong and url.fragment and to in pages and unquote(url.fragment) not in pages[to].ids:
                    wrong = 'no such place'
            if wrong: yield f'{me} links to {link}: {wrong}'

# All of it -----------------------------------------------------------------------------------------------------------

def build(workers=2, out=None):
    "Build the site of the project in the current folder -> what is wrong with it"
    cfg = get_config()
    nbs, out = cfg.nbs_path, Path(out or cfg.doc_path).resolve()
    files = notebooks(nbs)
    contents, wrong = sidebar(files)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        pages = {tmp/page_path(f):page_path(f) for f in files}
        jobs = [(nbs/f, tmp/page_path(f)) for f in files]
        wrong += filter(None, parallel(make_page, jobs, n_workers=workers, method='spawn'))
        if wrong: return wrong
        link_pages(pages, cfg)
        (tmp/'_quarto.yml').write_text(yaml.safe_dump(config(cfg, contents), sort_keys=False))
        for f in (f for f in nbs.rglob('*') if f.suffix in ('.css', '.png', '.jpg', '.svg', '.gif')):
            (tmp/f.relative_to(nbs)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, tmp/f.relative_to(nbs))
        site = Site(load(tmp), quiet=True)
        site.out = out
        shutil.rmtree(out, ignore_errors=True)
        site.build()
        wrong += [w for w in site.warnings if ': broken link ' not in w]       # `problems` finds these, and more
    finish(out)
    return wrong+list(problems(out, cfg))

if __name__=='__main__':
    p = argparse.ArgumentParser(description='Build the site into _docs/')
    p.add_argument('--workers', type=int, default=2, help='processes that make pages; 0: this one')
    p.add_argument('--out', default='_docs', help='folder of the site, made anew')
    args = p.parse_args()
    wrong = build(args.workers, args.out)
    if wrong: sys.exit('\n'.join([*wrong, f'{len(wrong)} things to mend']))
    print(f'the site is in {args.out}; open {args.out}/index.html')
