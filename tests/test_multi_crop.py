"Views of any number and size: outputs stay with their views, and what cannot work is refused."
import math
import pytest, torch
from fastai.vision.all import Callback, DataLoaders, TensorImage, TfmdDL, noop
from torch import nn
from self_supervised.vision.dino import dino, koleo
from self_supervised.vision import all as ssl
from self_supervised.vision.all import create_encoder, get_batch_augs, get_multi_aug_pipelines, get_multi_crop_pipelines
from kit import METHODS, MULTI, fit, make, make_dls, state, same

def plain(size): return get_batch_augs(size, rotate=False, jitter=False, bw=False, blur=False, flip_p=0, resize_scale=(1.,1.), resize_ratio=(1.,1.), stats=None)

class Mean(nn.Module):
    "Features that tell which image and which size they come from"
    nf = 4
    def forward(self, x): return torch.cat([x.mean((2,3)), x.new_full((len(x),1), x.shape[-1])], 1)

class Spy(ssl.SSLCallback):
    multi_crop = True
    def lf(self, pred, y):
        self.seen = pred.detach().clone(),y
        return pred.sum()

@pytest.mark.parametrize('sizes', [(24,24), (24,24,12,12), (12,24,12,24), (8,12,24)])
def test_outputs_stay_with_their_views(sizes):
    "The n-th block of the output is the n-th view, whatever the order of sizes; its rows are the images"
    model = ssl.ProjectionModel(Mean(), nn.Linear(4,4))
    nn.init.eye_(model.projector.weight); nn.init.zeros_(model.projector.bias)
    dl = lambda: TfmdDL([(TensorImage(torch.full((3,24,24), i/10)),torch.tensor(i)) for i in range(8)], bs=8, num_workers=0)
    learn = ssl.Learner(DataLoaders(dl(), dl()), model, loss_func=noop, cbs=Spy([plain(s) for s in sizes]))
    with learn.no_bar(), learn.no_logging(): learn.validate()
    pred,y = learn.spy.seen
    for s,block in zip(sizes, pred.chunk(len(sizes))):
        assert (block[:,3] == s).all()
        torch.testing.assert_close(block[:,0], y/10, atol=1e-5, rtol=0)

@pytest.mark.parametrize('name', MULTI)
@pytest.mark.parametrize('sizes', [(16,16,16), (16,16,12,12,12)])
def test_more_views(name, sizes):
    cb,model,_,args = METHODS[name]
    augs = [get_batch_augs(s) for s in sizes]
    learn = ssl.Learner(make_dls(), model(create_encoder('test_resnet', False)), cbs=cb(augs, **args))
    fit(learn)
    assert all(torch.isfinite(torch.tensor(o)) for o in learn.recorder.losses)
    assert getattr(learn, name).show(n=2).shape == (2,len(sizes))
    with learn.no_bar(): learn.validate()

def test_show_at_own_size():
    learn = make('swav')
    axs = learn.swav.show(n=2)
    assert [a.get_images()[0].get_array().shape[0] for a in axs[0]] == [16,16,8,8]

class OneInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = create_encoder('test_resnet', False); self.projector = nn.Linear(self.encoder.nf, 8)
    def forward(self, x): return self.projector(self.encoder(x))

def test_own_model():
    "A user's model with one input serves views of one size; several sizes need `*xs`, and the error says so"
    fit(make('sim_clr', model=OneInput()))
    learn = ssl.Learner(make_dls(), OneInput(), cbs=ssl.SimCLR(get_multi_crop_pipelines(16, 8, n_small=1)))
    before = state(learn)
    with pytest.raises(ValueError, match='several sizes'): fit(learn)
    assert same(before, state(learn))

def test_patches():
    enc = create_encoder('vit_tiny_patch16_224', False, img_size=32)
    learn = ssl.Learner(make_dls(), ssl.create_dino_model(enc, n_out=8), cbs=ssl.DINO(get_multi_crop_pipelines(32, 24, n_small=1)))
    with pytest.raises(ValueError, match='patches'): fit(learn)

def test_vit_multi_crop():
    "Position embeddings follow the size; drop path is the student's alone; the patch size divides the views"
    enc = create_encoder('vit_tiny_patch16_224', False, img_size=32, drop_path_rate=.5, depth=2, patch_size=8)
    learn = ssl.Learner(make_dls(n=30), ssl.create_dino_model(enc, n_out=8, hidden_size=16), cbs=ssl.DINO(get_multi_crop_pipelines(32, 16, n_small=2)))
    drops = lambda m: {o.drop_prob for o in m.modules() if type(o).__name__ == 'DropPath'}
    assert drops(learn.model.encoder) and max(drops(learn.model.encoder)) == .5 and drops(learn.model.encoder_k) == {0.}
    fit(learn)

def test_dino_head_frozen_in_the_first_epoch():
    learn = make('dino', freeze_last_layer=1)
    last = lambda: learn.model.projector.last_layer.weight.detach().clone()
    a = last(); fit(learn); assert torch.equal(a, last())
    fit(learn, 2); assert not torch.equal(a, last())

def test_dino_centre():
    "The mean of all the teacher's outputs, once a batch; validation does not move it"
    learn = make('dino', cmom=0.)
    class Last(Callback):
        order = 100
        def before_batch(self):
            if self.training: self.t = self.learn.yb[1].mean(0)
    learn.add_cb(Last()); fit(learn)
    torch.testing.assert_close(learn.model.center, learn.last.t)

