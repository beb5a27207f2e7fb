"What every method must do, and what it must refuse. A new method enters by a line in METHODS."
import inspect
import math
from functools import partial
import matplotlib.pyplot as plt
import pytest, torch
from fastai.vision.all import (Callback, Categorize, DataLoaders, Datasets, GradientAccumulation, Learner, MixedPrecision, Normalize, Pipeline, SaveModelCallback, SGD,
                               tensor,
                               TensorImage, TfmdDL, imagenet_stats, load_learner, noop, set_seed)
from self_supervised.augmentations import _warn_size
from self_supervised.vision import all as ssl
from self_supervised.vision.all import KNN, create_encoder, get_features, get_simclr_aug_pipelines, knn_accuracy, load_encoder

set_seed(1)
TEACHER = create_encoder('test_resnet', False)

# how the learner calls it: the callback, its model, its views, its arguments
METHODS = {'sim_clr':      (ssl.SimCLR, ssl.create_simclr_model, get_simclr_aug_pipelines, {}),
           'sup_con':      (ssl.SupCon, ssl.create_supcon_model, ssl.get_supcon_aug_pipelines, dict(unsup_class_id=2)),
           'sup_con_moco': (ssl.SupConMOCO, ssl.create_supcon_model, ssl.get_supcon_aug_pipelines, dict(unsup_class_id=2, K=16)),
           'moco':         (ssl.MOCO, ssl.create_moco_model, ssl.get_moco_aug_pipelines, dict(K=16)),
           'mocov3':       (ssl.MOCOV3, ssl.create_mocov3_model, ssl.get_mocov3_aug_pipelines, {}),
           'byol':         (ssl.BYOL, ssl.create_byol_model, ssl.get_byol_aug_pipelines, {}),
           'sim_siam':     (ssl.SimSiam, ssl.create_simsiam_model, ssl.get_simsiam_aug_pipelines, {}),
           'nnclr':        (ssl.NNCLR, ssl.create_nnclr_model, ssl.get_nnclr_aug_pipelines, dict(K=16)),
         'barlow_twins': (ssl.BarlowTwins, partial(ssl.create_barlow_twins_model, hidden_size=64, projection_size=32), ssl.get_barlow_twins_aug_pipelines, {}),
         'vic_reg':      (ssl.VICReg, partial(ssl.create_vicreg_model, hidden_size=64, projection_size=32), ssl.get_vicreg_aug_pipelines, {}),
         'swav':         (ssl.SWAV, partial(ssl.create_swav_model, hidden_size=64, n_protos=12), partial(ssl.get_swav_aug_pipelines, small_size=8, n_small=2), dict(K=16)),
         'dino':         (ssl.DINO, partial(ssl.create_dino_model, hidden_size=64, n_out=32, bn=True), partial(ssl.get_dino_aug_pipelines, small_size=8, n_small=2), {}),
         'le_jepa':      (ssl.LeJEPA, partial(ssl.create_lejepa_model, hidden_size=64, projection_size=32), partial(ssl.get_lejepa_aug_pipelines, small_size=8, n_small=2),
                          dict(n_directions=64)),
           'distill':      (ssl.Distill, partial(ssl.create_distill_model, projection_size=TEACHER.nf, hidden_size=64), ssl.get_distill_aug_pipelines, dict(teacher=TEACHER, K=16))}
MULTI = [n for n,(cb,*_) in METHODS.items() if cb.multi_crop]
each = pytest.mark.parametrize('name', METHODS)
tempered = pytest.mark.parametrize('name', [n for n,(cb,*_) in METHODS.items() if 'temp' in inspect.signature(cb).parameters])

def image(i): return TensorImage(torch.rand(3,24,24, generator=torch.Generator().manual_seed(int(i))))
def label(i): return ['a','b','unsup'][i%3]
def float_label(i): return torch.tensor(float(i))

def make_dls(bs=8, n=45, labels=True, tfms=None, **kw):
    if not labels:
        dl = lambda: TfmdDL([(image(i),) for i in range(n)], bs=bs, num_workers=0, **kw)
        return DataLoaders(dl(), dl())
    ds = Datasets(range(n), [[image], tfms or [label, Categorize()]], splits=(list(range(n-12)), list(range(n-12,n))))
    return ds.dataloaders(bs=bs, num_workers=0, device='cpu', **kw)

def make(name, dls=None, cbs=None, size=16, loss_func=None, model=None, stats=imagenet_stats, **kw):
    cb,model_f,augs,args = METHODS[name]
    set_seed(0)
    return Learner(dls or make_dls(), model or model_f(create_encoder('test_resnet', False)), loss_func=loss_func, path=kw.pop('path', None),
                   cbs=[cb(augs(size, stats=stats), **{**args, **kw}), *(cbs or [])])

def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

def exported(learn, path):
    "What a file of `learn` becomes: without data, and without a teacher that is not its own"
    learn.export(path); again = load_learner(learn.path/path); again.dls = learn.dls
    if hasattr(again, 'distill'): again.distill.teacher = TEACHER
    return again

