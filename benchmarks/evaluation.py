"What figures, probes and alarms add to an epoch of Fashion-MNIST, and kNN to its matrix product."
import os
import time

from common import record
from fastcore.script import call_parse
from memory import peak_mb

from self_supervised.vision.all import *

def bank(n, m, d):
    set_seed(0)
    return torch.randn(n, d),torch.arange(n)%10,torch.randn(m, d)

def predict(n, m, d):
    x,y,q = bank(n, m, d)
    return lambda: knn_predict(x, y, q)[0].item()

def knn_cost(n=60_000, m=10_000, d=512, times=5):
    "The two in turn"
    x,y,q = bank(n, m, d)
    def product():
        for o in q.split(1024): o @ x.T
    ts = []
    for f in (product, partial(knn_predict, x, y, q))*(times+1):
        t = time.perf_counter(); f(); ts.append(time.perf_counter()-t)
    a,b = np.array(ts[2:]).reshape(-1, 2).T
    mb = peak_mb(predict, n, m, d)[0]
    record('evaluation_knn', [dict(n=n, m=m, d=d, knn_s=np.median(b), product_s=np.median(a), ratio=np.median(b/a), least=(b/a).min(), most=(b/a).max(), mb=mb, times=times)],
           ['n','m','d'])
    print(f"kNN, {m:,} queries against {n:,} × {d}: {np.median(b):.2f} s, its matrix product {np.median(a):.2f} s, ratio {np.median(b/a):.2f} "
          f"({(b/a).min():.2f} to {(b/a).max():.2f}, {times} times), {mb:,.0f} MB", flush=True)

class Clock:
    "Adds up seconds"
    s = 0.
    def __call__(self, f, *args):
        t = time.perf_counter()
        try: return f(*args)
        finally: self.s += time.perf_counter()-t

class Timed(Metric):
    "A column, and the seconds it takes"
    def __init__(self, metric): self.metric,self.clock = metric,Clock()
    def reset(self): self.clock(self.metric.reset)
    def accumulate(self, learn): self.clock(self.metric.accumulate, learn)
    @property
    def value(self): return self.clock(lambda: self.metric.value)
    @property
    def name(self): return self.metric.name

def timed(cls):
    "The callback class `cls` with a clock"
    class TimedCallback(cls):
        def __init__(self, **kw): super().__init__(**kw); self.clock = Clock()
        def __call__(self, event): return self.clock(super().__call__, event)
    return TimedCallback

class Epochs(Callback):
    "Seconds of each epoch, and of `clocks` in it; the time before the first epoch comes first"
    order = -100
    def __init__(self, clocks): self.clocks,self.rows = clocks,[]
    def mark(self): self.rows.append([time.perf_counter(), *(o.s for o in self.clocks.values())])
    def before_fit(self): self.mark()
    def before_epoch(self): self.mark()
    def after_fit(self): self.mark()
    @property
    def table(self): return pd.DataFrame(np.diff(self.rows, axis=0), columns=['all', *self.clocks])

def epoch_cost(name, make, cb, epochs, bs=128):
    "Shares of an epoch with the default columns, `GradNorm` and `Alarms`"
    set_seed(0)
    dls = fashion_mnist_dls(test=True, bs=bs, valid_pct=1/6)
    alarms,norm = timed(Alarms)(),timed(GradNorm)()
    learn = Learner(dls, make(create_encoder('resnet18', pretrained=False, n_in=1)), cbs=[cb(), alarms, norm])
    learn.metrics = ms = ssl_metrics(learn).map(Timed)
    watch = Epochs({'GradNorm':norm.clock, 'Alarms':alarms.clock, **{o.name:o.clock for o in ms}})
    with learn.no_bar(): learn.fit(epochs, 1e-3, cbs=watch)
    t = watch.table
    share = t.iloc[1:].drop(columns='all').div(t['all'][1:], axis=0)
    labelled = [o for o in ('knn','probe') if o in share]
    groups = {'without labels':share.drop(columns=['Alarms', *labelled]), 'kNN and probe':share[labelled], 'Alarms':share[['Alarms']]}
    record('evaluation', [dict(method=name, figures=k, pct=100*v.sum(1).median(), least=100*v.sum(1).min(), most=100*v.sum(1).max(), epoch_s=t['all'][1:].median(), epochs=epochs-1)
                          for k,v in groups.items()], ['method','figures'])
    print(f"{name}, {len(dls.train_ds):,} images for training, {len(dls.valid_ds):,} for validation, epochs of {t['all'][1:].median():.1f} s:",
          ', '.join(f'{k} {v.sum(1).median():.2%} ({v.sum(1).min():.2%} to {v.sum(1).max():.2%})' for k,v in groups.items()),
          f"; Alarms before the first step {t.Alarms[0]:.2f} s")
    print('; '.join(f'{k} {v:.2%}' for k,v in share.median().items()), flush=True)

@call_parse
def main(
    epochs:int=4, # Epochs of each method
    times:int=5 # Repetitions of kNN
):
    "Print seconds and shares"
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    knn_cost(times=times)
    augs = lambda: get_simclr_aug_pipelines(32, rotate=False, blur=False, stats=None)
    epoch_cost('SimCLR', create_simclr_model, lambda: SimCLR(augs(), temp=.2), epochs)
    epoch_cost('MOCO', create_moco_model, lambda: MOCO(augs(), K=4096, m=.99, temp=.2), epochs)
