"""`pytest --since main`: what belongs to the files that differ from a commit, for the loop of whoever works on them.

A page; the tests that name something of its module, and of those that run for every method the ones for the method whose page it is; the documents."""
import importlib, json, re, subprocess
from functools import cache
from pathlib import Path

root = Path(__file__).parent.parent

def changed(base:str) -> set:
    "Files that differ from the commit, and those that git does not know yet"
    def git(*args): return subprocess.run(['git',*args], cwd=root, check=True, capture_output=True, text=True).stdout.split()
    return {*git('diff','--name-only',base), *git('ls-files','--others','--exclude-standard')}

def module_of(file:str) -> str|None:
    "Dotted name of the module that a page exports, or that a file is"
    path = root/file
    if path.suffix == '.py' and path.is_relative_to(root/'self_supervised'): return '.'.join(path.relative_to(root).with_suffix('').parts)
    if path.suffix != '.ipynb' or not path.exists(): return None
    exp = re.search(r'#\| ?default_exp (\S+)', ''.join(''.join(c['source'])+'\n' for c in json.loads(path.read_text())['cells']))
    return exp and f'self_supervised.{exp[1]}'

class Since:
    "What is wanted of the tests that were collected"
    def __init__(self, base):
        from kit import METHODS
        self.files = changed(base)
        self.modules = {m for m in map(module_of, self.files) if m} - {'self_supervised._modidx','self_supervised.vision.all'}
        self.public = {n for m in self.modules for n in getattr(importlib.import_module(m), '__all__', [])}
        self.methods = {n for n,o in METHODS.items() if o.cb.__module__ in self.modules}
        self.only_methods = bool(self.modules) and all(any(o.cb.__module__ == m for o in METHODS.values()) for m in self.modules)
        self.uses = cache(self._uses)
    def _uses(self, path):
        text = path.read_text()
        return any(m in text for m in self.modules) or bool(self.public & set(re.findall(r'\w+', text)))
    def wants(self, item) -> bool:
        params = getattr(getattr(item, 'callspec', None), 'params', {})
        if isinstance(page := params.get('page'), Path): return f"nbs/{page.name}" in self.files
        if item.path.relative_to(root).as_posix() in self.files or item.path.name == 'test_docs.py': return True
        if self.only_methods and params.get('name') is not None: return params['name'] in self.methods
        return self.uses(item.path)
