"What `suggest` returns is taken by the callables it is for, keeps its own rules for any data set, and names what is wrong with bad input."
import inspect
import math
from functools import partial
from pathlib import Path

import pandas as pd
import pytest, torch
from fastai.vision.all import SGD, Adam, Callback, CancelFitException, Learner, noop, set_seed
from hypothesis import given, settings, strategies as st
from self_supervised.callback import methods
from self_supervised.training.settings import AdamW, Suggestion, few_images_why, suggest
from self_supervised.vision import all as ssl
from self_supervised.vision.all import Checkpoint, captioned_digits_dls, checkpoints, create_encoder, digits_dls, digits_stats, digits_views, text_tower
import kit
from pretended_gpu import counting, pretending

# by the name of the class: the callback with what has to be given, its model and its views as the library has them
TEACHER = create_encoder('test_resnet', False, n_in=1)
GIVEN = dict(unsup_class_id=0, teacher=TEACHER)
def complete(cb, args): return partial(cb, **{k:v for k,v in GIVEN.items() if k in args})
def fixed(model, args): return partial(model, projection_size=TEACHER.nf) if 'teacher' in args else model
METHODS = {o.cb.__name__: (complete(o.cb, o.args), fixed(o.cb.create_model, o.args), o.cb.create_views) for o in kit.METHODS.values()}
papers = {o.__name__: o.paper for o in methods.values()}
TEXTS = [kit.METHODS[n].cb.__name__ for n in kit.METHODS if kit.METHODS[n].cb.n_inp == 2]
each = pytest.mark.parametrize('name', METHODS)
PARTS = 'about','encoder','fit','learner','method','model','views'
n_digits = 1401

class Stop(Callback):
    "End the fit after two batches"
    def before_fit(self): self.losses = []
    def after_step(self):
        self.losses.append(self.loss.item())
        if len(self.losses) == 2: raise CancelFitException

def learner(name, s, encoder, size, bs=64, **views):
    cb,model,augs = METHODS[name]
    set_seed(0)
    dls = captioned_digits_dls(bs)[0] if name in TEXTS else digits_dls(bs=bs, size=size)
    if name in TEXTS: model = partial(model, text_encoder=text_tower(dls, 32, 1, 2))
    return Learner(dls, model(encoder, **s.model), cbs=cb(augs(size, **{**s.views, **views}), **s.method), loss_func=noop, **s.learner)

def two_batches(learn, s):
    before,stop = [p.detach().clone() for p in learn.model.encoder.parameters()],Stop()
    with learn.no_bar(), learn.no_logging(): getattr(learn, s.schedule)(**s.fit, cbs=stop)
    assert len(stop.losses) == 2 and all(map(math.isfinite, stop.losses))
    assert any((a != b).any() for a,b in zip(before, learn.model.encoder.parameters()))
    return learn

def test_every_method_is_known():
    callbacks = {n for n,o in vars(ssl).items() if isinstance(o, type) and issubclass(o, ssl.SSLCallback) and o.lf is not ssl.SSLCallback.lf}
    assert callbacks - {'SSLCallback'} == set(METHODS) == set(papers)
    assert all(o.when and o.heads for o in methods.values())

@each
@pytest.mark.parametrize('opt', ['adam', 'sgd'])
def test_trains(name, opt):
    "Everything suggested for the digits is accepted by the real callables, and trains"
    if opt == 'sgd' and name in TEXTS:
        with pytest.raises(ValueError, match='AdamW'): suggest(name, n_digits, 64, 16, opt=opt)
        return
    s = suggest(name, n_digits, 64, 16, epochs=3, opt=opt)
    learn = two_batches(learner(name, s, create_encoder('test_resnet', False, n_in=1), 16, **digits_views), s)
    assert learn.n_epoch == 3 and learn.opt.hypers[0]['wd'] == s.fit.wd and learn.opt_func is s.learner.opt_func
    assert s.about.steps == 3*len(learn.dls.train)

@pytest.mark.parametrize('name', ['SWAV', 'DINO'])
def test_trains_on_views_of_two_sizes(name):
    s = suggest(name, n_digits, 4, 80, epochs=1)
    learn = two_batches(learner(name, s, create_encoder('test_resnet', False, n_in=1), 80, 4, n_small=2, stats=digits_stats), s)
    assert s.views.small_size == 34 and not {'n_small','blur'} & set(s.views)

def test_trains_transformers():
    "With patches of 4 pixels"
    s = suggest('MOCOV3', n_digits, 8, 16, epochs=1, arch='vit', stride=4)
    vit = create_encoder('vit_tiny_patch16_224', False, n_in=1, img_size=16, patch_size=4, depth=1)
    learn = two_batches(learner('MOCOV3', s, vit, 16, 8, **digits_views), s)
    assert learn.mocov3.freeze_patch_embed and s.fit.wd == .1

