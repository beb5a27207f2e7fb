"""A GPU that is pretended, for tests on machines without one: a device of torch whose tensors hold real values on the processor.

Tensors of two devices do not meet, `numpy()` is refused, random numbers are the device's own. Autograd, autocast, GradScaler and BatchNorm
run as on CUDA, streams copy on their own, and with `float64=False` there is no float64, as on Apple's GPUs. `counting()` counts what a GPU
would be waited for. There are `N` of them; `current` is this process's."""
import sys, traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
import fastai.torch_core, torch
from fastai.callback.core import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

N = 2
KIND = 'pretended'
current = 0
random_states = {}                                       # of each device
root = str(Path(__file__).parent.parent)

class Event:
    "What was asked for is done at once"
    def record(self): pass
    def synchronize(self): pass

class Backend(_DummyBackendModule):
    "`torch.pretended`, as `torch.cuda`"
    Event = Event
    def init(self): pass
    pretends = False
    def is_initialized(self): return self.pretends
    def is_available(self): return self.pretends
    def device_count(self): return N
    def current_device(self): return current
    def set_device(self, i):
        global current
        current = torch.device(i).index if not isinstance(i, int) else i
    def _is_in_bad_fork(self): return False
    def manual_seed_all(self, seed):
        for i in range(N): random_states[i] = torch.Generator().manual_seed(seed).get_state()
    def get_rng_state(self, device=None): return random_states[index(device)].clone()
    def set_rng_state(self, state, device=None): random_states[index(device)] = state.clone()
    def mem_get_info(self, device=None): return free,24*2**30
    def current_stream(self, device=None): return streams[-1]
    @contextmanager
    def stream(self, s):
        streams.append(s)
        try: yield
        finally: streams.pop()
    def get_amp_supported_dtype(self): return [torch.float16, torch.bfloat16, torch.float32]
    @contextmanager
    def device(self, i):
        was = current
        self.set_device(i)
        try: yield
        finally: self.set_device(was)

class Stream:
    "What it copies arrives when another stream waits for it, and not before"
    def __init__(self, device=None): self.copies = []
    def record_event(self):
        copies,self.copies = self.copies,[]
        return copies
    def wait_event(self, event):
        for there,here in event: there.copy_(here)

Backend.Stream = Stream
free = 2**30                                             # bytes of each GPU
streams = [Stream()]                                     # the current one is last
pinned = {}                                              # memory by its address, which keeps it from being given to others

def index(device):
    "The number of a device; the current one's for None or one without a number"
    if isinstance(device, int): return device
    i = None if device is None else torch.device(device).index
    return current if i is None else i

def gpu(i=None): return torch.device(KIND, index(i))

backend = Backend()
_setup_privateuseone_for_python_backend(KIND, backend)
backend.manual_seed_all(0)

# what autocast does to an operation: in half precision, or in fp32

LOW = 'linear mm bmm addmm baddbmm matmul convolution conv2d scaled_dot_product_attention'.split()
HIGH = ('norm.ScalarOpt_dim linalg_vector_norm exp log log_softmax.int softmax.int cross_entropy_loss mse_loss pow.Tensor_Scalar '
        'cosine_similarity').split()

def autocast_as(name, low):
    op,overload = (name.split('.')+['default'])[:2]
    op = getattr(getattr(torch.ops.aten, op), overload)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    def f(*args, **kwargs):
        dtype = torch.get_autocast_dtype(KIND) if low else torch.float32
        def cast(o): return o.to(dtype) if isinstance(o, torch.Tensor) and o.is_floating_point() and o.dtype != torch.float64 else o
        with torch._C._ExcludeDispatchKeyGuard(keys): return op(*mapped(cast, args), **mapped(cast, kwargs))
    library.impl(name, f)

others = torch.library.Library('_', 'IMPL', 'AutocastPrivateUse1')
others.fallback(torch.library.fallthrough_kernel)
library = torch.library.Library('aten', 'IMPL', 'AutocastPrivateUse1')
for o in LOW: autocast_as(o, True)
for o in HIGH: autocast_as(o, False)

# counting

VALUES = {'_local_scalar_dense','nonzero','masked_select','_unique2','unique_dim','unique_consecutive','bincount','equal','is_nonzero'}
INDEXED = {'index','index_put','index_put_','_index_put_impl_'}
counts = None                                            # waits, copies and operations, while they are counted

