"""What a step costs besides the encoder: five methods, this library's and lightly's own training loop, with the same encoder, batch, images and workers.
All are in plain fp32, and ours also in the mode that is measured to be fastest. JPEG files of 128 pixels to views of 64; epochs in turn, of which the fastest counts: other work on a machine only adds."""
import os
import tempfile
import time

import matplotlib
from common import NoValidation, record
from fastcore.script import call_parse
from lightly.data import LightlyDataset
from lightly_methods import peers
from memory import peak_mb

from self_supervised.training.precision import measured_mode
from self_supervised.vision.all import *

matplotlib.use('Agg')

# the model, the callback and its views; widths as the peer's
ours = {'SimCLR': (partial(create_simclr_model, hidden_size=2048), partial(SimCLR, temp=.1), get_simclr_aug_pipelines),
        'MOCO':   (create_moco_model, partial(MOCO, K=4096, m=.999, temp=.2), get_moco_aug_pipelines),
        'BYOL':   (create_byol_model, partial(BYOL, m=.996), get_byol_aug_pipelines),
        'SWAV':   (partial(create_swav_model, n_protos=512), partial(SWAV, K=0), lambda size: get_swav_aug_pipelines(size, size//2)),
        'VICReg': (partial(create_vicreg_model, hidden_size=2048, projection_size=2048), VICReg, get_vicreg_aug_pipelines)}
forwards = { # Views that the encoder sees with gradient, and the teacher without: (how many, share of the size)
    'SimCLR': ([(2,1)], []), 'MOCO': ([(1,1)], [(1,1)]), 'BYOL': ([(2,1)], [(2,1)]), 'SWAV': ([(2,1),(6,.5)], []), 'VICReg': ([(2,1)], [])}

def sgd(params): return torch.optim.SGD(params, lr=.01, momentum=.9, weight_decay=1e-4)

def floor(name, path, size, bs, arch, workers):
    "Nothing but the encoder, on noise: forward and backward for the views, the teacher's forward, the optimizer's step"
    enc = create_encoder(arch, pretrained=False).train()
    opt,(own,teacher) = sgd(enc.parameters()),forwards[name]
    xs,ts = ([torch.randn(n*bs, 3, int(size*s), int(size*s)) for n,s in o] for o in (own, teacher))
    def epoch():
        for x in xs: enc(x).sum().backward()
        with torch.no_grad():
            for x in ts: enc(x)
        opt.step(); opt.zero_grad()
        return 1
    return epoch

def lightlys(name, path, size, bs, arch, workers):
    make,transform = peers[name]
    enc = create_encoder(arch, pretrained=False)
    model = make(enc, enc.nf).train()
    opt = sgd([p for p in model.parameters() if p.requires_grad])
    dl = torch.utils.data.DataLoader(LightlyDataset(str(path), transform=transform(size)), batch_size=bs, shuffle=True, drop_last=True,
                                     num_workers=workers, persistent_workers=workers > 0)
    def epoch():
        for views,*_ in dl:
            loss = model.loss(views)
            loss.backward()
            opt.step(); opt.zero_grad()
            loss.item()                                                      # as a training that prints it
        return len(dl)
    return epoch

def our_learner(name, path, size, bs, arch, workers, cache=None):
    model,cb,augs = ours[name]
    kw,last = dict(cache=cache) if cache else dict(num_workers=workers),find_images(path)[-1]
    dls = folder_dls(path, size=size*5//4, bs=bs, valid=lambda f: f == last, **kw)
    return Learner(dls, model(create_encoder(arch, pretrained=False)), cbs=[cb(augs(size)), NoValidation()], opt_func=partial(SGD, mom=.9, wd=1e-4))

def ours_from(cache, mode='fp32'):
    def make(*args):
        learn = our_learner(*args, cache).to_mode(mode)
        def epoch():
            with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)
            return len(learn.dls.train)
        return epoch
    return make

def timed(f):
    t = time.perf_counter(); f()
    return time.perf_counter()-t

def one(who, mode, *args):
    "An epoch with all that it is made of, for `peak_mb`"
    return lambda: makers(args[1], mode)[who](*args)()

def makers(path, mode):
    "What is measured, all in fp32 but for the last, which is in `mode`"
    decoded = Path(path).parent/'decoded'
    return {'encoder alone':floor, 'lightly':lightlys, 'ours, from files':ours_from(None), 'ours, decoded once':ours_from(decoded),
            'ours, fastest mode':ours_from(decoded, mode)}

@call_parse
def main(
    rounds:int=5, # Epochs of each, after one to warm up
    n:int=40, # Images of each of 16 classes
    size:int=64, bs:int=64, # Views and batch
    arch:str='resnet18', # Encoder
    only:str='', # One method
    memory:bool_arg=True # Peak memory too, each in a process of its own
):
    "Write seconds and MB of a step, what part it is of lightly's time besides the encoder, and how many times the encoder's time"
    workers = os.cpu_count()
    with tempfile.TemporaryDirectory() as d:
        path = sample_photos(Path(d)/'photos', n=n)
        (path/'valid').rename(Path(d)/'left out')
        for name in [only] if only else ours:
            set_seed(0)
            args = name,path,size,bs,arch,workers
            mode,why = measured_mode(our_learner(*args))
            print(f'{name}: {why}', flush=True)
            fs = {k:make(*args) for k,make in makers(path, mode).items()}
            ts = {k:[] for k in fs}
            for r in range(rounds+1):
                for k,f in fs.items():
                    t = time.perf_counter(); steps = f(); ts[k].append((time.perf_counter()-t)/steps)
                    if k == 'encoder alone': ts[k][-1] = np.median([ts[k][-1], *[timed(f) for _ in range(4)]])
            del fs
            (base,peer),rows = (min(ts[k][1:]) for k in ('encoder alone','lightly')),[]
            for k,v in ts.items():
                v = np.array(v[1:])
                row = dict(method=name, who=k, least=v.min(), median=np.median(v), most=v.max(), share=(v.min()-base)/(peer-base), of_encoder=v.min()/base,
                           mode=mode if 'mode' in k else 'fp32', why=why if 'mode' in k else '', mb=peak_mb(one, k, mode, *args)[0] if memory else None, rounds=rounds, n=16*n, size=size, bs=bs, arch=arch)
                rows.append(row); print(' | '.join(f'{o:.3f}' if isinstance(o, float) else str(o) for o in row.values()), flush=True)
            record('steps', rows, ['method','who','size','bs','arch'])
