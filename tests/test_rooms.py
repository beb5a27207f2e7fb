"The house is in order: imports go one way, few changes to fastai, few public names, cells that can be read."
import importlib, json, re, subprocess, sys
from pathlib import Path

import fastai.vision.all as theirs
from self_supervised import fit
from self_supervised.vision import all as ours

root = Path(__file__).parent.parent
pages = sorted((root/'nbs').glob('[0-9]*.ipynb'))

def cells(page): return [''.join(c['source']) for c in json.loads(page.read_text())['cells'] if c['cell_type'] == 'code']
def exported(page): return [c for c in cells(page) if c.startswith('#| export')]
def module(page):
    found = re.search(r'#\| default_exp (\S+)', '\n'.join(cells(page)))
    return f'self_supervised.{found[1]}' if found else None
modules = {m:p for p in pages if (m := module(p))}

def test_imports_go_one_way():
    "No exported cell imports a page that stands behind its own"
    up = []
    for m,p in modules.items():
        for o in re.findall(r'^\s*(?:from|import) (self_supervised[\w.]*)', '\n'.join(exported(p)), re.M):
            if o in modules and modules[o].name > p.name: up.append((p.stem, modules[o].stem))
    assert not up

def test_changes_to_fastai():
    "Six at most, each with its reason; nothing else of fastai's classes is replaced"
    assert len(fit.changed) <= 6 and all(len(o) > 20 for o in fit.changed.values()), fit.changed
    code = """
import fastai.vision.all as f
kinds = [o for n in dir(f) if isinstance(o := getattr(f, n), type) and o.__module__.startswith('fastai')]
before = {(o,k):v for o in kinds for k,v in vars(o).items() if callable(v)}
import self_supervised.vision.all
from self_supervised.fit import changed
print(sorted({f'{o.__name__}.{k}' for (o,k),v in before.items() if vars(o).get(k) is not v} - set(changed)))"""
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_somebody_elses_change_survives(monkeypatch):
    class Theirs:
        def f(self): return 'theirs'
    @fit.changes(Theirs)
    def f(was, self):
        "For this test"
        return was(self)+', ours'
    fit.changed.pop('Theirs.f')
    assert Theirs().f() == 'theirs, ours'

def test_public_names():
    names = [n for m in modules if m != 'self_supervised.vision.all' for n in getattr(importlib.import_module(m), '__all__', [])]
    assert len(names) == len(set(names)) <= 220

def test_nothing_of_fastai_is_replaced():
    assert [n for n in ours.__all__ if hasattr(theirs, n) and getattr(ours, n) is not getattr(theirs, n)] == []

def test_cells():
    "At most 40 lines, but for the two callbacks of exact resume, the base of all methods and one class of CSS"
    long = [(p.stem, c.split('\n')[1]) for p in pages for c in exported(p) if len(c.split('\n')) > 41]
    assert len(long) <= 20, long
