"Pictures show what a naive computation gives, bear degenerate input, and disturb neither a learner nor an encoder."
import random, sys, types
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from torch import nn
from fastai.vision.all import Callback, DataLoaders, Learner, PILImage, TensorImage, noop, set_seed, tensor
from kit import PAIRS, fit, image, make, make_dls, same, state
from self_supervised.data.seen import learner_norm
from self_supervised.evaluation.features import classes_only
from self_supervised.evaluation.health import view_embeddings
from self_supervised.layers import evaluating
from self_supervised.layers import source_of
from self_supervised.evaluation.pictures import *
from self_supervised.evaluation.pictures import pair_similarities
from self_supervised.vision import all as ssl
from self_supervised.vision.all import create_encoder, decode_views, get_simclr_aug_pipelines

@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')

def random_states(): return random.getstate()[1],tuple(np.random.get_state()[1]),tuple(torch.get_rng_state().tolist())
def modes(learn): return [m.training for m in learn.model.modules()]
def cos(a, b): return (a @ b/(a.norm()*b.norm())).item()

# views and their embeddings

@pytest.mark.parametrize('name,labels', [*((o, True) for o in PAIRS), ('sim_clr',False), ('dino',False)])
def test_every_method(name, labels):
    "Embeddings are those of the views one by one, whatever their sizes; before and after training"
    dls = make_dls(labels=labels, **({} if labels else dict(drop_last=True)))
    learn = make(name, dls)
    learn.model.encoder.train()
    for _ in range(2):
        z,views,y = view_embeddings(learn, n=6)
        assert z.shape[:2] == (len(getattr(learn, name).aug_pipelines),6) and len(views) == len(z) and all(len(v) == 6 for v in views)
        assert (y is not None and y.shape == (6,)) if labels else y is None
        learn.model.eval()
        with torch.no_grad(): naive = [learn.model.projector(learn.model.encoder(v.as_subclass(torch.Tensor))) for v in views]
        features = [learn.model.encoder(v.as_subclass(torch.Tensor)) for v in views]
        learn.model.train()
        torch.testing.assert_close(z, torch.stack(naive), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(view_embeddings(learn, n=6, projected=False)[0], torch.stack(features).detach(), atol=1e-5, rtol=1e-4)
        assert isinstance(plot_similarities(learn, n=6), plt.Axes)
        assert show_hard_negatives(learn, n=2, k=3, batch=6).shape == (2,5)
        fit(learn)

@pytest.mark.parametrize('name', ['moco','swav','le_jepa'])
def test_learner_undisturbed(name):
    "Weights, statistics, modes, random numbers and the next losses are as if nobody had looked"
    def losses(look):
        learn = make(name)
        learn.model.encoder.eval()                                           # a mode of one part
        learn.model.projector.train()
        if look:
            before,m,r,lf = state(learn),modes(learn),random_states(),learn.loss_func
            plot_similarities(learn, n=6); show_hard_negatives(learn, n=2, k=2, batch=6)
            assert same(before, state(learn)) and m == modes(learn) and r == random_states() and learn.loss_func is lf
            assert not any(p.grad is not None for p in learn.model.parameters())
        return list(fit(learn).recorder.losses)
    assert losses(False) == losses(True)

def test_looking_during_training():
    class Look(Callback):
        def after_batch(self): plot_similarities(self.learn, n=4); plt.close('all')
    a,b = (fit(make('byol', cbs=cbs), 2) for cbs in ([], [Look()]))
    assert same(state(a), state(b)) and a.recorder.losses == b.recorder.losses

def test_views_keep_their_order():
    "Views of one size are embedded together, also where those of another stand between them"
    large,small = get_simclr_aug_pipelines(16),get_simclr_aug_pipelines(8)
    learn = make('sim_clr')
    learn.sim_clr.aug_pipelines = [large[0],small[0],large[1],small[1]]
    z,views,_ = view_embeddings(learn, n=5)
    learn.model.eval()
    with torch.no_grad(): torch.testing.assert_close(z, torch.stack([learn.model(v.as_subclass(torch.Tensor)) for v in views]), atol=1e-5, rtol=1e-4)
    assert [v.shape[-1] for v in views] == [16,8,16,8]

def test_seed_draws_the_views():
    learn = make('sim_clr')
    a,b,c = (view_embeddings(learn, 8, seed=s)[1][0] for s in (0,0,1))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_plain_models_and_loaders():
    "Modules of the user, and loaders that are not fastai's"
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder,self.projector = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),nn.Linear(4, 5)
        def forward(self, x): return self.projector(self.encoder(x))
    data = [(image(i),i%2) for i in range(20)]
    dl = torch.utils.data.DataLoader(data, batch_size=10, shuffle=True)
    learn = Learner(DataLoaders(dl, dl), Plain(), cbs=ssl.SimCLR(get_simclr_aug_pipelines(16)))
    z,_,y = view_embeddings(learn, 64)
    assert z.shape == (2,10,5) and y.shape == (10,)
    more = make('sim_clr')                                                   # fastai's give more than a batch
    assert view_embeddings(more, 20)[0].shape[1] == 20 and view_embeddings(more, 500)[0].shape[1] == 33

