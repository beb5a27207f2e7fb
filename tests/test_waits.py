"A step waits for the device a few times per batch, never per image; where, docs/scaling.md lists."
import re, traceback
from collections import Counter
from pathlib import Path
import pytest, torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.vision.all import Callback
from kit import METHODS, dls_of, fit, make, make_dls

root = Path(__file__).parent.parent
VALUES = {'_local_scalar_dense','nonzero','masked_select','_unique2','unique_dim','unique_consecutive','bincount','equal','is_nonzero'}

def place():
    "The function of the library that is innermost on the stack; None for fastai's and torch's own, and on the way back"
    own = [o for o in traceback.extract_stack() if o.filename.startswith(str(root/'self_supervised')) and o.name not in ('_with_events','method','setting_up')]
    return f'{Path(own[-1].filename).stem}.{own[-1].name}' if own else None

class Ops(TorchDispatchMode):
    "Operations whose result has to be known on the host: values, and shapes that depend on values"
    def __init__(self): super().__init__(); self.found = Counter()
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f._schema.name.split('::')[1]
        masks = args[1] if name in ('index','index_put','index_put_') else ()
        if name in VALUES or any(isinstance(o, torch.Tensor) and o.dtype == torch.bool for o in masks): self.found[place()] += 1
        return f(*args, **(kwargs or {}))

class Lists(TorchFunctionMode):
    "`tolist`, which is no operation on the processor"
    def __init__(self): super().__init__(); self.found = Counter()
    def __torch_function__(self, f, types, args=(), kwargs=None):
        if f is torch.Tensor.tolist: self.found[place()] += 1
        return f(*args, **(kwargs or {}))

class Begin(Callback):
    order = -1000
    def before_batch(self):
        if not self.training or self.iter != 1: return
        self.modes = Ops(),Lists()
        for m in self.modes: m.__enter__()
class End(Callback):
    order = 1000
    def after_batch(self):
        if not self.training or self.iter != 1: return
        for m in self.learn.begin.modes[::-1]: m.__exit__(None, None, None)

def waits(name, n, bs):
    "How often a step of `bs` images waits, by place"
    torch.manual_seed(0)
    learn = fit(make(name, dls_of(name, n=n, bs=bs), cbs=[Begin(), End()]), 1)
    return sum((m.found for m in learn.begin.modes), Counter())

@pytest.mark.parametrize('name', METHODS)
def test_waits(name):
    "As many for twice the images; a handful for a step of SimCLR; and each of them is in the list"
    few,many = waits(name, 36, 8),waits(name, 60, 16)
    assert sum(many.values()) <= sum(few.values())+2, (few, many)
    assert sum(few.values()) <= (6 if name in ('sim_clr','moco','byol','sim_siam','barlow_twins','vic_reg') else 24), few
    listed = set(re.findall(r'^\| `([\w.]+)` \|', (root/'docs'/'scaling.md').read_text(), re.M))
    assert {o for o in (few|many) if o} <= listed, (few|many)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device, whose waits torch can report')
def test_waits_on_cuda():
    "torch's own count of synchronisations, in a step of SimCLR"
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with pytest.warns(UserWarning) as found: fit(make('sim_clr', make_dls(n=16, bs=8)), 1)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert len([o for o in found if 'synchroniz' in str(o.message)]) <= 20*2
