"Images and texts: against open_clip, on two processes, with other libraries' towers and tokenizers, and what a method must do."
import math
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest, torch
import torch.distributed as dist
from fastai.vision.all import Callback, Categorize, DataLoaders, Datasets, ItemGetter, Learner, SGD, TensorImage, TfmdDL, load_learner, nn, noop, rank_distrib, set_seed
from self_supervised.cli import ssl_pretrain, ssl_views
from self_supervised.evaluation.health import training_batch
from self_supervised.losses import clip_loss, info_nce, siglip_loss
from self_supervised.training.distributed import launch
from self_supervised.vision.all import (CLIP, CLIPMOCO, Alarms, Checkpoint, SigLIP, TextTower, TextTransformer, Tokens, Words, create_clip_model, create_clipmoco_model, create_encoder, create_simclr_model,
                                        create_siglip_model, captioned_dls, embed_texts, embeddings, folder_dls, get_clip_aug_pipelines, get_features, get_image_files,
                                        get_model, load_encoder, retrieval, sample_photos, ssl_metrics, text_tokens, text_tower, zero_shot)
from test_distributed import BS, N, SHARES, Fixed, Records, Shares, order, without_bn
from test_losses import same
from test_methods import image, state
from test_methods import same as alike

names = 'cat','dog','owl'
def text(i): return [f'a photo of a {names[i%3]} number {i}', f'{names[i%3]} {i}']
words = Words([t for i in range(64) for t in text(i)])
tokens = Tokens(words, 8)
def towers(make=create_clip_model, **kw): return make(create_encoder('test_resnet', False), TextTransformer(len(words), 32, 1, 2), 16, **kw)
METHODS = {'clip':(CLIP, create_clip_model, {}), 'sig_lip':(SigLIP, create_siglip_model, {}), 'clipmoco':(CLIPMOCO, create_clipmoco_model, dict(K=16, m=.9))}
each = pytest.mark.parametrize('name', METHODS)

def loaders(n=45, bs=8, labels=True):
    tfms = [[image],[text, tokens],[lambda i: names[i%3], Categorize()]]
    ds = Datasets(range(n), tfms if labels else tfms[:2], splits=(list(range(n-12)), list(range(n-12, n))), n_inp=2)
    return ds.dataloaders(bs=bs, num_workers=0, device='cpu')

def make(name, dls=None, cbs=(), **kw):
    cb,model,args = METHODS[name]
    set_seed(0)
    return Learner(dls or loaders(), towers(model), cbs=[cb(get_clip_aug_pipelines(16), **{**args, **kw}), *cbs])

def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

def test_losses_of_open_clip():
    from open_clip.loss import ClipLoss, SigLipLoss
    z = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    def halves(z): return [nn.functional.normalize(o, dim=1) for o in z.chunk(2)]
    for s in (1/.07, 3.):
        same(lambda z: clip_loss(*z.chunk(2), s), lambda z: ClipLoss()(*halves(z), s), z)
        same(lambda z: siglip_loss(*z.chunk(2), s, -4.), lambda z: SigLipLoss()(*halves(z), s, -4.), z)
    for f,peer,args in ((clip_loss, ClipLoss(), (5.,)), (siglip_loss, SigLipLoss(), (5.,-2.))):               # of the scale and bias too
        grads = []
        for own in (True,False):
            ps = [torch.tensor(o, requires_grad=True) for o in args]
            (f(*z.chunk(2), *ps) if own else peer(*halves(z), *ps)).backward()
            grads.append([p.grad for p in ps])
        torch.testing.assert_close(*grads)

@each
@pytest.mark.parametrize('labels', [True,False])
def test_fit_validate(name, labels):
    learn = fit(make(name, loaders(bs=7, labels=labels), [Alarms(min_steps=100)]), 2)
    before = state(learn)
    with learn.no_bar(): set_seed(1); a = learn.validate()[0]; set_seed(1); b = learn.validate()[0]
    assert math.isfinite(a) and a == b and alike(before, state(learn)) and learn.alarms.raised == [] and learn.loss_func is not getattr(learn, name).lf
    x,t = embeddings(learn)
    assert x.shape == t.shape == (12,16) and retrieval(x, t).shape == (2,3)
    if labels: assert 0 <= zero_shot(learn, [f'a {o}' for o in names], tokens) <= 1

@each
def test_learns_and_shows(name, tmp_path):
    learn = make(name)
    learn.metrics = ssl_metrics(learn)
    fit(learn, 6)
    assert learn.recorder.values[-1][0] < learn.recorder.values[0][0]
    assert getattr(learn, name).show(n=3).shape == (3,1)
    learn.path = tmp_path
    learn.export('e.pkl')
    x = torch.rand(2,3,16,16)
    loaded = load_learner(tmp_path/'e.pkl')
    assert torch.equal(loaded.model.encoder.eval()(x), learn.model.encoder.eval()(x))
    assert torch.equal(embed_texts(loaded, ['a dog'], tokens), embed_texts(learn, ['a dog'], tokens))

