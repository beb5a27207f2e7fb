"Four epochs straight equal two, a save, a new process, a load and two more: student, teacher, queue and pointer."
import subprocess
import sys

import torch
from fastai.vision.all import Callback, CancelFitException, set_seed

class SeedEpoch(Callback):
    def before_epoch(self): set_seed(self.epoch)

class StopAfter(Callback):
    order = 80
    def after_epoch(self):
        if self.epoch == 1: raise CancelFitException

def learner(name, path):
    from test_methods import make, make_dls
    dls = make_dls()
    dls.train = dls.train.new(shuffle=False)
    return make(name, dls, cbs=[SeedEpoch()], path=path, **({'m':(.9,1.)} if name in ('moco','sup_con_moco','byol','mocov3') else {}))

def run(learn, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-3, **kw)
    return learn

def main(stage, path):
    from test_methods import METHODS
    for name in METHODS:
        learn = learner(name, path)
        if stage == 'first':
            run(learn).save(f'{name}-straight', with_opt=False)
            run(learner(name, path), cbs=StopAfter()).save(f'{name}-half')
        else:
            learn.create_opt(); learn.load(f'{name}-half'); run(learn, start_epoch=2)
            want = torch.load(f'{path}/models/{name}-straight.pth', weights_only=True)
            got = learn.model.state_dict()
            assert want.keys() == got.keys()
            for k in want: torch.testing.assert_close(got[k], want[k], atol=1e-6, rtol=0, msg=lambda m: f'{name} {k}: {m}')

def test_resume(tmp_path):
    for stage in ('first','second'):
        r = subprocess.run([sys.executable, __file__, stage, str(tmp_path)], capture_output=True, text=True)
        assert r.returncode == 0, r.stderr[-3000:]

if __name__ == '__main__': main(*sys.argv[1:])
