"What a teacher sees, how often it is asked, and what is refused."
import math

import pytest, torch
from fastai.vision.all import DataLoaders, Learner, TfmdDL, nn, set_seed
from safetensors.torch import load_file
from kit import TEACHER, fit, image, make, make_dls
from self_supervised import layers
from self_supervised.cli import ssl_distill, ssl_pretrain
from self_supervised.vision.distill import cosine, seed
from self_supervised.vision.all import (Distill, create_distill_model, create_encoder, encoder_info, get_distill_aug_pipelines, get_features, imagenet_stats, load_teacher,
                                        sample_photos)

class Watching(nn.Module):
    "A teacher that keeps what it was shown"
    nf = 12
    def __init__(self): super().__init__(); self.conv,self.seen = nn.Conv2d(3, 12, 1),[]
    def forward(self, x): self.seen.append(x.clone()); return self.conv(x).mean((2,3))

def learner(teacher, dls=None, size=16, augs=None, **kw):
    set_seed(0)
    model = create_distill_model(create_encoder('test_resnet', False), teacher.nf, 32)
    return Learner(dls or make_dls(), model, cbs=Distill(augs or get_distill_aug_pipelines(size), teacher, **{'K':16, **kw}))

def first_batch(learn):
    learn.model.train(); learn.distill.training = True
    learn.distill('before_fit')
    learn.xb,learn.yb = (learn.dls.train.one_batch()[0],),()
    learn.distill.before_batch()
    return learn.xb[0]

def test_same_views_at_its_own_size():
    "The same crops, colours and flips, larger and with other statistics, in one rendering"
    t,stats = Watching(),([.1,.2,.3],[.5,.6,.7])
    augs = get_distill_aug_pipelines(16, blur=False)
    learn = learner(t, size=16, augs=augs, teacher_size=48, teacher_stats=stats)
    x = first_batch(learn)
    seen = t.seen[0]
    assert seen.shape == (len(x),3,48,48)
    undo = lambda o, m, s: o*torch.tensor(s)[:,None,None]+torch.tensor(m)[:,None,None]
    small = torch.nn.functional.interpolate(undo(seen, *stats), 16, mode='area')
    a,b = (o.flatten(1)-o.flatten(1).mean(1, keepdim=True) for o in (small, undo(x, *imagenet_stats)))
    alike = torch.cosine_similarity(a[:,None], b[None], dim=2)
    assert (alike.argmax(1) == torch.arange(len(x))).all() and alike.diagonal().median() > .8

def test_blur_grows_with_the_size():
    t = Watching()
    learn = learner(t, augs=get_distill_aug_pipelines(16, blur_p=1., blur_s=(2.,2.)), teacher_size=48)
    x = first_batch(learn)
    rough = lambda o: (o.diff(dim=-1).abs().mean()/o.std()).item()
    assert rough(t.seen[0]) < .6*rough(x)

def test_its_own_weights_and_mode_stay():
    teacher = create_encoder('test_resnet', False).train()
    before = {k:v.clone() for k,v in teacher.state_dict().items()}
    fit(learner(teacher))
    assert teacher.training and all(torch.equal(v, before[k]) for k,v in teacher.state_dict().items())

@pytest.mark.parametrize('loss', ['seed','cosine'])
def test_learns(loss):
    "From step to step the student comes nearer, in unseen images too"
    images = [(image(i),) for i in range(64)]
    dls = DataLoaders(*[TfmdDL(o, bs=16, num_workers=0, shuffle=i == 0, drop_last=True) for i,o in enumerate((images[:48], images[48:]))])
    learn = learner(TEACHER, dls, loss=loss)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit(8, 3e-3)
    assert learn.recorder.values[-1][1] < .9*before

def test_whole_images_once():
    "Each image is shown once, whole; what is kept is what the teacher says"
    t = Watching()
    learn = fit(learner(t, loss='cosine', whole=True), 2)
    assert sum(map(len, t.seen)) == len(learn.distill.of_image) == 45
    f,_ = get_features(t, learn.dls.valid, size=16, stats=imagenet_stats)
    kept = torch.stack([*learn.distill.of_image.values()])
    assert all((kept-o).abs().amax(1).min() < 1e-5 for o in f)

