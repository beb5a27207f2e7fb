"Two epochs straight equal one, a save, a new process, a load and one more: student, teacher, queue and pointer."
import inspect, pytest, torch, warm
from fastai.vision.all import Callback, CancelFitException, set_seed
from kit import METHODS, dls_of, fit, make, make_dls, same, state
from pretended_gpu import gpu, pretending, random_states
from self_supervised.augmentations import no_random_change
from self_supervised.training.checkpoint import Checkpoint

class SeedEpoch(Callback):
    def before_epoch(self): set_seed(self.epoch)

class StopAfter(Callback):
    order = 80
    def after_epoch(self):
        if self.epoch == 0: raise CancelFitException

def learner(name, path):
    dls = dls_of(name, n=28)
    dls.train = dls.train.new(shuffle=False)
    return make(name, dls, cbs=[SeedEpoch()], path=path, **({'m':(.9,1.)} if 'm' in inspect.signature(METHODS[name].cb).parameters else {}))

def run(learn, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, **kw)
    return learn

def main(stage, path):
    for name in METHODS:
        learn = learner(name, path)
        if stage == 'first':
            run(learn).save(f'{name}-straight', with_opt=False)
            run(learner(name, path), cbs=StopAfter()).save(f'{name}-half')
        else:
            learn.create_opt(); learn.load(f'{name}-half'); run(learn, start_epoch=1)
            want = torch.load(f'{path}/models/{name}-straight.pth', weights_only=True)
            got = learn.model.state_dict()
            assert want.keys() == got.keys()
            for k in want: torch.testing.assert_close(got[k], want[k], atol=1e-6, rtol=0, msg=lambda m: f'{name} {k}: {m}')

def test_resume(tmp_path):
    for stage in ('first','second'): warm.run(main, stage, str(tmp_path))

class Interrupt(Callback):
    order = 200
    def after_batch(self):
        if self.training and self.iter == 2: raise KeyboardInterrupt

def test_gpu_that_is_not_the_current_one(tmp_path):
    "Views are drawn from the random numbers of the model's device, which go on exactly; and looking at views does not use them up"
    def learner(*cbs):
        set_seed(0)
        return make('moco', make_dls(n=36).to(gpu(0)), cbs=cbs)
    with pretending(1):
        whole = fit(learner())
        with pytest.raises(KeyboardInterrupt): fit(learner(Checkpoint(tmp_path, every=2), Interrupt()))
        set_seed(99)
        rest = learner().resume(tmp_path)
        before = random_states[0]
        with no_random_change(): torch.rand(2, device=gpu(0))
        assert torch.equal(random_states[0], before)
        assert same(state(fit(rest)), state(whole))
