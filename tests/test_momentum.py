"Queue and teacher as contracts, and the clocks they run on."
import statistics
import time

import pytest
import timm
import torch
from fastai.vision.all import Callback, GradientAccumulation
from hypothesis import given, settings
from hypothesis import strategies as st

from self_supervised.momentum import EmbeddingQueue, MomentumEncoder, momentum_at
from self_supervised.vision.all import create_moco_model
from kit import each, fit, make, make_dls, same, state

@settings(deadline=None, max_examples=200)
@given(K=st.integers(1,20), sizes=st.lists(st.integers(0,50), max_size=8), cut=st.integers(0,8))
def test_queue_keeps_the_newest_in_order(K, sizes, cut):
    q,n = EmbeddingQueue(K, 3, label=-7),0
    for i,b in enumerate(sizes):
        if i == cut:                                             # a restart in between changes nothing
            old,q = q,EmbeddingQueue(K, 3, label=-7)
            q.load_state_dict(old.state_dict())
        y = torch.arange(n, n+b)
        q.push(y[:,None].float().repeat(1,3), y); n += b
        embs,labels = (torch.roll(o, -int(q.ptr), 0)[K-int(q.n_real):] for o in (q.embs, q.labels))
        assert labels.tolist() == list(range(max(0,n-K), n))     # the newest K, oldest first
        assert torch.equal(embs, labels[:,None].float().repeat(1,3))   # labels stay with their embeddings
        assert int(q.n_real) == min(n,K) and sorted(q.real[1].tolist()) == labels.tolist()

def test_queue_is_read_before_the_push():
    q = EmbeddingQueue(8, 4)
    real,_ = q.real
    q.push(torch.ones(3,4))
    assert len(real) == 0 and torch.equal(q.real[0], torch.ones(3,4))

@pytest.mark.parametrize('K', [0, -1, 2.5])
def test_bad_K(K):
    with pytest.raises(ValueError, match='K must be'): EmbeddingQueue(K, 4)

@pytest.mark.parametrize('m', [-.1, 1.1, (.9,2), (.9,), 'a'])
def test_bad_m(m):
    with pytest.raises(ValueError, match='m must be'): make('moco', m=m)

def test_K_larger_than_the_data():
    with pytest.warns(UserWarning, match='choose K'): make('moco', K=100)

def test_K_smaller_than_the_batch(): assert int(fit(make('moco', K=5)).moco.queue.n_real) == 5

def test_projector_whose_last_layer_is_not_linear():
    model = create_moco_model(timm.create_model('test_resnet', num_classes=0), projection_size=16)
    model.projector.append(torch.nn.BatchNorm1d(16))
    assert fit(make('moco', model=model)).moco.emb_queue.shape == (16,16)
    model.projector = torch.nn.Identity()
    del model.queue, model.encoder_k
    with pytest.raises(ValueError, match='no linear layer'): make('moco', model=model)

@pytest.mark.parametrize('name', ['mocov3','byol','sim_siam','nnclr'])
def test_model_without_predictor(name):
    with pytest.raises(ValueError, match='no `.predictor`'): make(name, model=create_moco_model(timm.create_model('test_resnet', num_classes=0)))

class Spy(Callback):
    "Keys and queue as the loss sees them"
    order = 100
    def after_pred(self):
        if self.training: assert (self.learn.yb[0] @ self.learn.moco.emb_queue.T).max() < 1-1e-6

def test_a_positive_is_never_among_its_own_negatives():
    fit(make('moco', make_dls(n=29), cbs=[Spy()], K=17))

def test_nnclr_never_finds_itself_on_first_sight():
    class First(Callback):
        def after_pred(self):
            if self.training:
                z = torch.nn.functional.normalize(self.learn.pred[1].detach(), dim=1)
                nn,_ = self.learn.nnclr.queue.nearest(z)
                if self.learn.nnclr.queue.n_real: assert ((nn*z).sum(1) < 1-1e-6).all()
    fit(make('nnclr', cbs=[First()], K=64))

def ms_used(monkeypatch, learn, **kw):
    "The momenta that the teacher was really updated with"
    ms,update = [],MomentumEncoder.update
    monkeypatch.setattr(MomentumEncoder, 'update', lambda self, student, m: (ms.append(m), update(self, student, m)))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, **kw)
    return ms

def test_schedule_to_the_last_step(monkeypatch):
    ms = ms_used(monkeypatch, make('moco', m=(.5,1.)))
    assert len(ms) == 8 and ms == pytest.approx([momentum_at((.5,1.), i/8) for i in range(8)])

def test_schedule_goes_on_after_a_resume(monkeypatch):
    assert ms_used(monkeypatch, make('moco', m=(.5,1.)), start_epoch=1) == pytest.approx([momentum_at((.5,1.), i/8) for i in range(4,8)])

@pytest.mark.parametrize('name', ['moco','byol'])
def test_two_clocks(name, monkeypatch):
    "The teacher moves with the optimizer's steps, the queue with the batches"
    learn = make(name)
    steps,pushes,push = [],[],EmbeddingQueue.push
    monkeypatch.setattr(EmbeddingQueue, 'push', lambda self, z, y=None: (pushes.append(len(z)), push(self, z, y)))
    class Count(Callback):
        def after_step(self): steps.append(1)
    ms = ms_used(monkeypatch, learn, cbs=[GradientAccumulation(16), Count()])
    assert len(ms) == len(steps) == 4                          # 4 batches of 8 an epoch, a step every 16 images
    if name == 'moco': assert pushes == [8]*8

def test_other_K_on_a_model_with_a_queue():
    learn = make('moco')
    with pytest.raises(ValueError, match='already holds a queue of 16'): make('moco', model=learn.model, K=8)

@each
def test_fit_twice_goes_on(name):
    learn = fit(make(name)); ptr = learn.model.queue.ptr.clone() if hasattr(learn.model, 'queue') else None
    learn('before_fit'); learn('after_fit')
    assert ptr is None or torch.equal(ptr, learn.model.queue.ptr)
    before = state(learn)
    learn.add_cb(Callback()); learn('before_fit'); learn('after_fit')
    assert same(before, state(learn))

def test_added_later():
    "A callback that comes after the learner was made attaches its state before the first fit"
    learn = make('moco'); cb = learn.moco
    learn.remove_cb(cb); del learn.model.encoder_k, learn.model.queue
    learn.add_cb(cb); fit(learn)
    assert int(learn.model.queue.n_real) == 16

def test_ema_cost():
    "Fused against the plain Python loop, on ResNet-50"
    s = timm.create_model('resnet50', num_classes=0); t = MomentumEncoder(s)
    def loop():
        with torch.no_grad():
            for a,b in zip(t.module.parameters(), s.parameters()): a.data = a.data*.99 + b.data*.01
    def cost(f):
        f(); ts = []
        for _ in range(7): t0 = time.perf_counter(); f(); ts.append(time.perf_counter()-t0)
        return statistics.median(ts)
    fused,plain = cost(lambda: t.update(s, .99)),cost(loop)
    print(f"EMA of ResNet-50: {fused*1e3:.1f} ms fused, {plain*1e3:.1f} ms loop, {plain/fused:.1f}x")
    assert fused < plain