def test_no_views_to_embed():
    plain = Learner(make_dls(), ssl.create_simclr_model(create_encoder('test_resnet', False)), loss_func=noop)
    with pytest.raises(ValueError, match='no method'): view_embeddings(plain)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match='n must be'): view_embeddings(make('sim_clr'), n)

# similarities

@pytest.mark.parametrize('V,n', [(2,1), (2,2), (2,7), (3,5), (8,2)])
def test_pair_similarities(V, n):
    z = torch.randn(V, n, 6, generator=torch.Generator().manual_seed(0))
    pos,neg = [],[]
    for a in range(V*n):
        for b in range(a+1, V*n):
            (pos if a%n == b%n else neg).append(cos(z[a//n,a%n], z[b//n,b%n]))
    for got,want in zip(pair_similarities(z), (pos,neg)): np.testing.assert_allclose(sorted(got.tolist()), sorted(want), atol=1e-5)
    assert len(pos) == n*V*(V-1)//2 and len(neg) == V*V*n*(n-1)//2
    ax = plot_similarities(z, bins=7)
    for bars,s in zip(ax.containers, (pos,neg)):
        np.testing.assert_allclose([b.get_height() for b in bars], np.histogram(s, 7, (-1,1))[0]/len(s), atol=1e-6)
    assert len(ax.containers) == (1 if n == 1 else 2) and ax.get_xlabel() and ax.get_ylabel()

def test_similarities_of_constant_embeddings():
    ax = plot_similarities(torch.ones(2, 4, 3))
    assert all(bars[-1].get_height() == pytest.approx(1) for bars in ax.containers)         # all of them at 1, none lost to rounding
    assert pair_similarities(torch.zeros(2, 3, 4))[0].eq(0).all()
    own = plt.subplots()[1]
    assert plot_similarities(np.random.randn(2,3,4), ax=own) is own

def test_similarities_refused():
    for z in (torch.randn(4, 3), torch.randn(1, 4, 3)):
        with pytest.raises(ValueError, match='at least 2 views'): pair_similarities(z)
    with pytest.raises(ValueError, match='not finite'): pair_similarities(torch.full((2,3,4), float('nan')))

# hard negatives

@pytest.mark.parametrize('V', [2, 4])
@pytest.mark.parametrize('labels', [None, tensor([0,1,0,2,1,-1])])
def test_hard_negatives(V, labels):
    z,n,k = torch.randn(V, 6, 5, generator=torch.Generator().manual_seed(1)),6,3
    df = hard_negatives(z, labels, k, unsup_class_id=2)
    for i in range(n):
        best = sorted(((max((cos(z[0,i], z[v,j]),v) for v in range(V)),j) for j in range(n) if j != i), reverse=True)[:k]
        own,mine = cos(z[0,i], z[1,i]),df[df.image == i]
        assert mine.negative.tolist() == [j for _,j in best] and mine['view'].tolist() == [v for (_,v),_ in best]
        np.testing.assert_allclose(mine.similarity, [s for (s,_),_ in best], atol=1e-5)
        np.testing.assert_allclose(mine.positive, own, atol=1e-5)
        known = lambda o: labels is not None and labels[o] not in (-1,2)
        assert mine.suspected.tolist() == [bool(labels[i] == labels[j]) if known(i) and known(j) else s >= own for (s,_),j in best]

def test_hard_negatives_of_constant_embeddings():
    df = hard_negatives(torch.ones(2, 4, 3), k=3)
    assert df.suspected.all() and (df.negative != df.image).all() and len(df) == 12
    for k in (0, 4):
        with pytest.raises(ValueError, match='between 1 and 3'): hard_negatives(torch.ones(2, 4, 3), k=k)
    with pytest.raises(ValueError, match='other images'): show_hard_negatives(make('sim_clr'), batch=1)

def test_show_hard_negatives():
    "Pictures, similarities and colours are those of the table"
    learn = make('sup_con')                                                  # the class 'unsup' is no class
    z,views,y = view_embeddings(learn, 12)
    df = hard_negatives(z, y, 3, unsup_class_id=2)
    axs = show_hard_negatives(learn, n=4, k=3, batch=12)
    assert df.suspected.any() and not df.suspected.all()
    for i in range(4):
        for ax,o in zip(axs[i,2:], df[df.image == i].itertuples()):
            t = ax.title
            assert t.get_text().startswith(f"{o.similarity:.2f}") and ('false?' in t.get_text()) == o.suspected == (t.get_color() != 'black')
            assert t.get_text().endswith(learn.dls.vocab[int(y[o.negative])])
            want = decode_views(learn.sup_con.aug_pipelines[o.view], views[o.view])[o.negative].permute(1,2,0)
            np.testing.assert_allclose(ax.images[0].get_array(), want, atol=1e-6)
    own = plt.subplots(2, 5)[1]
    assert show_hard_negatives(learn, n=2, k=3, batch=8, axs=own)[0,0] is own[0,0]
    with pytest.raises(ValueError, match='2 × 5 axes, got 4'): show_hard_negatives(learn, n=2, k=3, batch=8, axs=plt.subplots(2, 2)[1])

# map

@pytest.mark.parametrize('method', ['pca', 'tsne'])
@pytest.mark.parametrize('n,d', [(1,5), (2,5), (3,5), (4,1), (40,5)])
def test_map(method, n, d):
    x,y = torch.randn(n, d, generator=torch.Generator().manual_seed(0)),torch.arange(n)%3
    for features in (x, torch.ones(n, d)):
        ax = plot_map(features, y, method)
        at = np.concatenate([o.get_offsets() for o in ax.collections])
        assert len(at) == n and np.isfinite(at).all() and len(ax.collections) == min(n, 3)
        assert (ax.get_legend() is not None) == (n > 1) and ax.get_xlabel()

def test_map_is_pca():
    x = torch.randn(50, 4)*tensor([9.,3.,1.,1.])
    ax = plot_map(x, n=30, seed=3)
    x = F.normalize(x[np.random.default_rng(3).permutation(50)[:30]]).double()
    x = x-x.mean(0)
    u,s,_ = torch.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(np.abs(ax.collections[0].get_offsets()), (u*s)[:,:2].abs(), atol=1e-5)
    assert f"{100*s[0]**2/(s**2).sum():.0f} %" in ax.get_xlabel() and ax.get_legend() is None

def test_map_labels_and_images():
    x = torch.randn(30, 4)
    names = ['cat','dog','eel']*10
    ax = plot_map(x, names)
    assert [o.get_text() for o in ax.get_legend().get_texts()] == ['cat','dog','eel']
    ax = plot_map(x, torch.arange(30)%25-1)                                  # more classes than colours, and none for some
    texts = [o.get_text() for o in ax.get_legend().get_texts()]
    looks = {(tuple(o.get_facecolor()[0]),o.get_paths()[0].vertices.shape) for o in ax.collections}
    assert texts[0] == 'no label' and len(texts) == 25 == len(looks)
    for images in (torch.rand(30, 3, 8, 8), torch.rand(30, 1, 8, 8), [PILImage.create(np.zeros((6,9,3), np.uint8))]*30, [(torch.rand(1,4,4),0)]*30):
        assert len(plot_map(x, images=images, n=7).artists) == 7

def test_map_refused():
    x = torch.randn(5, 3)
    for kw,match in ((dict(method='mds'),'method'), (dict(labels=[1,2]),'labels'), (dict(labels=[.5]*5),'floats')):
        with pytest.raises(ValueError, match=match): plot_map(x, **kw)
    for bad in (x[0], x[:0], x/0):
        with pytest.raises(ValueError, match='features'): plot_map(bad)

def test_umap(monkeypatch):
    "What is handed to it; without the package it says how to get it"
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(ImportError, match='pip install umap-learn'): plot_map(torch.randn(9, 3), method='umap')
    class UMAP:
        def __init__(self, n_neighbors, random_state): assert (n_neighbors,random_state) == (8,4)
        def fit_transform(self, x): return x[:,:2]
    monkeypatch.setitem(sys.modules, 'umap', types.SimpleNamespace(UMAP=UMAP))
    x = torch.randn(9, 3)
    ax = plot_map(x, method='umap', seed=4)
    at = F.normalize(x)[np.random.default_rng(4).permutation(9)][:,:2]
    np.testing.assert_allclose(ax.collections[0].get_offsets(), at, atol=1e-6)

def test_one_line_makes_the_older_map():
    "`plot_embedding` on top of `plot_map` keeps its points and its legend"
    learn = make('sim_clr')
    x,y = ssl.get_features(learn, 0)
    ax = plot_map(x, classes_only(learn, y), 'tsne', learn.dls.vocab, n=20, seed=1)
    old = ssl.plot_embedding(learn, 0, n=20, seed=1)
    for a,b in zip(ax.collections, old.collections): np.testing.assert_array_equal(a.get_offsets(), b.get_offsets())
    assert [o.get_text() for o in ax.get_legend().get_texts()] == [o.get_text() for o in old.get_legend().get_texts()]

# attention and activations

def vit(arch='test_vit', **kw):
    set_seed(0)
    return create_encoder(arch, False, img_size=32, patch_size=8, **kw).eval()

def by_hand(attn, x):
    "Softmax of queries and keys"
    B,N,C = x.shape
    q,k,_ = attn.qkv(x).reshape(B, N, 3, attn.num_heads, -1).permute(2,0,3,1,4)
    q,k = attn.q_norm(q),attn.k_norm(k)
    s = q @ k.mT*attn.head_dim**-.5
    return s.exp()/s.exp().sum(-1, keepdim=True)

@pytest.mark.parametrize('kw', [{}, dict(reg_tokens=3), dict(pool_type='avg'), dict(class_token=False, global_pool='avg'), dict(qk_norm=True)])
def test_attention_is_the_softmax(kw):
    enc,x,seen = vit(**kw),torch.randn(2, 3, 32, 48),[]
    h = enc.blocks[-1].norm1.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad(): enc(x)
    h.remove()
    a,p = by_hand(enc.blocks[-1].attn, seen[0]),enc.num_prefix_tokens
    want = a[:,:,0,p:] if enc.global_pool == 'token' else a[:,:,p:,p:].mean(2)
    got = attention_maps(enc, x)
    assert got.shape == (2,a.shape[1],4,6) and not got.requires_grad
    torch.testing.assert_close(got.flatten(2), want.detach(), atol=1e-5, rtol=1e-4)

def test_encoder_restored_after_attention():
    enc,x = vit(),torch.rand(2, 3, 32, 32)
    fused = [m.fused_attn for m in enc.modules() if hasattr(m, 'fused_attn')]
    enc.train(); enc.blocks[0].eval()
    modes = [m.training for m in enc.modules()]
    y = enc.eval()(x)
    for m,t in zip(enc.modules(), modes): m.training = t
    attention_maps(enc, x)
    def boom(*a): raise RuntimeError('boom')
    h = enc.norm.register_forward_hook(boom)
    with pytest.raises(RuntimeError, match='boom'): attention_maps(enc, x)
    h.remove()
    assert [m.fused_attn for m in enc.modules() if hasattr(m, 'fused_attn')] == fused and any(fused)
    assert [m.training for m in enc.modules()] == modes and torch.equal(enc.eval()(x), y)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in enc.modules())

@pytest.mark.parametrize('arch,kw', [('test_vit2',{}), ('test_vit3',{}), ('test_vit4',{}), ('test_vit_relpos',{}), ('deit_tiny_distilled_patch16_224',{}),
                                     ('cait_xxs24_224',dict(depth=2)), ('beit_base_patch16_224',dict(depth=2, embed_dim=48, num_heads=3)),
                                     ('eva02_tiny_patch14_224',dict(depth=2))])
def test_attention_of_transformers(arch, kw):
    a = attention_maps(vit(arch, **kw), torch.randn(2, 3, 32, 32))
    assert a.shape[0] == 2 and a.shape[2:] == (4,4) and (a >= 0).all() and (a.sum((2,3)) <= 1.0001).all() and a.std() > 0

@pytest.mark.parametrize('arch', ['test_resnet', 'test_convnext', 'test_maxvit', 'xresnet18'])
def test_no_attention_to_show(arch):
    enc = create_encoder(arch, False)
    with pytest.raises(ValueError, match='no attention between all patches'): show_attention(enc, torch.rand(2, 3, 320, 320))
    assert all(m.training for m in enc.modules())

def test_activations_are_norms():
    for arch,kw in (('test_resnet',{}), ('test_vit',dict(img_size=32, patch_size=8))):
        enc,x = create_encoder(arch, False, **kw),torch.randn(2, 3, 64, 96)
        for layer in (-1, 0):
            want = enc.eval().forward_intermediates(x, intermediates_only=True)[layer].square().sum(1).sqrt()
            torch.testing.assert_close(activation_maps(enc.train(), x, layer), want.detach())
        assert enc.training
    for arch in ('xresnet18','torchvision:resnet18','torchvision:mobilenet_v3_small'):
        enc = create_encoder(arch, False)
        body = enc[0] if arch == 'xresnet18' else nn.Sequential(*source_of(enc).body(enc))
        want = body.eval()(x).norm(dim=1)
        torch.testing.assert_close(activation_maps(enc.train(), x), want.detach())
        assert not any(m._forward_hooks for m in enc.modules()) and all(m.training for m in enc.modules())

def test_compiled_encoders():
    "Hooks do not run in a compiled call"
    x = torch.randn(2, 3, 32, 32)
    for enc,maps in ((vit(),attention_maps), (create_encoder('xresnet18', False).eval(),activation_maps)):
        want = maps(enc, x)
        compiled = torch.compile(enc, backend='eager')
        with torch.no_grad(): compiled(x)
        assert torch.equal(maps(compiled, x), want)
        enc.compile(backend='eager')
        with torch.no_grad(): enc(x)
        assert torch.equal(maps(enc, x), want)

def test_activations_refused():
    enc,x = create_encoder('test_resnet', False),torch.rand(2, 3, 64, 64)
    for layer in (5, -6):
        with pytest.raises(ValueError, match='layer must be one of its'): activation_maps(enc, x, layer)
    with pytest.raises(ValueError, match='no feature maps'): activation_maps(nn.Sequential(nn.Flatten(), nn.Linear(12288, 4)), x)

def test_shown_images():
    "Images are normalised and sized as in training, and shown as they are"
    learn,seen = make('sim_clr'),[]
    h = learn.model.encoder.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    x = torch.rand(2, 3, 16, 16)
    axs = show_activations(learn, x, layer=0)
    want = activation_maps(learn.model.encoder, learner_norm(learn)(TensorImage(x)).as_subclass(torch.Tensor), 0)
    h.remove()
    for i in range(2):
        np.testing.assert_allclose(axs[i,0].images[0].get_array(), x[i].permute(1,2,0), atol=1e-6)
        np.testing.assert_allclose(axs[i,1].images[1].get_array(), want[i], rtol=1e-4)
        assert axs[i,1].images[0].get_extent() == axs[i,1].images[1].get_extent() == [0,16,16,0]
    assert axs.shape == (2,2) and axs[0,1].get_title() == 'activation'

def test_images_of_many_kinds(tmp_path):
    enc = vit()
    im = PILImage.create((np.random.rand(32,32,3)*255).astype(np.uint8)); im.save(tmp_path/'a.png')
    for images in ([im], [tmp_path/'a.png'], [str(tmp_path/'a.png')], (torch.rand(1,3,32,32)*255).byte(), [torch.rand(3,32,32)]):
        assert show_attention(enc, images).shape == (1,2) and show_activations(enc, images).shape == (1,2)
    assert show_attention(enc, [im], heads=True).shape == (1,1+enc.blocks[-1].attn.num_heads)
    assert show_attention(enc, torch.zeros(3,3,40,50), size=(16,24)).shape == (3,2)
    grey = create_encoder('test_vit', False, n_in=1, img_size=32, patch_size=8)
    assert show_attention(grey, [tmp_path/'a.png']).shape == (1,2)
    own = plt.subplots(1, 2)[1]
    assert show_activations(enc, [im], axs=own)[0,1] is own[1]
    with pytest.raises(ValueError, match='one shape'): show_attention(enc, [torch.rand(3,32,32), torch.rand(3,32,40)])
    with pytest.raises(ValueError, match='use multiples'): show_attention(enc, torch.rand(1,3,30,30))
    with pytest.raises(ValueError, match='images must be a batch'): show_attention(enc, torch.rand(3,32,32))

# spectrum

def test_spectrum():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).double()
    naive = np.sqrt(np.sort(np.linalg.eigvalsh((x.T @ x).numpy()))[::-1])
    for given in (x, [x], [torch.linalg.svdvals(x)], [naive[::-1].copy()], [naive.tolist()], naive):
        line, = plot_spectrum(given).lines
        np.testing.assert_allclose(line.get_ydata(), naive/naive[0], rtol=1e-6)
        assert line.get_xdata().tolist() == [1,2,3,4,5,6]
    ax = plot_spectrum([naive, naive**2, naive**3])
    light = [sum(plt.matplotlib.colors.to_rgb(o.get_color())) for o in ax.lines]
    assert light[0] > light[1] > light[2] and ax.get_yscale() == 'log' and len(ax.get_legend().get_texts()) == 3
    assert len(plot_spectrum([naive]*40).get_legend().get_texts()) == 2

def test_spectrum_of_degenerate_features():
    for x in (torch.ones(9, 4), torch.zeros(9, 4), torch.ones(1, 4), torch.ones(4, 1)):
        ax = plot_spectrum(x)
        ax.figure.canvas.draw()
        assert ax.get_ylim()[0] >= 1e-7/1.01 and ax.get_ylim()[1] == 2
    for bad,match in (([],'empty'), (torch.full((4,4), float('nan')),'finite'), ([[-1.,2.]],'negative'), (torch.ones(2,2,2),'got \\('), ([[]],'got \\(')):
        with pytest.raises(ValueError, match=match): plot_spectrum(bad)
    with pytest.raises(ValueError, match='labels'): plot_spectrum([[1.]], labels=['a','b'])

# course of training

def test_health_of_a_frame():
    df = pd.DataFrame(dict(epoch=[0,1,2], train_loss=[3,2,1.], valid_loss=[3,float('nan'),2], knn=[.1,.2,.3], lidar=[float('nan')]*3, rankme=[None,4,5],
                           time=['00:01']*3))
    axs = plot_health(df)
    assert [o.get_title() for o in axs] == ['loss','knn','rankme'] and len(axs[0].lines) == 2 and len(axs[0].figure.axes) == 3
    np.testing.assert_array_equal(axs[0].lines[1].get_ydata(), df.valid_loss)
    np.testing.assert_array_equal(axs[2].lines[0].get_ydata(), [np.nan,4,5])
    assert all(o.get_xlabel() == 'epoch' and o.lines[0].get_xdata().tolist() == [0,1,2] for o in axs)
    assert 'lidar' in df and len(df.columns) == 7
    assert len(plot_health(df[:1])) == 2 and len(plot_health(df[['knn']])) == 1
    own = plt.subplots(2, 2)[1]
    assert plot_health(df, axs=own)[1] is own[0,1]
    assert plot_health(df[['knn']], axs=own[0,0])[0] is own[0,0]
    with pytest.raises(ValueError, match='3 panels'): plot_health(df, axs=own[0])
    for bad in (df[['lidar']], df[['time']], df[:0], pd.DataFrame()):
        with pytest.raises(ValueError, match='no row, or no column'): plot_health(bad)

def test_health_of_a_learner():
    learn = make('vic_reg')
    with pytest.raises(ValueError, match='not trained'): plot_health(learn)
    fit(learn, 2)
    axs = plot_health(learn)
    assert [o.get_title() for o in axs] == ['loss','invariance','variance','covariance']
    np.testing.assert_allclose([o.get_ydata() for o in axs[0].lines], np.array([o[:2] for o in learn.recorder.values]).T)
    np.testing.assert_allclose(axs[3].lines[0].get_ydata(), [o[4] for o in learn.recorder.values])
