"Right, or refused before anything is trained: odd data, odd models, and the callbacks of others."
import math
import threading
import time
import warnings
from functools import partial

import numpy as np
import pytest, torch
from torch import nn
from fastai.vision.all import (Callback, Categorize, CutMix, DataBlock, DataLoaders, Datasets, EarlyStoppingCallback, FetchPredsCallback, ImageBlock, Learner, MixUp, MultiCategorize,
                               ReduceLROnPlateau, SaveModelCallback, TensorImage, TfmdDL, Transform, get_model, load_learner, noop, set_seed, trainable_params)
from self_supervised import views
from self_supervised.augmentations import get_batch_augs, get_multi_aug_pipelines, get_multi_crop_pipelines
from self_supervised.encoder_files import load_encoder, save_encoder
from self_supervised.layers import create_encoder, create_mlp_module, model_splitter
from self_supervised.momentum import MomentumEncoder
from self_supervised.training.checkpoint import Checkpoint, checkpoints
from self_supervised.vision import all as ssl
from self_supervised.training.big_batches import Chunks
from self_supervised.vision.all import KNN, get_features
from kit import METHODS, MULTI, TEACHERS, dls_of, each, exported, fit, image, make, make_dls, same, state

def loaders(items, bs=8, **kw): return DataLoaders(*[TfmdDL(items, bs=bs, num_workers=0, **kw) for _ in range(2)])

def refused(learn, err, msg, how=fit):
    "And nothing was trained"
    before = state(learn)
    with pytest.raises(err, match=msg): how(learn)
    assert same(before, state(learn))

# 9: images

@pytest.mark.parametrize('change,err,msg', [
    (lambda x: x*255, ValueError, r'\[0,1\].*25'), (lambda x: (x-.5)/.25, ValueError, r'\[-[12]'), (lambda x: (x*255).long(), TypeError, 'torch.int64'),
    (lambda x: (x*255).short(), TypeError, 'torch.int16'), (lambda x: x.half(), TypeError, 'to_fp16'), (lambda x: x.bool(), TypeError, 'torch.bool')])
@pytest.mark.parametrize('name', ['sim_clr','byol','sup_con'])
def test_images_out_of_range(name, change, err, msg):
    items = [(change(image(i).as_subclass(torch.Tensor)), torch.tensor(i%2)) for i in range(24)]
    refused(make(name, loaders(items), loss_func=noop), err, msg)

def test_images_in_range():
    for change in (lambda x: (x*255).byte(), lambda x: x*0, lambda x: x*0+1): fit(make('sim_clr', loaders([(change(image(i)),torch.tensor(0)) for i in range(24)]), loss_func=noop))

# 10: groups of parameters

@each
def test_splitter_and_freezing(name):
    cb,model_f,augs,args = METHODS[name]
    set_seed(0)
    learn = Learner(dls_of(name), model_f(create_encoder('test_resnet', False)), splitter=model_splitter, cbs=cb(augs(16), **args))
    teacher = list(getattr(learn.model, 'encoder_k', nn.Module()).parameters())
    learn.create_opt()
    listed = {id(p) for pl in learn.opt.param_lists for p in pl}
    assert not listed & {id(p) for p in teacher} and listed >= {id(p) for p in learn.model.projector.parameters()}
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-3)
    learn.freeze(); fit(learn); learn.unfreeze(); fit(learn)
    assert not any(p.requires_grad for p in teacher) and all(p.requires_grad for p in learn.model.encoder.parameters())

def test_a_splitter_that_lists_the_teacher_does_not_train_it():
    learn = make('byol', m=1.)
    learn.splitter = lambda m: [list(m.encoder.parameters()), list(m.projector.parameters()), list(m.encoder_k.parameters())]
    before = [p.clone() for p in learn.model.encoder_k.parameters()]
    learn.create_opt(); learn.unfreeze(); fit(learn)
    assert all(map(torch.equal, before, learn.model.encoder_k.parameters())) and not any(p.requires_grad for p in learn.model.encoder_k.parameters())

# 11

def test_unsup_in_the_vocabulary():
    with pytest.warns(UserWarning, match='unsup_class_id=None takes'): make('sup_con', unsup_class_id=None)

# 13: going on exactly, or a warning at Checkpoint

class Order(torch.utils.data.Sampler):
    def __init__(self, n): self.n,self.rng = n,np.random.default_rng(0)
    def __iter__(self): return iter(self.rng.permutation(self.n).tolist())
    def __len__(self): return self.n

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return ((image(i),torch.tensor(0)) for i in range(16))

DATA = [(image(i).as_subclass(torch.Tensor), torch.tensor(i%2)) for i in range(24)]

