"What grouping, heads and loss add to the pure encoder time of two large and six small views."
import os
import time

import pandas as pd
from fastcore.script import call_parse

from self_supervised.callback import group_views, in_view_order
from self_supervised.vision.all import *

@call_parse
def main(
    arch:str='resnet18', # Encoder
    bs:int=32, # Images
    size:int=64, # Large views; small ones have half of it
    runs:int=7 # Timed runs, in turn; the median counts
):
    "Print the ratio of the time of forward and backward, for each method with multi-crop"
    augs = get_multi_crop_pipelines(size, size//2)
    views = [torch.randn(bs, 3, *[s]*2) for s in [size]*2+[size//2]*6]
    xs,_ = group_views(views)
    y = torch.arange(bs)
    cases = {'SimCLR': (SimCLR(augs), create_simclr_model), 'SWAV': (SWAV(augs, K=0), create_swav_model),
             'DINO': (DINO(augs), partial(create_dino_model, n_out=4096))}
    rows = []
    for name,(cb,create) in cases.items():
        model = create(create_encoder(arch, pretrained=False))
        dl = TfmdDL([(torch.rand(3,size,size),)]*8, bs=4, num_workers=0)
        cb.learn = Learner(DataLoaders(dl, dl), model, loss_func=noop, cbs=cb)
        t = (torch.randn(2*bs, 4096),) if name == 'DINO' else ()
        def pure(): sum(model.encoder(x).sum() for x in xs).backward()
        def whole():
            xs,order = group_views(views)
            pred = apply(partial(in_view_order, order=order), model(*xs))
            cb.lf(pred, y, *t).backward()
        times = {f: [] for f in (pure, whole)}
        for _ in range(runs+2):
            for f in times:
                start = time.perf_counter(); f(); times[f].append(time.perf_counter()-start); model.zero_grad()
        p,w = (np.median(o[2:])*1e3 for o in times.values())
        rows.append(dict(method=name, encoder_ms=p, whole_ms=w, ratio=w/p))
    print(f"{arch}, {bs} images, 2 x {size} and 6 x {size//2} pixels, {os.cpu_count()} cores, median of {runs}")
    print(pd.DataFrame(rows).round(3).to_string(index=False))
