"The evaluation protocol: figures against oracles, nothing chosen on test images, the same draws for all, and data that cannot be evaluated."
import math, re

import huggingface_hub as hub, numpy as np, pandas as pd, pytest, timm, torch
import matplotlib; matplotlib.use('agg')
from fastai.vision.all import (Categorize, DataLoader, DataLoaders, Datasets, Learner, Pipeline, TensorImage, Transform, first, set_seed)
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from shelf import TIMM, no_network, shelf
from self_supervised.data import digits_views, few_labels
from self_supervised.evaluation import protocol
from self_supervised.evaluation.features import get_features, knn_accuracy
from self_supervised.evaluation.protocol import (RawPixels, _Data, _sample, choose_C, class_mean_accuracy, compare, evaluate, interval,
                                                 linear_probe, read_evaluation, untrained_encoder)
from self_supervised.encoder_files import load_encoder
from self_supervised.layers import create_encoder, create_model
from self_supervised.vision.simclr import SimCLR, create_simclr_model, get_simclr_aug_pipelines
from self_supervised.vision.supcon import SupCon, create_supcon_model, get_supcon_aug_pipelines

names = ['ant','bee','cat']

def images(labels, seed=0, c=1):
    "Noisy images whose brightness and stripes tell their class"
    g = torch.Generator().manual_seed(seed)
    y = torch.tensor([sum(map(ord, o)) % 7 for o in labels])
    base = torch.sin(torch.arange(64.).view(8,8)*(1+y[:,None,None]))*.2+.5
    return (base[:,None].expand(-1,c,-1,-1)+.25*torch.randn(len(y),c,8,8, generator=g)).clamp(0,1)

def make_dls(train, valid, vocab=None, seed=0, c=1, **kw):
    "DataLoaders of images with these labels"
    labels = [*train,*valid]
    x = images(labels, seed, c)
    ds = Datasets(range(len(x)), [[lambda i: TensorImage(x[i])], [lambda i: labels[i], Categorize(vocab, sort=vocab is None)]],
                  splits=(list(range(len(train))), list(range(len(train), len(labels)))))
    return ds.dataloaders(bs=16, num_workers=0, device='cpu', **kw)

def simple(n=20, m=10, **kw): return make_dls(names*n, names*m, **kw)

class Dropped(nn.Sequential):
    "An encoder with BatchNorm and dropout"
    def __init__(self, width=6): super().__init__(nn.Conv2d(1,width,3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(.3), nn.AdaptiveAvgPool2d(2), nn.Flatten())

quick = dict(labels=(1,5), Cs=(.1,1.))
def value(e, features, figure, labels='all', data='own images'):
    return first(o for o in e.df.itertuples() if (o.data, o.features, o.figure, o.labels) == (data, features, figure, labels))

@pytest.fixture(scope='module')
def ev():
    set_seed(3)
    enc = Dropped()
    return enc,simple(),evaluate(enc, simple(), **quick)

# figures

def test_every_figure_equals_its_oracle(ev):
    enc,dls,e = ev
    seen,chosen = set(),set()
    for name,f in (('raw pixels',nn.Flatten()), ('encoder',enc)):
        (b,y),(x,t) = ([*map(torch.cat, zip(*[(f(o.as_subclass(torch.Tensor)).detach(), c.as_subclass(torch.Tensor)) for o,c in dl]))]
                       for dl in (dls.train.new(shuffle=False, drop_last=False), dls.valid) for _ in [enc.eval()])
        for size in ('all',1,5):
            masks = [np.ones(len(y), bool)] if size == 'all' else [few_labels(y.numpy(), size, seed) for seed in range(5)]
            knn,means = [knn_accuracy(b[m], y[m], x, t) for m in masks],[]
            for m in masks:
                u = b[m]/b[m].norm(dim=1, keepdim=True)
                c = torch.stack([u[y[m] == i].mean(0) for i in range(3)])
                means.append(((x/x.norm(dim=1, keepdim=True)) @ (c/c.norm(dim=1, keepdim=True)).T).argmax(1).eq(t).float().mean().item())
            C = choose_C(b, y, quick['Cs']) if size == 'all' else 1.
            assert value(e, name, 'linear probe', str(size)).C == C
            chosen.add(C)
            probe = [make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000)).fit(b[m].double(), y[m]).score(x.double(), t) for m in masks]
            for figure,a in (('kNN',knn), ('nearest class mean',means), ('linear probe',probe)):
                o = value(e, name, figure, str(size))
                assert np.allclose(o.accuracies, a, atol=1e-6), (name, size, figure)
                assert o.draws == len(masks) and math.isclose(o.mean, np.mean(a), abs_tol=1e-6)
                seen.add(round(o.mean, 4))
    assert len(seen) > 6 and chosen == {.1,1.}                                                  # the task is neither trivial nor hopeless

