"""Every method with the same budget on the same images, this library's and lightly's losses, heads and teachers on the same encoder, views, optimizer and schedule:
what fashion.py and cifar10.py share. Accuracy on the test images, with a few labels per class and with all, beside raw pixels, the untrained encoder and training on the
same labels alone. Learning rates are chosen for each method and library by one short run for each on a split of the training images.
Goes on where it was stopped: rows that are in the file are not computed again."""
import os
import time

import torch
from common import NoValidation, folder as out, record
from lightly_methods import peers
from sklearn.model_selection import train_test_split

from self_supervised.callback import methods as registry
from self_supervised.data import few_labels
from self_supervised.vision.all import *

methods = {k:o for k,o in registry.items() if o.n_inp == 1 and not o.takes('teacher')}              # which others do not have
labelled = [k for k,o in methods.items() if o.learns_from_labels()]
after = ', fine-tuned'                                                             # a pretrained encoder that goes on learning from the labels
kinds = 'knn_few','probe_few','knn_all','probe_all'
keys = 'method','lib','lr','epochs','seed'

class Task:
    "Images, an encoder and a budget; fashion.py and cifar10.py say what theirs are"
    size,bs,n_labels,draws,n_classes = 32,128,10,5,10
    rates = 3e-3,1e-2,3e-2
    tuned = {'supcon': 1e-2}                                                          # what is fine-tuned, and the rate that the search finds for it
    share,mode,views,few_Cs = .5,None,{},(.1,)
    kept = None                                                                       # folder of encoders, which are not trained twice
    # widths, momentum and queues for some hundreds or thousands of steps, alike for both libraries
    widths = {'simsiam': dict(pred_size=128), 'swav': dict(n_protos=512), 'dino': dict(bottleneck_size=128, n_out=1024, bn=True), 'lejepa': dict(projection_size=64)}
    method_args = {'simclr': dict(temp=.2), 'supcon': dict(temp=.2, unsup_method=UnsupMethod.Only), 'supconmoco': dict(temp=.2, K=2048, m=.99), 'moco': dict(temp=.2, K=2048, m=.99),
                   'mocov3': dict(temp=.5, m=(.97,1.)), 'byol': dict(m=(.97,1.)), 'nnclr': dict(temp=.2, K=2048), 'barlowtwins': dict(lmb=.015), 'swav': dict(K=0), 'dino': dict(tmom_start=.97)}
    peer_args = {'SimCLR': dict(hidden=512, temp=.2), 'MOCO': dict(hidden=512, temp=.2, K=2048, m=.99), 'BYOL': dict(hidden=512, m=(.97,1.)),
                 'SimSiam': dict(hidden=512, out=512, pred=128), 'NNCLR': dict(hidden=512, pred=512, temp=.2, K=2048), 'BarlowTwins': dict(hidden=512, out=512, lmb=.015),
                 'VICReg': dict(hidden=512, out=512), 'SWAV': dict(hidden=512, n_protos=512), 'DINO': dict(hidden=512, bottleneck=128, out=1024, bn=True, m=(.97,1.))}

    def images(self): "(x, y) of the training images and of the test images, values in [0, 1]"
    def encoder(self): "An untrained one"
    def baselines(self): "Features that nothing was trained for, by name"; return {'raw pixels': lambda x: x.flatten(1)}
    @property
    def stats(self): return tensor(self.views.get('stats', imagenet_stats))[:,None,:,None,None]
    def model_args(self, name): return {**{k:min(paper, 512) for k,(paper,_) in methods[name].heads.items()}, **self.widths.get(name, {})}

    def loaders(self, x, y, few=None):
        "Training batches, a `share` of which has a label where some are labelled, as `few` says"
        ys = y if few is None else torch.where(few, y, self.n_classes)
        image = TensorImageBW if x.shape[1] == 1 else TensorImage
        dset = Datasets(list(zip(image(x), ys.tolist())), [[ItemGetter(0)],[ItemGetter(1), Categorize(list(range(self.n_classes+1)), sort=False)]],
                        splits=(L(range(len(x))),L(range(self.bs))))
        kw = dict(dl_type=SharedDL, dl_kwargs=[dict(labelled=few.tolist(), share=self.share),{}]) if few is not None else {}
        return dset.dataloaders(bs=self.bs, num_workers=0, drop_last=True, **kw)

    def fit(self, learn, epochs, lr):
        if self.mode: learn.to_mode(self.mode)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, wd=1e-4)
        return learn

    def learner(self, name, lib, x, y, epochs, seed):
        "A method around the encoder, with the labels of `seed` if it learns from some"
        enc,few = self.encoder(),torch.from_numpy(few_labels(y, self.n_labels, seed)) if name in labelled else None
        dls,cb = self.loaders(x, y, few),methods[name]
        views = {**self.views, **(dict(n_small=0) if 'n_small' in cb.settings()['views'] else {})}
        if lib == 'ours':
            args = {**self.model_args(name), **self.method_args.get(name, {}), **(dict(unsup_class_id=self.n_classes) if few is not None else {})}
            return enc,cb.learner(dls, enc, self.size, cbs=NoValidation(), **views, **args)
        augs = cb.create_views(self.size, **views)
        args = {**self.peer_args[cb.__name__], **(dict(frozen=1/epochs) if name == 'dino' else {})}
        peer = PeerModel(peers[cb.__name__][0](enc, enc.nf, **args))
        return enc,Learner(dls, peer, loss_func=lambda loss, *_: loss, cbs=[Peer(augs), NoValidation()])

    def pretrained(self, name, lib, x, y, lr, epochs, seed):
        "An encoder that was trained on `x`"
        set_seed(seed)
        enc,learn = self.learner(name, lib, x, y, epochs, seed)
        file = self.kept and self.kept/f'{name}-{lib}-{lr:g}-{epochs}-{len(x)}-{seed}.pth'
        if file and file.exists():
            enc.load_state_dict(torch.load(file))
            return enc
        before = next(enc.parameters()).detach().clone()
        self.fit(learn, epochs, lr)
        assert not torch.equal(before, next(enc.parameters())), f"{name}, {lib}: nothing was trained"
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(enc.state_dict(), file)
        return enc

    def supervised(self, x, y, few, lr, epochs, seed, enc=None):
        "The same encoder, or `enc`, and a linear head on the labelled images alone, with the same views and as many steps"
        set_seed(seed)
        repeat = round(len(x)/few.sum().item())
        xs,ys = x[few].repeat(repeat, 1, 1, 1),y[few].repeat(repeat)
        dls = DataLoaders.from_dsets(list(zip(xs, ys)), bs=self.bs, shuffle=True, drop_last=True, num_workers=0)
        dls = DataLoaders(dls.train, dls.train)
        aug = get_simclr_aug_pipelines(self.size, **self.views)[:1]
        class Views(Callback):
            def before_batch(self): self.learn.xb = tuple(make_views(aug, self.x))
        model = nn.Sequential(e := self.encoder() if enc is None else enc, nn.Linear(e.nf, self.n_classes))
        return self.fit(Learner(dls, model, CrossEntropyLossFlat(), cbs=[Views(), NoValidation()]), epochs, lr).model.eval()

    def features(self, enc, x):
        m,s = self.stats
        with torch.no_grad(): return torch.cat([enc.eval()((o-m)/s) for o in x.split(500)])

    def accuracies(self, f, train, test, seed, draws, brief=False):
        "kNN and linear probe, with few labels (mean of draws, of which the first is that of training) and with all"
        (x,y),(t,u) = train,test
        x,t = f(x),f(t)
        masks = [torch.from_numpy(few_labels(y, self.n_labels, seed+1000*i)) for i in range(draws)]
        def probe(m): return linear_probe(x[m], y[m], t, u, choose_C(x[m], y[m], self.few_Cs, seed))
        res = dict(knn_few=np.mean([knn_accuracy(x[m], y[m], t, u) for m in masks]), probe_few=np.mean([probe(m) for m in masks]))
        if brief: return res
        C = choose_C(x, y, (.001,.01,.1), seed)
        return dict(**res, knn_all=knn_accuracy(x, y, t, u), probe_all=linear_probe(x, y, t, u, C))

    def one(self, name, lib, lr, epochs, seed, train, test, brief):
        few = torch.from_numpy(few_labels(train[1], self.n_labels, seed))
        if name in self.baselines(): return self.accuracies(self.baselines()[name], train, test, seed, self.draws)
        if name == 'untrained encoder':
            set_seed(seed)
            return self.accuracies(partial(self.features, self.encoder()), train, test, seed, self.draws)
        if name == 'labels alone' or name.endswith(after):
            base = name.removesuffix(after)
            enc = self.pretrained(base, 'ours', *train, self.tuned[base], epochs, seed) if base in methods else None
            model = self.supervised(*train, few, lr, epochs, seed, enc)
            knn = self.accuracies(partial(self.features, model[0]), train, test, seed, 1, brief=True)['knn_few']
            return dict(knn_few=knn, probe_few=(self.features(model, test[0]).argmax(1) == test[1]).float().mean().item())
        enc = self.pretrained(name, lib, *train, lr, epochs, seed)
        return self.accuracies(partial(self.features, enc), train, test, seed, 1 if name in labelled else self.draws, brief)

    def who(self):
        "Which methods are run, with which library"
        ours = [(k,'ours') for k in methods]
        return ours + [(k,'lightly') for k,o in methods.items() if o.__name__ in peers] + [(o,'ours') for o in ('labels alone',*(k+after for k in self.tuned))]

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

