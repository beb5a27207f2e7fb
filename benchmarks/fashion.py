"""Every method with the same budget on Fashion-MNIST, this library's and lightly's losses, heads and teachers on the same encoder, views, optimizer and schedule.
10,000 training images without labels; accuracy on the 10,000 test images, with 10 labels per class and with all, beside raw pixels, the untrained encoder and
supervised training on the same labels. Learning rates are chosen for each method and library by one short run for each on a split of the training images.
Goes on where it was stopped: rows that are in the file are not computed again."""
import inspect
import os
import time

import torch
from common import NoValidation, folder as out, record
from fastcore.script import call_parse
from lightly_methods import peers
from sklearn.model_selection import train_test_split

from self_supervised.callback import methods as registry
from self_supervised.cli import fashion_views
from self_supervised.data import few_labels, read_idx
from self_supervised.vision.all import *

folder,size,bs = Path('/usr/share/datasets/fashion-mnist'),28,128
rates = 3e-3,1e-2,3e-2
n_labels,draws = 10,5
methods = {k:o for k,o in registry.items() if o.n_inp == 1 and not o.takes('teacher')}              # which others do not have
labelled = [k for k,o in methods.items() if o.learns_from_labels()]
baselines = 'raw pixels','untrained encoder','labels alone'
finetuned,supcon_lr = 'supcon, fine-tuned',1e-2                                       # the rate that the search finds

# lightly's loss for NNCLR has negatives that the paper's has not: both are run
methods['nnclr, paper'] = methods['nnclr']

# widths as on the digits, alike for both libraries; momentum and queue for a few hundred steps
own = {'simsiam': dict(pred_size=128), 'swav': dict(n_protos=256), 'dino': dict(bottleneck_size=128, n_out=1024, bn=True), 'lejepa': dict(projection_size=64)}
def model_args(name): return {**{k:min(paper, 512) for k,(paper,_) in methods[name].heads.items()}, **own.get(name, {})}

method_args = {'simclr': dict(temp=.2), 'supcon': dict(temp=.2, unsup_method=UnsupMethod.Only), 'supconmoco': dict(temp=.2, K=2048, m=.99), 'moco': dict(temp=.2, K=2048, m=.99),
               'mocov3': dict(temp=.5, m=(.97,1.)), 'byol': dict(m=(.97,1.)), 'nnclr': dict(temp=.2, K=2048, within=True), 'nnclr, paper': dict(temp=.2, K=2048), 'barlowtwins': dict(lmb=.015), 'swav': dict(K=0),
               'dino': dict(tmom_start=.97)}
peer_args = {'SimCLR': dict(hidden=512, temp=.2), 'MOCO': dict(hidden=512, temp=.2, K=2048, m=.99), 'BYOL': dict(hidden=512, m=(.97,1.)),
             'SimSiam': dict(hidden=512, out=512, pred=128), 'NNCLR': dict(hidden=512, pred=512, temp=.2, K=2048),
             'BarlowTwins': dict(hidden=512, out=512, lmb=.015), 'VICReg': dict(hidden=512, out=512), 'SWAV': dict(hidden=512, n_protos=256),
             'DINO': dict(hidden=512, bottleneck=128, out=1024, bn=True, m=(.97,1.))}

def encoder():
    "A quarter of the usual channels, and the order in memory that processors like"
    return create_encoder('resnet10t', pretrained=False, n_in=1, channels=(16,32,64,128), stem_width=16).to(memory_format=torch.channels_last)

def images():
    "10,000 training images, alike in classes, and the test images: (x, y) of each"
    def read(name):
        x,y = (read_idx(folder/f'{name}-{o}-ubyte.gz') for o in ('images-idx3','labels-idx1'))
        return torch.from_numpy(x.copy())[:,None].float()/255,torch.from_numpy(y.copy()).long()
    x,y = read('train')
    keep,_ = train_test_split(np.arange(len(y)), train_size=10_000, random_state=0, stratify=y)
    return (x[keep],y[keep]),read('t10k')

