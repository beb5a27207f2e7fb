"Alarms disturb nothing, speak when something is wrong, and only then."
import math
import PIL.Image, numpy as np, pytest, torch
from torch import nn
from kit import METHODS, each, fit, image, make, make_dls, same, state
from self_supervised.evaluation.alarms import Alarm, Alarms, collapse, where_nan
from fastai.vision.all import (AttrDict, Callback, Categorize, CrossEntropyLossFlat, DataLoaders, Datasets, IntToFloatTensor, Learner, MixedPrecision, PILImage, TensorImage, TfmdDL, ToTensor, apply, first)
from self_supervised.callback import SSLCallback
from self_supervised.evaluation.health import ssl_metrics

def names(learn): return [o.name for o in learn.alarms.raised]
def items(xs, ys=None): return [(x,torch.tensor(y)) for x,y in zip(xs, ys or [0,1]*len(xs))]
def loaders(trn, val=None, bs=8): return DataLoaders(*[TfmdDL(o, bs=bs, num_workers=0, shuffle=i == 0) for i,o in enumerate((trn, val or items([image(i) for i in range(900, 912)])))])
def started(dls, name='sim_clr', **kw):
    "Names of the alarms before the first step"
    learn = make(name, dls, cbs=[Alarms(stop=True)], **kw)
    fit(learn)
    return names(learn)

@each
def test_undisturbed(name):
    "Weights and losses are the same to the bit; a healthy start is no alarm"
    a,b = fit(make(name), 2),fit(make(name, cbs=[Alarms(min_steps=100)]), 2)
    assert same(state(a), state(b)) and a.recorder.losses == b.recorder.losses
    assert names(b) == [] and list(b.alarms.history.epoch) == [-1,0,1]

@each
def test_trivial_loss(name):
    "What a method's loss is for outputs that are alike for all images"
    learn = make(name, cbs=[Alarms(min_steps=1000)])
    found = []
    class Same(Callback):
        order = 50
        def after_pred(self):
            cb = first(self.learn._grab_cbs(SSLCallback))
            y,*more = self.learn.yb
            pred = apply(lambda o: torch.ones_like(o.as_subclass(torch.Tensor)), self.learn.pred)
            if hasattr(self.model, 'queue'): self.model.queue.embs.fill_(1.)
            if hasattr(self.model, 'bias'): self.model.bias.data.fill_(math.log(1/(len(y)-1))-self.model.log_scale.exp().item())      # the best for them
            ones = [torch.ones_like(o) if o.is_floating_point() else o for o in (y,*more)]
            found.append((float(cb.lf(pred, *ones)), cb.trivial_loss(y, *more)))
    learn.add_cb(Same()); fit(learn)
    if METHODS[name].cb.trivial_loss is SSLCallback.trivial_loss: assert {b for _,b in found} == {None}; return
    assert all(a == pytest.approx(b, rel=1e-3, abs=1e-3) for a,b in found), found

def test_silent_elsewhere(tmp_path):
    "Neither lr_find nor validate is a training"
    learn = make('sim_clr', loaders(items([image(1)]*24)), cbs=[Alarms()], path=tmp_path)
    with learn.no_bar():
        learn.validate()
        learn.lr_find(num_it=5, show_plot=False)
    assert not hasattr(learn.alarms, 'raised')
    with pytest.raises(ValueError, match='no method'): fit(Learner(make_dls(), nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), CrossEntropyLossFlat(), cbs=Alarms()))

def test_images():
    good = [image(i) for i in range(24)]
    assert started(loaders(items(good))) == []
    assert 'images alike' in started(loaders(items([image(1)]*24)))
    assert 'images repeat' in started(loaders(items([image(i%3) for i in range(24)])))
    assert 'blank images' in started(loaders(items([torch.full((3,24,24), .1*(i%5)) for i in range(24)])))
    assert 'blank images' in started(loaders(items([torch.zeros(3,24,24, dtype=torch.uint8) for i in range(24)])))
    twelve_bits_in_sixteen = [image(i)*4095/65535 for i in range(24)]
    assert 'dark images' in started(loaders(items(twelve_bits_in_sixteen)))
    assert 'dark images' in started(loaders(items([(o*255).byte() for o in twelve_bits_in_sixteen])))

def test_validation_set_in_training(tmp_path):
    good = [image(i) for i in range(24)]
    assert 'validation images in training' in started(loaders(items(good), items(good[:12])))
    for i in range(30): PIL.Image.fromarray((image(i)*255).byte().permute(1,2,0).numpy()).save(tmp_path/f'{i}.png')
    files = sorted(tmp_path.iterdir())
    def dls(trn, val): return Datasets(files, [[PILImage.create, ToTensor(), IntToFloatTensor()]], splits=(trn, val)).dataloaders(bs=8, num_workers=0)
    assert started(dls(list(range(20)), list(range(20,30)))) == []
    assert 'validation images in training' in started(dls(list(range(20)), list(range(15,25))))