@each
def test_lr_find_and_precision(name, tmp_path):
    learn = make(name); learn.path = tmp_path
    before = state(learn)
    with learn.no_bar(): learn.lr_find(num_it=8, show_plot=False)
    assert alike(before, state(learn))
    learn = make(name)
    getattr(learn, name).aug_pipelines = get_clip_aug_pipelines(32)
    learn.to_bf16()
    assert all(map(math.isfinite, fit(learn).recorder.losses))

@each
def test_resume(name, tmp_path):
    "After an interrupt in the second epoch: the same weights, queue and table"
    class Stop(Callback):
        def after_step(self):
            if self.epoch == 1 and self.iter == 1: raise KeyboardInterrupt
    whole = fit(make(name), 3)
    learn = make(name, cbs=[Checkpoint(tmp_path, every=1), Stop()])
    with pytest.raises(KeyboardInterrupt): fit(learn, 3)
    again = make(name).resume(tmp_path)
    fit(again, 3)
    assert alike(state(whole), state(again)) and again.recorder.values == whole.recorder.values

@each
def test_trivial_loss(name):
    "Of embeddings that are alike for all images; for SigLIP with the bias that is best for them"
    learn = make(name); cb = getattr(learn, name)
    class First(Callback):
        def after_loss(self): raise KeyboardInterrupt
    learn.add_cb(First())
    with pytest.raises(KeyboardInterrupt): fit(learn)
    cb.shares,n = [8],8
    ones,y = torch.ones(n,16),torch.zeros(n)
    if name == 'clipmoco': learn.model.queue.embs.fill_(1.)
    if name == 'sig_lip': learn.model.bias.data.fill_(math.log(1/(n-1))-learn.model.log_scale.exp().item())
    more = (ones,ones) if name == 'clipmoco' else ()
    assert float(cb.lf((ones,ones), y, *more)) == pytest.approx(cb.trivial_loss(y, *more), rel=1e-4)

def test_labels_come_after_the_text():
    "Features and pictures get the class of an image, not the tokens of its text"
    learn = make('clip')
    assert get_features(learn)[1].tolist() == [i%3 for i in range(33, 45)]
    assert training_batch(learn, 8)[1].shape == (8,) and training_batch(make('clip', loaders(labels=False)), 8)[1] is None

def test_scale_stays_below_100():
    learn = make('clip')
    learn.model.log_scale.data.fill_(math.log(99.9))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1.)
    assert 1 <= learn.clip.scale <= 100.001

def test_queue_of_the_teacher():
    "What is queued are the teacher's normalised embeddings of images, then of texts; the loss reads the queue from before"
    learn = make('clipmoco', K=8)
    seen = []
    class Keep(Callback):
        order = 50
        def after_pred(self): seen.append((self.pred, self.yb, learn.clipmoco.emb_queue.clone()))
        def after_loss(self): seen[-1] += (self.learn.loss.clone(),)
    learn.add_cb(Keep()); fit(learn)
    (i,t),(y,ik,tk),q,loss = seen[2]
    qi,qt = q.chunk(2, 1)
    want = (info_nce(i, tk, qt)+info_nce(t, ik, qi))/2
    torch.testing.assert_close(loss, want)
    prev = seen[1][1]
    assert torch.equal(q, torch.cat(prev[1:], 1)) and torch.allclose(ik.norm(dim=1), torch.ones(8))

