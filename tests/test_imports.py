"Modules import only modules of lower number, and their public names are importable"
import ast, importlib, json, re
from pathlib import Path
import pytest

root = Path(__file__).parents[1]
number = {}
for p in sorted((root/'nbs').glob('[0-9]*.ipynb')):
    mod = re.match(r'#\| default_exp (\w+)', ''.join(json.loads(p.read_text(encoding='utf-8'))['cells'][0]['source']))[1]      # __main__ is the page 53_main
    number[mod] = int(p.stem.partition('_')[0])

def imports(mod):
    "Names of the infoutil modules that a module imports"
    for node in ast.walk(ast.parse((root/'infoutil'/f'{mod}.py').read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level==1 and node.module: yield node.module
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('infoutil.'): yield node.module.split('.')[1]

@pytest.mark.parametrize('mod', number)
def test_arrows_point_down(mod):
    up = [m for m in imports(mod) if number[m]>=number[mod]]
    assert not up, f'{mod} ({number[mod]}) imports {up}'

@pytest.mark.parametrize('mod', [m for m,n in number.items() if 10<=n<22])
def test_stages_know_no_teacher(mod): assert 'teacher' not in list(imports(mod))

@pytest.mark.parametrize('mod', number)
def test_public_names(mod):
    m = importlib.import_module(f'infoutil.{mod}')
    for name in m.__all__: assert hasattr(m, name), name

def test_no_pickle():
    for p in (root/'infoutil').glob('*.py'): assert not re.search(r'\bpickle\b|torch\.load\(|load_learner', p.read_text(encoding='utf-8')), p.name