def test_arguments():
    good = loaders(items([image(i) for i in range(24)]))
    assert 'temperature too high' in started(good, temp=100.)
    assert started(good, temp=1.) == []
    with pytest.warns(UserWarning, match='K:'): assert 'queue too long' in started(good, 'moco', K=64)

def test_one_class():
    dls = Datasets(range(45), [[image], [lambda i: ['a','unsup'][i%2], Categorize()]], splits=(list(range(33)), list(range(33,45)))).dataloaders(bs=8, num_workers=0)
    assert started(dls) == ['one class'] and started(make_dls()) == []

@pytest.mark.parametrize('loss,spread,auc,raised', [(.2,.6,.72,True), (.2,.6,.95,False), (.2,.3,.95,True), (.8,.6,.6,False), (.8,.05,.6,True)])
def test_solved_without_images(loss, spread, auc, raised):
    "BYOL's and SimSiam's loss near its least value, 0, is a collapse only if embeddings do not tell images apart"
    s = AttrDict(trivial=0., loss=loss, spread=spread, feature_spread=.7, auc=auc)
    assert bool(collapse(s)) == raised
    s.trivial = 5.
    assert bool(collapse(s)) == (spread < .1)

def test_teacher():
    learn = fit(make('byol', cbs=[Alarms(min_steps=3)], m=1.)); assert 'teacher stands still' in names(learn)
    learn = fit(make('byol', cbs=[Alarms(min_steps=3)], m=0.)); assert 'teacher is the student' in names(learn)
    learn = fit(make('byol', cbs=[Alarms(min_steps=3)], m=.9)); assert not {'teacher stands still','teacher is the student'} & set(names(learn))

@pytest.mark.parametrize('place', ['projector.0.weight', 'encoder'])
def test_where_nan_begins(place):
    learn = make('sim_clr', cbs=[Alarms(stop=True)])
    class Break(Callback):
        def before_batch(self):
            if self.train_iter != 2: return
            if place == 'encoder': self.handle = self.model.encoder.layer2.register_forward_hook(lambda m,i,o: o/0) if hasattr(self.model.encoder, 'layer2') else None
            else: self.model.projector[0].weight.data[0,0] = math.nan
    learn.add_cb(Break()); fit(learn)
    a = learn.alarms.raised[-1]
    assert a.name == 'NaN' and 'step 2' in a.figure and len(learn.recorder.losses) == 2 and place in a.figure, a

def test_stop_and_say_once(capsys):
    learn = make('sim_clr', loaders(items([image(1)]*40)), cbs=[Alarms(min_steps=3)])
    fit(learn, 3)
    said = capsys.readouterr().out
    assert len(names(learn)) == len(set(names(learn))) == said.count('Try: ') >= 1 and len(learn.recorder.values) == 3
    assert list(learn.alarms.table.name) == names(learn)
    learn.alarms.stop = True
    fit(learn, 3)
    assert learn.recorder.losses == []                                # the images were seen to be alike before the first step

def test_export_holds_no_images(tmp_path):
    from fastai.vision.all import load_learner
    learn = fit(make('byol', cbs=[Alarms(min_steps=3)], path=tmp_path, m=1.))
    learn.export('e.pkl')
    small = load_learner(tmp_path/'e.pkl')
    assert 'images' not in vars(small.alarms) and small.alarms.looks == [] and names(small) == names(learn) != []

def test_training_goes_on_without_numbers():
    "Neither an alarm nor a column ends a training that nobody asked to stop"
    class Break(Callback):
        def after_step(self): self.model.projector[0].weight.data[0,0] = math.nan
    learn = make('sim_clr', cbs=[Alarms(min_steps=2), Break()])
    learn.metrics = ssl_metrics(learn)
    fit(learn, 2)
    assert names(learn)[0] == 'NaN' and len(learn.recorder.values) == 2

def test_step_size():
    "As seen from outside, also where a scaler takes the steps"
    for cbs in ([], [MixedPrecision(init_scale=1.)]):
        moved = []
        class Move(Callback):
            order = -20
            def after_backward(self): self.old = torch.cat([p.detach().flatten() for p in self.model.parameters()])
            def after_step(self): moved.append(((torch.cat([p.detach().flatten() for p in self.model.parameters()])-self.old).norm()/self.old.norm()).item())
        learn = fit(make('sim_clr', cbs=[Alarms(), Move(), *cbs]))
        assert moved[0] > 0 and learn.alarms.step_size() == pytest.approx(moved[0], rel=1e-4)      # the first of its four steps