def test_other_libraries():
    "A tower of open_clip, one that answers as those of transformers do, and a tokenizer of tokenizers"
    from open_clip.transformer import TextTransformer as OpenText
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tok = Tokenizer(models.WordLevel(unk_token='[UNK]'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.train_from_iterator([t for i in range(64) for t in text(i)], trainers.WordLevelTrainer(special_tokens=['[PAD]','[UNK]']))
    ids = torch.stack([Tokens(tok, 8)(text(i)[0]) for i in range(4)])
    assert ids.shape == (4,8) and len(ids.unique(dim=0)) == 4
    class Answers(nn.Module):
        def __init__(self, pooled): super().__init__(); self.embed,self.pooled = nn.Embedding(200, 24),pooled
        def forward(self, input_ids, attention_mask=None):
            assert torch.equal(attention_mask, (input_ids != 0).long())
            h = self.embed(input_ids)
            return SimpleNamespace(last_hidden_state=h, pooler_output=h[:,0] if self.pooled else None)
    for tower in (OpenText(context_length=8, vocab_size=200, width=24, heads=2, layers=1, output_dim=20), Answers(True), Answers(False)):
        m = create_clip_model(create_encoder('test_resnet', False), tower, 16)
        x,t = m(torch.rand(4,3,16,16), ids)
        assert x.shape == t.shape == (4,16)
        t.sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    mean = TextTower(Answers(False))
    torch.testing.assert_close(mean(ids)[1], mean.module.embed(ids[1][ids[1] != 0]).mean(0))                # filling does not count

def test_open_clips_tokenizer():
    class Tok:
        context_length = 6
        def __call__(self, text): return torch.tensor([[9, *[len(w) for w in text.split()], 8, 0, 0]])
    assert Tokens(Tok(), 5)('ab c').tolist() == [9,2,1,8,0] and Tokens(Tok(), 9)('ab c').tolist() == [9,2,1,8,0,0,0,0,0]

def test_refused():
    one = Datasets(range(20), [[image],[text, tokens]], n_inp=1).dataloaders(bs=4, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match='CLIP takes two inputs.*\n?.*n_inp=2'): fit(make('clip', one))
    raw = Datasets(range(20), [[image],[lambda i: float(i)]], n_inp=2).dataloaders(bs=4, num_workers=0, device='cpu')
    with pytest.raises(TypeError, match='texts must be integers'): fit(make('clip', raw))
    with pytest.raises(ValueError, match='model has no `.text_encoder`'):
        Learner(loaders(), create_simclr_model(create_encoder('test_resnet', False)), cbs=CLIP(get_clip_aug_pipelines(16)))
    with pytest.raises(ValueError, match='create_clip_model'): Learner(loaders(), towers(create_siglip_model), cbs=CLIP(get_clip_aug_pipelines(16)))
    with pytest.raises(ValueError, match='length'): TextTransformer(9, length=4)(torch.ones(1,5, dtype=torch.long))
    with pytest.raises(ValueError, match='scale'): towers(scale=0)
    with pytest.raises(ValueError, match='aug_pipelines'): CLIP(get_clip_aug_pipelines(16)*2)
    learn = make('clip')
    with pytest.raises(ValueError, match='prompts: there are 2'): zero_shot(learn, ['a','b'], tokens)
    with pytest.raises(ValueError, match='no labels'): zero_shot(make('clip', loaders(labels=False)), ['a','b'], tokens)

# a folder

@pytest.fixture
def photos(tmp_path):
    "Tiles of 16 pictures, and two texts for all but four of them"
    root = sample_photos(tmp_path/'photos', n=4, size=40)
    files = sorted(get_image_files(root))
    kinds = '{} number {}','a tile of {}, the {}th'
    return root,files,pd.DataFrame([dict(file=str(f.relative_to(root)), caption=t.format(f.parent.name, i)) for i,f in enumerate(files[4:]) for t in kinds])

def test_each_image_has_its_own_texts(photos, tmp_path):
    root,files,table = photos
    table.loc[0,'caption'],table.loc[2,'caption'] = None,'  '                            # of two images one text is left
    of = table.dropna()[lambda o: o.caption.str.strip() != ''].groupby('file').caption.apply(set)
    for cache in (None,tmp_path/'cache'):
        with pytest.warns(UserWarning, match='texts: 4 of .* images have none and are left out'):
            dls = captioned_dls(root, table, size=32, labels='parent', valid='valid', cache=cache, bs=8, num_workers=0)
        assert set(dls.left_out) == set(files[:4]) and dls.n_inp == 2
        words,seen = {v:k for k,v in text_tokens(dls).tokenizer.number.items()},set()
        dl = dls.train.new(shuffle=False, drop_last=False)
        for _ in range(12):
            for f,row in zip(dls.train_ds.items, torch.cat([b[1] for b in dl])):
                said = [words[int(o)] for o in row if o]
                own = [t for t in of[str(f.relative_to(root))] if Words([]).split(t) == said]
                assert len(own) == 1, f"{f} has another image's text"
                seen.add(own[0])
        assert seen == set().union(*(of[str(f.relative_to(root))] for f in dls.train_ds.items))           # each text is drawn

def test_texts_that_are_refused(photos):
    root,files,table = photos
    def quiet(texts, **kw): return captioned_dls(root, texts, size=32, num_workers=0, **kw)
    with pytest.raises(ValueError, match="no column 'words'"): quiet(table, text_cols=('file','words'))
    with pytest.raises(ValueError, match=r'text_cols=\(names, texts\)'): quiet(table.assign(file='x'))
    with pytest.raises(ValueError, match='texts: none of'): quiet(lambda f: None)
    with pytest.raises(ValueError, match='captioned_dls'): folder_dls(root, 32, texts=table)
    with pytest.warns(UserWarning, match='1 different texts.*give them as labels'): quiet(lambda f: 'a photo')
    assert quiet(lambda f: f'{f.stem} of {f.parent.name}').n_inp == 2
    with pytest.raises(ValueError, match='no Tokens'): text_tokens(folder_dls(root, 32, num_workers=0))

def test_tokenizers_of_others(photos):
    "A text tower fits them"
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    root,_,table = photos
    t = Tokenizer(models.BPE(unk_token='?')); t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.train_from_iterator(table.caption, trainers.BpeTrainer(vocab_size=80, special_tokens=['','?'], show_progress=False))
    dls = captioned_dls(root, table, t, 12, size=32, bs=8, num_workers=0)
    tower = text_tower(dls, 32, 1, 2)
    assert tower(dls.one_batch()[1]).shape == (8,12,32) and len(tower.embed.weight) == t.get_vocab_size()

@pytest.mark.parametrize('name', ['clip','siglip','clipmoco'])
def test_command_line(name, photos, capsys):
    root,files,table = photos
    texts = root.parent/'t.csv'
    table.to_csv(texts, sep=';', index=False)
    out,args = root.parent/'out',dict(epochs=1, size=32, arch='test_resnet', bs=8, precision='fp32', no_report=name != 'clip')
    def run(): return ssl_pretrain(root, method=name, out=out, labels='parent', valid='valid', texts=texts, text_cols='file,caption', **args)
    run()
    said = capsys.readouterr().out
    assert 'image to text' in said and 'lr_max' in said
    learn = load_learner(out/'learner.pkl')
    z = embed_texts(learn, ['a tile of coffee'])
    assert z.shape == (1,learn.model.projector.out_features) and torch.isfinite(z).all()
    assert load_encoder(out/'encoder.safetensors').eval()(torch.ones(1,3,32,32)).ndim == 2
    if name != 'clip': return
    run(); assert 'is finished' in capsys.readouterr().out
    ssl_views(root, method=name, out=root.parent/'v.png', size=32)
    with pytest.raises(ValueError, match='--texts TABLE'): ssl_pretrain(root, method='clip', out=root.parent/'x')
    with pytest.raises(ValueError, match='no other method does'): ssl_pretrain(root, method='simclr', texts=texts, out=root.parent/'x')
    with pytest.raises(ValueError, match='text_cols: .* --texts TABLE'): ssl_pretrain(root, method='simclr', text_cols='a,b', out=root.parent/'x')
    with pytest.raises(ValueError, match='texts: it is for folders'): ssl_pretrain('digits', method='clip', texts=texts, out=root.parent/'x')

# two processes

def learner(name, W=2):
    cb,model,args = METHODS[name]
    set_seed(0)
    m = without_bn(towers(model))
    items = [(image(i), tokens(text(i)[0]), torch.tensor(i%3)) for i in range(N[W])]
    class DL(TfmdDL): n_inp = 2
    trn = DL(items, bs=BS[W]*W, num_workers=0, get_idxs=lambda: order(W))
    if dist.is_initialized(): trn = Shares(DL(items, bs=BS[W], num_workers=0), device=torch.device('cpu'))
    val = DL(items[:N[W]//W*W], bs=5, num_workers=0)
    dls = DataLoaders(trn, val)
    dls.n_inp = 2
    return Learner(dls, m, loss_func=noop, opt_func=partial(SGD, mom=0.), cbs=[cb([Fixed1()], **{**args, **(dict(K=10) if 'K' in args else {})}), Records()])

def Fixed1():
    from fastai.vision.all import Pipeline
    from self_supervised.vision.all import ToImageBatch
    return Pipeline([ToImageBatch(), Fixed(0, 16)], split_idx=0)

def fit_all(path):
    from accelerate import Accelerator
    Accelerator(cpu=True)
    for name in METHODS:
        learn = learner(name)
        with learn.distrib_ctx(sync_bn=False, cpu=True), learn.no_bar(), learn.no_logging(): learn.fit(1, .02)
        torch.save(dict(losses=learn.records.losses[:3], state=get_model(learn.model).state_dict()), f'{path}/{name}-{rank_distrib()}')

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp('clip')
    launch(__file__, 'fit_all', path)
    return path

@each
def test_two_processes_are_one(name, two):
    one = learner(name)
    with one.no_bar(), one.no_logging(): one.fit(1, .02)
    a,b = (torch.load(two/f'{name}-{r}', weights_only=True) for r in range(2))
    torch.testing.assert_close(torch.tensor(a['losses']), torch.tensor(one.records.losses[:3]), rtol=1e-5, atol=1e-5)
    for k,v in one.model.state_dict().items():
        torch.testing.assert_close(a['state'][k], v, rtol=0, atol=1e-5, msg=lambda m: f'{k}: {m}')
        assert torch.equal(a['state'][k], b['state'][k]), k

if __name__ == '__main__':
    import sys
    globals()[sys.argv[1]](*sys.argv[2:])
