"Do the settings that `suggest` gives for the digits do better than a learning rate ten times smaller or larger? With `--others`, other temperatures and momenta."
import os
import time

from common import NoValidation, encoder, knn, record
from fastcore.script import call_parse, store_true

from self_supervised.callback import methods
from self_supervised.data import few_labels
from self_supervised.training.settings import suggest
from self_supervised.vision.all import *

size = 16
names = 'simclr','moco','byol','barlowtwins','swav'
trials = ('simclr', 'temp', (.1,.2,.5)), ('byol', 'm', (.9,.96,.99)), ('moco', 'm', (.9,.96,.99))

def few_label_knn(train, valid, seed, draws=10):
    "kNN accuracy with a bank of 5 labels per class, mean of several draws of it"
    bank,y = train
    keep = [few_labels(y, 5, seed=100*seed+i) for i in range(draws)]
    return float(np.mean([knn((bank[k], y[k]), valid) for k in keep]))

def pixels(ds): return tuple(map(torch.stack, zip(*[(x.flatten().float(), tensor(int(y))) for x,y in ds])))

def run(name, seed, bs, epochs, factor=1., **changed):
    "Train with the suggested settings, but for what is `changed` and the learning rate times `factor`"
    cb = methods[name]
    model,augs = cb.create_model,cb.create_views
    set_seed(seed)
    dls = digits_dls(bs=bs, seed=seed)
    s = suggest(cb, len(dls.train_ds), bs, size, epochs)
    views = {**s.views, **digits_views, **(dict(solarize=False) if name == 'barlowtwins' else {})}
    learn = Learner(dls, model(encoder(), **s.model), cbs=[cb(augs(size, **views), **{**s.method, **changed}), NoValidation()],
                    loss_func=noop, **s.learner)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(**{**s.fit, 'lr_max':s.fit.lr_max*factor})
    accuracy = few_label_knn(get_features(learn, 0), get_features(learn, 1), seed)
    return dict(method=cb.__name__, seed=seed, epochs=epochs, bs=bs, factor=factor, lr=s.fit.lr_max*factor, steps=s.about.steps, knn=accuracy)

def try_others(seeds, bs, epochs):
    "Write the accuracy with other temperatures and momenta"
    for seed in range(seeds):
        for name,setting,values in trials:
            rows = [{**run(name, seed, bs, epochs, **{setting:v}), 'setting':setting, 'value':v} for v in values]
            record('settings_trials', rows, ['method','setting','value','seed','epochs','bs'])
            for o in rows: print(o, flush=True)

def baselines(seed, bs):
    "Raw pixels, and the encoder before training"
    set_seed(seed)
    dls = digits_dls(bs=bs, seed=seed)
    learn = Learner(dls, create_simclr_model(encoder()), cbs=SimCLR(get_simclr_aug_pipelines(size, **digits_views)))
    return [dict(method='raw pixels', seed=seed, knn=few_label_knn(pixels(dls.train_ds), pixels(dls.valid_ds), seed)),
            dict(method='untrained encoder', seed=seed, knn=few_label_knn(get_features(learn, 0), get_features(learn, 1), seed))]

@call_parse
def main(
    seeds:int=2, # Runs for each method and rate, each with its own split, initialisation and draws of labels
    epochs:int=8, # Epochs
    bs:int=64, # Batch size
    others:store_true=False # Other temperatures and momenta
):
    "Print and write the kNN accuracy for the suggested learning rate, a tenth of it, and ten times it"
    if others: return try_others(seeds, bs, epochs)
    start,rows = time.time(),[]
    for seed in range(seeds):
        rows += baselines(seed, bs)
        for name in names:
            for factor in (.1,1.,10.):
                rows.append(run(name, seed, bs, epochs, factor)); print(rows[-1], flush=True)
    df = pd.DataFrame(rows)
    record('settings', rows, ['method','seed','factor','epochs','bs'])
    df['factor'] = df.factor.fillna(1)
    print(f"\n{seeds} seeds, {epochs} epochs, batch {bs}, {os.cpu_count()} cores, {(time.time()-start)/60:.1f} minutes")
    print(df.groupby(['method','factor'], sort=False).knn.agg(mean='mean', std=lambda o: o.std(ddof=0)).round(3).to_string())