def state(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

class Seen(Callback):
    order = 100
    def before_fit(self): self.xs,self.lfs = [],[]
    def before_batch(self): self.xs.append(self.learn.xb[0].clone()); self.lfs.append(self.learn.loss_func)

@each
def test_inside_the_fit(name):
    "Views are normalised, differ between images in crop and colour, and the loss is restored"
    dls,own = make_dls(labels=False),lambda *a: 0.
    grad = torch.linspace(.6,.9,24).expand(3,24,24)*tensor([1.,.9,.7])[:,None,None]           # one image for all: what differs is the view
    for o in (dls.train,dls.valid): o.dataset = [(TensorImage(grad),)]*45
    learn = fit(make(name, dls, [Seen()], loss_func=own), 2)
    for x in learn.seen.xs:
        assert x.shape[1:] == (3,16,16)
        assert x.max() > 1                                    # without normalisation nothing exceeds 1
        width = (x[:,0].max(-1)[0]-x[:,0].min(-1)[0]).mean(1)
        colour = x.mean((2,3))
        if len(x) > 4: assert len(width.unique()) > len(x)//2 and (colour[:,0]-colour[:,2]).std() > .01
    assert all(lf == getattr(learn, name).lf for lf in learn.seen.lfs)
    assert learn.loss_func is own

@each
def test_loss_restored_after_an_error(name):
    class Boom(Callback):
        def after_loss(self): raise RuntimeError('boom')
    learn = make(name)
    own = learn.loss_func
    learn.add_cb(Boom())
    with pytest.raises(RuntimeError): fit(learn)
    learn.remove_cb(Boom)
    fit(learn); assert learn.loss_func is own

@each
@pytest.mark.parametrize('bs', [7, 8, 11])
def test_fit_validate_unlabelled_odd_batches(name, bs):
    for labels in (True,False):
        learn = fit(make(name, make_dls(bs=bs, labels=labels, **({} if labels else dict(drop_last=True))), loss_func=None if labels else noop))
        assert len(learn.recorder.losses) and torch.isfinite(tensor(learn.recorder.losses)).all()
        with learn.no_bar(): assert math.isfinite(learn.validate()[0])

@each
def test_validate_changes_nothing(name):
    learn = fit(make(name)); before = state(learn)
    with learn.no_bar(): set_seed(1); a = learn.validate(); set_seed(1); b = learn.validate()
    assert a == b and same(before, state(learn))

@each
def test_lr_find_changes_nothing(name, tmp_path):
    learn = make(name, path=tmp_path); before = state(learn)
    with learn.no_bar(): learn.lr_find(num_it=10, show_plot=False)
    assert same(before, state(learn))

@each
def test_save_load_export(name, tmp_path):
    learn = fit(make(name, path=tmp_path, cbs=[SaveModelCallback(every_epoch=True)])); before = state(learn)
    learn.save('m'); fit(learn); assert not same(before, state(learn))
    learn.load('m'); assert same(before, state(learn))
    learn.export('e.pkl', training_state=True); assert same(before, state(load_learner(tmp_path/'e.pkl')))
    small = exported(learn, 'e.pkl'); assert same(before, state(learn))
    assert same({k:v for k,v in before.items() if k.split('.')[0] not in ('encoder_k','queue','center')}, state(small))
    fit(small)                                                # new ones
    enc = load_encoder(learn.save_encoder(tmp_path/'enc.safetensors')).eval()
    x = torch.randn(2,3,32,32)
    assert torch.equal(enc(x), learn.model.encoder.eval()(x))
    torch.testing.assert_close(torch.tensor(enc.info['stats']), torch.tensor(imagenet_stats))

@each
def test_show_any_time(name):
    learn = make(name); cb = getattr(learn, name)
    v = len(cb.aug_pipelines)
    assert cb.show(n=3, describe=True).shape == (3,v) and ' at ' in plt.gca().get_title()
    class During(Callback):
        def after_epoch(self): self.axs = cb.show(n=2)
    learn.add_cb(During()); fit(learn)
    assert learn.during.axs.shape == (2,v) and cb.show(n=2).shape == (2,v)

@each
def test_gradient_accumulation(name):
    steps = []
    class Count(Callback):
        def after_step(self): steps.append(1)
    fit(make(name, cbs=[GradientAccumulation(16), Count()]))
    assert len(steps) == 2                                    # 4 batches of 8 images

@each
def test_mixed_precision_callback(name): assert math.isfinite(fit(make(name, cbs=[MixedPrecision()])).recorder.losses[-1])

@each
def test_knn_column(name):
    "Unlabelled images are no class, neither in the bank nor among the targets, whoever asks"
    learn = make(name); learn.metrics = KNN(); fit(learn)
    (bank,y),(x,t) = get_features(learn, 0),get_features(learn, 1)
    assert 2 in y and 2 in t
    names,vals = learn.recorder.metric_names[1:-1],learn.recorder.values[-1]
    assert vals[names.index('knn')] == knn_accuracy(bank[y!=2], y[y!=2], x[t!=2], t[t!=2])

@each
def test_plain_torch_loaders_and_uint8(name):
    data = [((image(i)*255).byte(), torch.tensor(i%2)) for i in range(24)]
    dl = torch.utils.data.DataLoader(data, 8)
    learn = make(name, DataLoaders(dl, dl), loss_func=noop); learn.metrics = KNN(); fit(learn)
    assert len(getattr(learn, name).show(n=2)) == 2
    x = (data[0][0].float()/255 - tensor(imagenet_stats[0])[:,None,None])/tensor(imagenet_stats[1])[:,None,None]
    torch.testing.assert_close(get_features(learn, size=24)[0][:1], learn.model.encoder.eval()(x[None]).detach())
    assert not torch.equal(get_features(learn)[0], get_features(learn, size=24)[0])           # at the size of the views, unless told otherwise

@each
def test_bare_images(name):
    dl = torch.utils.data.DataLoader([image(i) for i in range(16)], 8)
    with pytest.raises(ValueError, match='must be tuples'): fit(make(name, DataLoaders(dl, dl), loss_func=noop))

@each
def test_knn_bank_is_the_training_set_in_order(name):
    learn = make(name); learn.opt_func = SGD
    x,y = get_features(learn, 0)
    assert len(x) == 33 and y.tolist() == [i%3 for i in range(33)]

# bad input

@each
def test_bad_pipelines(name):
    cb,_,augs,args = METHODS[name]
    p = augs(16)
    for bad,err,msg in [(p[0], ValueError, 'one Pipeline'), (p[:1], ValueError, 'at least 2'), ([p[0], noop], TypeError, 'must be a fastai Pipeline'),
                        ([p[0], Pipeline([])], ValueError, 'split_idx=0'), (None, ValueError, 'NoneType')]:
        with pytest.raises(err, match=msg): cb(bad, **args)
    if name not in MULTI:
        with pytest.raises(ValueError, match='takes 2'): cb(p+p, **args)

@tempered
@pytest.mark.parametrize('temp', [0, -1, 'a'])
def test_bad_temp(name, temp):
    with pytest.raises(ValueError, match='temp'): make(name, temp=temp)

@each
def test_bad_batches(name):
    with pytest.raises(ValueError, match='at least 2'): fit(make(name, make_dls(bs=1)))
    dls = make_dls(labels=False); x = image(0); x[0,0,0] = float('nan'); dls.train.dataset[3] = (x,)
    learn = make(name, dls, loss_func=noop); before = state(learn)
    with pytest.raises(ValueError, match=r'NaN in images \[3\]'): fit(learn)
    assert same(before, state(learn))

@each
def test_model_without_encoder(name):
    with pytest.raises(ValueError, match='no `.encoder`'): fit(make(name, model=torch.nn.Conv2d(3,4,3)))

@each
def test_normalised_twice(name):
    with pytest.raises(ValueError, match='twice'): fit(make(name, make_dls(after_batch=[Normalize.from_stats(*imagenet_stats, cuda=False)])))

@each
@pytest.mark.parametrize('size', [11, 48])
def test_size_other_than_the_image(name, size):
    _warn_size.cache_clear()
    with pytest.warns(UserWarning, match='size:'): fit(make(name, size=size))

@each
def test_no_predictions(name):
    with pytest.raises(ValueError, match='get_features'): make(name).get_preds()

@each
def test_show_does_not_disturb_training(name):
    class Show(Callback):
        def after_batch(self):
            if self.training: getattr(self.learn, name).show(n=2); plt.close('all')
    assert same(state(fit(make(name))), state(fit(make(name, cbs=[Show()]))))

@each
def test_validate_inside_a_fit(name):
    class ValidateAgain(Callback):
        def after_epoch(self):
            if self.run_it: self.run_it = False; self.learn.validate()
    learn = make(name, cbs=[Seen()]); cb = ValidateAgain(); cb.run_it = True; own = learn.loss_func
    learn.add_cb(cb); fit(learn, 2)
    assert all(lf == getattr(learn, name).lf for lf in learn.seen.lfs) and learn.loss_func is own

def test_bad_supcon():
    with pytest.raises(ValueError, match='not in the vocabulary'): fit(make('sup_con', unsup_class_id=7))
    with pytest.raises(TypeError, match='unsup_class_id'): make('sup_con', unsup_class_id='unsup')
    with pytest.raises(ValueError, match='unsup_method'): make('sup_con', unsup_method='some')
    with pytest.raises(TypeError, match='labels must be'): fit(make('sup_con', make_dls(tfms=[float_label]), loss_func=noop))
    with pytest.raises(ValueError, match='set it to any class'): fit(make('sup_con', make_dls(labels=False), loss_func=noop, unsup_class_id=None))
    fit(make('sup_con', unsup_class_id=None))
