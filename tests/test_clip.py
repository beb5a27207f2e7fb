"Images and texts: against open_clip, with other libraries' towers and tokenizers, and what is more to them than to a method of images."
import math
from types import SimpleNamespace

import pandas as pd
import pytest, torch
from fastai.vision.all import Callback, Datasets, Learner, get_image_files, load_learner, nn
from self_supervised.cli import ssl_pretrain, ssl_views
from self_supervised.evaluation.health import training_batch
from self_supervised.losses import info_nce
from self_supervised.vision.clip import clip_loss, siglip_loss
from self_supervised.vision.all import (CLIP, TextTower, TextTransformer, Tokens, Words, captioned_dls, create_clip_model, create_encoder, create_simclr_model, embed_texts,
                                        embeddings, folder_dls, get_clip_aug_pipelines, get_features, load_encoder, retrieval, sample_photos, ssl_metrics, text_tokens, text_tower,
                                        zero_shot)
from kit import KINDS, METHODS, dls_of, fit, fitted, image, make, text, tokens
from test_losses import same

each = pytest.mark.parametrize('name', [n for n,o in METHODS.items() if o.cb.n_inp == 2])

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
def test_retrieval(name, labels):
    learn = fitted(name) if labels else fit(make(name, dls_of(name, labels=False)))
    x,t = embeddings(learn)
    assert x.shape == t.shape == (12,32) and retrieval(x, t).shape == (2,3)
    if labels: assert 0 <= zero_shot(learn, [f'a {o}' for o in KINDS], tokens) <= 1

@each
def test_learns_and_is_exported(name, tmp_path):
    learn = make(name)
    learn.metrics = ssl_metrics(learn)
    fit(learn, 6)
    assert learn.recorder.values[-1][0] < learn.recorder.values[0][0]
    learn.path = tmp_path
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    assert torch.equal(embed_texts(loaded, ['a dog'], tokens), embed_texts(learn, ['a dog'], tokens))

def test_labels_come_after_the_text():
    "Features and pictures get the class of an image, not the tokens of its text"
    learn = make('clip')
    assert get_features(learn)[1].tolist() == [i%3 for i in range(33, 45)]
    assert training_batch(learn, 8)[1].shape == (8,) and training_batch(make('clip', dls_of('clip', labels=False)), 8)[1] is None

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
        Learner(dls_of('clip'), create_simclr_model(create_encoder('test_resnet', False)), cbs=CLIP(get_clip_aug_pipelines(16)))
    with pytest.raises(ValueError, match='create_clip_model'): Learner(dls_of('sig_lip'), METHODS['sig_lip'].model(create_encoder('test_resnet', False)), cbs=CLIP(get_clip_aug_pipelines(16)))
    with pytest.raises(ValueError, match='length'): TextTransformer(9, length=4)(torch.ones(1,5, dtype=torch.long))
    with pytest.raises(ValueError, match='scale'): METHODS['clip'].model(create_encoder('test_resnet', False), scale=0)
    with pytest.raises(ValueError, match='aug_pipelines'): CLIP(get_clip_aug_pipelines(16)*2)
    learn = make('clip')
    with pytest.raises(ValueError, match='prompts: there are 2'): zero_shot(learn, ['a','b'], tokens)
    with pytest.raises(ValueError, match='no labels'): zero_shot(make('clip', dls_of('clip', labels=False)), ['a','b'], tokens)

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
    out,args = root.parent/'out',dict(epochs=1, size=32, arch='test_resnet', bs=8, precision='fp32', report=name == 'clip')
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
    with pytest.raises(ValueError, match='give texts, a table'): ssl_pretrain(root, method='clip', out=root.parent/'x')
    with pytest.raises(ValueError, match='no other method does'): ssl_pretrain(root, method='simclr', texts=texts, out=root.parent/'x')
    with pytest.raises(ValueError, match='text_cols: .* by texts, a table'): ssl_pretrain(root, method='simclr', text_cols='a,b', out=root.parent/'x')
    with pytest.raises(ValueError, match='texts: it is for folders'): ssl_pretrain('digits', method='clip', texts=texts, out=root.parent/'x')
