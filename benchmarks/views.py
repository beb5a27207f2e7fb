"Views per second with the recipe of SimCLR: this library, kornia, torchvision v2 and lightly, on the same images."
import os
import time

import kornia.augmentation as K
import torchvision.transforms.v2 as T
from common import knn, record
from fastcore.script import call_parse
from lightly.transforms import SimCLRTransform
from memory import peak_mb
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from self_supervised.vision.all import *

s,blur = (.8,.8,.8,.2),(.1,2.)

def ours(size):
    pipes = [get_batch_augs(size, rotate=False, resize_scale=(.08,1.), jitter_s=1.)]*2
    return lambda x: make_views(pipes, x)

def kornia_pipe(size, scale=(.08,1.), blurred=True, colour=True, rotate=None, flip=.5, stats=imagenet_stats):
    r = min(int(np.ceil(3*blur[1])), max((size-1)//2, 1))
    augs = [K.RandomResizedCrop((size,size), scale=scale), K.RandomHorizontalFlip(p=flip)]
    if rotate: augs.append(K.RandomRotation(rotate[0], p=rotate[1]))
    if colour: augs += [K.ColorJitter(*s, p=.8), K.RandomGrayscale(p=.2)]
    if blurred: augs.append(K.RandomGaussianBlur((2*r+1,)*2, blur, p=.5))
    return K.AugmentationSequential(*augs, K.Normalize(*map(tensor, stats)), data_keys=['input'])

def kornia(size):
    pipe = kornia_pipe(size)
    return lambda x: [pipe(x) for _ in range(2)]

def torchvision_v2(size):
    "On one image at a time: on a batch it draws once for all"
    k = 2*min(int(np.ceil(3*blur[1])), max((size-1)//2, 1))+1
    pipe = T.Compose([T.RandomResizedCrop(size, scale=(.08,1.), antialias=True), T.RandomHorizontalFlip(), T.RandomApply([T.ColorJitter(*s)], .8), T.RandomGrayscale(.2),
                      T.RandomApply([T.GaussianBlur(k, blur)], .5), T.Normalize(*imagenet_stats)])
    return lambda x: [torch.stack([pipe(o) for o in x]) for _ in range(2)]

class PILs(torch.utils.data.Dataset):
    def __init__(self, x, size): self.ims,self.tfm = [Image.fromarray((o*255).byte().permute(1,2,0).numpy()) for o in x],SimCLRTransform(size, cj_strength=1., sigmas=blur)
    def __len__(self): return 8*len(self.ims)
    def __getitem__(self, i): return self.tfm(self.ims[i % len(self.ims)])

def lightly_rate(x, size):
    "Two loader workers that live on; views per second once they run"
    dl = torch.utils.data.DataLoader(PILs(x, size), len(x), num_workers=2, persistent_workers=True)
    for _ in dl: pass
    it = iter(dl); next(it)
    start = time.perf_counter(); n = sum(len(b[0]) for b in it)
    return 2*n/(time.perf_counter()-start)

def sharp(n, size):
    "Crops of the two photographs"
    ims = [torch.from_numpy(o.copy()).permute(2,0,1).float()/255 for o in load_sample_images().images]
    return torch.stack([F.interpolate(ims[i%2][None,:,:400,(i*37)%200:(i*37)%200+400], (size,size), mode='area')[0] for i in range(n)])

def views_of(name, shape):
    x = torch.rand(shape); f = globals()[name](shape[-1]); f(x[:2])
    def call(): f(x)
    return call

def profile(bs=256, size=64, runs=7):
    "Share of the views in a step of SimCLR with a ResNet-18"
    learn = Learner(DataLoaders(*[TfmdDL([(torch.rand(3,size,size),)]*8, bs=4, num_workers=0) for _ in range(2)]), create_simclr_model(create_encoder('resnet18', pretrained=False)),
                    loss_func=noop, cbs=SimCLR([get_batch_augs(size, rotate=False, resize_scale=(.08,1.), jitter_s=1.)]*2))
    x,opt,ts = sharp(bs, size),torch.optim.AdamW(learn.model.parameters()),[]
    for _ in range(runs+1):
        t = [time.perf_counter()]
        views = torch.cat(make_views(learn.sim_clr.aug_pipelines, x)).as_subclass(Tensor); t.append(time.perf_counter())
        loss = learn.sim_clr.lf(learn.model(views)); t.append(time.perf_counter())
        loss.backward(); t.append(time.perf_counter())
        opt.step(); opt.zero_grad(); t.append(time.perf_counter())
        ts.append(np.diff(t)*1e3)
    ts = dict(zip(('views','forward and loss','backward','optimizer'), np.median(ts[1:], 0)))
    total = sum(ts.values())
    print(f"\nstep of SimCLR, resnet18, {bs} images of {size} pixels: " + ', '.join(f"{k} {o:.0f} ms ({100*o/total:.1f}%)" for k,o in ts.items()))
    record('views_share', [dict(part=k, ms=v, pct=100*v/total, bs=bs, size=size) for k,v in ts.items()], ['part'])

def quality(seeds, epochs):
    "kNN accuracy of SimCLR on the digits with these views and with kornia's, same recipe and budget"
    def pipes(engine):
        if engine == 'ours': return [get_batch_augs(16, **{**digits_views, 'bw':True, 'jitter_s':1., 'stats':stats})]*2
        return [Pipeline([ToImageBatch(), KorniaAug(kornia_pipe(16, (.6,1.), False, rotate=(15.,.5), flip=0., stats=stats))], split_idx=0)]*2
    d = load_digits()
    x,stats = F.interpolate(tensor(d.images).float()[:,None]/16, (16,16), mode='bilinear').clamp(0,1).repeat(1,3,1,1),[o*3 for o in digits_stats]
    for engine in ('ours','kornia'):
        res = []
        for seed in range(seeds):
            set_seed(seed)
            learn = Learner(image_dls(x, d.target.tolist(), bs=64, seed=seed), create_simclr_model(create_encoder('resnet10t', pretrained=False)), loss_func=noop,
                            cbs=SimCLR(pipes(engine), temp=.5))
            with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(epochs, 4e-3)
            res.append(knn(get_features(learn, 0), get_features(learn, 1)))
        record('views_knn', [dict(engine=engine, epochs=epochs, seeds=seeds, knn=np.mean(res), std=np.std(res))], ['engine','epochs'])
        print(f"kNN of SimCLR, {epochs} epochs, {engine}: {np.mean(res):.4f} ± {np.std(res):.4f} over {seeds} seeds, {[round(o,4) for o in res]}", flush=True)

@call_parse
def main(
    sizes:str='32,64,128,224', # Pixels of images and views
    runs:int=7, # Timed runs; the median counts
    seeds:int=0, # Also compare the quality of SimCLR with these views and kornia's, over so many seeds
    epochs:int=15 # Epochs per seed
):
    "Print views per second, ratios and memory"
    if seeds: return quality(seeds, epochs)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, two views of each image, median of {runs} runs, kinds in turn")
    for size in map(int, sizes.split(',')):
        x = sharp(256 if size <= 64 else 64, size)
        kinds = {f.__name__: f(size) for f in (ours, kornia, torchvision_v2)}
        times = {k: [] for k in kinds}
        for i in range(runs+2):
            for k,f in kinds.items():
                start = time.perf_counter(); f(x); times[k].append(time.perf_counter()-start)
        rate = {k: 2*len(x)/np.median(t[2:]) for k,t in times.items()}
        rate['lightly, 2 workers'] = lightly_rate(x, size)
        record('views', [dict(size=size, who=k, views_per_s=v, ours_over=rate['ours']/v, runs=runs) for k,v in rate.items()], ['size','who'])
        print(f"{size:4}: " + ', '.join(f"{k} {v:,.0f}/s" + ('' if k == 'ours' else f" (ours {rate['ours']/v:.1f}x)") for k,v in rate.items()), flush=True)
    x = torch.rand(256,3,224,224)
    memory = {f.__name__: peak_mb(views_of, f.__name__, tuple(x.shape))[0]/(2*x.nbytes/2**20) for f in (ours, kornia)}
    print('memory for 2 views of 256 x 224 pixels, over their size: ' + ', '.join(f"{k} {v:.2f}" for k,v in memory.items()))
    record('views_memory', [dict(who=k, over_size=v) for k,v in memory.items()], ['who'])
    profile()
