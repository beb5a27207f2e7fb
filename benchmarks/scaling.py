"What a process computes and receives in a step of each method, counted on tensors without content; and NT-Xent's time and memory, measured: docs/scaling.md."
import time
from fastcore.script import call_parse
from memory import peak_mb
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from self_supervised.vision.all import *

class Flat(nn.Module):
    "In place of an encoder, for the widths of the heads"
    nf = 2048
    def forward(self, x): return torch.zeros(len(x), self.nf)

def flops(f):
    with FakeTensorMode(), FlopCounterMode(display=False) as c: f().backward()
    return c.get_total_flops()

def z(*s): return torch.empty(*s, requires_grad=True)
def own(b): return torch.arange(b)
def neighbours(n, b, d, K):
    z(2*b, d).detach() @ z(d, K).detach()
    return nnclr(z(2*n, d), z(2*n, d), rows=own(b))

# the model, the part of the loss of n images with width d that b images have, and what a process gets: numbers for each image of the others, sums once a step
METHODS = {'SimCLR':      (create_simclr_model, lambda n,b,d: nt_xent(z(2*n, d), rows=own(2*b)), lambda d: 4*d, 0),                     # embeddings, and their gradients
           'MOCO':        (create_moco_model, lambda n,b,d: info_nce(z(n, d), z(n, d), z(65536, d), rows=own(b)), lambda d: 4*d, 0),    # queries, keys, keys for the queue, gradients
           'MOCOV3':      (create_mocov3_model, lambda n,b,d: moco_v3(z(2*n, d), z(2*n, d), rows=own(b)), lambda d: 8*d, 0),            # predictions, projections, keys, gradients
           'NNCLR':       (create_nnclr_model, lambda n,b,d: neighbours(n, b, d, 65536), lambda d: 8*d, 0),                             # predictions, projections, neighbours, gradients
           'BarlowTwins': (create_barlow_twins_model, lambda n,b,d: barlow_twins(z(2*n, d), rows=own(b)), lambda d: 4*d, 0),
           'VICReg':      (create_vicreg_model, lambda n,b,d: vicreg_loss(z(2*n, d), rows=own(b))[0], lambda d: 4*d, 0),
           'BYOL':        (create_byol_model, None, lambda d: 0, 0),
           'SimSiam':     (create_simsiam_model, None, lambda d: 0, 0),
           'SWAV':        (create_swav_model, None, lambda d: 2*d, 3*2*2*3000),                                                       # for the queue; Sinkhorn's sums
           'DINO':        (create_dino_model, None, lambda d: 0, 65536)}                                                            # the centre

def share(n, W, d=128):
    "A step of NT-Xent on `n` embeddings by the first of `W` processes; the others' embeddings lie there already"
    set_seed(0)
    x = torch.randn(n, d, requires_grad=True)
    rows = None if W == 1 else torch.cat([torch.arange(n//2//W), torch.arange(n//2//W)+n//2])
    def f():
        t = time.perf_counter()
        nt_xent(x, .1, rows=rows).backward()
        return time.perf_counter()-t
    return f

def measure(sizes=(1024,4096,16_384,65_536), worlds=(1,2,8,64), times=3):
    "Seconds and MB of a process's part, and both over those of the whole; the whole of the largest takes minutes, so it is timed once"
    rows = []
    for n in sizes:
        for W in worlds:
            f = share(n, W)
            f()
            s = np.median([f() for _ in range(times if n*n/W < 2**31 else 1)])
            rows.append(dict(embeddings=n, processes=W, seconds=s, mb=peak_mb(share, n, W)[0]))
            whole = next(r for r in rows if r['embeddings'] == n and r['processes'] == 1)
            print(f"NT-Xent, {n:,} embeddings of width 128, {W} processes: {s:.4f} s ({s/whole['seconds']:.3f} of the whole), "
                  f"{rows[-1]['mb']:.0f} MB ({rows[-1]['mb']/whole['mb']:.2f})", flush=True)

@call_parse
def main(
    bs:int=64, # Images a process
    encoder:str='resnet50' # Its gradients are summed by DDP
):
    "Print the table, and what was measured"
    worlds,enc = (8,64,1024),create_encoder(encoder, pretrained=False)
    with FlopCounterMode(display=False) as f: enc(torch.rand(2,3,224,224)).sum().backward()
    n = sum(p.numel() for p in enc.parameters())
    print(f"{encoder}, {bs} images a process, two views of 224 pixels: {f.get_total_flops()*bs/1e12:.1f} TFLOP in the encoder a step (a teacher adds a third)\n")
    print('| method | gradients summed by DDP, MB | ' + ' | '.join(f"{w} GPUs, {w*bs:,} images: received, MB · loss, TFLOP" for w in worlds) + ' |\n|---|---|' + '---|'*len(worlds))
    for name,(model_f,loss,per_image,once) in METHODS.items():
        model = model_f(Flat())
        d,head = projection_size(model),sum(p.numel() for p in model.parameters())
        cells = [f"{4*(w*bs*per_image(d)+once)/1e6:,.1f} · {flops(partial(loss, w*bs, bs, d))/1e12 if loss else 0:,.2f}" for w in worlds]
        print(f"| {name} | {4*(n+head)/1e6:.0f} | " + ' | '.join(cells) + ' |', flush=True)
    measure()
