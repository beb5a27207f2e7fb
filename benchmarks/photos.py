"A few labels on colour photographs: SupCon and what follows it, beside raw pixels, colours, the untrained encoder and training from scratch."
import tempfile

from common import knn, record
from fastcore.script import call_parse

from self_supervised.data import few_labels
from self_supervised.vision.all import *

size,n_labels,unsup = 48,3,16

def coloured(): return create_encoder("resnet10t", pretrained=False)

def data(path, seed, share=None):
    "Sixteen classes, `n_labels` labelled tiles of each among 640, and 160 held out; all drawn by `seed`"
    photos = path/f'photos{seed}'
    if not photos.exists(): sample_photos(photos, seed=seed)
    files = find_images(photos/'train')
    keep = few_labels([f.parent.name for f in files], n_labels, seed)
    labelled = {f for f,k in zip(files, keep) if k}
    return folder_dls(photos, 64, labels=lambda f: f.parent.name if f in labelled or 'valid' in f.parts else None, valid='valid',
                      share=share, bs=32, cache=path/f'decoded{seed}')

def colours(x): return torch.stack([torch.cat([torch.histc(c, 8, 0, 1) for c in o]) for o in x])

def one(args):
    "Accuracies of one seed"
    path,seed,epochs = args
    torch.set_num_threads(1)
    set_seed(seed)
    dls = data(path, seed, share=.5)
    whole = [get_features(nn.Identity(), dl, size=size) for dl in (dls.train, dls.valid)]
    res = {}
    for name,f in {'raw pixels, kNN':nn.Flatten(), 'colours, kNN':colours}.items():
        res[name] = knn(*[(f(x), y) for x,y in whole], unsup)
    learn = Learner(dls, create_supcon_model(coloured(), 256, 64), metrics=KNN(),
                    cbs=SupCon(get_supcon_aug_pipelines(size, rotate=False), unsup, UnsupMethod.All, temp=.2))
    res['untrained encoder, kNN'] = knn(get_features(learn, 0), get_features(learn, 1), unsup)
    steps = dict(bs=48, repeat=10)
    def tuned(source, frozen=False, n=4, **kw):
        clf = classifier_learner(source, labelled_dls(dls, unsup, learn.sup_con.aug1, **steps), frozen=frozen)
        with clf.no_bar(), clf.no_logging(): clf.fine_tune(n, 4e-3, freeze_epochs=2) if not frozen and kw.get('pretrained') else clf.fit_one_cycle(n, 4e-3)
        return clf.final_record[-1]
    res['from scratch, as many steps'] = tuned(coloured(), n=6+2*epochs)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 4e-3)
    res['SupCon, kNN'] = learn.final_record[-1]
    res['SupCon, linear probe'] = tuned(learn, frozen=True, n=6)
    res['SupCon, fine-tuned'] = tuned(learn, pretrained=True)
    print(seed, res, flush=True)
    return dict(seed=seed, **res)

@call_parse
def main(
    seeds:int=5, # Runs, each with its own tiles, labels and initialisation
    epochs:int=12, # Epochs of pretraining
    workers:int=2 # Runs at the same time, a thread each
):
    "Print accuracies on the held-out tiles, mean and standard deviation, and write all of them"
    with tempfile.TemporaryDirectory() as d:
        rows = parallel(one, [(Path(d),s,epochs) for s in range(seeds)], n_workers=workers, method='spawn')
    record('photos', list(rows), ['seed'])
    df = pd.DataFrame(list(rows)).set_index('seed')
    print(f"\n{n_labels} labels per class, {seeds} seeds, {os.cpu_count()} cores")
    print(df.T.assign(mean=df.mean(), std=df.std()).round(3).to_string())