def test_dino_temperature():
    "Rises over the warm-up, by the share of training, and stays"
    learn = make('dino', tpt_start=.04, tpt_end=.07, tpt_warmup=.5)
    for pct,want in ((0,.04),(.25,.055),(.5,.07),(1.,.07)):
        learn.pct_train = pct
        assert learn.dino.tpt == pytest.approx(want)

def test_swav_prototypes_and_queue():
    "Rows of length one after every step, frozen at first, and the queue joins when it is full and it is time"
    learn = make('swav', freeze_pct=1., queue_start_pct=.5)
    w = nn.functional.normalize(learn.model.prototypes.weight.detach(), dim=1)
    used = []
    class Used(Callback):
        def after_loss(self):
            if self.training: used.append(self.learn.swav.queued() is not None)
    learn.add_cb(Used()); fit(learn, 2)
    torch.testing.assert_close(learn.model.prototypes.weight.detach(), w)
    assert used == [False]*4 + [True]*4                       # two batches fill the queue, it waits for half of training
    assert learn.model.queue.embs.shape == (16, 2*32)
    learn = make('swav', freeze_pct=0); fit(learn)
    assert not torch.allclose(nn.functional.normalize(learn.model.prototypes.weight.detach(), dim=1), w)
    torch.testing.assert_close(learn.model.prototypes.weight.norm(dim=1).detach(), torch.ones(12))
    assert not hasattr(fit(make('swav', K=0)).model, 'queue')

def test_vicreg_columns():
    learn = fit(make('vic_reg'))
    names,vals = learn.recorder.metric_names,learn.recorder.values[-1]
    assert list(names)[3:6] == ['invariance','variance','covariance']
    i,v,c = vals[2:5]
    assert vals[1] == pytest.approx(25*i+25*v+c, rel=1e-4)
    with learn.no_bar(): assert len(learn.validate()) == 4

def test_dcl():
    learn = fit(make('sim_clr', decoupled=True, sigma=.5))
    assert min(float(o) for o in learn.recorder.losses) > 0
    for kw in (dict(sigma=.5), dict(decoupled=True, sigma=0.)):
        with pytest.raises(ValueError, match='sigma'): make('sim_clr', **kw)
    with pytest.raises(ValueError, match='decoupled'): ssl.SimCLR(get_multi_aug_pipelines(3, 16), decoupled=True)

@pytest.mark.parametrize('cb,name', [(ssl.SWAV,'crop_assgn_ids'), (ssl.DINO,'large_crop_ids'), (ssl.BYOL,'large_crop_ids')])
@pytest.mark.parametrize('ids', [(0,9), (0,0), (-1,0), [], 'ab', (0,1.)])
def test_bad_crop_ids(cb, name, ids):
    with pytest.raises(ValueError, match=name): cb(get_multi_crop_pipelines(16, 8, n_small=2), **{name:ids})

def test_bad_arguments():
    for kw,msg in [(dict(tpt_warmup=1.5),'tpt_warmup'), (dict(tpt_warmup=-1),'tpt_warmup'), (dict(tps=0),'tps'), (dict(tpt_start=0),'tpt_start'), (dict(tpt_end=-1),'tpt_end'),
                   (dict(cmom=2),'cmom'), (dict(tmom_start=1.2),'m must'), (dict(freeze_last_layer=-1),'freeze_last_layer'), (dict(large_crop_ids=[0]),'large_crop_ids must be 2')]:
        with pytest.raises(ValueError, match=msg): make('dino', **kw)
    for kw,msg in [(dict(queue_start_pct=2),'queue_start_pct'), (dict(freeze_pct=-1),'freeze_pct'), (dict(eps=0),'eps'), (dict(n_sinkh_iter=0),'n_sinkh_iter'), (dict(temp=0),'temp')]:
        with pytest.raises(ValueError, match=msg): make('swav', **kw)
    with pytest.raises(ValueError, match='n_protos'): ssl.create_swav_model(create_encoder('test_resnet', False), n_protos=1)
    with pytest.raises(ValueError, match='n_out'): ssl.create_dino_model(create_encoder('test_resnet', False), n_out=1)
    with pytest.raises(ValueError, match='last_layer'): make('dino', model=ssl.create_simclr_model(create_encoder('test_resnet', False)))
    with pytest.raises(ValueError, match='lmb'): make('barlow_twins', lmb=-1)
    for n in ('invariance','variance','covariance','eps'):
        with pytest.raises(ValueError, match=n): make('vic_reg', **{n:-1})
    with pytest.raises(ValueError, match='blur_p'): get_multi_aug_pipelines(2, 16, blur_p=(.1,.2,.3))

def test_koleo():
    "An option of DINO: the features of each large view by itself, with their gradient, in a fit alone"
    learn = make('dino', koleo=.1)
    cb,seen = learn.dino,[]
    lf = cb.lf
    def kept(pred, y, t):
        seen.append((pred, t, cb.center.clone(), cb.tpt, lf(pred, y, t)))
        return seen[-1][-1]
    cb.lf = kept
    fit(learn)
    assert not learn.model.with_features and cb.trivial_loss(None) is None
    for (p,f),t,center,tpt,loss in seen:
        a,b = f.chunk(cb.n_views)[:2]
        want = dino(p, t, center, cb.tps, tpt, cb.n_views, [0,1]) + .1*(koleo(a)+koleo(b)+2*math.log(2))
        torch.testing.assert_close(loss, want)
        assert loss >= 0 and torch.autograd.grad(koleo(a), f, retain_graph=True)[0].abs().max() > 0
        break
    with pytest.raises(ValueError, match='koleo must be a weight'): make('dino', koleo=-1)
    fit(make('dino', make_dls(bs=11), koleo=.1))                               # whose last validation batch has one image
