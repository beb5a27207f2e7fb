"""Going on from weights that have learned before. SupCon trains an encoder on 10,000 images of Fashion-MNIST with all their labels; SimCLR and DINO go on without
labels, on images that it has seen nothing like, the digits, and SimCLR on other images of Fashion-MNIST. How fast may the layers learn? Accuracy of nearest
neighbours with 5 labels per class."""
from common import record
from fastcore.script import call_parse
from methods import data, encoder, knn, methods, n_labels, train, two

from self_supervised.data import fashion_vocab
from self_supervised.vision.all import *

ways = { # The splitter, and the rates as parts of that from scratch
    'from scratch':          (trainable_params, 1.),
    'the same rate':         (trainable_params, 1.),
    'a tenth':               (trainable_params, .1),
    'rising from a tenth':   (layer_splitter, slice(.1,1.))}

def foundation(seed, epochs):
    set_seed(seed)
    learn = Learner(fashion_mnist_dls(test=True, bs=64, seed=seed), create_supcon_model(encoder()), cbs=SupCon(two(), temp=.5))
    train(learn, epochs)
    return get_model(learn.model).encoder

def near(seed, bs):
    "2,000 other images of the same kind"
    dls = fashion_mnist_dls()
    some = np.random.RandomState(seed).permutation(len(dls.train_ds))[:2000]
    x,y = zip(*[dls.train_ds[int(i)] for i in some])
    set_seed(seed)
    return image_dls(torch.stack(x), [fashion_vocab[int(o)] for o in y], n_labels, vocab=fashion_vocab, bs=bs, seed=seed)

def times(part, lr): return slice(part.start*lr, part.stop*lr) if isinstance(part, slice) else part*lr

def run(args):
    seed,epochs,before,bs = args
    torch.set_num_threads(1)
    enc,rows = foundation(seed, before),[]
    for to,get,names in (('digits', data, ('SimCLR','DINO')), ('clothes', near, ('SimCLR',))):
        rows += [dict(to=to, method='', way=way, seed=seed, epochs=0, accuracy=knn(o, get(seed, bs))) for way,o in (('raw pixels',nn.Flatten()),('as it was',enc))]
        for name,way in itertools.product(names, ways):
            (model,cb,how),(splitter,part) = methods[name],ways[way]
            set_seed(seed)
            learn = Learner(get(seed, bs), model(encoder() if way == 'from scratch' else deepcopy(enc)), cbs=cb(), splitter=splitter)
            train(learn, epochs, **{**how, 'lr':times(part, how.get('lr', 4e-3))})
            rows.append(dict(to=to, method=name, way=way, seed=seed, epochs=epochs, accuracy=knn(learn, learn.dls)))
            print(rows[-1], flush=True)
    record('continuing', rows, ['to','method','way','seed','epochs'])

@call_parse
def main(
    seeds:int=5, # Runs, each with its own split, initialisation and labels
    epochs:int=6, # Epochs of going on
    before:int=3, # Epochs on Fashion-MNIST
    bs:int=64, # Images per batch
    workers:int=2 # Runs at the same time, a thread each
):
    "Write benchmarks/results/continuing.csv"
    parallel(run, [(s,epochs,before,bs) for s in range(seeds)], n_workers=workers, threadpool=False, method='spawn', progress=False)
