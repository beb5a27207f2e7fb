"""Every method as the tests make it: small, from its own declaration.

Sizes come from the names of arguments, so that a method is here as soon as its class is made."""
import copy, inspect
from functools import cache, partial
from typing import Callable, NamedTuple

import pytest, torch
from fastai.vision.all import (Categorize, DataLoaders, Datasets, L, Learner, TensorImage, TfmdDL, camel2snake, imagenet_stats,
                               load_learner, set_seed)
from self_supervised.callback import methods
from self_supervised.vision.all import TextTransformer, Tokens, Words, create_encoder

set_seed(1)
TEACHER = create_encoder('test_resnet', False)
SMALL = dict(hidden_size=64, projection_size=32, pred_size=32, n_protos=12, n_out=32, n_directions=64, K=16, small_size=8, n_small=2,
             unsup_class_id=2, teacher=TEACHER)

# images, labels and texts that follow from a number

KINDS = 'a','b','unsup'
def image(i): return TensorImage(torch.rand(3,24,24, generator=torch.Generator().manual_seed(int(i))))
def label(i): return KINDS[i%3]
def text(i): return [f'a photo of a {KINDS[i%3]} number {i}', f'{KINDS[i%3]} {i}']
words = Words([t for i in range(64) for t in text(i)])
tokens = Tokens(words, 8)
def text_encoder(): return TextTransformer(len(words), 32, 1, 2)

def _takes(f) -> dict:
    "Arguments of `f`, those behind `**kwargs` among them"
    return inspect.signature(f).parameters

def _small(f, **more): return {k:v for k,v in {**SMALL, **more}.items() if k in _takes(f)}

class Method(NamedTuple):
    "A callback, what makes its model of an encoder and its views of a size, and its arguments besides the views"
    cb:type
    model:Callable
    augs:Callable
    args:dict

def small(cb):
    "The method `cb` of small sizes"
    model,augs = cb.create_model,cb.create_views
    width = dict(projection_size=TEACHER.nf) if cb.takes('teacher') else {}
    def make_model(encoder, **kw):
        texts = dict(text_encoder=text_encoder()) if cb.n_inp == 2 else {}
        return model(encoder, **{**_small(model, **width), **texts, **kw})
    return Method(cb, make_model, partial(augs, **_small(augs)), _small(cb))

METHODS = {camel2snake(o.__name__): small(o) for o in methods.values()}
def names(f): return [n for n,o in METHODS.items() if f(o)]
MULTI,PAIRS = names(lambda o: o.cb.multi_crop),names(lambda o: o.cb.n_views > 1)
TEACHERS,QUEUES = names(lambda o: hasattr(o.cb, 'encoder_k')),names(lambda o: 'K' in o.args)
each = pytest.mark.parametrize('name', METHODS)

# learners

def make_dls(bs=8, n=45, labels=True, tfms=None, n_inp=1, **kw):
    "Loaders of image, tokens if `n_inp` is 2, and label; the last twelve are held out"
    tfms = [[image], *[[text, tokens]]*(n_inp-1), *[tfms or [label, Categorize()]]*labels]
    if n_inp == 1 and not labels:
        dl = lambda: TfmdDL([(image(i),) for i in range(n)], bs=bs, num_workers=0, **kw)
        return DataLoaders(dl(), dl())
    ds = Datasets(range(n), tfms, splits=(list(range(n-12)), list(range(n-12,n))), n_inp=n_inp)
    return ds.dataloaders(bs=bs, num_workers=0, **{'device':'cpu', **kw})

def loaders(name, items, bs=8, **kw):
    "Of a list of images, or of images and labels; the tokens that the method may need are put behind the image"
    n = METHODS[name].cb.n_inp
    items = [(x, *[tokens(text(i)[0])]*(n-1), *y) for i,(x,*y) in enumerate(items)]
    dls = DataLoaders(*[TfmdDL(items, bs=bs, num_workers=0, **kw) for _ in range(2)])
    if n > 1: dls.n_inp = n
    return dls

def dls_of(name, **kw):
    "`make_dls` with the texts that the method may need"
    return make_dls(n_inp=METHODS[name].cb.n_inp, **kw)

@cache
def _encoder():
    torch.manual_seed(0)
    return create_encoder('test_resnet', False),torch.get_rng_state()

def encoder():
    "That of seed 0, and torch's random numbers are those that follow it: made once in this process, and copied"
    made,after = _encoder()
    torch.set_rng_state(after)
    return copy.deepcopy(made)

def make(name, dls=None, cbs=None, size=16, loss_func=None, model=None, stats=imagenet_stats, path=None, opt_func=None, views=None,
         device='cpu', **kw):
    o = METHODS[name]
    set_seed(0)
    more = dict(opt_func=opt_func) if opt_func else {}
    return Learner(dls or dls_of(name, device=device), model or o.model(encoder()), loss_func=loss_func, path=path,
                   cbs=[o.cb(views or o.augs(size, stats=stats), **{**o.args, **kw}), *(cbs or [])], **more)

def fit(learn, n=1, lr=1e-3, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr, **kw)
    return learn

@cache
def _fitted(name): return fit(make(name))

def fitted(name, *cbs, path=None):
    "A learner of the method that has been fitted for an epoch: made once in this process, and copied"
    learn = copy.deepcopy(_fitted(name))
    if path: learn.path = path
    return learn.add_cbs(L(cbs))

def exported(learn, path):
    "What a file of `learn` becomes: without data, and without a teacher that is not its own"
    learn.export(path); again = load_learner(learn.path/path); again.dls = learn.dls
    if hasattr(again, 'distill'): again.distill.teacher = TEACHER
    return again

def state(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