def test_intervals_are_scipys(ev):
    rows = ev[2].df[ev[2].df.labels != 'all']
    assert len(rows) == 18 and rows.draws.eq(5).all()
    for o in rows.itertuples():
        lo,hi = stats.t.interval(.95, 4, np.mean(o.accuracies), stats.sem(o.accuracies)) if len(set(o.accuracies)) > 1 else (o.mean,o.mean)
        assert math.isclose((hi-lo)/2, o.interval, abs_tol=1e-9)
    assert ev[2].df[ev[2].df.labels == 'all'].interval.isna().all() and math.isnan(interval([.5]))

def test_C_is_the_best_on_a_fifth_of_the_training_images():
    torch.manual_seed(0)
    y = torch.arange(100)%4
    x = torch.randn(100, 30)+y[:,None]*.1*torch.randn(30)
    from sklearn.model_selection import train_test_split
    a,b = train_test_split(np.arange(100), test_size=20, random_state=7, stratify=y)
    Cs = (10.,.01,.1,1.)
    scores = {C:make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000)).fit(x[a].double(), y[a]).score(x[b].double(), y[b]) for C in Cs}
    assert len(set(scores.values())) > 1
    assert choose_C(x, y, Cs, 7) == min(C for C,s in scores.items() if s == max(scores.values()))
    assert choose_C(x[:5], torch.tensor([0,0,1,1,2]), Cs) == 1
    assert choose_C(x[:4], torch.tensor([0,0,1,1]), Cs) in Cs             # a fifth is less than an image of each class

def test_test_labels_do_not_choose():
    train,valid = names*12,names*8
    perm = np.random.default_rng(0).permutation(valid).tolist()
    x = images([*train,*valid])
    def of(v):
        ds = Datasets(range(60), [[lambda i: TensorImage(x[i])], [lambda i: [*train,*v][i], Categorize(names)]], splits=(list(range(36)), list(range(36,60))))
        return evaluate(Dropped(), ds.dataloaders(bs=16, num_workers=0, device='cpu'), labels=(5,), Cs=(.0001,.001,.01,.1,1.,10.)).df
    a,b = of(valid),of(perm)
    assert a.C.equals(b.C) and a.C.notna().sum() == 6 and not a['mean'].equals(b['mean'])

def test_wide_features_are_only_rotated():
    "The probe with a principal component analysis predicts as the one without"
    g = torch.Generator().manual_seed(0)
    y,t = torch.arange(30)%3,torch.arange(300)%3
    shift = torch.randn(3,200, generator=g)*.35
    x,q = torch.randn(30,200, generator=g)+shift[y],torch.randn(300,200, generator=g)+shift[t]
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=5000, tol=1e-8)).fit(x.double(), y).score(q.double(), t)
    assert .5 < plain < .98 and abs(linear_probe(x, y, q, t, .1)-plain) < .005

@pytest.mark.filterwarnings('error')
def test_collapsed_features():
    y = torch.arange(30)%3
    for d in (4,100): assert abs(linear_probe(torch.ones(30,d), y, torch.ones(30,d), y)-1/3) < 1e-6
    assert abs(class_mean_accuracy(torch.zeros(30,4), y, torch.zeros(30,4), y)-1/3) < 1e-6

# draws and samples

def test_draws_are_stratified_and_shared():
    d = _Data(make_dls(['ant']*9+['bee']*30+['cat']*20, names*5), 'd', None, [1,5,9,10], 6, 1000, 3)
    assert d.facts['sizes'] == [1,5,9] and d.facts['not_sizes'] == [10] and d.facts['smallest'] == 9
    for size,masks in d.masks.items():
        assert len(masks) == 6 and len({tuple(m.tolist()) for m in masks}) > 1
        for m in masks: assert d.y[m].bincount().tolist() == [size]*3

