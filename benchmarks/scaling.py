"""What a process computes and sends in a step of each method, counted; NT-Xent's time and memory, and DDP's overhead, measured.
Writes scaling_*.csv, of which `make docs` makes the tables of docs/scaling.md, and draws its picture."""
import inspect
import os
import time
from contextlib import nullcontext
import matplotlib.pyplot as plt
from common import record
from fastcore.script import call_parse
from memory import peak_mb
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from self_supervised import collectives
from self_supervised.training.distributed import launch
from self_supervised.callback import methods, projection_size
from self_supervised.vision.barlow_twins import barlow_twins
from self_supervised.vision.moco import moco_v3
from self_supervised.vision.nnclr import nnclr
from self_supervised.vision.vicreg import vicreg_loss
from self_supervised.vision.all import *

pictures = Path(__file__).parent.parent/'docs'/'images'

class Flat(nn.Module):
    "In place of an encoder, for the widths of the heads"
    nf = 2048
    def forward(self, x): return x.new_zeros(len(x), self.nf)

# counted: work on tensors without content, bytes in a step of the first of W processes whose collectives only copy

def flops(f):
    with FakeTensorMode(), FlopCounterMode(display=False) as c: f().backward()
    return c.get_total_flops()

def z(*s): return torch.empty(*s, requires_grad=True)
def own(b): return torch.arange(b)
def neighbours(n, b, d, K):
    z(2*b, d).detach() @ z(d, K).detach()
    return nnclr(z(2*n, d), z(2*n, d), rows=own(b))
def correlations(f):
    "As `CorrelationsMixin` has it"
    return lambda n,b,d: f(z(2*n, d), rows=own(b)) if n < d else f(z(2*b, d), total=n)

# the part of the loss of n images with width d that b images have; None of those that do not compare images, as that is nothing
PARTS = {'SimCLR':      lambda n,b,d: nt_xent(z(2*n, d), rows=own(2*b)),
         'MOCO':        lambda n,b,d: info_nce(z(n, d), z(n, d), z(65536, d), rows=own(b)),
         'MOCOV3':      lambda n,b,d: moco_v3(z(2*n, d), z(2*n, d), rows=own(b)),
         'NNCLR':       lambda n,b,d: neighbours(n, b, d, 65536),
         'BarlowTwins': correlations(barlow_twins),
         'VICReg':      correlations(lambda *a,**kw: vicreg_loss(*a, **kw)[0]),
         'BYOL':None, 'SimSiam':None, 'SWAV':None, 'DINO':None}

def learner(name, dls, *cbs):
    "The method with the widths of its paper, and with its queue if it compares images with one"
    cb = methods[name.lower()]
    small = dict(small_size=8) if 'small_size' in inspect.signature(cb.create_views).parameters else {}
    queue = dict(K=65_536) if cb.takes('K') and cb.compares else {}
    return Learner(dls, cb.create_model(Flat()), cbs=[cb(cb.create_views(16, **small), **queue), *cbs])

class Counted:
    "torch.distributed for the first of `W` processes, of which the others do the same; counts the bytes that a process receives"
    ReduceOp = torch.distributed.ReduceOp
    def __init__(self, W): self.W,self.received = W,0
    def is_available(self): return True
    is_initialized = is_available
    def get_world_size(self): return self.W
    def get_rank(self): return 0
    def all_gather_object(self, res, o): res[:] = [o]*self.W
    def broadcast(self, x, src): self.received += x.nbytes
    def all_gather(self, res, x):
        for r in res: r.copy_(x)
        self.received += (self.W-1)*x.nbytes
    def reduce_scatter_tensor(self, out, x):
        out.copy_(x[:len(out)])
        self.received += (self.W-1)*out.nbytes
    def all_reduce(self, x, op=None): self.received += 2*(self.W-1)/self.W*x.nbytes        # by a ring

class Step(Callback):
    order = 200
    def before_train(self): collectives.dist.received = 0
    def after_batch(self):
        self.mb = collectives.dist.received/1e6
        raise CancelFitException

def received(name:str, W:int, bs:int) -> float:
    "MB that a process receives in a step of the method for the loss"
    real,collectives.dist = collectives.dist,Counted(W)
    try:
        items = [(TensorImage(torch.rand(3, 16, 16)),TensorCategory(i%2)) for i in range(bs)]
        learn = learner(name, DataLoaders(*[TfmdDL(items, bs=bs, num_workers=0) for _ in range(2)]), Step())
        learn.distributed_trainer = None
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return learn.step.mb
    finally: collectives.dist = real

def count(bs:int, encoder:str, worlds:tuple):
    enc = create_encoder(encoder, pretrained=False)
    with FlopCounterMode(display=False) as f: enc(torch.rand(2,3,224,224)).sum().backward()
    work,n,rows,data = f.get_total_flops()*bs/1e12,sum(p.numel() for p in enc.parameters()),[],{}
    for name,loss in PARTS.items():
        model = methods[name.lower()].create_model(Flat())
        d,params = projection_size(model),n+sum(p.numel() for p in model.parameters())
        data[name] = [(w, received(name, w, bs), flops(partial(loss, w*bs, bs, d))/1e12 if loss else 0., 4*params/1e6) for w in worlds]
        rows += [dict(method=name, encoder=encoder, bs=bs, encoder_tflop=work, gradients_mb=g, processes=w, received_mb=mb, loss_tflop=tf) for w,mb,tf,g in data[name]]
    record('scaling_counted', rows, ['method','encoder','bs','processes'])
    draw(data, work, worlds)