@pytest.mark.parametrize('dl,msg', [
    (lambda: torch.utils.data.DataLoader(DATA, 8, num_workers=1, persistent_workers=True), 'persistent'), (lambda: torch.utils.data.DataLoader(DATA, 8, sampler=Order(24)), 'sampler Order'),
    (lambda: TfmdDL(Stream(), bs=8, n=16, num_workers=0), 'stream')])
def test_what_a_checkpoint_cannot_hold(dl, msg, tmp_path):
    class AtOnce(Callback):
        order = 100
        def before_fit(self): raise RuntimeError('before training')
    learn = make('sim_clr', DataLoaders(dl(), dl()), loss_func=noop, cbs=[Checkpoint(tmp_path), AtOnce()])
    with pytest.warns(UserWarning, match=msg), pytest.raises(RuntimeError, match='before training'): fit(learn)

class Ends(Callback):
    order = 200
    def after_batch(self):
        if self.training and (self.epoch,self.iter) == (1,1): raise SystemExit

def torch_dls(how):
    g = torch.Generator().manual_seed(5)
    kw = dict(loader=dict(shuffle=True, generator=g), sampler=dict(sampler=torch.utils.data.RandomSampler(DATA, generator=g)), workers=dict(shuffle=True, generator=g, num_workers=1))[how]
    return DataLoaders(torch.utils.data.DataLoader(DATA, 8, **kw), torch.utils.data.DataLoader(DATA, 8))

@pytest.mark.parametrize('how', ['loader','sampler','workers'])
@pytest.mark.parametrize('train_metrics', [False,True])
def test_going_on_exactly(how, train_metrics, tmp_path):
    "torch loaders with generators of their own; Recorder(train_metrics=True) in the middle of an epoch"
    def mean(pred, *yb): return pred.float().mean()
    def whole(learn):
        learn.metrics,learn.recorder.train_metrics = [mean],train_metrics
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-3)
        return state(learn),[list(o) for o in learn.recorder.values]
    def learner(*cbs): return make('sim_clr', torch_dls(how), loss_func=noop, cbs=cbs)
    want,values = whole(learner())
    with pytest.raises(SystemExit): whole(learner(Checkpoint(tmp_path, every=1), Ends()))
    again = learner(); again.create_opt()
    got,got_values = whole(again.resume(tmp_path))
    assert same(want, got) and values == got_values

# 14: random layers of the teacher

class Noise(nn.Module):
    def forward(self, x): return x+torch.randn_like(x) if self.training else x

@pytest.mark.parametrize('enc', [lambda: create_encoder('vit_tiny_patch16_224', False, img_size=16, patch_size=4, depth=2, patch_drop_rate=.5, drop_path_rate=.5, attn_drop_rate=.5, proj_drop_rate=.5),
                                 lambda: create_encoder('swin_tiny_patch4_window7_224', False, img_size=32, window_size=4, depths=(1,1,1,1), attn_drop_rate=.5, drop_path_rate=.5),
                                 lambda: nn.Sequential(create_encoder('test_resnet', False), Noise())])
def test_the_teacher_is_not_random(enc):
    teacher,x = MomentumEncoder(enc()).train(),torch.rand(4,3,32,32)
    if hasattr(teacher.module, 'patch_embed') and teacher.module.patch_embed.img_size == (16,16): x = x[...,:16,:16]
    assert torch.equal(teacher(x), teacher(x))

def test_running_statistics_of_the_teacher_move():
    teacher,x = MomentumEncoder(create_encoder('test_resnet', False)).train(),torch.rand(8,3,24,24)
    bn = next(m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)); before = bn.running_mean.clone()
    teacher(x); assert bn.training and not torch.equal(before, bn.running_mean)
    teacher.eval(); assert not bn.training

# 15: torch.compile