def rows_of(name):
    file = out/f'{name}.csv'
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=keys)

def one_row(todo, task, file, epochs, train, test, brief, threads):
    "Compute and write a row, if it is not there"
    torch.set_num_threads(threads)
    name,lib,lr,seed = todo
    df = rows_of(file)
    if ((df.method == name) & (df.lib == lib) & (df.lr == lr) & (df.seed == seed) & (df.epochs == epochs)).any(): return
    t = time.perf_counter()
    row = dict(method=name, lib=lib, lr=lr, epochs=epochs, seed=seed, **task.one(name, lib, lr, epochs, seed, train, test, brief))
    record(file, [dict(**row, minutes=(time.perf_counter()-t)/60)], list(keys), '%.5g')
    print(' | '.join(f'{o:.4g}' if isinstance(o, float) else str(o) for o in row.values()), flush=True)

def work(todo, workers, **kw):
    "Two at a time use both cores better than one with two threads"
    parallel(one_row, todo, threads=max(os.cpu_count()//max(workers, 1), 1), n_workers=workers, threadpool=False, method='spawn', progress=False, **kw)

def run(task, file, seeds, epochs, search_epochs, only, workers):
    "Search, then run; writes the rows of both, and returns the rates that were found"
    train,test = task.images()
    fit,held = (torch.from_numpy(o) for o in train_test_split(np.arange(len(train[1])), test_size=.2, random_state=0, stratify=train[1]))
    split = [(train[0][o],train[1][o]) for o in (fit,held)]
    only = only.split(';') if only else []
    who = [o for o in task.who() if not only or o[0] in only]
    work([(*o, lr, 100) for o in who for lr in task.rates], workers, task=task, file=f'{file}_search', epochs=search_epochs, train=split[0], test=split[1], brief=True)
    found = rows_of(f'{file}_search')
    best = {k:float(g.loc[g.reindex(columns=kinds[:2]).max(axis=1).idxmax(), 'lr']) for k,g in found[found.epochs == search_epochs].groupby(['method','lib'])}
    task.tuned = {k:best.get((k,'ours'), v) for k,v in task.tuned.items()}
    fixed = [(o, 'ours', 0.) for o in (*task.baselines(),'untrained encoder') if not only or o in only]
    todo = [(*o, seed) for seed in range(seeds) for o in fixed] + [(*o, best[o], seed) for seed in range(seeds) for o in who]
    work(todo, workers, task=task, file=file, epochs=epochs, train=train, test=test, brief=False)
    df = rows_of(file)
    g = df[df.epochs == epochs].groupby(['method','lib'])[list(kinds)]
    print(g.mean().join(g.std(), rsuffix=' std').round(3).sort_values('probe_few').to_string())
    return best
