"`make gpu` runs from end to end without a GPU, so that it runs the first time where there is one."
import importlib.util, json, signal, sys, time, warnings
from collections import Counter
from pathlib import Path
import pytest, warm

path = Path(__file__).parent.parent/'benchmarks'/'gpu.py'

def script():
    "The script as a module"
    spec = importlib.util.spec_from_file_location('gpu_script', path)
    res = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(res)
    return res

SKIPPED = dict(cpu={'waits moco'}, pretended={'group','compiled'})

@pytest.mark.parametrize('device', SKIPPED)
def test_every_check_says_something(device, tmp_path):
    "None fails, and those that are skipped cannot be had on this device"
    out = warm.run(warm.script, path, '--tiny', '--device', device, '--out', tmp_path/'gpu.jsonl')
    said = {o['check']:o for o in map(json.loads, out.splitlines())}
    assert (tmp_path/'gpu.jsonl').read_text() == out
    assert {o.split()[0] for o in said} == set(CHECKS), out
    assert {k for k,o in said.items() if 'skipped' in o} == SKIPPED[device] and all(o.get('ok', 'skipped' in o) for o in said.values()), out
    assert said['resume']['deterministic'] == 0 and said['losses moco']['fp32_apart'] < 1e-6
    if device == 'pretended': assert 0 < sum(said['waits moco']['32 pixels'].values()) < 8

CHECKS = 'versions losses waits views_alike views_rate step fit_rate resume group memory compiled cifar10'.split()

def slow():
    "Four checks: one that sleeps, one that fails, one that is wrong and says so, and one for which there is no time"
    gpu = script()
    gpu.checks.clear()
    signal.signal(signal.SIGALRM, gpu.late)
    m = gpu.Machine('cpu')
    @gpu.check(.2)
    def sleeps(m):
        yield dict(before=1)
        try: time.sleep(30)
        except Exception: pass
    @gpu.check(5)
    def fails(m):
        yield dict(before=2)
        raise ValueError('two\nlines')
    @gpu.check(5, lambda m: [('a',3)])
    def wrong(m, name, n):
        yield dict(ok=n < 3)
        yield dict(ok=True)
        m.end = time.perf_counter()
    @gpu.check(5)
    def late(m): yield dict(ok=True)
    print(json.dumps(list(gpu.lines(m))))

def test_a_check_ends_and_the_next_one_runs():
    sleeps,fails,wrong,late = json.loads(warm.run(slow))
    assert sleeps['before'] == 1 and not sleeps['ok'] and 'ended after' in sleeps['error'] and sleeps['seconds'] < 5
    assert fails['before'] == 2 and not fails['ok'] and fails['error'] == 'ValueError: two lines'
    assert wrong['check'] == 'wrong a 3' and not wrong['ok'] and 'error' not in wrong
    assert late == dict(check='late', skipped='no time is left: --minutes gives more')

def waiting():
    "The place of warnings as CUDA gives them, which torch raises in its own functions"
    gpu,found = script(),Counter()
    from self_supervised.vision.all import nt_xent
    class Waits(gpu.Tensor):
        @classmethod
        def __torch_function__(cls, f, types, args=(), kwargs=None):
            if f is gpu.Tensor.__len__: warnings.warn('called a synchronizing CUDA operation')
            return super().__torch_function__(f, types, args, kwargs or {})
    with gpu.warned(found):
        nt_xent(gpu.torch.rand(4, 8).as_subclass(Waits))
        warnings.warn('another one')
    print(json.dumps(found))

def test_where_cuda_waits():
    "By line of this library; what is no wait does not count"
    found = json.loads(warm.run(waiting))
    assert found and all(o.startswith('losses.') and o.rpartition(':')[2].isdigit() for o in found), found
