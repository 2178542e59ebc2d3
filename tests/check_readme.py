"README.md is nbs/index.ipynb as Markdown; `--write` renders it, otherwise the two are compared"
import sys
from pathlib import Path
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor
import nbformat

root = Path(__file__).parents[1]
nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
text, res = MarkdownExporter().from_notebook_node(nb)
if res.get('outputs'): sys.exit('nbs/index.ipynb holds picture outputs; keep its pictures as files under nbs/images')
text = text.replace('](images/', '](nbs/images/').strip()+'\n'
readme = root/'README.md'
if '--write' in sys.argv: readme.write_text(text, encoding='utf-8')
elif readme.read_text(encoding='utf-8')!=text: sys.exit('README.md differs from nbs/index.ipynb; run `make readme` and commit')
print('README.md and nbs/index.ipynb agree')
