"What precision, chunks, blocks and checkpoints cost on this machine."
import os
import sys
import tempfile
import time

from common import record
from fastcore.script import call_parse
from memory import peak_mb

from self_supervised import losses
from self_supervised.training.big_batches import in_chunks
from self_supervised.vision.all import *

def timed(f, n=5):
    "Median seconds of `n` calls after one to warm up"
    f(); ts = []
    for _ in range(n): t = time.perf_counter(); f(); ts.append(time.perf_counter()-t)
    return np.median(ts)

# precision

def step(arch, size, bs, bf16):
    set_seed(0)
    m,x = create_encoder(arch, pretrained=False),torch.randn(bs, 3, size, size)
    if bf16: m,x = m.to(memory_format=torch.channels_last),x.to(memory_format=torch.channels_last)
    def f():
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16): y = m(x)
        y.float().square().mean().backward()
    return f

def precision(seeds=3, epochs=4):
    flags = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    print('CPU flags:', ' '.join(o for o in ('avx2','avx512f','avx512_bf16','amx_tile','amx_bf16') if f' {o}' in flags))
    for arch,size,bs in (('resnet10t',32,256), ('resnet18',64,128), ('resnet50',224,32)):
        a,b = (timed(step(arch, size, bs, o), 3) for o in (False,True))
        print(f"{arch}, {bs} images of {size} pixels, forward and backward: fp32 {a:.2f} s, bf16 channels_last {b:.2f} s, {a/b:.2f} times faster", flush=True)
        record('precision', [dict(arch=arch, size=size, bs=bs, fp32_s=a, bf16_s=b, ratio=a/b)], ['arch','size','bs','cpu'])
        if a < b/4: return print('bfloat16 is emulated here; the rest would take hours')
    for name in ('fp32','bf16'):
        res = []
        for seed in range(seeds):
            set_seed(seed)
            learn = Learner(digits_dls(bs=64, seed=seed, size=32), create_simclr_model(create_encoder('resnet10t', pretrained=False, n_in=1)), cbs=SimCLR(get_simclr_aug_pipelines(32, **digits_views), temp=.5), metrics=KNN())
            if name == 'bf16': learn.to_bf16()
            with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(epochs, 4e-3)
            res.append(learn.final_record[-1])
        print(f"kNN of SimCLR on the digits at 32 pixels, {epochs} epochs, {name}: {np.mean(res):.4f} ± {np.std(res):.4f} over {seeds} seeds", flush=True)
        record('precision_knn', [dict(precision=name, epochs=epochs, seeds=seeds, knn=np.mean(res), std=np.std(res))], ['precision','epochs','cpu'])

# chunks

def chunked(n, size):
    "A step of SimCLR on `n` images of 32 pixels, in chunks of `size` views, or whole"
    set_seed(0)
    vit = create_encoder('vit_tiny_patch16_224', pretrained=False, img_size=32, patch_size=8, depth=6)
    model = create_simclr_model(vit, bn=False)
    if size: vit.forward = in_chunks(type(vit).forward.__get__(vit), size)
    x = torch.rand(2*n, 3, 32, 32)
    def f():
        t = time.perf_counter()
        nt_xent(model(x)).backward()
        return time.perf_counter()-t,torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
    return f

def chunks(n=1024, size=64):
    (mb0,(t0,g0)),(mb1,(t1,g1)) = peak_mb(chunked, n, None),peak_mb(chunked, n, size)
    print(f"SimCLR, {n} images in chunks of {size}: memory {mb0:.0f} MB -> {mb1:.0f} MB ({mb1/mb0:.2f}), time {t0:.1f} s -> {t1:.1f} s ({t1/t0:.2f}), gradients differ by {abs(g0-g1).max():.1e} of {abs(g0).max():.1e}", flush=True)
    record('chunks', [dict(n=n, size=size, whole_s=t0, chunks_s=t1, whole_mb=mb0, chunks_mb=mb1, gradients_differ=abs(g0-g1).max()/abs(g0).max())], ['n','size'])

# blocks

def loss_step(n, held):
    losses._held = held
    z = torch.randn(n, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    def f():
        t = time.perf_counter(); l = nt_xent(z); l.backward()
        return time.perf_counter()-t,l.item(),z.grad.numpy()
    return f

def blocks():
    print('NT-Xent of N views of 128 dimensions, forward and backward: plain, and in blocks')
    for n in (512,1024,2048,4096,8192,16384):
        (m0,(t0,l0,g0)),(m1,(t1,l1,g1)) = peak_mb(loss_step, n, 2**62),peak_mb(loss_step, n, losses._held)
        record('blocks', [dict(n=n, plain_s=t0, plain_mb=m0, blocks_s=t1, blocks_mb=m1, losses_differ=abs(l0-l1), gradients_differ=abs(g0-g1).max()/abs(g0).max())], ['n'])
        print(f"{n:6}: {t0:6.2f} s {m0:6.0f} MB, {t1:6.2f} s {m1:6.0f} MB; losses differ by {abs(l0-l1):.0e}, gradients by {abs(g0-g1).max():.0e} of {abs(g0).max():.0e}", flush=True)

# overheads

class TimedCheckpoint(Checkpoint):
    "Seconds that training waits for its events, and that the thread which writes computes"
    waited = 0.
    def __call__(self, event_name):
        t = time.perf_counter()
        try: return super().__call__(event_name)
        finally: self.waited += time.perf_counter()-t

def checkpoint(epochs=5):
    "Epochs of 10 seconds or more: what a checkpoint takes of them, which differences of whole epochs are too noisy to show"
    images,written = torch.rand(8000, 1, 16, 16, generator=torch.Generator().manual_seed(0)),[]
    module = sys.modules[Checkpoint.__module__]
    def write(*args, write=module.write_checkpoint):
        t = time.thread_time(); write(*args); written.append(time.thread_time()-t)
    set_seed(0)
    encoder = create_encoder('resnet10t', pretrained=False, n_in=1)
    with tempfile.TemporaryDirectory() as d:
        cb = TimedCheckpoint(d)
        learn = Learner(image_dls(images, [0]*len(images), bs=256), create_simclr_model(encoder), cbs=[SimCLR(get_simclr_aug_pipelines(16, **digits_views), temp=.5), cb])
        module.write_checkpoint = write
        t = time.perf_counter()
        with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(epochs, 4e-3)
        t,mb = (time.perf_counter()-t)/epochs,checkpoints(d)[-1].stat().st_size/2**20
    a,b = cb.waited/epochs,sum(written)/epochs
    print(f"epochs of {t:.1f} s with {len(written)/epochs:g} checkpoints of {mb:.0f} MB each: training waits {a:.3f} s, the thread that writes computes {b:.3f} s, "
          f"hash included; together {100*(a+b)/t:.2f} % of the epoch", flush=True)
    record('checkpoint', [dict(epoch_s=t, mb=mb, waits_s=a, thread_s=b, per_epoch=len(written)/epochs, epochs=epochs, pct=100*(a+b)/t)], ['epochs'])

@call_parse
def main(what:str='precision,chunks,blocks,checkpoint' # Which of them
):
    "Print times and memory"
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    for o in what.split(','): globals()[o]()
