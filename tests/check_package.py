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
    mods = sorted(n[9:-3] for n in names if n.startswith('infoutil/') and n.endswith('.py') and not n.startswith('infoutil/_'))
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', f'{tmp}/site', str(wheel)], check=True)
    # an import hook stands in for a machine without the extras
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('nbdev', 'captum', 'pytest', 'jupyter', 'nbconvert', 'nbclient', 'ipykernel'): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent()); sys.path.insert(0, {tmp+'/site'!r})
import importlib, infoutil
assert infoutil.__file__.startswith({tmp!r}), infoutil.__file__
for m in {mods}: importlib.import_module('infoutil.'+m)
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp)
print(f'the wheel imports without the extras ({len(mods)} modules)')
