"Every method on the digits, without labels and with the same budget: kNN accuracy, spread of the projections, time a step."
import os
import time

import pandas as pd
from fastcore.script import call_parse

from self_supervised.vision.all import *

views = dict(resize_scale=(.6,1.), rotate=True, rotate_deg=15, rotate_p=.5, flip_p=0, bw=False, blur=False, stats=digits_stats)

def methods():
    "Name, callback, model; small heads, and momentum and queue for short training"
    augs = get_simclr_aug_pipelines(16, **{**views, 'jitter_s':.5})
    return {'SimCLR':     (lambda: SimCLR(augs, temp=.5), lambda e: create_simclr_model(e)),
            'SupConMOCO': (lambda: SupConMOCO(augs, 0, UnsupMethod.All, K=512, m=.9, reg_lambda=0, temp=.5), lambda e: create_supcon_model(e)),
            'MOCO':       (lambda: MOCO(augs, K=512, m=.9, temp=.5), lambda e: create_moco_model(e, 256)),
            'MOCOV3':     (lambda: MOCOV3(augs, m=(.9,1.), temp=.5), lambda e: create_mocov3_model(e, 256, 128)),
            'BYOL':       (lambda: BYOL(augs, m=(.9,1.)), lambda e: create_byol_model(e, 256, 128)),
            'SimSiam':    (lambda: SimSiam(augs), lambda e: create_simsiam_model(e, 256, 256, 64)),
            'NNCLR':      (lambda: NNCLR(augs, K=1024, temp=.2), lambda e: create_nnclr_model(e, 256, 128, 256))}

@call_parse
def main(
    seeds:int=3, # Runs a method
    epochs:int=20, # Epochs a run
    bs:int=256 # Batch size
):
    "Print one row a method and write runs/methods.csv"
    rows = []
    for seed in range(seeds):
        for name,(cb,model) in methods().items():
            set_seed(seed)
            dls = digits_dls(bs=bs, seed=seed)
            learn = Learner(dls, model(create_encoder("resnet10t", pretrained=False, n_in=1)), cbs=cb(), loss_func=noop)
            start = time.perf_counter()
            with learn.no_logging(): learn.fit_one_cycle(epochs, 4e-3)
            ms = (time.perf_counter()-start)*1e3/(epochs*len(dls.train))
            (bank,y),(x,t) = get_features(learn, 0),get_features(learn, 1)
            rows.append(dict(method=name, seed=seed, knn=knn_accuracy(bank, y, x, t), spread=spread(get_features(learn, 1, projected=True)[0]), ms_a_step=ms))
            print(rows[-1], flush=True)
    df = pd.DataFrame(rows)
    Path('runs').mkdir(exist_ok=True); df.to_csv('runs/methods.csv', index=False)
    g = df.groupby('method', sort=False)
    print(f"\n{seeds} seeds, {epochs} epochs, batch {bs}, {os.cpu_count()} cores; validation is part of the time")
    print(pd.DataFrame(dict(knn=g.knn.mean(), std=g.knn.std(ddof=0), spread=g.spread.mean(), least_spread=g.spread.min(), ms_a_step=g.ms_a_step.median())).round(3).to_string())
