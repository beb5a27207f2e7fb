"Four masks: a U-Net on a SimCLR encoder, the same from scratch, a random forest and thresholds, on mosaics of three textures."
import time

import pandas as pd
from common import record
from fastcore.script import call_parse
from skimage import data, exposure
from skimage.feature import multiscale_basic_features
from skimage.filters import threshold_multiotsu
from sklearn.ensemble import RandomForestClassifier

from self_supervised.training.segmentation import *
from self_supervised.vision.all import *

vocab,stats = ['brick','grass','gravel'],([.5],[.29])
# of the U-Nets the better of 3e-3 and 1e-2, on seeds that are not reported
lrs = {'SimCLR':3e-3, 'U-Net, pretrained':3e-3, 'U-Net from scratch':1e-2}

def textures() -> tuple: # Left halves, to learn from, and right halves, held out
    "scikit-image's three photographs of textures at half their size; equalised, so that the share of no grey differs between them"
    pics = [F.avg_pool2d(tensor(exposure.equalize_hist(getattr(data, o)())).float()[None], 2)[0] for o in vocab]
    return [o[:,:128] for o in pics],[o[:,128:] for o in pics]

def crop(pic, size=64):
    y,x = (random.randint(0, n-size) for n in pic.shape)
    return pic[y:y+size,x:x+size]

def mosaic(pics, size=64, parts=3) -> tuple: # Image (1, size, size) in [0,1], mask (size, size)
    "Crops of `pics` side by side, with random curves for borders"
    mask = F.interpolate(torch.randn(1, len(pics), parts+1, parts+1), (size,size), mode='bicubic')[0].argmax(0)
    return torch.stack([crop(o, size) for o in pics]).gather(0, mask[None]),mask

class Flip(ItemTransform):
    "Flip image and mask, of a training batch, together"
    split_idx = 0
    def encodes(self, b): return tuple(o.flip(-1) for o in b) if random.random() < .5 else b

def mosaic_dls(trn, val, repeat=32, bs=8) -> DataLoaders:
    "Loaders of normalised mosaics; an epoch shows those for training `repeat` times"
    def dl(items, **kwargs): return TfmdDL([((x-stats[0][0])/stats[1][0],y) for x,y in items], num_workers=0, **kwargs)
    return DataLoaders(dl(trn*repeat, bs=bs, shuffle=True, after_batch=Flip()), dl(val, bs=16))

def new_encoder(): return create_encoder('test_resnet', pretrained=False, n_in=1)

def simclr_learner(crops, bs=64) -> Learner:
    "SimCLR on unlabelled crops"
    items = [(TensorImageBW(o[None]),) for o in crops]
    dls = DataLoaders(TfmdDL(items, bs=bs, shuffle=True, drop_last=True, num_workers=0), TfmdDL(items[:bs], bs=bs, num_workers=0))
    augs = get_simclr_aug_pipelines(32, resize_scale=(.1,.4), jitter_s=(.4,.4,0,0), bw=False, blur=False, stats=stats)
    return Learner(dls, create_simclr_model(new_encoder()), cbs=SimCLR(augs, temp=.2), loss_func=noop)

def segmenter(dls, encoder) -> Learner:
    return Learner(dls, create_unet(encoder, len(vocab)), CrossEntropyLossFlat(axis=1), splitter=model_splitter, metrics=DiceMulti())

def dice(pred, targ) -> float:
    "Mean over the classes, as `DiceMulti`"
    return np.mean([2*((pred == c) & (targ == c)).sum()/((pred == c).sum()+(targ == c).sum()) for c in range(len(vocab))])

def arrays(items): return np.stack([x[0].numpy() for x,_ in items]),np.stack([y.numpy() for _,y in items])

def forest(trn, val, seed) -> float:
    "scikit-image's trainable segmentation: a random forest on local brightness, edges and texture at four scales"
    (xt,yt),(xv,yv) = arrays(trn),arrays(val)
    def features(xs): return np.concatenate([multiscale_basic_features(x, sigma_min=1, sigma_max=8).reshape(x.size, -1) for x in xs])
    rf = RandomForestClassifier(50, max_depth=10, max_samples=.05, n_jobs=1, random_state=seed).fit(features(xt), yt.ravel())
    return dice(rf.predict(features(xv)), yv.ravel())

def otsu(trn, val) -> float:
    "Two thresholds by Otsu's method; each of the three ranges of grey gets the class that is most frequent in it"
    (xt,yt),(xv,yv) = arrays(trn),arrays(val)
    ths = threshold_multiotsu(xt, len(vocab))
    named = np.array([np.bincount(yt[np.digitize(xt, ths) == i], minlength=len(vocab)).argmax() for i in range(len(vocab))])
    return dice(named[np.digitize(xv, ths)], yv)

def fit(learn, epochs, lr) -> Learner:
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return learn

def one_seed(seed, n, pre_epochs, epochs) -> list: # A row per method
    set_seed(seed)
    left,right = textures()
    crops,trn,val = [crop(left[i%3]) for i in range(640)],[mosaic(left) for _ in range(n)],[mosaic(right) for _ in range(48)]
    pretrained,dls = fit(simclr_learner(crops), pre_epochs, lrs['SimCLR']).model.encoder,mosaic_dls(trn, val)
    def unet(name, encoder):
        set_seed(seed)
        return fit(segmenter(dls, encoder), epochs, lrs[name]).final_record[-1]
    res = {'thresholds by Otsu':otsu(trn, val), 'random forest':forest(trn, val, seed)}
    res.update({o:unet(o, e) for o,e in {'U-Net from scratch':new_encoder(), 'U-Net, pretrained':pretrained}.items()})
    return [dict(method=k, seed=seed, masks=n, dice=v) for k,v in res.items()]

@call_parse
def main(
    seeds:int=5, # Runs, each with crops, masks and held-out mosaics of its own
    n:int=4, # Mosaics with a mask
    pre_epochs:int=20, # Epochs of SimCLR, of 10 steps each
    epochs:int=5 # Epochs of the U-Nets, of 16 steps each
):
    "Print a row per method; write one per method and seed"
    start,rows = time.process_time(),[]
    for seed in range(seeds):
        rows += one_seed(seed, n, pre_epochs, epochs)
        print(', '.join(f"{o['method']} {o['dice']:.3f}" for o in rows[-4:]), flush=True)
    record('segmentation', rows, ['method','seed','masks'])
    df = pd.DataFrame(rows)
    print(f"\nDice, {seeds} seeds, {n} masks, {(time.process_time()-start)/60:.1f} minutes of one core, torch {torch.__version__}")
    print(df.groupby('method', sort=False).dice.agg(['mean','std']).round(3).to_string())
