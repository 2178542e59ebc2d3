"README.md is nbs/index.ipynb as Markdown; `--write` renders it, otherwise the two are compared"
import re, sys
from pathlib import Path
from nbconvert import MarkdownExporter
import nbformat

root = Path(__file__).parents[1]
nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
text, res = MarkdownExporter().from_notebook_node(nb)
if res.get('outputs'): sys.exit('nbs/index.ipynb holds picture outputs; keep its pictures as files under nbs/images')
text = re.sub(r'\]\((?!https?:|#)', '](nbs/', text).strip()+'\n'      # from the root, as the README is read
readme = root/'README.md'
lost = [l for l in re.findall(r'\]\((nbs/[^)#]+)', text) if not (root/l).exists()]
if lost: sys.exit(f"nbs/index.ipynb links to {', '.join(lost)}, which do not exist; mend the links")
if '--write' in sys.argv: readme.write_text(text, encoding='utf-8')
elif readme.read_text(encoding='utf-8')!=text: sys.exit('README.md differs from nbs/index.ipynb; run `make readme` and commit')
print('README.md and nbs/index.ipynb agree')