def test_teachers(tmp_path, monkeypatch):
    "An encoder file, a learner, and a name, which comes with weights and for the size that is asked for"
    learn = fit(make('sim_clr', size=16))
    path = learn.save_encoder(tmp_path/'e.safetensors')
    for teacher in (path, str(path), learn):
        enc,size,stats = load_teacher(teacher)
        assert size == (16,16) and torch.allclose(torch.tensor(stats), torch.tensor(imagenet_stats))
        assert all(torch.equal(v, enc.state_dict()[k].cpu()) for k,v in load_file(path).items())
    asked = []
    monkeypatch.setattr(layers, 'create_encoder', lambda arch, pretrained, n_in, **kw: asked.append((arch, pretrained, kw)) or create_encoder(arch, False, n_in, **kw))
    enc,size,_ = load_teacher('vit_tiny_patch16_224', 64)
    assert enc.patch_embed.img_size == size == (64,64) and asked[-1] == ('vit_tiny_patch16_224', True, dict(img_size=64))

def test_refused(tmp_path):
    enc = create_encoder('test_resnet', False)
    def new(teacher, **kw): return Learner(make_dls(), create_distill_model(enc, TEACHER.nf), cbs=Distill(get_distill_aug_pipelines(16), teacher, **kw))
    with pytest.raises(ValueError, match="loss must be 'seed' or 'cosine', got 'mse'"): new(TEACHER, loss='mse')
    with pytest.raises(TypeError, match='teacher must be .*, got int'): new(3)
    with pytest.raises(ValueError, match="teacher: it is the student's own encoder"): new(enc)
    with pytest.raises(ValueError, match=r'create_distill_model\(encoder, 12\)'): new(Watching())
    with pytest.raises(ValueError, match='teacher: it takes images of 1 channels, these have 3'):
        fit(new(create_encoder('test_resnet', False, n_in=1)))
    with pytest.raises(ValueError, match=r'must both be \(n, d\)'): cosine(torch.ones(2,3), torch.ones(2,4))

def test_assembled_with_a_learner_that_teaches():
    "What a learner says of its images, and how wide its features are, is seen to; what is given comes first"
    stats = [.5]*3,[.25]*3
    teacher = make('sim_clr', size=24, stats=stats)
    for given,size in ({},24),(dict(teacher_size=32),32):
        learn = Distill.learner(make_dls(), 'test_resnet', 16, teacher=teacher, K=16, **given)
        own = learn.distill
        assert own.teacher is teacher.model.encoder and own.teacher_size == (size,size) and [list(o) for o in own.teacher_stats] == list(stats)
        fit(learn)

def test_an_exported_learner_is_small(tmp_path):
    big = create_encoder('resnet10t', False)
    learn = fit(learner(big, K=16))
    learn.path = tmp_path
    learn.export('e.pkl')
    assert (tmp_path/'e.pkl').stat().st_size < 4*sum(p.numel() for p in big.parameters())
    assert learn.distill.teacher is big

def test_losses_of_a_batch():
    "The callback's losses are the functions', with the queue from before the batch"
    g = torch.Generator().manual_seed(0)
    s,t = (torch.randn(8, TEACHER.nf, generator=g) for _ in range(2))
    learn = make('distill')
    assert torch.equal(learn.distill.lf(s, None, t), seed(s, t, learn.distill.emb_queue, .2, .01))
    learn = make('distill', loss='cosine')
    assert torch.equal(learn.distill.lf(s, None, t), cosine(s, t)) and not hasattr(learn.model, 'queue')
    assert learn.distill.trivial_loss(None) is None and make('distill').distill.trivial_loss(None) == math.log(17)

def test_command_line(tmp_path, capsys):
    photos = sample_photos(tmp_path/'photos', n=4, size=40)
    args = dict(epochs=1, size=32, arch='test_resnet')
    ssl_pretrain(photos, method='simclr', out=tmp_path/'t', report=False, precision='fp32', **args)
    file = tmp_path/'t'/'encoder.safetensors'
    ssl_distill(photos, str(file), out=tmp_path/'s', set=['loss=cosine','whole=True'], **args)
    assert encoder_info(tmp_path/'s'/'encoder.safetensors')['arch'] == 'test_resnet' and 'width of the teacher' in capsys.readouterr().out
    with pytest.raises(ValueError, match='the file of an encoder'): ssl_pretrain(photos, method='distill', out=tmp_path/'x')
    with pytest.raises(ValueError, match='no other method does'): ssl_pretrain(photos, method='simclr', teacher=str(file), out=tmp_path/'x')

def test_described_without_its_weights(capsys):
    learn = learner(TEACHER)
    learn.distill.describe()
    text = capsys.readouterr().out
    assert 'loss ' in text and "'seed'" in text and 'Conv2d' not in text
