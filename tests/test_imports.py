"What modules import, and that public names stay importable"
import ast, importlib, pkgutil, re
from pathlib import Path
import pytest
import infoutil

root = Path(__file__).parents[1]
def imports(file):
    "Modules of the package that a file imports"
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level and node.module: yield node.module
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('infoutil.'): yield node.module[9:]

@pytest.mark.parametrize('mod', 'pixels models attribution crop gradient_norms selection mosaics'.split())
def test_stages_know_no_teacher_and_no_files(mod):
    "The chapters of the method import no teacher, file, process, cache or meter"
    used = set(imports(root/'infoutil'/f'{mod}.py'))
    assert not used&{'teacher', 'data', 'engine.outputs', 'engine.runs', 'engine.processes', 'engine.measure', 'engine.class_runs'}, used

def test_a_method_knows_no_engine_room():
    for mod in ('methods', 'algorithm', 'coresets', 'rded'):
        used = set(imports(root/'infoutil'/f'{mod}.py'))
        assert not used&{'engine.outputs', 'engine.runs', 'engine.processes', 'engine.measure', 'engine.class_runs', 'engine.settle'}, (mod, used)

def test_the_engine_knows_no_method():
    "Neither a name of a method nor a chapter of one"
    for f in (root/'infoutil'/'engine').glob('*.py'):
        assert set(imports(f))<={'basics', *(m for m in imports(f) if m.startswith(('engine', 'outputs', 'runs', 'processes', 'progress', 'measure', 'memory', 'fast', 'grad', 'priors', 'resumed', 'shared', 'seen', 'settle', 'class', 'calls', 'members', 'part_names', 'balanced', 'other_networks')))}, f.name
        named = re.findall(r"'(infoutil|rded|herding|kmeans|forgetting|sre2l|grad_cam|shapley_loss|random_grad_norm)'", f.read_text(encoding='utf-8'))
        # the package's own name, and folders of a demo that an earlier version wrote
        assert set(named)<={'infoutil'}|({'rded'} if f.name=='outputs.py' else set()), (f.name, named)

def test_public_names():
    "What version 0.1.0 offered is offered still, by whichever module; `public_names.txt` is its list, which only grows"
    offered = set()
    for found in pkgutil.walk_packages(infoutil.__path__, 'infoutil.'):
        if found.name.rpartition('.')[2] in ('__main__', '_modidx'): continue
        m = importlib.import_module(found.name)
        names = getattr(m, '__all__', ())
        offered |= {n for n in names if hasattr(m, n)}
    kept = (root/'tests'/'public_names.txt').read_text(encoding='utf-8').split()
    lost = sorted(set(kept)-offered)
    assert len(kept)>300 and not lost, f'no module offers {lost}'

def test_no_pickle():
    for p in (root/'infoutil').glob('**/*.py'): assert not re.search(r'\bpickle\b|torch\.load\((?!.*weights_only=True)|load_learner\(', p.read_text(encoding='utf-8')), p.name
