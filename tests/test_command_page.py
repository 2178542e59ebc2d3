"The page of commands shows every option of every command"
import ast, json, shlex
from pathlib import Path
from infoutil.command_line import _parser, _settings, COMMANDS

PAGE = Path(__file__).parents[1]/'nbs'/'tutorials'/'commands.ipynb'
SETTINGS = {f"--{k.replace('_', '-')}" for k,*_ in _settings()}         # shared by distill and compare: shown at one of them

def typed():
    "The command lines of the page, those of its text, too"
    known = {}
    for c in json.loads(PAGE.read_text(encoding='utf-8'))['cells']:
        s = ''.join(c['source'])
        if c['cell_type']=='markdown': yield from (t for t in s.split('`') if t.startswith('infoutil '))
        else:
            tree = list(ast.walk(ast.parse(s)))
            for n in tree:
                if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant) and isinstance(n.targets[0], ast.Name): known[n.targets[0].id] = n.value.value
            yield from (f'infoutil {text(n, known)}' for n in tree if isinstance(n, ast.JoinedStr) or isinstance(n, ast.Constant) and isinstance(n.value, str))

def text(n, known):
    "A string, with the page's own constants filled in"
    if isinstance(n, ast.Constant): return str(n.value)
    if isinstance(n, ast.FormattedValue): return str(known.get(getattr(n.value, 'id', None), 'x'))
    return ''.join(text(v, known) for v in n.values)

def shown():
    out = {}
    for line in typed():
        try: words = shlex.split(line)
        except ValueError: continue
        if len(words)<2: continue
        out.setdefault(words[1], set()).update(w for w in words[2:] if w.startswith('-'))
    return out

def options(command):
    "Each option by its shortest and its longest name"
    return [tuple(a.option_strings) for a in _parser([command]).commands[command]._actions if a.option_strings]

def test_every_option_of_every_command_is_shown():
    seen = shown()
    of_any = set().union(*seen.values())
    missing = [f'{c} {names[-1]}' for c in COMMANDS for names in options(c) if names[-1] not in ('--help', '--debug')
               and not set(names)&(of_any if names[-1] in SETTINGS and c in ('distill', 'compare') else seen.get(c, set()))]
    assert not missing, missing
