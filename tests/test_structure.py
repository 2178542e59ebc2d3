"The house and its rules: chapters in their order, arrows, widths, one statement a line, imports alone, demonstrations"
import ast, io, json, re, tokenize
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
NBS = sorted(p for p in (ROOT/'nbs').glob('**/*.ipynb') if 'checkpoints' not in str(p))
WIDTH, CELLS, IN_A_ROW = 120, 60, 2

def source(c): return ''.join(c['source'])
def cells(p): return json.loads(p.read_text(encoding='utf-8'))['cells']
def code(p): return [source(c) for c in cells(p) if c['cell_type']=='code']
def exported(s): return bool(re.search(r'^#\|\s*export', s, re.M))
def hidden(s): return bool(re.search(r'^#\|\s*hide', s, re.M))
def only_imports(s): return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in parsed(s).body)
def parsed(s): return ast.parse(re.sub(r'^[%!].*$', '', s, flags=re.M))

def module_of(p):
    found = [m for s in code(p) for m in re.findall(r'^#\|\s*default_exp\s+(\S+)', s, re.M)]
    return found[0] if found else None

MODULES = {p:module_of(p) for p in NBS if module_of(p)}
CHAPTERS = {p:m for p,m in MODULES.items() if p.parent.name=='nbs'}
NUMBER = {m:int(p.name[:2]) for p,m in CHAPTERS.items() if p.name[:2].isdigit()}

def imports(p):
    "Modules of the package that the exported cells of a notebook import"
    out = set()
    for s in filter(exported, code(p)):
        for n in ast.walk(parsed(s)):
            if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('infoutil.'): out.add(n.module[9:])
            if isinstance(n, ast.Import): out |= {a.name[9:] for a in n.names if a.name.startswith('infoutil.')}
    return out

def names(ps): return [p.relative_to(ROOT/'nbs').as_posix() for p in ps]

def test_number_title_and_module_are_one():
    numbers = [p.name[:2] for p in CHAPTERS if p.name[:2].isdigit()]
    assert len(numbers)==len(set(numbers)), 'two chapters of one number'
    for p,m in MODULES.items():
        title = next(source(c) for c in cells(p) if c['cell_type']=='markdown').splitlines()[0].removeprefix('# ')
        last = m.split('.')[-1].strip('_')
        assert title.lower().replace(' ', '_').replace('-', '_')==last, (p.name, title, m)
        assert re.sub(r'^\d\d_', '', p.stem)==last, (p.name, m)

def test_arrows_point_down():
    "A chapter imports lower chapters and the engine; the engine the basics and itself; fixtures are for pages, the command line and `all`"
    wrong = []
    for p,m in MODULES.items():
        for i in imports(p):
            area, own = i.split('.')[0], m.split('.')[0]
            if own=='engine': fine = area in ('engine', 'basics')
            elif own=='fixtures' or m in ('all', '__main__'): fine = True
            elif area=='engine': fine = True
            elif area=='fixtures': fine = m=='command_line'
            else: fine = i in NUMBER and NUMBER[i]<NUMBER.get(m, 99)
            if not fine: wrong.append(f'{m} -> {i}')
    assert not wrong, wrong

def test_no_circles():
    arrows = {m:imports(p) for p,m in MODULES.items()}
    done, open_ = set(), []
    def visit(m):
        assert m not in open_, ' -> '.join([*open_[open_.index(m):], m])
        if m in done or m not in arrows: return
        open_.append(m)
        for i in arrows[m]: visit(i)
        done.add(open_.pop())
    for m in arrows: visit(m)

def test_no_private_name_crosses_a_module():
    odd = [f'{p.name}: {n.module}.{a.name}' for p in NBS for s in code(p) if 'import' in s and exported(s) for n in ast.walk(parsed(s))
           if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('infoutil') for a in n.names if a.name.startswith('_') and not a.name.startswith('__')]
    assert not odd, odd

@pytest.mark.parametrize('p', NBS, ids=names(NBS))
def test_a_page_patches_its_own_classes(p):
    "nbdev-test runs many pages in one process: a method that a page gives to another page's class would stay there, with that page's errors and tables. fastai's `Learner` is the exception."
    tree = [n for s in code(p) for n in ast.walk(parsed(s))]
    own = {n.name for n in tree if isinstance(n, ast.ClassDef)}|{'Learner'}
    patched = [n for n in tree if isinstance(n, ast.FunctionDef) and any('patch' in ast.unparse(d).split('(')[0].split('.') for d in n.decorator_list)]
    odd = [f'{n.args.args[0].annotation.id}.{n.name}' for n in patched if n.args.args[0].annotation.id not in own]
    assert not odd, odd

@pytest.mark.parametrize('p', NBS, ids=names(NBS))
def test_code_is_as_wide_as_a_page(p):
    long = [l for s in code(p) for l in s.splitlines() if len(l)>WIDTH]
    assert not long, long[:3]

def chained(text):
    "Lines that hold two statements"
    depth, out = 0, []
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        if t.type!=tokenize.OP: continue
        depth += (t.string in '([{')-(t.string in ')]}')
        rest = t.line[t.end[1]:].strip()
        if t.string==';' and depth==0 and 'nbdev_export()' not in t.line and rest and not rest.startswith('#'): out.append(t.line.strip())
    return out

@pytest.mark.parametrize('p', NBS, ids=names(NBS))
def test_one_statement_a_line(p):
    many = [l for s in code(p) if not re.search(r'^[%!]', s, re.M) for l in chained(s)]
    assert not many, many[:3]

def test_what_a_second_statement_looks_like():
    assert chained('a = 1; b = 2\nc = "x;y"\nplot();   # no text below\n')==['a = 1; b = 2']

@pytest.mark.parametrize('p', list(MODULES), ids=names(MODULES))
def test_imports_stand_alone(p):
    "The site runs every cell that holds an import, so such a cell holds nothing else"
    for s in code(p):
        if not re.search(r'^(from|import)\b', s, re.M) or 'nbdev_export' in s: continue
        others = [n for n in parsed(s).body if not isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not others or not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in parsed(s).body), s[:200]

@pytest.mark.parametrize('p', list(MODULES), ids=names(MODULES))
def test_a_chapter_is_a_sitting(p):
    assert len(cells(p))<=CELLS, len(cells(p))
    assert 'nbdev_export()' in code(p)[-1], 'the last cell exports'

@pytest.mark.parametrize('p', list(MODULES), ids=names(MODULES))
def test_what_is_defined_is_shown(p):
    "A demonstration after at most two exported cells; imports count for nothing"
    row = most = 0
    for s in code(p):
        if hidden(s) or exported(s) and only_imports(s): continue
        row = row+1 if exported(s) else 0
        most = max(most, row)
    assert most<=IN_A_ROW, most

def lines_to(name):
    "Exported lines, in the order of the chapters, up to the page of a module and with it, and all"
    order = sorted(NUMBER, key=NUMBER.get)
    size = {m: sum(len(s.splitlines()) for s in code(p) if exported(s)) for p,m in MODULES.items()}
    return sum(size[m] for m in order[:order.index(name)]), sum(size[m] for m in order[:order.index(name)+1]), sum(size.values())

def test_the_method_comes_first():
    before, _, everything = lines_to('attribution')
    _, upto, _ = lines_to('algorithm')
    assert before<.1*everything and upto<everything/3, (before, upto, everything)

def test_all_brings_what_a_person_needs():
    import infoutil.all
    assert 50<=len(infoutil.all.__all__)<=110