def draw(data:dict, work:float, worlds:tuple, tflops:float=312*.3, inside:float=300., between:float=25.):
    "Seconds of a step as if nothing overlapped: NVIDIA's A100 at 30 % of its peak, GB/s of its NVLink in a machine of 8 and of its network between them"
    fig,axs = plt.subplots(1, len(worlds), figsize=(10, 3.2), sharey=True)
    for i,(w,ax) in enumerate(zip(worlds, axs)):
        gb,left = inside if w <= 8 else between,np.zeros(len(data))
        parts = {'encoder':[work/tflops]*len(data), 'gradients, by DDP':[2*o[i][3]/1e3/gb for o in data.values()],
                 'loss, computed':[o[i][2]/tflops for o in data.values()], 'loss, received':[o[i][1]/1e3/gb for o in data.values()]}
        for (k,v),c in zip(parts.items(), ('#9ab','#468','#e9a13b','#c0392b')):
            ax.barh(list(data), 1e3*np.array(v), left=left, label=k, color=c); left += 1e3*np.array(v)
        ax.set_title(f'{w:,} GPUs', fontsize=10); ax.set_xlabel('ms per step'); ax.tick_params(labelsize=8)
    axs[0].invert_yaxis()
    fig.legend(*axs[0].get_legend_handles_labels(), ncol=4, loc='lower center', fontsize=8, frameon=False)
    fig.tight_layout(rect=(0,.07,1,1))
    fig.savefig(pictures/'scaling.png', dpi=90)

# measured: a process's part of NT-Xent, with everybody's embeddings there already

def share(n, W, d=128):
    set_seed(0)
    x = torch.randn(n, d, requires_grad=True)
    rows = None if W == 1 else torch.cat([torch.arange(n//2//W), torch.arange(n//2//W)+n//2])
    def f():
        t = time.perf_counter()
        nt_xent(x, .1, rows=rows).backward()
        return time.perf_counter()-t
    return f

def measure(sizes=(1024,4096,16_384,65_536), worlds=(1,2,8,64), times=3):
    "Seconds and MB of a process's part, and both over those of the whole"
    rows = []
    for n in sizes:
        for W in worlds:
            mb,first = peak_mb(share, n, W)
            f = share(n, W)
            s = first if first > 20 else np.median([f() for _ in range(times+1)][1:])
            if W == 1: whole = s,mb
            rows.append(dict(n=n, processes=W, seconds=s, time_share=s/whole[0], mb=mb, mb_share=mb/whole[1], times=1 if first > 20 else times))
    record('scaling_share', rows, ['n','processes'])

# measured: a step without and with DDP, side by side on the same cores

def steps():
    set_seed(0)
    W = max(num_distrib(), 1)
    torch.set_num_threads(max(os.cpu_count()//W, 1))
    ts = {'plain':[], 'ddp':[]}
    def learner():
        set_seed(0)
        return Learner(digits_dls(bs=128, device='cpu'), create_simclr_model(create_encoder('resnet10t', pretrained=False, n_in=1)),
                       cbs=[SimCLR(get_simclr_aug_pipelines(32, **digits_views), temp=.5), Timed()])
    from accelerate import Accelerator
    Accelerator(cpu=True)
    for _ in range(2):
        for k in ts:
            learn = learner()
            torch.distributed.barrier()
            with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False, cpu=True) if k == 'ddp' else nullcontext(): learn.fit(1, 1e-3)
            ts[k] += learn.timed.ts[2:]
    if not rank_distrib(): print(f"{W}|{np.median(ts['plain'])}|{np.median(ts['ddp'])}")
    torch.distributed.barrier(); torch.distributed.destroy_process_group()

class Timed(Callback):
    order,run_valid = 200,False
    def before_fit(self): self.ts,self.t = [],time.perf_counter()
    def after_batch(self): self.ts.append(time.perf_counter()-self.t); self.t = time.perf_counter()

def overhead():
    rows = []
    for n in (1,2):
        W,a,b = launch(__file__, '--what', 'steps', n=n, OMP_NUM_THREADS=str(os.cpu_count()//n)).split('|')
        rows.append(dict(processes=n, alone_s=float(a), ddp_s=float(b), more_pct=100*(float(b)/float(a)-1)))
    record('scaling_ddp', rows, ['processes'])

@call_parse
def main(
    what:str='count,measure,overhead', # Which of them
    bs:int=64, # Images per process
    encoder:str='resnet50' # Its gradients are summed by DDP
):
    "Count and measure"
    if what == 'steps': return steps()
    for o in what.split(','): count(bs, encoder, (8,64,1024)) if o == 'count' else globals()[o]()
