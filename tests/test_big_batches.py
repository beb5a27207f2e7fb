"A batch in chunks, for every method: the same losses, weights and state as in one piece."
import pytest, torch
from fastai.vision.all import Callback
from self_supervised.training.big_batches import Chunks
from self_supervised.vision.all import KNN, get_model
from test_distributed import LR, learner
from kit import each, make

class Sizes(Callback):
    "How many views the encoder gets at a time"
    order = 100
    def before_train(self):
        self.seen = set()
        self.hook = self.model.encoder.conv1.register_forward_hook(lambda m,i,o: self.seen.add(len(o)))
    def after_train(self): self.hook.remove()

@each
def test_chunks(name):
    res = []
    for cbs in ((), (Chunks(3),)):
        learn = learner(name, metrics=[KNN(k=3)]).add_cbs([*cbs, Sizes()])
        with learn.no_bar(), learn.no_logging(): learn.fit(1, LR.get(name, LR['']))
        res.append((torch.tensor(learn.records.losses[:3]), get_model(learn.model).state_dict(), learn.final_record[2]))
    assert max(learn.sizes.seen) == 3
    (l0,s0,k0),(l1,s1,k1) = res
    torch.testing.assert_close(l1, l0, rtol=1e-5, atol=1e-5)
    assert k0 == pytest.approx(k1)
    for k,v in s0.items(): torch.testing.assert_close(s1[k], v, rtol=0, atol=1e-5, msg=lambda m: f'{k}: {m}')

def test_chunks_leave_nothing(tmp_path):
    "After a fit, a validation or an error the learner can be exported, and fits again"
    class Boom(Callback):
        def after_loss(self): raise RuntimeError('boom')
    learn = make('byol', path=tmp_path, cbs=[Chunks(3), Boom()])
    with learn.no_bar(), learn.no_logging(), pytest.raises(RuntimeError): learn.fit(1)
    learn.remove_cb(Boom)
    with learn.no_bar(), learn.no_logging(): learn.fit(1); learn.validate()
    learn.export('a.pkl')
    assert not any(m._compiled_call_impl for m in learn.model.modules())

@pytest.mark.parametrize('size', [0, 2.5, None])
def test_bad_size(size):
    with pytest.raises(ValueError, match='size'): Chunks(size)
