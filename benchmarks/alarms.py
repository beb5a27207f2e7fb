"Which alarms sick and healthy trainings on the digits raise: every method as in methods.py, and the usual faults, one at a time."
import contextlib
import io
import os

import pandas as pd
from common import record
import methods as M
from fastcore.script import call_parse

from self_supervised.vision.all import *

class Fill(nn.Module):
    "A transform after which nothing of the image is left"
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

def views(**kw): return get_multi_aug_pipelines(2, 16, **{**digits_views, **kw})
def erased(f): return views(xtra_tfms=[Fill(f)])
def same_views(): return views(resize_scale=(1.,1.), resize_ratio=(1.,1.), rotate=False, jitter=False)

class GradientNotStopped(SimSiam):
    "SimSiam whose projections get a gradient"
    def lf(self, pred, *yb):
        (p1,p2),(z1,z2) = (o.chunk(2) for o in pred)
        return 1-(F.cosine_similarity(p1, z2).mean()+F.cosine_similarity(p2, z1).mean())/2

def no_predictor(encoder):
    model = create_byol_model(encoder, 256, 128)
    model.predictor = nn.Identity()
    return model

def tampered(f):
    "The digits with images changed by `f` of all of them"
    def data(seed, bs, share=None):
        dls = M.data(seed, bs, share)
        x = torch.stack([dls.train_ds[i][0] for i in range(len(dls.train_ds))])
        return image_dls(f(x.as_subclass(Tensor)), list(range(10))*140, bs=bs, seed=seed) if len(x) >= 1400 else None
    return data

def unchecked(learn): first(learn._grab_cbs(SSLCallback)).check_batch = noop

# fault: method, and what is changed
sick = {
    'BYOL with m=0 and no predictor': ('BYOL', dict(model=no_predictor, cb=lambda: BYOL(views(), m=0.))),
    'SimSiam without stop-gradient':  ('SimSiam', dict(cb=lambda: GradientNotStopped(views()))),
    'VICReg with variance=0':         ('VICReg', dict(cb=lambda: VICReg(views(), variance=0.))),
    'SimCLR with temp=.001':          ('SimCLR', dict(cb=lambda: SimCLR(views(), temp=.001))),
    'SimCLR with temp=100':           ('SimCLR', dict(cb=lambda: SimCLR(views(), temp=100.))),
    'MOCO with temp=.001':            ('MOCO', dict(cb=lambda: MOCO(views(), K=512, m=.99, temp=.001))),
    **{f'{n}, learning rate × 100':(n, dict(lr=100)) for n in ('SimCLR','SupCon','MOCO','BYOL','SimSiam','VICReg','SWAV','DINO')},
    'identity augmentations':         ('SimCLR', dict(cb=lambda: SimCLR(same_views(), temp=.5))),
    'augmentations to black':         ('SimCLR', dict(cb=lambda: SimCLR(erased(torch.zeros_like), temp=.5))),
    'augmentations to noise':         ('SimCLR', dict(cb=lambda: SimCLR(erased(torch.randn_like), temp=.5))),
    'crops of a few pixels':          ('SimCLR', dict(cb=lambda: SimCLR(views(resize_scale=(.004,.004), jitter_s=(.9,.9,0,0)), temp=.5))),
    'BYOL, augmentations to noise':   ('BYOL', dict(cb=lambda: BYOL(erased(torch.randn_like), m=.99))),
    'one image, repeated':            ('SimCLR', dict(data=tampered(lambda x: x[:1].repeat(1400,1,1,1)))),
    'images 0…255 forced in':         ('SimCLR', dict(data=tampered(lambda x: x[:1400]*255), tamper=unchecked)),
    'a queue of 4096':                ('MOCO', dict(cb=lambda: MOCO(views(), K=4096, m=.99, temp=.2))),
    'BYOL, teacher with m=1':         ('BYOL', dict(cb=lambda: BYOL(views(), m=1.))),
    'MOCO, teacher with m=1':         ('MOCO', dict(cb=lambda: MOCO(views(), K=512, m=1., temp=.2))),
    'DINO, teacher with m=1':         ('DINO', dict(cb=lambda: DINO(views(), tmom_start=1.))),
}

def watched(name, seed, epochs, model=None, cb=None, lr=1, data=None, tamper=noop, bs=64):
    "The learner of the method `name`, trained with `Alarms`"
    make,method,how = M.methods[name]
    dls = (data or M.data)(seed, bs, how.get('share'))
    learn = Learner(dls, (model or make)(M.encoder()), cbs=[(cb or method)(), Alarms()], opt_func=how.get('opt', Adam))
    tamper(learn)
    M.train(learn, epochs, **{**how, 'lr':how.get('lr', 4e-3)*lr})
    return learn

def run(args):
    fault,seed,epochs = args
    name,kw = sick.get(fault, (fault, {}))
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = watched(name, seed, epochs, **kw)
    a,last = learn.alarms.raised,learn.alarms.history.iloc[-1]
    row = dict(training=fault, sick=fault in sick, seed=seed, epochs=epochs, alarms='; '.join(o.name for o in a),
               at='; '.join('start' if o.epoch is None else str(o.epoch) for o in a), **{k:last[k] for k in ('spread','auc')},
               rank=last.rankme/last.width, loss_over_trivial=last.loss/last.trivial if last.trivial else math.nan, step_size=last.step_size)
    print(' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values()), flush=True)
    return row

@call_parse
def main(
    seeds:int=3, # Runs of each, each with its own split and initialisation
    first:int=0, # The first seed; thresholds were chosen on 10, 11 and 12
    epochs:int=15, # Epochs of healthy trainings
    sick_epochs:int=2, # Epochs of sick ones
    only:str='', # Names, separated by semicolons; none runs all
    workers:int=2 # Runs at the same time, a thread each
):
    "Print and write a row for each training: which alarms, after which epoch"
    names = only.split(';') if only else [*sick, *M.methods]
    jobs = [(n, s, sick_epochs if n in sick else epochs) for s in range(first, first+seeds) for n in names]
    df = pd.DataFrame(list(parallel(run, jobs, n_workers=workers, threadpool=False, method='spawn')))
    record('alarms', df, ['training','seed','epochs'])
    missed,false = df[df.sick & (df.alarms == '')],df[~df.sick & (df.alarms != '')]
    print(f"\n{seeds} seeds, {os.cpu_count()} cores: {df.sick.sum()-len(missed)} of {df.sick.sum()} sick trainings raised an alarm within "
          f"{sick_epochs} epochs; {len(false)} of {(~df.sick).sum()} healthy ones did within {epochs}")