IN_FULL = ('swav','encoder'),('sim_clr','model'),('byol','in place')
KINDS = {(type(o.model(create_encoder('test_resnet', False))), n in TEACHERS, n in MULTI):n for n,o in METHODS.items()}.values()      # one of each kind of model
@pytest.mark.parametrize('name,what', [*((n,'encoder') for n in sorted({*KINDS, 'swav'})), *IN_FULL[1:]])
def test_compiled(name, what, tmp_path):
    "Trains, and files have plain names; on some methods also in chunks, which is traced for more shapes, and from files"
    torch._dynamo.reset()
    cb,model_f,augs,args = METHODS[name]
    set_seed(0)
    compiled = partial(torch.compile, backend='eager')
    enc = create_encoder('test_resnet', False)
    model = model_f(compiled(enc) if what == 'encoder' else enc)
    if what == 'model': model = compiled(model)
    if what == 'in place': enc.compile(backend='eager')
    learn = fit(Learner(dls_of(name, n=16, bs=4), model, path=tmp_path, cbs=[cb(augs(16), **args)]))
    assert not [k for k in learn.model.state_dict() if '_orig_mod' in k] and learn.model.encoder._compiled_call_impl if what != 'model' else True
    if name in TEACHERS: assert learn.model.encoder_k.encoder._compiled_call_impl                    # as the student, by its compiler
    if (name,what) not in IN_FULL: return
    learn.add_cb(Chunks(3)); fit(learn)
    learn.save('m'); plain = make(name, path=tmp_path); plain.load('m', with_opt=False)
    assert same(state(plain), state(learn))
    learn.load('m')
    assert torch.equal(load_encoder(learn.save_encoder(tmp_path/'e.safetensors')).eval()(torch.ones(1,3,16,16)), enc.eval()(torch.ones(1,3,16,16)))
    fit(exported(learn, 'a.pkl'))

def test_a_compiled_encoder_in_a_file(tmp_path):
    enc = create_encoder('test_resnet', False)
    path = save_encoder(torch.compile(enc, backend='eager'), tmp_path/'e.safetensors')
    assert set(load_encoder(path).state_dict()) == set(enc.state_dict())
    load_encoder(path, torch.compile(enc, backend='eager'))

# 16: the callbacks of others

@each
def test_summary(name):
    learn = make(name)
    assert 'Total params' in str(learn.summary()) and f'  - {METHODS[name].cb.__name__}' in str(fit(learn).summary())

@pytest.mark.parametrize('cb', [MixUp, CutMix, FetchPredsCallback])
@pytest.mark.parametrize('added', ['before','for the fit'])
def test_callbacks_that_cannot_work(cb, added):
    learn = make('sup_con')
    if added == 'before': learn.add_cb(cb()); refused(learn, ValueError, cb.__name__)
    else: refused(learn, ValueError, cb.__name__, how=lambda l: l.fit(1, cbs=cb()))
    learn.remove_cb(cb); fit(learn)

def test_to_parallel():
    "DataParallel, here with one device: one size works, several are refused"
    pytest.importorskip('accelerate')
    import fastai.distributed
    fit(make('sim_clr').to_parallel())
    refused(make('swav').to_parallel(), ValueError, 'DataParallel mixes up views')

# 17: KNN

def labelled(y): return loaders([(image(i), y(i)) for i in range(24)])

@pytest.mark.parametrize('y', [lambda i: torch.tensor([1.,0.,1.]), lambda i: torch.tensor(float(i)), lambda i: torch.zeros(24,24, dtype=torch.long), None], ids=['multi-label','regression','mask','none'])
def test_knn_never_ends_a_run(y):
    learn = make('sim_clr', labelled(y) if y else make_dls(labels=False), loss_func=noop); learn.metrics = KNN()
    with pytest.warns(UserWarning) as w: fit(learn, 3)
    assert sum('knn: no accuracy' in str(o.message) for o in w) == 1
    assert all(math.isnan(o[-1]) for o in learn.recorder.values)

@pytest.mark.parametrize('cb', [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau])
def test_monitoring_a_column_without_values(cb, tmp_path):
    learn = make('sim_clr', make_dls(labels=False), loss_func=noop, path=tmp_path, cbs=[cb(monitor='knn')]); learn.metrics = KNN()
    refused(learn, ValueError, "monitor='knn' has no values")
    learn = make('sim_clr', path=tmp_path, cbs=[cb(monitor='knn')]); learn.metrics = KNN(); fit(learn)

def test_knn_when_nothing_is_labelled():
    learn = make('sup_con', labelled(lambda i: torch.tensor(2)), loss_func=noop); learn.metrics = KNN()
    with pytest.warns(UserWarning, match='no validation image has a label'): fit(learn)
    assert math.isnan(learn.recorder.values[-1][-1])

def test_features_at_the_size_of_the_views():
    sizes = []
    class Enc(nn.Module):
        nf = 3
        def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.ones(3))
        def forward(self, x): sizes.append(tuple(x.shape[-2:])); return x.mean((2,3))*self.scale
    learn = make('sim_clr', make_dls(), size=(16,12), model=ssl.create_simclr_model(Enc())); learn.metrics = KNN(); fit(learn)
    assert set(sizes) == {(16,12)}

