"What the engine draws is what torchvision draws, and odd batches work. Equivalence with torchvision's functions is asserted in the notebook."
import numpy as np
import pytest, torch
import torchvision.transforms.v2 as T
from scipy.stats import binomtest, kstest, ks_2samp
from fastai.vision.all import Pipeline, TensorImage, set_seed
from self_supervised.vision.all import ViewAugs, decode_views, describe_view, draw_views, get_batch_augs, get_multi_aug_pipelines, imagenet_stats, make_views
from self_supervised.augmentations import get_norm
from self_supervised.views import render

n = 5000
def draws(hw=(64,96), size=32, **kw):
    set_seed(1)
    return get_batch_augs(size, **kw).fs[0].draw(torch.empty(n, 3, *hw))

@pytest.mark.parametrize('hw', [(64,64), (64,96), (224,224), (16,16), (20,90), (90,20)])
@pytest.mark.parametrize('scale', [(.08,1.), (.2,1.), (.05,.14)])
def test_crops_are_torchvisions(hw, scale):
    "Area, ratio and centre, by Kolmogorov-Smirnov; the long images need its fallback as well"
    ours,aug,img = draws(hw, resize_scale=scale),T.RandomResizedCrop(32, scale=scale),torch.empty(3, *hw)
    ref = [aug.make_params([img]) for _ in range(n)]
    ref = {k:np.array([float(o[k]) for o in ref]) for k in ref[0]}
    ours = {k:ours[k].double().numpy() for k in ref}          # in fp32 equal fractions would differ from those of fp64
    stats = dict(area=lambda p: p['height']*p['width'], ratio=lambda p: p['width']/p['height'], x=lambda p: p['left']+p['width']/2, y=lambda p: p['top']+p['height']/2)
    for name,f in stats.items(): assert ks_2samp(f(ours), f(ref)).pvalue > 1e-3, name
    assert (ours['top'] >= 0).all() and (ours['top']+ours['height'] <= hw[0]).all() and (ours['left']+ours['width'] <= hw[1]).all()

def test_rates_and_ranges():
    p = draws(flip_p=.3, rotate_p=.4, rotate_deg=20, jitter_p=.8, jitter_s=(.4,.3,.2,.1), bw_p=.2, blur_p=.5, blur_s=(.1,2.), solarize=True, solarize_p=.15)
    on = dict(flip=(p['flip'],.3), rotate=(p['angle'] != 0,.4), jitter=(p['brightness'] != 1,.8), grey=(p['grey'],.2), blur=(p['sigma'] != 0,.5), solarize=(p['solarize'],.15))
    for k,(o,q) in on.items(): assert binomtest(int(o.sum()), n, q).pvalue > 1e-3, k
    assert torch.equal(p['brightness'] != 1, p['hue'] != 0)                  # jitter is drawn as a whole
    for k,lo,hi in (('brightness',.6,1.4), ('contrast',.7,1.3), ('saturation',.8,1.2), ('hue',-.1,.1)):
        v = p[k][p['hue'] != 0].numpy()
        assert kstest(v, 'uniform', (lo, hi-lo)).pvalue > 1e-3, k
    for k,lo,hi in (('angle',-20,20), ('sigma',.1,2.)): assert kstest(p[k][p[k] != 0].numpy(), 'uniform', (lo, hi-lo)).pvalue > 1e-3, k

def test_off():
    p = draws(rotate=False, jitter=False, bw=False, blur=False, flip_p=0)
    for k,v in dict(flip=0, angle=0, sigma=0, solarize=0, grey=0, hue=0, brightness=1, contrast=1, saturation=1).items(): assert (p[k] == v).all(), k

def test_same_on_batch():
    pipe = get_batch_augs(16, same_on_batch=True)
    x = torch.rand(1,3,24,24).repeat(8,1,1,1)
    v = pipe(TensorImage(x))
    torch.testing.assert_close(v, v[:1].expand_as(v), rtol=0, atol=1e-5)

