"Exporting and cleaning the committed notebooks must change nothing"
import shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).parents[1]

def tree(folder):
    "Every notebook and module, name -> bytes"
    found = (p for pattern in ('nbs/**/*.ipynb', 'infoutil/**/*.py') for p in folder.glob(pattern))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found if '.ipynb_checkpoints' not in p.parts}

with tempfile.TemporaryDirectory() as tmp:
    copy = Path(tmp)/root.name
    copy.mkdir()
    for name in ('nbs', 'infoutil', 'settings.ini', 'pyproject.toml', 'setup.py', 'README.md'):
        src = root/name
        shutil.copytree(src, copy/name) if src.is_dir() else shutil.copy(src, copy/name)
    subprocess.run(['git', 'init', '-q', '.'], cwd=copy, check=True)   # nbdev looks for the root of a repository
    for cmd in ('nbdev-clean', 'nbdev-export'): subprocess.run([cmd], cwd=copy, check=True)
    old, new = tree(root), tree(copy)
    changed = sorted(k for k in old.keys()|new.keys() if old.get(k)!=new.get(k))
if changed: sys.exit(f"nbdev-clean and nbdev-export change {', '.join(changed)}; run `make export` and commit")
if (root/'infoutil'/'templates'/'report.ipynb').read_bytes()!=(root/'nbs'/'templates'/'report.ipynb').read_bytes():
    sys.exit('infoutil/templates/report.ipynb is not nbs/templates/report.ipynb; run `make export` and commit')
print(f'{len(old)} notebooks and modules agree')