def test_a_size_that_takes_all_images_is_no_draw():
    assert _Data(simple(5), 'd', None, [1,5], 5, 1000, 0).facts['sizes'] == [1]

def test_all_features_get_the_same_draws():
    "Two names for one encoder have the same accuracies, draw by draw"
    enc = Dropped()
    a,b = (evaluate(enc, simple(), name=o, **quick) for o in 'ab')
    assert value(a, 'a', 'kNN', '5').accuracies == value(b, 'b', 'kNN', '5').accuracies
    raw = evaluate(nn.Flatten(), simple(), stats=([0.],[1.]), **quick)
    for f in ('kNN','linear probe','nearest class mean'):
        for l in ('all','1','5'): assert value(raw, 'encoder', f, l).accuracies == value(raw, 'raw pixels', f, l).accuracies

@pytest.mark.parametrize('n', [3, 10, 57, 1000])
def test_sample(n):
    y = torch.tensor([0]*80+[1]*17+[2]*3+[9]*20)
    idxs = torch.arange(100)
    a,b = (_sample(y, idxs, n, s) for s in (0,1))
    assert len(a) == min(n, 100) and len(set(a)) == len(a) and (np.diff(a) > 0).all()
    assert set(y[a].tolist()) == {0,1,2}
    if n == 57: assert abs((y[a] == 0).sum()-.8*57) <= 1 and a.tolist() != b.tolist()
    with pytest.raises(ValueError, match='n=2 is less than the 3 classes'): _sample(y, idxs, 2, 0)

def test_bounded():
    e = evaluate(Dropped(), simple(), n=15, **quick)
    p = e.protocol['own images']
    assert (p['training'],p['test'],p['beyond'],p['sizes']) == (15,15,60,[1]) and 'Left out: 60 images beyond n = 15' in e.how

def test_nothing_random_is_disturbed(ev):
    enc,dls,e = ev
    before = {k:v.clone() for k,v in enc.state_dict().items()}
    enc.train(); torch.manual_seed(5); a = torch.rand(1); torch.manual_seed(5)
    again = evaluate(enc, dls, **quick)
    assert torch.rand(1) == a and again.df.equals(e.df) and enc.training and enc[3].training
    assert all(torch.equal(v, before[k]) for k,v in enc.state_dict().items())

# the untrained encoder

def test_untrained_forgets_the_weights():
    a,b = create_encoder('test_resnet', False, n_in=1),create_encoder('test_resnet', False, n_in=1)
    x = torch.rand(2,1,16,16)
    assert torch.equal(untrained_encoder(a)(x), untrained_encoder(b)(x)) and not torch.equal(untrained_encoder(a)(x), untrained_encoder(a, 1)(x))
    a.conv1[0] = nn.Conv2d(1, 16, 5, 2, 2)                                # no more what its specification says
    assert untrained_encoder(a).conv1[0].kernel_size == (5,5)

def test_what_cannot_be_reset_is_refused():
    class Gain(nn.Module):
        def __init__(self): super().__init__(); self.gain = nn.Parameter(torch.ones(()))
        def forward(self, x): return x*self.gain
    enc = nn.Sequential(Gain(), Dropped())
    with pytest.raises(ValueError, match='weights of 0 cannot be drawn anew.*untrained='): evaluate(enc, simple(), **quick)
    e = evaluate(enc, simple(), untrained=untrained_encoder(enc[1]), **quick)
    assert value(e, 'untrained encoder', 'kNN').mean > 0

def test_attention_is_reset():
    enc = nn.TransformerEncoderLayer(8, 2, 16)
    new = untrained_encoder(enc)
    assert not torch.equal(new.self_attn.in_proj_weight, enc.self_attn.in_proj_weight)

def test_untrained_has_the_statistics_of_the_images():
    data,enc = _Data(simple(), 'd', None, [], 5, 100, 0),Dropped()
    new = protocol._with_statistics(enc, data, dict(stats=([0.],[1.]), size=None), 0)
    x,_ = get_features(enc[0], data.dl.new(data.sets[0]), stats=([0.],[1.]))
    assert torch.allclose(new[1].running_mean, x.mean((0,2,3)), atol=1e-4) and enc[1].running_mean.eq(0).all() and not new.training

