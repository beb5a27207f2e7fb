"""A pretended GPU for each of several processes, and what Accelerate, DDP and NCCL do on real ones.

torch differentiates on number 0 of a backend in Python alone, so that is each process's own GPU here. On CUDA all processes begin on that of the first
one, and here the others begin on number 1. Collectives of the default group take tensors of the own GPU alone, those of gloo take tensors on the processor."""
from contextlib import contextmanager
import fastai.distributed, torch
import torch.distributed as dist
import torch.nn.modules.batchnorm as batchnorm
from fastai.vision.all import rank_distrib
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from pretended_gpu import backend, gpu, inner, pretending
from self_supervised.collectives import all_reduce, sum_over

own = gpu(0)

# collectives

IN_PLACE = 'all_reduce all_gather broadcast reduce_scatter_tensor'.split()
real = {k:getattr(dist, k) for k in [*IN_PLACE,'all_gather_object','barrier']}

def refusing(name):
    "The collective `name`, as NCCL and gloo have it"
    def f(*args, group=None, **kwargs):
        if group is None and len(args) > 2 and isinstance(args[2], dist.ProcessGroup): *args,group = args
        tensors = [o for a in args for o in (a if isinstance(a, list) else [a]) if isinstance(o, torch.Tensor)]
        bad = [o.device for o in tensors if (o.device.type != 'cpu' if group else o.device != own)]
        if bad: raise RuntimeError(f"{name}: no backend for tensors on {bad[0]}: those of this group are on {'cpu' if group else own}")
        return real[name](*[list(map(inner, o)) if isinstance(o, list) else inner(o) for o in args], group=group, **kwargs)
    return f

def by_current_device(name):
    "A collective without tensors of its own: NCCL takes the current GPU, and two processes cannot have the same one"
    def f(*args, group=None, **kwargs):
        if group is None and gpu() != own: raise RuntimeError(f"{name}: duplicate GPU detected: the current one is {gpu()}, and not {own}")
        return real[name](*args, group=group, **kwargs)
    return f

# Accelerate, DDP and SyncBatchNorm

class DDP(DistributedDataParallel):
    "Averages gradients and sends buffers, as torch's does"
    def __init__(self, module):
        nn.Module.__init__(self)
        self.module,self.device = module,next(module.parameters()).device
        self.mine = [b for n,b in module.named_buffers() if n not in getattr(module, '_ddp_params_and_buffers_to_ignore', ())]
        for o in [*module.parameters(), *self.mine]: dist.broadcast(o.detach(), 0)
        for p in module.parameters():
            if not p.requires_grad: continue
            p._backward_hooks = None                                         # of an earlier fit, before the parameter was moved
            p.register_hook(lambda g: all_reduce(g.clone())/dist.get_world_size())
    def forward(self, *args, **kwargs):
        if torch.is_grad_enabled():
            for b in self.mine: dist.broadcast(b, 0)
        return self.module(*args, **kwargs)
    def __getstate__(self): return vars(self)
    def __setstate__(self, state): vars(self).update(state)

class Accelerator:
    def __init__(self, cpu=False):
        assert not cpu
        if not dist.is_initialized(): dist.init_process_group('gloo')
        self.device = own
        backend.set_device(self.device.index)
    def prepare(self, model): return DDP(model.to(self.device))
    def backward(self, loss): loss.backward()

class SyncNorm:
    "What `nn.SyncBatchNorm` calls on a GPU"
    @staticmethod
    def apply(x, w, b, mean, var, eps, momentum, group, world):
        y = x.double()
        dims,n = [0,*range(2, x.ndim)],x.new_full((), x.numel()/x.shape[1], dtype=torch.double)
        n = all_reduce(n)
        m,sq = sum_over(torch.stack([y.sum(dims), y.square().sum(dims)]))/n
        v = sq-m**2
        if mean is not None:
            mean.lerp_(m.detach().to(mean.dtype), momentum)
            var.lerp_((v*n/(n-1)).detach().to(var.dtype), momentum)
        def wide(o): return o.view(-1, *[1]*(x.ndim-2))
        return ((y-wide(m))/wide(v+eps).sqrt()*wide(w)+wide(b)).to(x.dtype)

@contextmanager
def several_gpus():
    "This process is one of those that `warm.group` starts, and each has a GPU"
    changes = [*[(dist, k, refusing(k)) for k in IN_PLACE], *[(dist, k, by_current_device(k)) for k in ('all_gather_object','barrier')],
               (fastai.distributed, 'Accelerator', Accelerator), (batchnorm, 'sync_batch_norm', SyncNorm)]
    was = [(o, k, getattr(o, k)) for o,k,_ in changes]
    for o in changes: setattr(*o)
    try:
        with pretending(min(rank_distrib(), 1)): yield
    finally:
        for o in was: setattr(*o)

def on_gpus(f, *args):
    "`f(*args)`, for `warm.group`"
    with several_gpus(): f(*args)