def loaders(x, y, labelled=None):
    "Training batches, of which half have a label where some are `labelled`"
    ys = y if labelled is None else torch.where(labelled, y, 10)
    dset = Datasets(list(zip(TensorImageBW(x), ys.tolist())), [[ItemGetter(0)],[ItemGetter(1), Categorize(list(range(11)), sort=False)]],
                    splits=(L(range(len(x))),L(range(bs))))
    kw = dict(dl_type=SharedDL, dl_kwargs=[dict(labelled=labelled.tolist(), share=.5),{}]) if labelled is not None else {}
    return dset.dataloaders(bs=bs, num_workers=0, drop_last=True, **kw)

class Peer(Callback):
    "A model of lightly as the views of this library come to it"
    order = 9
    def __init__(self, augs): self.augs = augs
    def before_batch(self):
        with torch.no_grad(): self.learn.xb = (make_views(self.augs, self.x),)
        self.learn.model.peer.pct = self.pct_train
    def before_step(self): self.learn.model.peer.before_step()

class PeerModel(nn.Module):
    def __init__(self, peer): super().__init__(); self.peer = peer
    def forward(self, views): return self.peer.loss(views)

def pretrained(name, lib, x, y, lr, epochs, seed):
    "An encoder that was trained on `x`"
    set_seed(seed)
    enc,few = encoder(),torch.from_numpy(few_labels(y, n_labels, seed)) if name in labelled else None
    dls = loaders(x, y, few)
    cb = methods[name]
    small = dict(n_small=0) if 'n_small' in inspect.signature(cb.create_views).parameters else {}
    augs = cb.create_views(size, **fashion_views, **small)
    if lib == 'ours':
        args = {**method_args.get(name, {}), **(dict(unsup_class_id=10) if few is not None else {})}
        learn = Learner(dls, cb.create_model(enc, **model_args(name)), cbs=[cb(augs, **args), NoValidation()])
    else:
        args = {**peer_args[cb.__name__], **(dict(frozen=1/epochs) if name == 'dino' else {})}
        peer = peers[cb.__name__][0](enc, enc.nf, **args)
        learn = Learner(dls, PeerModel(peer), loss_func=lambda loss, *_: loss, cbs=[Peer(augs), NoValidation()])
    before = next(enc.parameters()).detach().clone()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, wd=1e-4)
    assert not torch.equal(before, next(enc.parameters())), f"{name}, {lib}: nothing was trained"
    return enc

def supervised(x, y, few, lr, epochs, seed, enc=None):
    "The same encoder, or `enc`, and a linear head on the labelled images alone, with the same views and as many steps"
    set_seed(seed)
    repeat = round(len(x)/few.sum().item())
    xs,ys = x[few].repeat(repeat, 1, 1, 1),y[few].repeat(repeat)
    dls = DataLoaders.from_dsets(list(zip(xs, ys)), bs=bs, shuffle=True, drop_last=True, num_workers=0)
    dls = DataLoaders(dls.train, dls.train)
    aug = get_simclr_aug_pipelines(size, **fashion_views)[:1]
    class Views(Callback):
        def before_batch(self): self.learn.xb = tuple(make_views(aug, self.x))
    learn = Learner(dls, nn.Sequential(e := encoder() if enc is None else enc, nn.Linear(e.nf, 10)), CrossEntropyLossFlat(), cbs=[Views(), NoValidation()])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, wd=1e-4)
    return learn.model.eval()

def features(enc, x):
    stats = tensor(fashion_views['stats'])[:,:,None,None,None]
    with torch.no_grad(): return torch.cat([enc.eval()((o-stats[0])/stats[1]) for o in x.split(500)])

def accuracies(f, train, test, seed, draws=draws, brief=False):
    "kNN and linear probe, with few labels (mean of draws, of which the first is that of training) and with all"
    (x,y),(t,u) = train,test
    x,t = f(x),f(t)
    masks = [torch.from_numpy(few_labels(y, n_labels, seed+1000*i)) for i in range(draws)]
    res = dict(knn_few=np.mean([knn_accuracy(x[m], y[m], t, u) for m in masks]))
    if brief: return res
    C = choose_C(x, y, (.001,.01,.1), seed)
    return dict(**res, probe_few=np.mean([linear_probe(x[m], y[m], t, u, .1) for m in masks]), knn_all=knn_accuracy(x, y, t, u), probe_all=linear_probe(x, y, t, u, C))