def test_knn_of_a_vit_whose_patches_do_not_tile_the_items():
    enc = create_encoder('vit_tiny_patch16_224', False, img_size=16, patch_size=16, depth=1)
    learn = make('sim_clr', size=16, model=ssl.create_simclr_model(enc)); learn.metrics = KNN()       # items of 24 pixels
    fit(learn); assert not math.isnan(learn.recorder.values[-1][-1])

# 18

class Peak(threading.Thread):
    "Highest resident memory while it runs, in MB over the beginning"
    def __enter__(self): self.on,self.base,self.top = True,self.now(),0; self.start(); return self
    def __exit__(self, *a): self.on = False; self.join(); self.mb = (self.top-self.base)/2**20
    def now(self): return int(open('/proc/self/statm').read().split()[1])*4096
    def run(self):
        while self.on: self.top = max(self.top, self.now()); time.sleep(.001)

def test_memory_of_many_small_views():
    "64 images of 512 pixels, six views of 32: the views and 256 MB at most"
    pipes,x = get_multi_aug_pipelines(6, 32, resize_scale=(.05,.3), rotate=False, stats=None),torch.rand(64,3,512,512)
    from self_supervised.augmentations import make_views
    make_views(pipes, x[:8])
    with Peak() as p: make_views(pipes, x)
    assert p.mb < 256, p.mb

# 19

@pytest.mark.parametrize('arch', ['coat_tiny'])
def test_encoders_that_make_tensors_of_their_own(arch): assert create_encoder(arch, False).nf > 0

class Counts(nn.Module):
    "A forward that needs values"
    def __init__(self): super().__init__(); self.lin = nn.Linear(3,5)
    def forward(self, x): return self.lin(x.mean((2,3)))*(1+int(x.sum() > 1e9))
def test_encoders_whose_forward_needs_values():
    from self_supervised.layers import num_features
    enc = Counts(); assert num_features(enc) == 5 and enc.training

# 20: clear errors

def test_labels_that_are_strings(): refused(make('sup_con', loaders([(image(i),'ab'[i%2]) for i in range(24)]), loss_func=noop), TypeError, "labels must be tensors, got .*'[ab]'")

def test_two_inputs():
    dls = loaders([(image(i),image(i),torch.tensor(0)) for i in range(24)])
    dls.n_inp = 2
    refused(make('sim_clr', dls, loss_func=noop), ValueError, 'n_inp=2')

def test_a_queue_of_another_width():
    learn = make('moco'); model = learn.model
    model.projector = create_mlp_module(model.encoder.nf, 64, 24)
    with pytest.raises(ValueError, match=r'queue of 16 embeddings of width 32'): make('moco', model=model)

@pytest.mark.parametrize('kw,msg', [(dict(size='a'),'size'), (dict(size=0),'size'), (dict(size=(8,)),'size'), (dict(size=8.5),'size'), (dict(resize_ratio=(0,1)),'resize_ratio'), (dict(resize_scale=(0,1)),'resize_scale'),
                                    (dict(jitter_s=-1),'jitter_s'), (dict(jitter_s=(1,1)),'jitter_s'), (dict(jitter_s='a'),'jitter_s'), (dict(flip_p='a'),'flip_p'), (dict(blur_s=(2.,.1)),'blur_s'),
                                    (dict(resize_scale=.5),'resize_scale')])
def test_bad_augmentations(kw, msg):
    with pytest.raises(ValueError, match=msg): get_batch_augs(**{'size':16, **kw})

@pytest.mark.parametrize('temp', [True, math.nan, math.inf, '.1', None])
def test_bad_temperature(temp):
    with pytest.raises(ValueError, match='temp'): make('sim_clr', temp=temp)
def test_numpy_temperature(): fit(make('sim_clr', temp=np.float32(.1))); fit(make('moco', m=np.float64(.9)))

def test_export_after_the_method_is_gone(tmp_path):
    learn = fit(make('moco', path=tmp_path)); queue = learn.model.queue
    learn.remove_cb(learn.moco); learn.export('a.pkl')
    assert not {'encoder_k','queue'} & dict(load_learner(tmp_path/'a.pkl').model.named_children()).keys() and learn.model.queue is queue
    learn.export('b.pkl', training_state=True)
    assert {'encoder_k','queue'} <= dict(load_learner(tmp_path/'b.pkl').model.named_children()).keys()

def test_ones_own_queue(tmp_path):
    model = ssl.create_simclr_model(create_encoder('test_resnet', False)); model.queue = nn.Linear(2,2)
    learn = fit(make('sim_clr', model=model, path=tmp_path)); learn.export('a.pkl')
    assert isinstance(load_learner(tmp_path/'a.pkl').model.queue, nn.Linear)
    with pytest.raises(ValueError, match='`queue` of its own'): make('moco', model=model)
