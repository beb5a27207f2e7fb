"What every method must do, and what it must refuse. A new method is here as soon as the command line knows it."
import inspect, math
import matplotlib.pyplot as plt
import pytest, torch
from fastai.vision.all import Callback, DataLoaders, GradientAccumulation, MixedPrecision, Normalize, Pipeline, SaveModelCallback, TensorImage, first, imagenet_stats, load_learner, noop, set_seed, tensor
from kit import METHODS, MULTI, SMALL, dls_of, each, exported, fit, fitted, image, loaders, make, make_dls, same, state
from self_supervised.augmentations import _warn_size
from self_supervised.fit import kept
from self_supervised.vision.all import KNN, get_features, image_dls, knn_accuracy, load_encoder

tempered = pytest.mark.parametrize('name', [n for n,(cb,*_) in METHODS.items() if 'temp' in inspect.signature(cb).parameters])
def float_label(i): return torch.tensor(float(i))

class Seen(Callback):
    order = 100
    def before_fit(self): self.xs,self.lfs = [],[]
    def before_batch(self): self.xs.append(self.learn.xb[0].clone()); self.lfs.append(self.learn.loss_func)

@each
def test_inside_the_fit(name):
    "Views are normalised, differ between images in crop and colour, and the loss is restored"
    own = lambda *a: 0.
    grad = torch.linspace(.6,.9,24).expand(3,24,24)*tensor([1.,.9,.7])[:,None,None]           # one image for all: what differs is the view
    learn = fit(make(name, loaders(name, [(TensorImage(grad),)]*45), [Seen()], loss_func=own), 2)
    coloured = any(p.fs[0].jitter_p for p in getattr(learn, name).aug_pipelines)
    for x in learn.seen.xs:
        assert x.shape[1:] == (3,16,16)
        assert x.max() > 1                                    # without normalisation nothing exceeds 1
        width = (x[:,0].max(-1)[0]-x[:,0].min(-1)[0]).mean(1)
        colour = x.mean((2,3))
        if len(x) > 4 and coloured: assert len(width.unique()) > len(x)//2 and (colour[:,0]-colour[:,2]).std() > .01
        assert width.std() > 0
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
def test_fit_validate_unlabelled_odd_batches(name):
    for labels,bs in ((True,7), (False,11)):
        learn = fit(make(name, dls_of(name, bs=bs, labels=labels, **({} if labels else dict(drop_last=True))), loss_func=None if labels else noop))
        assert len(learn.recorder.losses) and torch.isfinite(tensor(learn.recorder.losses)).all()
        with learn.no_bar(): assert math.isfinite(learn.validate()[0])

@each
def test_validate_changes_nothing(name):
    learn = fitted(name); before = state(learn)
    with learn.no_bar(): set_seed(1); a = learn.validate(); set_seed(1); b = learn.validate()
    assert a == b and same(before, state(learn))

@each
def test_lr_find_changes_nothing(name, tmp_path):
    learn = make(name, path=tmp_path); before = state(learn)
    with learn.no_bar(): learn.lr_find(num_it=10, show_plot=False)
    assert same(before, state(learn))

@each
def test_save_load_export(name, tmp_path):
    learn = fitted(name, SaveModelCallback(every_epoch=True), path=tmp_path); before = state(learn)
    learn.save('m'); fit(learn); assert not same(before, state(learn))
    learn.load('m'); assert same(before, state(learn))
    learn.export('e.pkl', training_state=True); assert same(before, state(load_learner(tmp_path/'e.pkl')))
    small = exported(learn, 'e.pkl'); assert same(before, state(learn))
    assert same({k:v for k,v in before.items() if k.split('.')[0] not in kept(learn.model)}, state(small))
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
    data = loaders(name, [((image(i)*255).byte(), torch.tensor(i%2)) for i in range(24)]).train.dataset
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
    x,y = get_features(fitted(name), 0)
    assert len(x) == 33 and y.tolist() == [i%3 for i in range(33)]

# bad input

@each
def test_bad_pipelines(name):
    cb,_,augs,args = METHODS[name]
    p = augs(16)
    n = cb.n_views
    for bad,err,msg in [(p[0], ValueError, 'one Pipeline'), (p[:n-1], ValueError, f'at least {n}'), ([p[0], noop], TypeError, 'must be a fastai Pipeline'),
                        ([p[0], Pipeline([])], ValueError, 'split_idx=0'), (None, ValueError, 'NoneType')]:
        with pytest.raises(err, match=msg): cb(bad, **args)
    if name not in MULTI:
        with pytest.raises(ValueError, match=f'takes {n}'): cb(p+p, **args)

@tempered
@pytest.mark.parametrize('temp', [0, -1, 'a'])
def test_bad_temp(name, temp):
    with pytest.raises(ValueError, match='temp'): make(name, temp=temp)

@each
def test_bad_batches(name):
    with pytest.raises(ValueError, match='at least 2'): fit(make(name, dls_of(name, bs=1)))
    nan = image(0); nan[0,0,0] = float('nan')
    learn = make(name, loaders(name, [(nan if i == 3 else image(i),) for i in range(16)]), loss_func=noop); before = state(learn)
    with pytest.raises(ValueError, match=r'NaN in images \[3\]'): fit(learn)
    assert same(before, state(learn))

@each
def test_model_without_encoder(name):
    with pytest.raises(ValueError, match='no `.encoder`'): make(name, model=torch.nn.Conv2d(3,4,3))

@each
def test_normalised_twice(name):
    with pytest.raises(ValueError, match='twice'): make(name, dls_of(name, after_batch=[Normalize.from_stats(*imagenet_stats, cuda=False)]))

@pytest.mark.parametrize('size', [11, 48])
def test_size_other_than_the_image(size):
    _warn_size.cache_clear()
    with pytest.warns(UserWarning, match='size:'): fit(make('sim_clr', size=size))

@each
def test_no_predictions(name):
    with pytest.raises(ValueError, match='get_features'): fitted(name).get_preds()

@pytest.mark.parametrize('name', ['moco','swav','clipmoco'])
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

@each
def test_assembles_its_learner(name):
    "What `learner` puts together is what the long way does; labels, texts and the teacher's width are seen to"
    cb,_,_,args = METHODS[name]
    known = {*sum(cb.settings().values(), [])} - {'unsup_class_id','projection_size'}          # which follow from the data
    small = {k:v for k,v in {**SMALL, **args}.items() if k in known}
    learn = cb.learner(dls_of(name), 'test_resnet', 16, cbs=Seen(), **small)
    own, = learn._grab_cbs(cb)
    assert getattr(own, 'unsup_class_id', 2) == 2 and first(own.aug_pipelines).fs[0].size == (16,16)
    assert type(learn.model) is type(make(name).model)
    fit(learn)
    assert learn.seen.xs and math.isfinite(learn.recorder.losses[-1])

def test_learner_names_what_it_does_not_know():
    cb = METHODS['sim_clr'].cb
    with pytest.raises(TypeError, match=r'temperature: SimCLR has no such setting \(did you mean temp\?\)'): cb.learner(make_dls(), 'test_resnet', temperature=.2)
    grey = cb.learner(image_dls(torch.rand(8, 1, 16, 16), [0]*8, bs=4), 'test_resnet')
    assert grey.model.encoder.spec['n_in'] == 1 and grey.sim_clr.aug1.fs[0].size == (16,16)
    fit(grey)
