"""Small wrong changes to the library, each with the test that must notice it.

`mutants.json` is the table: what is wrong, the code as it is (`old`), the wrong code (`new`), and the test that fails
on it (`killer`). A snippet is looked for in all files of the package, word by word, so that it may move to another
module and be wrapped in another way. `make test` sees that every snippet stands where it can be changed;
`make test-long` changes each in a copy of the package and runs its killer there."""
import ast, io, json, os, re, shutil, subprocess, sys, tokenize
from functools import lru_cache
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
TABLE = json.loads((root/'tests'/'mutants.json').read_text(encoding='utf-8'))
BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

def words(text):
    "Tokens that mean something, each with where it begins and ends in `text`"
    starts = [0]
    for line in text.splitlines(keepends=True): starts.append(starts[-1]+len(line))
    out = []
    try:
        for t in tokenize.generate_tokens(io.StringIO(text).readline):
            if t.type in BLANK or t.string in ('', ';'): continue
            out.append((t.string, starts[t.start[0]-1]+t.start[1], starts[t.end[0]-1]+t.end[1]))
    except (tokenize.TokenError, IndentationError): pass                 # a snippet may end inside of brackets
    return out

@lru_cache(maxsize=1)
def package():
    "Text, words and tokens of every module, by its place"
    files = sorted((root/'infoutil').rglob('*.py'))
    texts = {p.relative_to(root): p.read_text(encoding='utf-8') for p in files if p.name!='_modidx.py'}
    return {p: read(t) for p,t in texts.items()}

def read(text):
    "A text with its words, and the same with their places"
    tokens = words(text)
    return text, [w for w,*_ in tokens], tokens

def places(snippet, files=None):
    "Where the snippet stands: (file, first character, last character)"
    want = [w for w,*_ in words(snippet)]
    assert want, f'no token in {snippet!r}'
    found = []
    for p,(_, have, tokens) in (files or package()).items():
        if not set(want)<=set(have): continue
        for i in (i for i,w in enumerate(have) if w==want[0] and have[i:i+len(want)]==want):
            found.append((p, tokens[i][1], tokens[i+len(want)-1][2]))
    return found

def mutated(m):
    "The file and its text with the change"
    (p, a, b), = places(m['old'])
    text = package()[p][0]
    return p, text[:a]+m['new']+text[b:]

@pytest.mark.parametrize('m', TABLE, ids=lambda m: m['what'])
def test_a_mutant_can_be_made(m):
    "Its code stands in one place, the changed file is Python, and its killer exists and runs in `make test`"
    assert set(m)=={'what', 'old', 'new', 'killer'}
    at = [str(p) for p,*_ in places(m['old'])]
    assert len(at)==1, f"{m['old']!r} stands in {at or 'no file'}; give it the code as it is now"
    p, text = mutated(m)
    ast.parse(text)
    assert [w for w,*_ in words(m['new'])]!=[w for w,*_ in words(m['old'])], 'nothing is changed'
    file, _, name = m['killer'].partition('::')
    assert re.match(r'\w+', name)[0] in quick_tests(file)

@lru_cache
def quick_tests(file):
    "Names of the tests of a file that `make test` runs"
    tree = ast.parse((root/file).read_text(encoding='utf-8'))
    tests = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    return {n.name for n in tests if 'slow' not in ''.join(map(ast.unparse, n.decorator_list))}

def test_there_are_enough_and_none_twice():
    assert len(TABLE)>=45
    for k in ('what', 'old'): assert len({m[k]+(m['new'] if k=='old' else '') for m in TABLE})==len(TABLE)

def test_snippets_are_found_however_they_are_wrapped():
    text = 'x = f(a,\n      b) # why\nif q: y = 1; z = 2\n'
    files = {Path('a.py'): read(text)}
    assert [(p.name, text[a:b]) for p,a,b in places('f(a, b)', files)]==[('a.py', 'f(a,\n      b)')]
    assert places('y=1\nz=2', files) and places('f(a,', files) and not places('f(b)', files)

def run(tests, folder):
    "The tests with the package of `folder`"
    env = {**os.environ, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
           'PYTHONWARNINGS': 'ignore', 'TQDM_DISABLE': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
    cmd = [sys.executable, '-m', 'pytest', '-q', '-x', '--tb=short', '-p', 'no:cacheprovider', '-p', 'no:xdist',
           '-c', str(root/'pyproject.toml'), *(str(root/t) for t in tests)]
    return subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)

@pytest.fixture
def copy(tmp_path):
    "A copy of the package, to be changed"
    shutil.copytree(root/'infoutil', tmp_path/'infoutil', ignore=shutil.ignore_patterns('__pycache__'))
    return tmp_path

@pytest.mark.slow
def test_killers_pass_as_long_as_nothing_is_wrong(copy):
    done = run(sorted({m['killer'] for m in TABLE}), copy)
    assert done.returncode==0, done.stdout[-3000:]+done.stderr[-3000:]

@pytest.mark.slow
@pytest.mark.parametrize('m', TABLE, ids=lambda m: m['what'])
def test_a_mutant_is_killed(m, copy):
    p, text = mutated(m)
    (copy/p).write_text(text, encoding='utf-8')
    done = run([m['killer']], copy)
    assert done.returncode==1, f"{m['what']}: {m['killer']} does not notice\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    crude = re.search(r'^E +(NameError|SyntaxError|ImportError|AttributeError)', done.stdout, re.M)
    assert not crude, f"{m['what']}: the change does not run at all\n{done.stdout[-3000:]}"