def one(name, lib, lr, epochs, seed, train, test, brief):
    few = torch.from_numpy(few_labels(train[1], n_labels, seed))
    if name == 'raw pixels': return accuracies(lambda x: x.flatten(1), train, test, seed)
    if name == 'untrained encoder': set_seed(seed); return accuracies(partial(features, encoder()), train, test, seed)
    if name in ('labels alone',finetuned):
        enc = pretrained('supcon', 'ours', *train, supcon_lr, epochs, seed) if name == finetuned else None
        model = supervised(*train, few, lr, epochs, seed, enc)
        return dict(knn_few=(features(model, test[0]).argmax(1) == test[1]).float().mean().item())
    return accuracies(partial(features, pretrained(name, lib, *train, lr, epochs, seed)), train, test, seed, 1 if name in labelled else draws, brief)

def rows_of(name): return pd.read_csv(out/f'{name}.csv') if (out/f'{name}.csv').exists() else pd.DataFrame(columns=['method','lib','lr','epochs','seed'])

def one_row(todo, file, epochs, train, test, threads):
    "Compute and write a row, if it is not there"
    torch.set_num_threads(threads)
    name,lib,lr,seed = todo
    df = rows_of(file)
    if ((df.method == name) & (df.lib == lib) & (df.lr == lr) & (df.seed == seed) & (df.epochs == epochs)).any(): return
    t = time.perf_counter()
    row = dict(method=name, lib=lib, lr=lr, epochs=epochs, seed=seed, **one(name, lib, lr, epochs, seed, train, test, brief=file == 'fashion_search'))
    record(file, [dict(**row, minutes=(time.perf_counter()-t)/60)], ['method','lib','lr','epochs','seed'], '%.5g')
    print(' | '.join(f'{o:.4g}' if isinstance(o, float) else str(o) for o in row.values()), flush=True)

def work(file, todo, epochs, train, test, workers):
    "Two at a time use both cores better than one with two threads"
    parallel(one_row, todo, file=file, epochs=epochs, train=train, test=test, threads=max(os.cpu_count()//max(workers, 1), 1), n_workers=workers, threadpool=False,
             method='spawn', progress=False)

@call_parse
def main(
    seeds:int=5, # Runs of each with the chosen rate
    epochs:int=2, # Epochs of 78 steps
    search_epochs:int=2, # Epochs of 62 steps, in the search
    only:str='', # One method
    workers:int=2 # Runs at the same time, each with its share of the cores
):
    "Search, then run; writes fashion_search.csv and fashion.csv"
    train,test = images()
    fit,held = (torch.from_numpy(o) for o in train_test_split(np.arange(len(train[1])), test_size=.2, random_state=0, stratify=train[1]))
    split = [(train[0][o],train[1][o]) for o in (fit,held)]
    who = [(k,'ours') for k in methods] + [(k,'lightly') for k,o in methods.items() if o.__name__ in peers and ',' not in k] + [('labels alone','ours'),(finetuned,'ours')]
    who = [o for o in who if only in ('', o[0])]
    work('fashion_search', [(*o, lr, 100) for o in who for lr in rates], search_epochs, *split, workers)
    found = rows_of('fashion_search')
    best = {k:float(g.loc[g.knn_few.idxmax(), 'lr']) for k,g in found[found.epochs == search_epochs].groupby(['method','lib'])}
    todo = [(*o, best[o], seed) for seed in range(seeds) for o in who]
    if not only: todo += [(o, 'ours', 0., seed) for seed in range(seeds) for o in baselines[:2]]
    work('fashion', todo, epochs, train, test, workers)
    df = rows_of('fashion')
    g = df[df.epochs == epochs].groupby(['method','lib'])[['knn_few','probe_few','knn_all','probe_all']]
    print(g.mean().join(g.std(), rsuffix=' std').round(3).sort_values('knn_few').to_string())
