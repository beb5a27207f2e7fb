"The types that public functions state: every parameter has one, they can be resolved, and defaults are of them."
import importlib
import inspect
import pkgutil
import typing

import pytest
import self_supervised
from typeguard import TypeCheckError, check_type

modules = [m.name for m in pkgutil.walk_packages(self_supervised.__path__, 'self_supervised.') if not m.ispkg and not m.name.endswith(('_modidx','.all'))]

def public(module):
    "Functions and constructors that `module` defines and exports, by name"
    mod = importlib.import_module(module)
    for name in mod.__all__:
        o = getattr(mod, name)
        f = o.__dict__.get('__init__') if inspect.isclass(o) else o
        f = inspect.unwrap(f) if callable(f) else f
        if inspect.isfunction(f) and f.__module__ == module: yield name,f

def own(f):
    "Names of the parameters that stand in the definition, without those of a delegate"
    c = f.__code__
    return [o for o in c.co_varnames[:c.co_argcount+c.co_kwonlyargcount] if o not in ('self','cls')]

@pytest.mark.parametrize('module', modules)
def test_public_signatures(module):
    found = []
    for name,f in public(module):
        hints,defaults = typing.get_type_hints(f),{k:p.default for k,p in inspect.signature(f).parameters.items()}
        for p in own(f):
            if p not in hints: found.append(f'{name}({p}) has no type'); continue
            d = defaults.get(p, inspect.Parameter.empty)
            if d is inspect.Parameter.empty or (d is None and module == 'self_supervised.cli'): continue       # there the type is what argparse makes of a string
            try: check_type(d, hints[p])
            except TypeCheckError as e: found.append(f'{name}({p}:{hints[p]}={d!r}): {e}')
    assert not found, '\n'.join(found)