# learners and encoders

def learner(dls, unsup=None, sup=False, size=8):
    set_seed(0)
    enc = create_encoder('test_resnet', False, n_in=1)
    augs = (get_supcon_aug_pipelines if sup else get_simclr_aug_pipelines)(size, **{**digits_views, 'stats':([.4],[.2])})
    learn = Learner(dls, (create_supcon_model if sup else create_simclr_model)(enc, 16, 8), cbs=SupCon(augs, unsup) if sup else SimCLR(augs))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn

def test_learner_encoder_and_file_agree(tmp_path):
    learn = learner(simple())
    file = learn.save_encoder(tmp_path/'e.safetensors')
    how = dict(name='x', **quick)
    a = evaluate(learn, **how)
    same = [evaluate(learn, simple(), **how), evaluate(file, simple(), **how), evaluate(load_encoder(file), simple(), **how),
            evaluate(learn.model.encoder, simple(), size=8, stats=([.4],[.2]), **how)]
    for b in same: assert b.df.equals(a.df) and b.protocol == a.protocol
    assert not evaluate(learn.model.encoder, simple(), **how).df.equals(a.df)                        # without its normalisation
    assert evaluate(learn, labels=(), Cs=(1.,)).df.features.unique().tolist()[-1] == 'SimCLR'

def test_classifier_learner():
    e = evaluate(Learner(simple(), create_model(create_encoder('test_resnet', False, n_in=1), 3, lin_ftrs=[])), **quick)
    assert value(e, 'encoder', 'kNN').mean > 0

@pytest.mark.parametrize('place', [0,1,3])
def test_unlabelled_class_in_any_position(place):
    vocab = names[:place]+['unsup']+names[place:]
    labels = names*15+['unsup']*40
    dls = make_dls(labels, names*8+['unsup']*5, vocab)
    learn = learner(dls, dls.vocab.o2i['unsup'], sup=True)
    e = evaluate(learn, **quick)
    p = e.protocol['own images']
    assert (p['training'],p['test'],p['unlabelled'],p['classes']) == (45,24,45,3) and '45 images without a label' in e.how
    x,y = get_features(learn, 0); q,t = get_features(learn, 1)
    m,n = y != place,t != place
    assert math.isclose(value(e, 'SupCon (trained with the labels)', 'kNN').mean, knn_accuracy(x[m], y[m], q[n], t[n]), abs_tol=1e-6)

def test_the_method_names_the_unlabelled_class():
    "A category of another name; on other data its number is a class like others"
    dls = make_dls(['none']*20+names*15, names*8, ['none',*names])
    learn = learner(dls, 0, sup=True)
    e = evaluate(learn, transfer={'other':simple()}, labels=(), Cs=(1.,))
    assert e.protocol['own images']['unlabelled'] == 20 and e.protocol['other']['unlabelled'] == 0
    assert evaluate(learn.model.encoder, dls, unsup_class_id=0, labels=(), Cs=(1.,)).protocol['own images']['unlabelled'] == 20

def test_plain_loaders():
    "torch's data sets and loaders, whose labels come with the images"
    labels = names*20
    x,y = images(labels),[names.index(o) for o in labels]
    sets = [[(o,torch.tensor(c)) for o,c in zip(x[i:], y[i:])][:30] for i in (0,30)]
    plain = DataLoaders(*[torch.utils.data.DataLoader(o, batch_size=16) for o in sets])
    fast = make_dls(labels[:30], labels[30:])
    a,b = (evaluate(nn.Flatten(), o, stats=([0.],[1.]), **quick) for o in (plain,fast))
    assert a.df.equals(b.df) and a.protocol == b.protocol

class Black(Transform):
    def encodes(self, x:TensorImage): return x*0

def test_augmentation_is_left_out():
    "Transforms of training batches do not touch the bank"
    dls = simple()
    dls.train.after_batch = Pipeline([Black()])
    assert dls.train.one_batch()[0].eq(0).all()
    a,b = (evaluate(nn.Flatten(), o, stats=([0.],[1.]), **quick) for o in (dls,simple()))
    assert a.df.equals(b.df)

