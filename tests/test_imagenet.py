"The commands of the page on ImageNet, on a made folder of a thousand classes"
import json, os, shlex, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from infoutil.command_line import main
from infoutil.training import train_teacher

root = Path(__file__).parents[1]

def commands():
    "Those that stand on the page"
    cells = json.loads((root/'nbs'/'paper'/'imagenet1k.ipynb').read_text(encoding='utf-8'))['cells']
    text, = [''.join(c['source']) for c in cells if 'COMMANDS = {' in ''.join(c['source'])]
    found = {}
    exec(text[:text.index('for what,line')], found)
    return found['COMMANDS']

COMMANDS = commands()
SMALL = {'teacher': '--size 16 --arch convnet3_32 --label-teachers convnet3_32 --epochs 2 --early-epoch 1',
         'distill': '--ipc 1 --candidates 2',
         'compare': '--ipc 1 --candidates 2 --min-area .2 --epochs 1 --repeats 1 --archs convnet3_32 --iterations 1'}

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder of a thousand WNIDs with two images each to learn from and one to measure on, and weights of a network that knows some"
    home = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    for c in range(1000):
        look = rng.integers(0, 256, (2, 2, 3))
        for part, n in dict(train=2, val=1).items():
            folder = home/'imagenet'/part/f'n{c:08d}'
            folder.mkdir(parents=True)
            for i in range(n):
                im = np.clip(look+rng.normal(0, 8, (2, 2, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(im).resize((16, 16), Image.Resampling.NEAREST).save(folder/f'{i}.png')
    t = train_teacher(home/'imagenet', None, 'convnet3_32', 16, epochs=6, show_progress=False)
    torch.save(t.model.state_dict(), home/'weights.pth')
    assert main(small('judge', home)[1:])==0
    return home

def small(name, home, processes=1):
    "A command of the page with what makes it small"
    line = COMMANDS[name].replace('--pretrained', f'--weights {home}/weights.pth').replace('judge', f'{home}/judge')
    line = line.replace(' imagenet ', f' {home}/imagenet ')
    line = line.replace('$P', f'torchrun --nproc-per-node {processes} -m infoutil' if processes>1 else 'infoutil')
    words = shlex.split(line)
    verb = next(v for v in SMALL if v in words)
    words += shlex.split(SMALL[verb])
    if verb=='compare' and 'sre2l' not in line: words = words[:-2]      # --iterations is SRe2L's
    at = words.index('-o')+1
    words[at] = str(home/Path(words[at]).name)
    return words

@pytest.mark.parametrize('name', [n for n in COMMANDS if n!='judge'])
def test_every_command_is_planned(made, capsys, name):
    "Options, methods, networks and states are known, and the price is said"
    assert main([*small(name, made)[1:], '--dry-run'])==0
    said = capsys.readouterr().out
    assert '1000 classes, 2,000 training images' in said and 'in all' in said
    assert not (made/Path(small(name, made)[small(name, made).index('-o')+1]).name).exists()

@pytest.mark.slow
@pytest.mark.parametrize('name', ['one set', 'Table 7', 'Table 11'])
def test_two_processes_one_of_them_killed(made, name):
    words = small(name, made, processes=2)
    cmd = [sys.executable, '-m', 'torch.distributed.run', *words[1:]]
    out = Path(words[words.index('-o')+1])
    p = subprocess.Popen(cmd)
    end, began = time.time()+300, [out/'results.jsonl', out.with_name(out.name+'.run')/'settings.json']
    while not any(f.exists() for f in began) and p.poll() is None and time.time()<end: time.sleep(.1)
    time.sleep(1)
    workers = subprocess.run(['pgrep', '-P', str(p.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert p.poll() is None, 'it ended before a process could be killed'
    os.kill(int(workers[-1]), signal.SIGKILL)      # torchrun's processes are in sessions of their own
    assert p.wait(60)
    subprocess.run(cmd, check=True, timeout=600)
    if name=='one set': assert json.loads((out/'infoutil.json').read_text())['ipc']==1
    else:
        rows = [json.loads(l) for l in (out/'results.jsonl').read_text().splitlines()]
        keys = [(r['method'], r['label_teacher'], r['seed']) for r in rows]
        assert len(keys)==len(set(keys))==(3 if name=='Table 7' else 8)