@pytest.mark.parametrize('hw,size', [((1,1),4), ((3,2),(5,7)), ((17,40),(8,12)), ((8,8),1), ((300,20),16)])
@pytest.mark.parametrize('c', [1,2,3,5])
def test_any_shape(hw, size, c):
    for seed in range(3):
        set_seed(seed)
        v = get_batch_augs(size, stats=None, solarize=True, rotate_p=.5)(TensorImage(torch.rand(6,c,*hw)))
        assert v.shape == (6, c, *((size,size) if isinstance(size, int) else size)) and v.isfinite().all() and v.min() >= 0 and v.max() <= 1

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.uint8])
def test_other_types(dtype):
    "Computed in fp32, given back in the type of the images; bytes become fp32"
    x = (torch.rand(8,3,32,32)*255).round()/255
    y = (x*255).byte() if dtype == torch.uint8 else x.to(dtype)
    pipe = get_batch_augs(16, stats=None)
    set_seed(0); want = pipe(TensorImage(x))
    set_seed(0); got = pipe(TensorImage(y))
    assert got.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    torch.testing.assert_close(got.float(), want, atol={torch.float16:2e-3, torch.bfloat16:2e-2}.get(dtype, 1e-5), rtol=0)

def test_fp32_under_autocast():
    x = TensorImage(torch.rand(4,3,32,32)); pipe = get_batch_augs(16)
    set_seed(0); want = pipe(x)
    with torch.autocast('cpu', torch.bfloat16): set_seed(0); torch.testing.assert_close(pipe(x), want)

def test_another_device():
    "The same draws and views on a GPU, for which nothing is waited"
    from pretended_gpu import counting, pretending
    x,aug = torch.rand(30,3,70,70),get_batch_augs(24, resize_scale=(.1,1.), rotate_p=.5, solarize=True).fs[0]
    set_seed(0); want = aug.apply(x, aug.draw(x))
    with pretending() as gpu:
        on_gpu = x.to(gpu)
        aug.apply(on_gpu, aug.draw(on_gpu))                                  # constants are made once
        set_seed(0)
        with counting() as found: got = aug.apply(on_gpu, aug.draw(on_gpu))
        got = got.cpu()
    torch.testing.assert_close(got, want.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-4)
    assert not found['waits'] and not found['copies'], found

def test_replay():
    "Drawn parameters give the same views again, whatever the chunks and the order"
    x = torch.rand(40,3,40,48); aug = get_batch_augs(24, rotate_p=.5, solarize=True).fs[0]
    p = aug.draw(x); v = aug.apply(x, p)
    torch.testing.assert_close(aug.apply(x, p), v)
    for chunk in (1,7,64): torch.testing.assert_close(render(x, p, (24,24), [torch.tensor(o) for o in imagenet_stats], chunk=chunk), v.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(aug.apply(x, {k:o[5:9] for k,o in p.items()}), v[5:9], rtol=1e-4, atol=1e-4)
    assert all(describe_view(p, i) for i in range(40))

def test_views_together_are_views_apart():
    "One call for all views of a size, and kornia, a user's own pipeline and other statistics among them"
    x = torch.rand(10,3,40,40)
    pipes = [get_batch_augs(24), get_batch_augs(16), get_batch_augs(24, stats=None), *get_multi_aug_pipelines(2, 16, blur_p=(0.,1.))]
    set_seed(0); vs = make_views(pipes, x)
    set_seed(0); drawn = [p.fs[0].draw(x) for p in pipes]
    for p,d,v in zip(pipes, drawn, vs): torch.testing.assert_close(p.fs[0].apply(TensorImage(x), d), v, rtol=1e-4, atol=1e-4)
    own = Pipeline([lambda o: o*2], split_idx=0)
    assert torch.equal(make_views([own, pipes[0]], x)[0], TensorImage(x)*2)

def test_kornia_among_them():
    import kornia.augmentation as K
    x = TensorImage(torch.rand(8,3,32,32))
    pipe = get_batch_augs(16, xtra_tfms=[K.RandomErasing(p=1.)])
    v = make_views([pipe,pipe], x)[0]
    black = (0-torch.tensor(imagenet_stats[0]))/torch.tensor(imagenet_stats[1])
    assert v.shape == (8,3,16,16) and all((torch.isclose(o, black[:,None,None], atol=1e-5).all(0)).any() for o in v.as_subclass(torch.Tensor))
    assert get_norm(pipe) is not None and decode_views(pipe, v).max() <= 1

def test_given_draws_are_the_only_ones():
    "Views that were drawn before are rendered without drawing again, and are those that drawing in place gives"
    pipes,x = get_multi_aug_pipelines(2, 16),torch.rand(4,3,24,24)
    torch.manual_seed(0); want = make_views(pipes, x)
    torch.manual_seed(0); drawn = draw_views(pipes, x)
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a,b in zip(make_views(pipes, x, drawn), want)) and torch.equal(torch.get_rng_state(), state)