def place():
    "The function of the library that is innermost on the stack, else of fastai, with the module's name"
    for where in (root+'/self_supervised/', '/fastai/', '/torch/'):
        own = [o for o in traceback.extract_stack() if where in o.filename and o.name not in ('_with_events','method','setting_up')]
        if own: return f'{Path(own[-1].filename).stem}.{own[-1].name}'

def count(what):
    if counts is not None: counts[what][place()] += 1

@contextmanager
def counting():
    "Counters by place: `waits` for values and `copies` that are not pinned, both of which wait, and operations, `ops`"
    global counts
    was,counts = counts,dict(waits=Counter(), copies=Counter(), ops=Counter())
    try: yield counts
    finally: counts = was

class CountStep(Callback):
    "Counts the second step of a fit, with the loading of its batch"
    order = 1000
    def after_batch(self):
        if not self.training: return
        if self.iter == 0:
            self.counting = counting()
            self.found = self.counting.__enter__()
        elif self.iter == 1: self.__dict__.pop('counting').__exit__(None, None, None)

# tensors

class Pretended(torch.Tensor):
    "A tensor of a pretended GPU: `inner` holds its values"
    @staticmethod
    def __new__(cls, inner, device):
        t = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
                                                dtype=inner.dtype, device=device)
        t.inner = inner
        return t
    def __repr__(self, *args, **kwargs): return f"Pretended({self.inner}, device='{self.device}')"
    def __reduce_ex__(self, protocol): return self.inner.__reduce_ex__(protocol)         # files hold values, and say of no device
    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None): return run(f, args, kwargs or {})

def inner(o): return o.inner if isinstance(o, Pretended) else o

def mapped(f, o):
    "`f` of all values in what an operation takes or gives; torch's own `tree_map` would be a third of a training's time"
    if isinstance(o, (tuple,list)): return type(o)([mapped(f, v) for v in o])
    return {k:mapped(f, v) for k,v in o.items()} if isinstance(o, dict) else f(o)
def on_gpu(device): return device is not None and torch.device(device).type == KIND

def mixed(name, where):
    return RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {where}! ({name} at {place()})")

def check(name, args, there, here):
    "Raise where tensors of two devices meet"
    if name in INDEXED:
        if not isinstance(args[0], Pretended): raise mixed(name, 'cpu indexed by a GPU')
        idxs = [o for o in args[1] if o is not None and not isinstance(o, Pretended)]
        if idxs: count('copies')                                             # of a list, or of a tensor on the processor
        here = [o for o in here if not any(o is i for i in idxs)]
    if any(o.ndim for o in here): raise mixed(name, 'cpu and a GPU')
    devices = {o.device for o in there if o.ndim}
    if len(devices) > 1: raise mixed(name, ' and '.join(sorted(map(str, devices))))

def count_copy(x, non_blocking):
    "One to the GPU waits unless `x` is pinned; one from it, whose target torch pins, does not"
    if not (non_blocking and (isinstance(x, Pretended) or x.is_pinned())): count('copies')

def count_waits(name, args, there, target, kwargs):
    if counts is None: return
    counts['ops'][name] += 1
    if name == '_to_copy' and bool(there) != (target is not None): count_copy(args[0], kwargs.get('non_blocking'))
    elif name == 'copy_' and isinstance(args[0], Pretended) != isinstance(args[1], Pretended): count_copy(args[1], (*args,False)[2])
    elif there and (name in VALUES or name in INDEXED and any(o is not None and o.dtype in (torch.bool,torch.uint8) for o in args[1])):
        count('waits')

def target_of(name, args, kwargs, there):
    "The device of the result; None is the processor"
    device = kwargs.get('device')
    if device is not None: return gpu(device) if on_gpu(device) else None
    if name == '_local_scalar_dense' or not there: return None
    if name == 'copy_' and not isinstance(args[0], Pretended): return None
    if name == 'copy_': return args[0].device
    return next((o.device for o in there if o.ndim), there[0].device)

@contextmanager
def random_of(f, target):
    "Random numbers of the device"
    if target is None or torch.Tag.nondeterministic_seeded not in f.tags:
        yield
        return
    here = torch.get_rng_state()
    torch.set_rng_state(random_states[target.index])
    try: yield
    finally:
        random_states[target.index] = torch.get_rng_state()
        torch.set_rng_state(here)

