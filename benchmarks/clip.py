"Digits with captions: zero-shot accuracy and retrieval of CLIP, SigLIP and CLIPMOCO, beside the nearest class mean of raw pixels."
from common import record
from fastcore.script import call_parse

from self_supervised.vision.all import *

methods = {'CLIP': (create_clip_model, CLIP), 'SigLIP': (create_siglip_model, SigLIP), 'CLIPMOCO': (create_clipmoco_model, partial(CLIPMOCO, K=512, m=.97))}

def class_means(dls):
    "Accuracy of the nearest class mean of raw pixels"
    (x,y),(t,u) = (tuple(map(torch.stack, zip(*[(x.flatten(), y) for x,_,y in ds]))) for ds in (dls.train_ds, dls.valid_ds))
    means = torch.stack([x[y == i].mean(0) for i in range(10)])
    return (torch.cdist(t, means).argmin(1) == u).float().mean().item()

@call_parse
def main(
    seeds:int=5, # Runs, each with its own split and initialisation
    epochs:int=10, # Epochs
    bs:int=128 # Images per batch
):
    "Write benchmarks/results/clip.csv"
    for seed in range(seeds):
        dls,_,tokens,prompts = captioned_digits_dls(bs, seed)
        rows = [dict(method='class means of raw pixels', seed=seed, bs=bs, epochs=0, accuracy=class_means(dls))]
        for name,(make,cb) in methods.items():
            set_seed(seed)
            encoder = create_encoder("resnet10t", pretrained=False, n_in=1, channels=(32,64,128,128))
            model = make(encoder, TextTransformer(len(tokens.tokenizer), 64), 64)
            learn = Learner(dls, model, cbs=cb(get_clip_aug_pipelines(16, stats=digits_stats)))
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 2e-3)
            r5 = retrieval(*embeddings(learn)).loc['image to text','R@5']
            rows.append(dict(method=name, seed=seed, bs=bs, epochs=epochs, accuracy=zero_shot(learn, prompts, tokens), r5=r5))
            print(rows[-1], flush=True)
        record('clip', rows, ['method','seed','bs','epochs'])