@each
@pytest.mark.parametrize('arch,stride', [('resnet',None), ('vit',None), ('vit',8)])
@pytest.mark.parametrize('n,bs,size', [(500,32,64), (2000,64,96), (100_000,256,224), (60_000,256,32)])
def test_accepted_by_all(name, arch, stride, n, bs, size):
    "For other data sets, too, no setting has a name that its callable does not have"
    cb,model,augs = METHODS[name]
    s = suggest(name, n, bs, size, arch=arch, stride=stride)
    pipes = augs(size, **s.views)
    cb(pipes, **s.method)
    for f,part in ((model,'model'), (Learner,'learner'), (getattr(Learner, s.schedule),'fit')): inspect.signature(f).bind_partial(**s[part])
    assert all(v % (stride or 16) == 0 for p in pipes for v in p.fs[0].size) or arch == 'resnet'

def test_a_class_its_subclass_and_its_name():
    class Mine(ssl.BYOL): pass
    a,b,c = (suggest(o, 2000, 64, 96) for o in (ssl.BYOL, Mine, 'BYOL'))
    assert a.why == b.why == c.why

@each
@settings(max_examples=60, deadline=None)
@given(n=st.integers(4, 200_000), bs=st.integers(2, 1024), size=st.integers(1, 512), epochs=st.none() | st.integers(1, 2000), opt=st.sampled_from(['adam','sgd']))
def test_rules(name, n, bs, size, epochs, opt):
    if name in TEXTS: opt = 'adam'
    bs = min(bs, n//2)
    s = suggest(name, n, bs, size, epochs, opt=opt)
    rows = pd.DataFrame(s.why)
    assert sorted(rows.name) == sorted(k for part in PARTS for k in s[part])                       # a reason for each setting, and one alone
    assert all(k in s[part] for part,k in zip(rows.part, rows.name)) and all(rows.reason) and all(rows.source)
    steps = n//bs*s.fit.n_epoch
    assert s.about.steps == steps
    if epochs: assert s.fit.n_epoch == epochs
    else: assert 20 <= s.fit.n_epoch <= 800 and (s.fit.n_epoch in (20,800) or .95 < steps/10_000 < 1.05)
    m = s.method.get('tmom_start', s.method.get('m', 0))
    m = m[0] if isinstance(m, tuple) else m
    if m: assert .9 <= m <= papers[name].m and (1/(1-m) <= max(steps/5, 10)*1.02)
    K = s.method.get('K', 0)
    assert K % bs == 0 and K <= n/2 and K <= 65536
    assert K > 0 or name not in ('MOCO','SupConMOCO','NNCLR')
    assert 'temp' not in s.method or .05 <= s.method.temp <= 1
    assert all(v <= 2048 for k,v in s.model.items() if k.endswith('_size'))
    assert 0 < s.fit.lr_max < 1

@each
@pytest.mark.parametrize('opt', ['adam','sgd'])
def test_going_on_from_weights(name, opt):
    "Each layer has its rate, from a tenth in the first to all of it in the heads"
    if opt == 'sgd' and name in TEXTS: return
    new,s = (suggest(name, n_digits, 64, 16, epochs=3, opt=opt, pretrained=o) for o in (False,True))
    learn = two_batches(learner(name, s, create_encoder('resnet10t', False, n_in=1, channels=(8,8,8,8)), 16, **digits_views), s)
    lrs,lr = [o['lr'] for o in learn.opt.hypers],new.fit.lr_max
    assert (s.fit.lr_max.start,s.fit.lr_max.stop) == (lr/10,lr) and len(lrs) > 4 and all(a < b for a,b in zip(lrs, lrs[1:])) and math.isclose(lrs[-1], 10*lrs[0])
    heads = {id(p) for n,p in learn.model.named_parameters() if not n.startswith(('encoder','queue'))}
    assert {id(p) for p in learn.opt.param_lists[-1]} <= heads and f"{lr/10:.4g} to {lr:.4g}" in repr(s)

def test_length_follows_the_steps():
    assert suggest('SimCLR', 2000, 64, 96).fit.n_epoch == 323 and suggest('SimCLR', 8000, 64, 96).fit.n_epoch == 80
    assert suggest('SimCLR', 200, 100, 96).fit.n_epoch == 800 and suggest('SimCLR', 100_000, 32, 96).fit.n_epoch == 20

def test_rates():
    "Linear in the batch for SGD, by the square root for transformers, the same for all batches otherwise"
    lr = lambda *args, **kw: suggest(*args, **kw).fit.lr_max
    views = [o for o in papers if o not in TEXTS]
    assert lr('MOCO', 2000, 256, 96, opt='sgd') == .03 and lr('MOCO', 2000, 64, 96, opt='sgd') == .0075
    assert lr('DINO', 2000, 256, 96, arch='vit') == 5e-4 and math.isclose(lr('DINO', 2000, 64, 96, arch='vit'), 2.5e-4)
    assert len({lr(o, 2000, bs, 96) for o in views for bs in (32,64,256)}) == 1
    s = suggest('BYOL', 2000, 64, 96, opt='sgd')
    assert s.learner.opt_func([torch.ones(1)], lr=1.).hypers[0]['mom'] == .9 and 'LARS' in repr(s)

def test_teachers_slow_down_with_the_length():
    m = [suggest('MOCO', 1000, 100, 96, epochs=e).method.m for e in (1,10,100,1000)]
    assert m == [.9, .95, .995, .999]

def test_temperatures():
    temp = lambda *args, **kw: suggest(*args, **kw).method.temp
    assert temp('MOCOV3', 2000, 64, 96) == 1 and temp('MOCOV3', 2000, 64, 96, arch='vit') == .2          # the authors' for each
    assert {temp(o, 2000, 64, 32) for o in ('SimCLR','SupCon','MOCO','MOCOV3','NNCLR')} == {.5} and temp('SWAV', 2000, 64, 32) == .1

def test_small_batches_are_told():
    assert suggest('SimCLR', 2000, 128, 96).method.decoupled and not suggest('SimCLR', 2000, 256, 96).method.decoupled
    for name in ('SupCon','MOCOV3','BarlowTwins','VICReg'):
        assert suggest(name, 2000, 32, 96).about.bs == 32 and 'bs' not in suggest(name, 2000, 256, 96).about
    assert 'few' in repr(suggest('BYOL', 2000, 64, 96, epochs=2)) and 'few, n_epoch' not in repr(suggest('BYOL', 2000, 64, 96))

def test_few_images_are_told():
    "Unless the encoder has learned before; the FAQ says the same"
    about = lambda n, **kw: suggest('BYOL', n, 16, 96, **kw).about.get('images')
    assert (about(999),about(1000),about(999, pretrained=True)) == (999,None,None) and few_images_why in repr(suggest('BYOL', 999, 16, 96))
    assert few_images_why.split(', with')[0] in (Path(__file__).parent.parent/'docs'/'faq.md').read_text()

def test_looks():
    s = suggest('SimCLR', 2000, 64, 96)
    lines = repr(s).splitlines()
    assert len(lines) == len(s.why) and "lr_max 0.004 - for an encoder from scratch (measured)" in lines
    assert s._repr_html_().count('<tr') == len(s.why)+1 and 'opt_func AdamW -' in repr(s) and '...' not in s._repr_html_()

def test_suggestions_are_apart():
    a,b = suggest('BYOL', 2000, 64, 96),suggest('BYOL', 2000, 64, 96)
    a.method.clear(); a.add('method', 'mine', 'test', m=.5)
    assert b.method.m == (.996,1.) and suggest('BYOL', 2000, 64, 96).why == b.why and isinstance(a, Suggestion)

class NoGradients(Callback):
    "Nothing but weight decay moves a weight"
    order = 100
    def before_step(self):
        for p in self.learn.model.parameters():
            if p.grad is not None: p.grad.zero_()

@pytest.mark.parametrize('all_decay', [False, True])
@pytest.mark.parametrize('opt', [Adam, AdamW, partial(SGD, mom=.9, decouple_wd=False)])
@pytest.mark.parametrize('name', ['clip','sig_lip','dino'])
def test_what_decays(name, opt, all_decay):
    "Matrices and kernels, in groups for each layer; biases, norms, the scale and the bias of SigLIP only if they are asked for"
    learn = kit.make(name, opt_func=opt, cbs=[NoGradients()], **(dict(freeze_last_layer=0) if name == 'dino' else {}))
    learn.splitter,learn.wd_bn_bias = ssl.layer_splitter,all_decay
    before = {n:p.detach().clone() for n,p in learn.model.named_parameters() if p.requires_grad and p.abs().sum() > 0}
    kit.fit(learn, 1, lr=.1, wd=.1)
    moved = {n for n,p in learn.model.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert moved == {n for n,p in before.items() if all_decay or p.ndim > 1} and len(learn.opt.hypers) > 2
    assert all(o in before for o in dict(clip=['log_scale'], sig_lip=['log_scale','bias']).get(name, []))

def test_another_optimizer_does_not_go_on(tmp_path):
    kit.fit(kit.make('sim_clr', opt_func=AdamW, path=tmp_path, cbs=[Checkpoint(tmp_path/'c')]))
    with pytest.raises(ValueError, match='another kind of optimizer'): kit.make('sim_clr', path=tmp_path).resume(tmp_path/'c')

class Norms(Callback):
    "Largest norm of a gradient in each step, of a loss that is far too large"
    order = 100
    def before_fit(self): self.largest = []
    def before_backward(self): self.learn.loss_grad = self.learn.loss_grad*1e6
    def before_step(self): self.largest.append(max(p.grad.norm().item() for p in self.learn.model.parameters() if p.grad is not None))

def dino(path, resume=None):
    "A training of DINO as it is suggested for transformers"
    s = suggest('DINO', 48, 12, 16, epochs=2, arch='vit', stride=4)
    learn = kit.make('dino', path=path, cbs=[Norms(), Checkpoint(path/'c', every=1, keep=20)], opt_func=s.learner.opt_func)
    if resume: learn.resume(resume)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(**s.fit)
    return learn

def test_dino_clips_and_lets_decay_rise(tmp_path):
    "The gradient of each parameter by itself; on a cosine beside that of the rate; and a training that was stopped goes on exactly"
    whole = dino(tmp_path/'a')
    assert all(math.isclose(o, 3, rel_tol=1e-3) for o in whole.norms.largest)
    wd = whole.recorder.hps['wd']
    assert wd[0] == .04 and .35 < wd[-1] < .4 and all(a < b for a,b in zip(wd, wd[1:])) and {*whole.recorder.hps} == {'lr','mom','wd'}
    again = dino(tmp_path/'b', checkpoints(tmp_path/'a'/'c')[2])
    assert kit.same(kit.state(whole), kit.state(again)) and again.recorder.hps == whole.recorder.hps

class Operations(Callback):
    "What the optimizer does on the GPU in the last step"
    order = 10**6
    def __init__(self, counts): self.counts = counts
    def before_step(self): self.start = self.counts['ops'].total(),self.counts['waits'].total()
    def after_step(self): self.found = self.counts['ops'].total()-self.start[0],self.counts['waits'].total()-self.start[1]

@pytest.mark.parametrize('fp16', [False, True])
def test_a_step_on_a_gpu(fp16):
    "Two launches for what decays and two for the rest, and no wait; the optimizer was made before the model moved there. fp16 has a scale besides"
    with pretending(0) as gpu, counting() as counts:
        dls = kit.dls_of('sim_clr')
        dls.device = gpu
        learn = kit.make('sim_clr', dls, opt_func=suggest('SimCLR', 2000, 64, 96).learner.opt_func, cbs=[Operations(counts)])
        learn.create_opt()
        learn.model.to(gpu)
        if fp16: learn.to_fp16(init_scale=2.**7)
        before = kit.state(learn)
        kit.fit(learn)
        assert learn.operations.found == (4+fp16,0) and not kit.same(before, kit.state(learn))

@pytest.mark.parametrize('kw,error,msg', [
    (dict(method='simclr'), ValueError, "method='simclr' is unknown: choose one of SimCLR, SupCon, .*DINO"),
    (dict(method=Adam), ValueError, 'unknown'), (dict(method=None), ValueError, 'method=None'), (dict(method=Learner), ValueError, 'unknown'), (dict(method=['BYOL']), ValueError, 'unknown'),
    (dict(n_images=100), ValueError, 'n_images=100 is less than two batches of bs=64: choose bs of at most 50'),
    (dict(n_images=0), ValueError, 'n_images must be at least 4, got 0'), (dict(n_images=2000.), TypeError, 'n_images must be an int, got 2000.0'),
    (dict(bs=1), ValueError, 'bs must be at least 2, got 1'), (dict(bs='64'), TypeError, "bs must be an int, got '64'"), (dict(bs=True), TypeError, 'bs'),
    (dict(size=(96,96)), TypeError, r'size must be an int, got \(96, 96\)'), (dict(size=0), ValueError, 'size must be at least 1, got 0'),
    (dict(epochs=0), ValueError, 'epochs must be at least 1, got 0'), (dict(epochs=1.5), TypeError, 'epochs'), (dict(stride=0), ValueError, 'stride'),
    (dict(arch='resnet50'), ValueError, "arch must be one of resnet, vit, got 'resnet50'"), (dict(opt='lars'), ValueError, "opt must be one of adam, sgd, got 'lars'"),
    (dict(arch='vit', opt='sgd'), ValueError, "opt='sgd'.*AdamW"), (dict(arch='vit', size=100), ValueError, 'size=100 cannot be cut into patches of 16 pixels')])
def test_bad_input(kw, error, msg):
    with pytest.raises(error, match=msg): suggest(**{**dict(method='BYOL', n_images=2000, bs=64, size=96), **kw})
