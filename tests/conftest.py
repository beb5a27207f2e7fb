"What tests cost: CPU seconds of each, with those of the processes that it starts. `CONTRIBUTING.md` has the budget."
import os
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')
import warm

BUDGET = 1100

def cpu() -> float:
    "CPU seconds of this process, of its children and of the warm server with its own"
    t = os.times()
    return t.user+t.system+t.children_user+t.children_system+warm.server_cpu()

_last = [0.]
def pytest_runtest_logstart(): _last[0] = cpu()

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    rep,now = (yield).get_result(),cpu()
    rep.user_properties.append(('cpu', now-_last[0]))
    _last[0] = now

def pytest_sessionfinish(session):
    if hasattr(session.config, 'workeroutput'): session.config.workeroutput['cpu'] = cpu()

_workers = []
@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node): _workers.append(getattr(node, 'workeroutput', {}).get('cpu', 0))

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "A worker takes a file of tests, which share what they have made, or a notebook"
    from xdist.scheduler import LoadScopeScheduling
    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid): return nodeid if is_notebook(nodeid) else nodeid.partition('::')[0]
    return ByFile(config, log)

def pytest_addoption(parser): parser.addoption('--since', metavar='COMMIT', help="run what belongs to the files that differ from this commit")

def pytest_collection_modifyitems(config, items):
    if not (base := config.getoption('since')): return
    from since import Since
    wanted = Since(base)
    keep = [o for o in items if wanted.wants(o)]
    config.hook.pytest_deselected(items=[o for o in items if o not in keep])
    items[:] = keep

def is_notebook(nodeid): return 'test_notebook[' in nodeid

def pytest_terminal_summary(terminalreporter):
    cost = Counter()
    for rep in sum(terminalreporter.stats.values(), []):
        for k,v in getattr(rep, 'user_properties', ()): cost[rep.nodeid] += v if k == 'cpu' else 0
    say,total = terminalreporter.write_line,sum(_workers) or cpu()
    parts = {o:{k:v for k,v in cost.items() if is_notebook(k) == (o == 'notebooks')} for o in ('notebooks','tests')}
    if os.environ.get('CPU_FILE'): Path(os.environ['CPU_FILE']).write_text(''.join(f'{v:.2f}\t{k}\n' for k,v in cost.items()))
    for name,part in parts.items():
        if not part: continue
        terminalreporter.section(f'CPU seconds of {name}')
        for k,v in sorted(part.items(), key=lambda o: -o[1])[:20]: say(f'{v:8.1f}  {k}')
    sums = {k:sum(v.values()) for k,v in parts.items()}
    say(f"\nCPU seconds, children included: {total:,.0f}, of a budget of {BUDGET:,} for all: notebooks {sums['notebooks']:.0f}, "
        f"tests {sums['tests']:.0f}, imports {total-sum(sums.values()):.0f}")
