"The wheel holds the package alone, and importing it needs none of the development extras"
import subprocess, sys, tempfile, zipfile
from pathlib import Path

root = Path(__file__).parents[1]
with tempfile.TemporaryDirectory() as tmp:
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', tmp, str(root)], check=True)
    wheel = next(Path(tmp).glob('infoutil-*.whl'))
    names = zipfile.ZipFile(wheel).namelist()
    odd = [n for n in names if not n.startswith(('infoutil/', 'infoutil-'))]
    assert not odd, f'the wheel holds {odd}'
    template = (root/'nbs'/'templates'/'report.ipynb').read_bytes()
    assert 'infoutil/templates/report.ipynb' in names and zipfile.ZipFile(wheel).read('infoutil/templates/report.ipynb')==template, 'the wheel lacks the template of the report, or has an old one'
    missing = {f'infoutil/data_files/{f.name}' for f in (root/'infoutil'/'data_files').iterdir()}-set(names)
    assert not missing, f'the wheel lacks {missing}'
    assert 'infoutil/plans.safetensors' in names, 'the wheel lacks the coalitions and posteriors that come with it'
    mods = sorted(n[9:-3].replace('/', '.') for n in names if n.startswith('infoutil/') and n.endswith('.py') and not Path(n).name.startswith('_'))
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', f'{tmp}/site', str(wheel)], check=True)
    # an import hook stands in for a machine without the extras; what makes reports is a requirement, and is imported only then
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('nbdev', 'captum', 'pytest', 'jupyter', 'nbconvert', 'nbclient', 'ipykernel', 'datasets', 'webdataset', 'huggingface_hub', 'accelerate', 'pyarrow'): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent()); sys.path.insert(0, {tmp+'/site'!r})
import importlib, infoutil
assert infoutil.__file__.startswith({tmp!r}), infoutil.__file__
for m in {mods}: importlib.import_module('infoutil.'+m)
from infoutil.report import _fresh_notebook
sys.meta_path.pop(0)
assert len(_fresh_notebook().cells)>20
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp)
print(f'the wheel imports without the extras ({len(mods)} modules)')
