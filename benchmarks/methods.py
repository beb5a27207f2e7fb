"Every method on the digits, without labels and with the same budget: kNN accuracy, spread, then time and memory of a step."
import os
import time

import pandas as pd
from fastcore.script import call_parse

from self_supervised.vision.all import *

two = lambda: get_multi_aug_pipelines(2, 16, **digits_views)
paper = dict(opt=partial(SGD, mom=.9), lr=.05, wd=1e-4)

# model, callback, and how to train it; heads, momentum and queue are for a small encoder and a short training
methods = {
    'SimCLR':      (create_simclr_model, lambda: SimCLR(two(), temp=.5), {}),
    'SupConMOCO':  (create_supcon_model, lambda: SupConMOCO(two(), 0, UnsupMethod.All, K=512, m=.99, reg_lambda=0, temp=.2), paper),
    'MOCO':        (lambda e: create_moco_model(e, 256), lambda: MOCO(two(), K=512, m=.99, temp=.2), paper),
    'MOCOV3':      (lambda e: create_mocov3_model(e, 256, 128), lambda: MOCOV3(two(), m=(.9,1.), temp=.5), {}),
    'BYOL':        (lambda e: create_byol_model(e, 256, 128), lambda: BYOL(two(), m=.99), dict(paper, fit='fit_flat_cos')),
    'SimSiam':     (lambda e: create_simsiam_model(e, 512, 512, 128), lambda: SimSiam(two()), dict(fit='fit_flat_cos', lr=1e-3)),
    'NNCLR':       (lambda e: create_nnclr_model(e, 256, 128, 256), lambda: NNCLR(two(), K=1024, temp=.2), {}),
    'BarlowTwins': (lambda e: create_barlow_twins_model(e, 256, 256), lambda: BarlowTwins(two(), lmb=.02), {}),
    'VICReg':      (lambda e: create_vicreg_model(e, 256, 256), lambda: VICReg(two()), {}),
    'SWAV':        (lambda e: create_swav_model(e, 256, 128, n_protos=64), lambda: SWAV(two(), K=0, eps=.02),
                    dict(fit='fit_flat_cos', lr=2e-3)),
    'DINO':        (lambda e: create_dino_model(e, n_out=128, hidden_size=256, bottleneck_size=64, bn=True), lambda: DINO(two(), tmom_start=.99),
                    dict(fit='fit_flat_cos', lr=1e-3)),
}

def make(name, seed, bs):
    model,cb,how = methods[name]
    set_seed(seed)
    dls = digits_dls(bs=bs, seed=seed)
    return Learner(dls, model(create_encoder("resnet10t", pretrained=False, n_in=1)), cbs=cb(), loss_func=noop, opt_func=how.get('opt', Adam))

def train(learn, epochs, fit='fit_one_cycle', lr=4e-3, wd=None, **_):
    with learn.no_logging(): getattr(learn, fit)(epochs, lr, wd=wd)

def quality(name, seed, bs, epochs):
    learn = make(name, seed, bs)
    train(learn, epochs, **methods[name][2])
    (bank,y),(x,t) = get_features(learn, 0),get_features(learn, 1)
    return dict(method=name, seed=seed, bs=bs, epochs=epochs, knn=knn_accuracy(bank, y, x, t), spread=spread(get_features(learn, 1, projected=True)[0]))

class Timer(Callback):
    "Time of training steps, without loading; and bytes kept for the backward pass of the first"
    order = -100
    def before_fit(self): self.ms,self.kept = [],{}
    def keep(self, t):
        s = t.untyped_storage(); self.kept[s.data_ptr()] = s.nbytes()
        return t
    def before_batch(self):
        self.start = time.perf_counter()
        if not self.ms: self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, noop); self.hooks.__enter__()
    def after_loss(self):
        if not self.ms: self.hooks.__exit__(None, None, None)
class Stop(Callback):
    order = 100
    def after_step(self): self.learn.timer.ms.append((time.perf_counter()-self.learn.timer.start)*1e3)
    def after_batch(self):
        if self.iter == 5: raise CancelFitException

def cost(names, bs, rounds=5):
    "Median time of a step, rounds in turn; megabytes of the model's state, and of what a step keeps for its backward pass"
    learns,ms,kept = {n:make(n, 0, bs) for n in names},{n:[] for n in names},{}
    for _ in range(rounds):
        for n,learn in learns.items():
            timer = Timer()
            with learn.no_logging(), learn.no_bar(): learn.fit(1, 1e-4, cbs=[timer, Stop()])
            ms[n] += timer.ms[2:]; kept[n] = timer.kept
    def row(n, learn):
        own = {p.untyped_storage().data_ptr() for p in learn.model.parameters()}
        return dict(method=n, ms_a_step=np.median(ms[n]), state_mb=sum(v.nbytes for v in learn.model.state_dict().values())/2**20,
                    step_mb=sum(b for p,b in kept[n].items() if p not in own)/2**20)
    return pd.DataFrame([row(n, learn) for n,learn in learns.items()])

@call_parse
def main(
    seeds:int=3, # Runs a method
    epochs:int=30, # Epochs a run
    bs:int=64, # Batch size
    only:str='', # Names of methods, separated by commas; none runs all
    out:Path=Path('benchmarks/methods') # Writes out.csv and out_cost.csv
):
    "Print a row a run, then a row a method; write both"
    out,names = Path(out),only.split(',') if only else list(methods)
    out.parent.mkdir(exist_ok=True, parents=True)
    rows = []
    for seed in range(seeds):
        for n in names:
            rows.append(quality(n, seed, bs, epochs)); print(rows[-1], flush=True)
    df,costs = pd.DataFrame(rows),cost(names, bs)
    df.to_csv(f'{out}.csv', index=False, float_format='%.4f'); costs.to_csv(f'{out}_cost.csv', index=False, float_format='%.1f')
    g = df.groupby('method', sort=False)
    print(f"\n{seeds} seeds, {epochs} epochs, batch {bs}, {os.cpu_count()} cores")
    print(pd.DataFrame(dict(knn=g.knn.mean(), std=g.knn.std(ddof=0), spread=g.spread.mean(), least_spread=g.spread.min())).join(costs.set_index('method')).round(3).to_string())
