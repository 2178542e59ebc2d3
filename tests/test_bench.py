"Every benchmark runs in its quick form and writes rows that a table can be made of"
import json, math, os
from pathlib import Path
import numpy as np, pytest
import ready
BENCH = Path(__file__).resolve().parent.parent/'benchmarks'
SHARED = {'common', 'networks'}                                   # imported by the others; they measure nothing
ERRORS = {'estimators', 'budget', 'priors'}                       # they measure errors and accuracies, not time
NAMES = sorted(f.stem for f in BENCH.glob('*.py') if f.stem not in SHARED|ERRORS)
FIELDS = ('network', 'size', 'images', 'way', 'seconds', 'ratio', 'low', 'high', 'reference')

def quick(name, out, *args):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore'}
    return ready.run('path', [BENCH/f'{name}.py', *args, '--quick', '--out', out], 300, env=env, cwd=out.parent)

def finite(v): return isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and v>=0

def faults(rows):
    "What is wrong with the rows of a benchmark, in words"
    if not rows: return ['there are no rows']
    bad = [f"{r.get('way')}: no {k}" for r in rows for k in FIELDS if k not in r]
    bad += [f"{r.get('way')}: {k} is {r.get(k)}" for r in rows for k in ('seconds', 'ratio', 'low', 'high') if not finite(r.get(k))]
    bad += [f"{r.get('way')}: {k} is {r[k]}" for r in rows for k in ('error', 'peak_bytes') if r.get(k) is not None and not finite(r[k])]
    return bad+([] if any(r['way']==r['reference'] for r in rows) else ['no row is its own reference'])

def test_there_are_benchmarks(): assert {'growth', 'whole'}<=set(NAMES)

@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_quick_form(name, tmp_path):
    out = tmp_path/f'{name}.json'
    res = quick(name, out)
    assert res.returncode==0, res.stderr[-2000:]
    got = json.loads(out.read_text())
    assert got['name']==name and got['schema']==1 and got['machine']['threads']==1
    assert not (bad := faults(got['rows'])), bad
    assert sorted(p.name for p in tmp_path.iterdir())==[out.name]     # nothing else is left behind

@pytest.fixture(scope='session')
def table(tmp_path_factory):
    "A network's outputs on all coalitions, made up: each of 16 patches has a weight, and neighbours help one another"
    d, g = tmp_path_factory.mktemp('tables')/'made', np.random.default_rng(0)
    d.mkdir()
    bits = (np.arange(2**16)[:, None]>>np.arange(16)&1).astype(float)
    v = bits@g.normal(size=16)+.1*(bits[:, :-1]*bits[:, 1:]).sum(1)
    for i in range(2): np.savez(d/f'{i:03}.npz', logit=v+i, probability=1/(1+np.exp(-v-i)), label=0, source='made')
    return d

HELP = '''
import contextlib, runpy, sys
sys.path.insert(0, '{0}')
for name in {1}:
    sys.argv = [name+'.py', '--help']
    with contextlib.suppress(SystemExit): runpy.run_path('{0}/'+sys.argv[0], run_name='__main__')
'''

def test_every_benchmark_starts():
    "All that they import is there, and they explain themselves"
    names = sorted(f.stem for f in BENCH.glob('*.py') if f.stem!='common')
    res = ready.run('code', [HELP.format(BENCH, names)], 300)
    assert res.returncode==0 and res.stdout.count('usage: ')==len(names), res.stderr[-2000:]

@pytest.mark.slow
@pytest.mark.parametrize('name', ['estimators', 'priors', 'budget'])
def test_quick_form_of_errors(name, table, tmp_path):
    out = tmp_path/f'{name}.json'
    res = quick(name, out, *(['digits', '--demo'] if name=='budget' else [table]))
    assert res.returncode==0, res.stderr[-2000:]
    rows = json.loads(out.read_text())['rows']
    assert rows and all(math.isfinite(v) for r in rows for v in r.values() if isinstance(v, float))

def test_rows_that_are_wrong_are_noticed():
    good = dict(network='n', size=32, images=4, way='a', seconds=1., ratio=1., low=1., high=1., reference='a', error=None)
    assert not faults([good])
    for change in (dict(ratio=float('nan')), dict(seconds=None), dict(reference='b'), dict(error=float('inf')), dict(low=-1.)): assert faults([{**good, **change}]), change
    assert faults([]) and faults([{k:v for k,v in good.items() if k!='images'}])

def test_a_fit_finds_the_exponent(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from growth import exponent
    assert abs(exponent([1, 4, 16], [3*x**1.5 for x in (1, 4, 16)])-1.5)<1e-9 and exponent([1, 4], [2, 2])==0 and exponent([1, 4], [None, 2]) is None

def test_ways_take_turns(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from common import interleaved
    seen = []
    took = interleaved({k: lambda k=k: seen.append(k) for k in 'abc'}, 'b', rounds=3, warm=1)
    assert ''.join(seen)=='abc'+'bca'+'cab'+'abc' and took['b']['ratio']==1 and all(v['low']<=v['ratio']<=v['high'] for v in took.values())
