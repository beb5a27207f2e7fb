"Every method on the digits with 5 labels per class and the same budget, beside raw pixels, the untrained encoder and training on the labels alone."
import os
import time

import pandas as pd
from common import encoder, knn as nearest_labelled, record
from fastcore.script import call_parse

from self_supervised.callback import methods as registry
from self_supervised.vision.all import *

two = lambda: get_multi_aug_pipelines(2, 16, **digits_views)
unsup,n_labels = 10,5
sgd = dict(opt=partial(SGD, mom=.9), lr=.05, wd=1e-4)

def quick(cb):
    "What makes the model and the callback of the method, and how to train it: for a small encoder and a short training, as its class says"
    q,labels = cb.quick,cb.takes('unsup_class_id')
    widths = {k:few for k,(_,few) in cb.heads.items()}
    how = dict(q.get('train', {}), **(dict(share=.5) if labels else {}))
    if how.pop('opt', None) == 'SGD': how = {**sgd, **how}
    args = {**q.get('method', {}), **(dict(unsup_class_id=unsup) if labels else {})}
    return lambda encoder: cb.create_model(encoder, **widths, **q.get('model', {})),lambda: cb(two(), **args),how

# those that need nothing but images, and labels of some
methods = {o.__name__:quick(o) for o in registry.values() if o.n_inp == 1 and not o.takes('teacher')}
baselines = 'raw pixels','untrained encoder','labels alone'

def data(seed, bs, share=None):
    "1,401 training digits of which 50 have a label, and 396 held out; the same for all methods of a seed"
    set_seed(seed)
    return digits_dls(n_labels=n_labels, share=share, bs=bs, seed=seed)

def make(name, seed, bs):
    model,cb,how = methods[name]
    dls = data(seed, bs, how.get('share'))
    return Learner(dls, model(encoder()), cbs=cb(), opt_func=how.get('opt', Adam))

def train(learn, epochs, fit='fit_one_cycle', lr=4e-3, wd=None, **_):
    with learn.no_logging(), learn.no_bar(): getattr(learn, fit)(epochs, lr, wd=wd)

def knn(source, dls):
    "Accuracy on the held-out digits with the 50 labelled ones as neighbours, by a learner, an encoder, or raw pixels"
    own = isinstance(source, Learner)
    return nearest_labelled(*[get_features(source, i if own else dls[i], **({} if own else dict(stats=digits_stats))) for i in (0,1)], unsup)

def supervised(seed, bs, epochs):
    "The same encoder and a linear head, trained on the augmented labelled images for as many steps; accuracy of its own head"
    dls = data(seed, bs)
    few = labelled_dls(dls, unsup, two()[0], bs=n_labels*10, repeat=len(dls.train))
    learn = Learner(few, create_model(encoder(), 10, lin_ftrs=[], ps=0.), CrossEntropyLossFlat(), splitter=model_splitter, metrics=accuracy)
    with learn.no_logging(), learn.no_bar(): learn.fit_one_cycle(epochs, 3e-3)
    return learn.final_record[-1]

def quality(name, seed, bs, epochs):
    "Accuracy, and spread of the projections, of a method or a baseline"
    row = dict(method=name, seed=seed, bs=bs, epochs=epochs)
    if name == 'labels alone': return dict(row, accuracy=supervised(seed, bs, epochs))
    if name in baselines:
        dls = data(seed, bs)
        return dict(row, accuracy=knn(nn.Flatten() if name == 'raw pixels' else encoder(), dls))
    learn = make(name, seed, bs)
    train(learn, epochs, **methods[name][2])
    z = get_features(learn, 1, projected=True)[0]
    return dict(row, accuracy=knn(learn, learn.dls), spread=spread(z), rankme=rankme(z))

def run(args):
    torch.set_num_threads(1)
    row = quality(*args); print(row, flush=True)
    return row

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
        return dict(method=n, ms_per_step=np.median(ms[n]), state_mb=sum(v.nbytes for v in learn.model.state_dict().values())/2**20,
                    step_mb=sum(b for p,b in kept[n].items() if p not in own)/2**20)
    return pd.DataFrame([row(n, learn) for n,learn in learns.items()])

@call_parse
def main(
    seeds:int=5, # Runs per method, each with its own split, labels and initialisation
    epochs:int=15, # Epochs per run
    bs:int=64, # Batch size
    only:str='', # Names of methods, separated by commas; none runs all
    workers:int=2, # Runs at the same time, a thread each
    no_costs:bool=False # Accuracy alone, on a machine that does other things as well
):
    "Print a row per run, then a row per method; write both"
    names = only.split(',') if only else [*baselines, *methods]
    torch.set_num_threads(1)
    rows = parallel(run, [(n,s,bs,epochs) for s in range(seeds) for n in names], n_workers=workers, threadpool=False, method='spawn')
    df = pd.DataFrame(list(rows))
    record('methods', df, ['method','seed','bs','epochs'])
    g = df.groupby('method', sort=False)
    print(f"\n{n_labels} labels per class, {seeds} seeds, {epochs} epochs, batch {bs}, {os.cpu_count()} cores")
    table = pd.DataFrame({'accuracy':g.accuracy.mean(), '95 %':g.accuracy.agg(interval), 'least spread':g.spread.min()})
    if not no_costs:
        torch.set_num_threads(os.cpu_count())
        costs = cost([n for n in names if n in methods], bs)
        record('methods_cost', costs, ['method'])
        table = table.join(costs.set_index('method'))
    print(table.round(3).to_string())