def test_raw_pixels():
    x = torch.rand(3,2,8,6)
    assert torch.equal(RawPixels()(x), x.flatten(1)) and torch.allclose(RawPixels(1)(x), x.mean((2,3)))
    assert torch.allclose(RawPixels(4)(x)[:,0], x[:,0,:2,:2].mean((1,2)))

# data that cannot be evaluated

@pytest.mark.parametrize('train,valid,msg', [
    (['ant']*20, ['ant']*9, 'all labelled training images are of the class ant'), (names*5, ['ant','bee']*5, 'no labelled validation image is of the class cat'),
    (['ant','bee']*9, names*5, 'no labelled training image is of the class cat'), (names*5, [], 'no images'), (['unsup']*9, names*5, 'no training image has a label'),
    (names*5, ['unsup']*9, 'no validation image has a label')])
def test_degenerate(train, valid, msg):
    dls = make_dls(train, valid, [*names,'unsup'])
    with pytest.raises(ValueError, match=msg): evaluate(nn.Flatten(), dls, stats=([0.],[1.]), **quick)

def test_labels_that_are_no_classes():
    x = images(names*10)
    def of(*items): return DataLoaders(*[DataLoader(items, bs=8, num_workers=0)]*2)
    with pytest.raises(ValueError, match='no labels; folder_dls'): evaluate(nn.Flatten(), of(*[(o,) for o in x]))
    for y in (1.5, torch.tensor([0,1]), 'ant'):
        with pytest.raises(ValueError, match='one class for each image'): evaluate(nn.Flatten(), of(*[(o,y) for o in x]))
    with pytest.raises(TypeError, match='must be DataLoaders'): evaluate(nn.Flatten(), [1,2])

@pytest.mark.parametrize('kw,msg', [(dict(draws=4), 'at least 5'), (dict(labels=(0,)), 'labels per class'), (dict(labels=(1.5,)), 'labels per class'), (dict(n=1), 'n must be'),
    (dict(Cs=()), 'Cs must'), (dict(Cs=(0,1)), 'Cs must'), (dict(name='raw pixels'), 'baseline'), (dict(k=0), 'k must be'),
    (dict(transfer={'own images':None}), 'name of the first data set'), (dict(transfer={'b':3}), 'b: must be DataLoaders')])
def test_bad_arguments(kw, msg):
    with pytest.raises((ValueError,TypeError), match=msg): evaluate(Dropped(), simple(), **{**quick, **kw})

def test_an_encoder_needs_images():
    with pytest.raises(ValueError, match='no images of its own'): evaluate(Dropped())

def test_diverged():
    enc = Dropped()
    with torch.no_grad(): enc[0].weight.fill_(math.nan)
    with pytest.raises(ValueError, match='features of .* images are NaN or infinite'): evaluate(enc, simple(), **quick)

# off the shelf

few = dict(labels=(1,), Cs=(1.,))
def colour(**kw): return make_dls(names*6, names*4, c=3, **kw)
def small(): return create_encoder('test_resnet', False)

def test_another_encoder_as_it_is(shelf, no_network, tmp_path):
    "timm's weights by their name, for images of their own size and statistics, are a baseline among the others"
    dls = colour()
    e = evaluate(small(), dls, beside=TIMM, size=None, **few)
    row = f'{TIMM}, as it is'
    assert e.df.features.unique().tolist() == ['raw pixels','untrained encoder',row,'encoder'] and e.own == ['encoder']
    f,cfg = timm.create_model(f"local-dir:{shelf/'model'}", pretrained=True, num_classes=0).eval(),timm.get_pretrained_cfg('test_resnet')
    mean,std = (torch.tensor(o)[:,None,None] for o in (cfg.mean, cfg.std))
    def features(ds):
        x = torch.stack([o[0].as_subclass(torch.Tensor).float() for o in ds])
        with torch.no_grad(): return f((torch.nn.functional.interpolate(x, (160,160), mode='bilinear')-mean)/std)
    y,t = (torch.tensor([int(o[1]) for o in ds]) for ds in (dls.train_ds, dls.valid_ds))
    by_hand = knn_accuracy(features(dls.train_ds), y, features(dls.valid_ds), t)
    assert abs(value(e, row, 'kNN').mean-by_hand) < .1 and value(e, 'encoder', 'kNN').mean != value(e, row, 'kNN').mean
    assert f'Height × width of the images: {row} 160 × 160, enlarged from 8 × 8.' in e.how
    back = read_evaluation(e.to_csv(tmp_path/'e.csv'))
    assert back.how == e.how and back.own == ['encoder'] and back.df.equals(e.df)
    main = evaluate(TIMM, dls, **few)
    assert main.own == [TIMM] and value(main, TIMM, 'linear probe', '1').accuracies == value(e, row, 'linear probe', '1').accuracies
    assert (e+main).df.features.unique().tolist()[-2:] == ['encoder',TIMM] and 'enlarged' in main.how
    assert f'{row} 32 × 32, enlarged from 8 × 8; encoder 32 × 32' in evaluate(small(), dls, beside=TIMM, size=32, **few).how