def run(f, args, kwargs):
    "The operation `f`, on the values"
    name = f._schema.name.split('::')[1]
    there,here = [],[]
    def taken(o):
        if isinstance(o, torch.Tensor): (there if isinstance(o, Pretended) else here).append(o)
        return inner(o)
    own_args,own_kwargs = mapped(taken, args),mapped(taken, kwargs)
    target = target_of(name, args, kwargs, there)
    if not there and target is None:
        pin = kwargs.pop('pin_memory', False)
        return pin_memory(None, f(*args, **kwargs)) if pin else f(*args, **kwargs)
    if there and name not in ('_to_copy','copy_'): check(name, args, there, here)
    count_waits(name, args, there, target, kwargs)
    if own_kwargs.get('device') is not None: own_kwargs['device'] = torch.device('cpu')
    own_kwargs.pop('pin_memory', None)
    with random_of(f, target): res = f(*own_args, **own_kwargs)
    if name == '_to_copy' and res is inner(args[0]): res = res.clone()
    if name == '_to_copy' and here and streams[-1] is not streams[0]:
        streams[-1].copies.append((res, here[0]))
        res.zero_()
    known = {id(o.inner):o for o in there}                                   # what was changed in place is itself
    def wrap(o):
        if not isinstance(o, torch.Tensor) or isinstance(o, Pretended): return o
        if target is not None and o.dtype == torch.float64 and not backend.float64:
            raise TypeError(f"Cannot convert a {KIND} Tensor to float64 dtype as the {KIND} framework doesn't support float64. ({name} at {place()})")
        return known.get(id(o)) if id(o) in known else o if target is None else Pretended(o, target)
    return mapped(wrap, res)

class Everywhere(TorchDispatchMode):
    "Operations that make a tensor are asked for a device, too"
    def __torch_dispatch__(self, f, types, args=(), kwargs=None): return run(f, args, kwargs or {})

torch.serialization.register_package(5, lambda o: None, lambda o, place: o if place.startswith(KIND) else None)

# what torch does to a tensor without an operation

def as_subclass(was, self, cls): return self if isinstance(self, Pretended) or issubclass(cls, Pretended) else was(self, cls)

def numpy(was, self, *args, **kwargs):
    if not isinstance(self, Pretended): return was(self, *args, **kwargs)
    raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

def tolist(was, self):
    if not isinstance(self, Pretended): return was(self)
    count('waits')
    return was(self.inner)

def is_pinned(was, self, *args): return not isinstance(self, Pretended) and self.untyped_storage().data_ptr() in pinned

def pin_memory(was, self, *args):
    if isinstance(self, Pretended): raise RuntimeError(f"cannot pin '{self.device}': only dense CPU tensors can be pinned")
    res = self if is_pinned(None, self) else self.clone()
    pinned.setdefault(res.untyped_storage().data_ptr(), res)
    return res

def record_stream(was, self, s):
    if not isinstance(self, Pretended): raise RuntimeError('record_stream of a tensor on the processor')

@contextmanager
def pretending(i=None, float64=True):
    "The machine has GPUs, with float64 or without, and fastai takes the current one"
    backend.float64,backend.pretends = float64,True
    if i is not None: backend.set_device(i)
    changes = [(torch.Tensor, f.__name__, getattr(torch.Tensor, f.__name__), f)
               for f in (as_subclass,numpy,tolist,is_pinned,pin_memory,record_stream)]
    for owner,name,was,f in changes: setattr(owner, name, lambda *args, f=f, was=was, **kwargs: f(was, *args, **kwargs))
    devices = [m for m in list(sys.modules.values()) if getattr(m, 'default_device', None) is fastai.torch_core.default_device]
    was = fastai.torch_core.default_device
    swap = torch.__future__.get_swap_module_params_on_conversion()
    for m in devices: m.default_device = lambda use=-1: gpu() if use in (-1,True,None) else torch.device('cpu')
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)              # a parameter that is moved stays the same object
    try:
        with Everywhere(): yield gpu()
    finally:
        backend.pretends = False
        torch.__future__.set_swap_module_params_on_conversion(swap)
        torch._C._set_only_lift_cpu_tensors(False)
        pinned.clear()
        for m in devices: m.default_device = was
        for owner,name,was,_ in changes: setattr(owner, name, was)
