"Every loss beside those of lightly and pytorch-metric-learning: time forward and backward, and peak memory."
import os
import time

from common import record
from fastcore.script import bool_arg, call_parse
from lightly import loss as lightly
from memory import peak_mb
from pytorch_metric_learning import losses as metric_learning

from self_supervised.vision.barlow_twins import barlow_twins
from self_supervised.vision.byol import byol
from self_supervised.vision.dino import dino
from self_supervised.vision.simclr import dcl
from self_supervised.vision.swav import swav
from self_supervised.vision.vicreg import vicreg_loss
from self_supervised.vision.all import *

def labels(n): return torch.arange(n//2).repeat(2) % 10
def both(f): return lambda z: f(*z.chunk(2))

def queued(n, d, K=65_536):
    set_seed(1)
    return F.normalize(torch.randn(K, d), dim=1)

def lightly_queue(n, d):
    peer = lightly.NTXentLoss(.2, memory_bank_size=(65_536,d))                    # it pushes the keys as well, which ours leaves to the callback
    peer.memory_bank.bank,peer.memory_bank.bank_ptr = queued(n, d),torch.zeros(1, dtype=torch.long)
    return both(lambda q,k: peer(q, k.detach()))

def our_queue(n, d):
    bank = queued(n, d)
    return both(lambda q,k: info_nce(q, k.detach(), bank, .2, batch_negs=False))

def prototypes(f):
    "`f` of scores, which are similarities to prototypes"
    return lambda n,d: (lambda z: f(F.normalize(z, dim=1)))

def lightly_dino(n, d):
    peer = lightly.DINOLoss(d)
    return both(lambda a,b: peer([a.detach(), b.detach()], [a, b], epoch=100))

def our_dino(n, d): return lambda z: dino(z, z.detach(), torch.zeros(d), .1, .04)

# loss: widths, ours, peers by name; each of the number of embeddings and their width
losses = {
    'NT-Xent':      ((128,), lambda n,d: partial(nt_xent, temp=.1), dict(lightly=lambda n,d: both(lightly.NTXentLoss(.1)),
                     metric_learning=lambda n,d: (lambda z: metric_learning.NTXentLoss(.1)(z, torch.arange(n//2).repeat(2))))),
    'DCL':          ((128,), lambda n,d: partial(dcl, temp=.1), dict(lightly=lambda n,d: both(lightly.DCLLoss(.1)))),
    'SupCon':       ((128,), lambda n,d: (lambda z: supcon(z, labels(n), .1)),
                     dict(metric_learning=lambda n,d: (lambda z: metric_learning.SupConLoss(.1)(z, labels(n))))),
    'InfoNCE, 65,536 in the queue': ((128,), our_queue, dict(lightly=lightly_queue)),
    'BYOL':         ((256,), lambda n,d: (lambda z: byol(z, z.detach())),
                     dict(lightly=lambda n,d: both(lambda a,b: 4+2*(lightly.NegativeCosineSimilarity()(a, b.detach())+lightly.NegativeCosineSimilarity()(b, a.detach()))))),
    'Barlow Twins': ((2048,8192), lambda n,d: barlow_twins, dict(lightly=lambda n,d: both(lightly.BarlowTwinsLoss()))),
    'VICReg':       ((2048,8192), lambda n,d: (lambda z: vicreg_loss(z, variance=12.5)[0]), dict(lightly=lambda n,d: both(lightly.VICRegLoss()),
                     metric_learning=lambda n,d: (lambda z: metric_learning.VICRegLoss()(z[:n//2], ref_emb=z[n//2:])))),
    'SwAV':         ((3000,), prototypes(swav), dict(lightly=prototypes(lambda z: lightly.SwaVLoss()(list(z.chunk(2)), [])))),
    'DINO':         ((65_536,), our_dino, dict(lightly=lightly_dino)),
}

def embeddings(n, d): return torch.randn(n, d, generator=torch.Generator().manual_seed(0))

def step(f, z):
    z = z.clone().requires_grad_()
    loss = f(z)
    loss.backward()
    return loss.item()

def setup(name, who, n, d):
    "A step, for `peak_mb` in a process of its own"
    _,ours,peers = losses[name]
    f,z = (ours if who == 'ours' else peers[who])(n, d),embeddings(n, d)
    return partial(step, f, z)

def compare(name, n, d, times, memory):
    "A row for each peer: the two in turn"
    _,ours,peers = losses[name]
    z,mine = embeddings(n, d),ours(n, d)
    for who,make in peers.items():
        theirs = make(n, d)
        ts,values = [],[]
        try:
            for f in (mine, theirs)*(times+1):
                t = time.perf_counter(); values.append(step(f, z)); ts.append(time.perf_counter()-t)
        except RuntimeError as e:
            if "can't allocate" not in str(e): raise
            print(f'{name} | {who} | {n} | {d} | the peer needs more memory than there is: {str(e)[-80:]}', flush=True)
            continue
        a,b = np.array(ts[2:]).reshape(-1, 2).T
        row = dict(loss=name, peer=who, n=n, d=d, ours_s=np.median(a), peer_s=np.median(b), ratio=np.median(a/b), least=(a/b).min(), most=(a/b).max(), times=times,
                   difference=abs(values[0]-values[1])/max(abs(values[1]), 1e-9))
        if memory: row.update(ours_mb=peak_mb(setup, name, 'ours', n, d)[0], peer_mb=peak_mb(setup, name, who, n, d)[0])
        print(' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values()), flush=True)
        yield row

@call_parse
def main(
    times:int=5, # Repetitions after one to warm up
    most:float=2**28, # Leave out what has more numbers than this in its embeddings, or in the n×n matrix of a peer that builds it
    memory:bool_arg=True, # Peak memory too, each in a process of its own
    only:str='', # One loss
    widths:str='', # Only these widths of the embeddings
    sizes:str='512,2048,8192' # Numbers of embeddings
):
    "Print and write seconds, megabytes and ratios of every loss and peer; `n` counts embeddings, two for an image"
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    wanted = [int(o) for o in widths.split(',') if o]
    for name,(all_widths,_,_) in losses.items():
        if only and name != only: continue
        for d in wanted or all_widths:
            for n in map(int, sizes.split(',')):
                if n*max(d, n if d < 1024 else 0) > most: continue
                if rows := list(compare(name, n, d, times, memory)): record('losses', rows, ['loss','peer','n','d'])
