"Every method in bf16 and fp16: what is computed in half precision, what is not, and what a skipped step leaves alone."
import pytest, torch
from fastai.vision.all import Callback, ShortEpochCallback
from self_supervised.vision.all import create_encoder
from kit import METHODS, each, fit, make, state

def small_vit(): return create_encoder('test_vit', False, img_size=32, patch_size=8, dynamic_img_size=True)

class Precision(Callback):
    "What the student and the teacher compute in, and the loss"
    order = 100
    def before_fit(self):
        self.student,self.teacher,self.losses = set(),set(),set()
        teacher = getattr(self.model, 'encoder_k', None)
        self.hooks = [m.projector.register_forward_hook(lambda m,i,o,seen=seen: seen.add(o.dtype)) for m,seen in ((self.model,self.student),(teacher,self.teacher)) if m]
    def after_loss(self): self.losses.add(self.learn.loss_grad.dtype)
    def after_fit(self): [o.remove() for o in self.hooks]

def learner(name): return make(name, size=32, model=METHODS[name][1](small_vit()), cbs=[Precision(), ShortEpochCallback(.5)])

@each
def test_bf16(name):
    learn = learner(name).to_bf16(); before = state(learn); fit(learn)
    assert learn.precision.student == {torch.bfloat16} and learn.precision.losses == {torch.float32}
    assert learn.precision.teacher == ({torch.bfloat16} if hasattr(learn.model, 'encoder_k') else set())
    assert all(v.dtype == before[k].dtype for k,v in state(learn).items())                # weights, queues and centres stay as they are
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert not torch.equal(before[k := next(k for k in before if k.endswith('weight'))], state(learn)[k])

@pytest.mark.parametrize('name', [n for n,(cb,*_) in METHODS.items() if hasattr(cb, 'encoder_k')])
def test_fp16_skipped_steps_leave_the_teacher(name):
    "With a scale at which all gradients overflow neither student nor teacher moves"
    learn = learner(name).to_fp16(init_scale=2.**120, growth_interval=10**6, backoff_factor=.999)
    for p in learn.model.encoder_k.parameters(): p.data += .1             # or following the student would change nothing
    before = [p.clone() for p in learn.model.parameters()]
    fit(learn)
    assert all(map(torch.equal, before, learn.model.parameters()))
    assert learn.precision.teacher == {torch.float16}