def test_beside_in_any_form(shelf, tmp_path):
    learn = learner(simple())
    file = learn.save_encoder(tmp_path/'simclr'/'encoder.safetensors')
    e = evaluate(Dropped(), simple(), beside=[learn, file, Dropped(4)], **few)
    assert e.df.features.unique().tolist()[2:] == ['SimCLR, as it is','simclr, as it is','Dropped, as it is','encoder']
    assert value(e, 'SimCLR, as it is', 'kNN').accuracies == value(e, 'simclr, as it is', 'kNN').accuracies
    assert evaluate(file, simple(), beside={'mine':learn}, **few).df.features.unique().tolist()[2:] == ['mine, as it is','simclr']
    for bad,err,msg in (([Dropped(),Dropped()], ValueError, 'beside: several are called Dropped'), (3, TypeError, 'beside must be .*, got int'),
                        ('nowhere.safetensors', ValueError, "beside: 'nowhere.safetensors' is no file, and"), (small(), ValueError, 'takes images of 3 channels, and those of own images have 1')):
        with pytest.raises(err, match=msg): evaluate(Dropped(), simple(), beside=bad, **few)
    with pytest.raises(ValueError, match='baseline'): evaluate(Dropped(), simple(), name='x, as it is')

@pytest.mark.parametrize('kw', [dict(encoder='resnet18.a1_in1k'), dict(encoder=nn.Flatten(), beside='resnet18.a1_in1k')])
def test_weights_that_cannot_be_fetched(no_network, kw, caplog):
    "One line, at once, before an image is read"
    dls = simple()
    dls.valid.create_batches = dls.train.create_batches = lambda *_: pytest.fail('read')
    with pytest.raises(OSError) as e: evaluate(dls=dls, **kw)
    assert re.fullmatch("the weights of 'resnet18.a1_in1k' cannot be fetched: http://127.0.0.1:9 cannot be reached .*: fetch them once .*", str(e.value))
    assert not caplog.records and not hub.constants.HF_HUB_OFFLINE

def test_weights_for_other_channels(shelf):
    "What timm adapts is told the statistics of grey"
    enc = create_encoder(f"local-dir:{shelf/'model'}", n_in=1)
    mean,std = enc.info['stats']
    assert len(mean) == len(std) == 1 and math.isclose(mean[0], np.mean(timm.get_pretrained_cfg('test_resnet').mean))
    assert '32 × 32' in evaluate(enc, simple(), size=32, **few).how

# the result

def test_transfer_is_an_evaluation_of_its_own(ev):
    enc,dls,e = ev
    other = simple(seed=9)
    both = evaluate(enc, dls, transfer={'other':other}, **quick)
    alone = evaluate(enc, other, data='other', **quick)
    assert both.df[both.df.data == 'own images'].equals(e.df)
    cols,rows = ['figure','labels','mean','C'],both.df[(both.df.data == 'other') & (both.df.features != 'untrained encoder')]
    assert rows[cols].reset_index(drop=True).equals(alone.df.loc[alone.df.features != 'untrained encoder', cols].reset_index(drop=True))

@pytest.mark.parametrize('name', ['encoder', 'NA', 'a, "b" # c', 'nan', 'ü\n<x>'])
def test_round_trip(ev, tmp_path, name):
    e = compare(ev[2], names=[name])
    file = e.to_csv(tmp_path/'new'/'e.csv')
    back,df = read_evaluation(file),pd.read_csv(file)
    assert back.df.equals(e.df) and back.protocol == e.protocol and back.how == e.how and back._repr_html_() == e._repr_html_()
    assert len(df) == len(e.df) and df.how.iloc[0] == e.how and np.allclose(df['mean'], e.df['mean'])
    assert len((back+compare(back, names=['again'])).df.features.unique()) == 4
    (tmp_path/'x.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match='not written by'): read_evaluation(tmp_path/'x.csv')

def test_html_is_escaped(ev):
    bad = '<script>alert(1)</script>'
    e = evaluate(ev[0], ev[1], name=bad, data=bad, transfer={f'{bad}2':simple(seed=2)}, **quick)
    assert '<script' not in e._repr_html_() and '&lt;script' in e._repr_html_() and 'raw pixels' in repr(e)

def test_table(ev):
    t = ev[2].table('linear probe')
    assert t.index.tolist() == ['raw pixels','untrained encoder','encoder'] and t.shape == (3,5)
    o = value(ev[2], 'encoder', 'linear probe', '5')
    assert t.loc['encoder', ('linear probe, labels per class','5')] == f"{o.mean:.3f} ± {o.interval:.3f}"
    with pytest.raises(ValueError, match='figure must be'): ev[2].table('accuracy')

def test_plot(ev):
    import matplotlib.pyplot as plt
    ax = ev[2].plot('nearest class mean', ax=plt.subplots()[1])
    assert ax.get_xscale() == 'log' and [o.get_text() for o in ax.get_legend().get_texts()] == ['raw pixels','untrained encoder','encoder']
    line = ax.containers[2]
    assert np.allclose(line[0].get_ydata(), [value(ev[2], 'encoder', 'nearest class mean', o).mean for o in ('1','5')])
    with pytest.raises(ValueError, match='data must be'): ev[2].plot(data='x')
    with pytest.raises(ValueError, match='nothing|no figures'): evaluate(ev[0], ev[1], labels=(), Cs=(1.,)).plot()
    plt.close('all')

def test_compare(ev):
    enc,dls,a = ev
    b,wide = evaluate(untrained_encoder(enc, 7), dls, name='other', **quick),evaluate(Dropped(12), dls, name='wide', **quick)
    assert (a+b).df.features.unique().tolist() == ['raw pixels','untrained encoder','encoder','other'] and len((a+b).df) == 4*9
    c = compare(a, b, wide, names=['x','y','z'])
    assert c.df.features.unique().tolist() == ['raw pixels','untrained encoder of x','untrained encoder of y','untrained encoder of z','x','y','z']
    assert value(c, 'untrained encoder of z', 'kNN').accuracies == value(wide, 'untrained encoder', 'kNN').accuracies
    assert value(c, 'z', 'kNN', '5').accuracies == value(wide, 'wide', 'kNN', '5').accuracies and 'z 1' in c.how.replace('0.1','1')
    with pytest.raises(ValueError, match='several call their features encoder'): a+a
    for bad in (['x'], ['x','y']):
        with pytest.raises(ValueError, match='names must be one'): compare(a+b, wide, names=bad)
    assert a.df.features.unique()[-1] == 'encoder'                                                   # nothing of it has changed

@pytest.mark.parametrize('kw,msg', [(dict(dls=simple(seed=1)), 'images'), (dict(dls=simple(21)), 'images, training'), (dict(seed=1), 'seed'), (dict(draws=6), 'draws'),
    (dict(labels=(1,)), 'sizes'), (dict(n=50), 'n'), (dict(k=3), 'k'), (dict(Cs=(1.,)), 'Cs'), (dict(data='x'), 'other data sets'), (dict(transfer={'x':simple()}), 'other data sets')])
def test_compare_refuses_other_data_and_draws(ev, kw, msg):
    enc,dls,a = ev
    with pytest.raises(ValueError, match=msg): a + evaluate(enc, name='b', **{**quick, 'dls':dls, **kw})

def test_images_that_went_missing():
    "A file that cannot be read any more must not shift the labels"
    dls = simple()
    class Loses(type(dls.valid)):
        def create_batches(self, samps): return list(super().create_batches(samps))[:-1]
    dls.valid.__class__ = Loses
    with pytest.raises(ValueError, match='could not be read'): evaluate(Dropped(), dls, **quick)
