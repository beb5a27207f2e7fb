"Processes are killed, disks are full, files are torn: training goes on exactly, or says why not."
import contextlib
import inspect
import io
import itertools
import os
import random
import resource
import signal
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest, torch, warm
from fastai.vision.all import Callback, GradientAccumulation, ParamScheduler, SaveModelCallback, SchedCos, set_seed
from self_supervised.evaluation.health import ssl_metrics
from self_supervised.training.checkpoint import Checkpoint, checkpoints, plain, read_checkpoint, write_checkpoint
from kit import METHODS, dls_of, fit, make, make_dls, same, state

# a process of one thread forks one child for each run, so that torch is imported once

class Steps(Callback):
    "Optimizer steps of this learner, to tell going on from starting again"
    n = 0
    def after_step(self): self.n += 1

class Tell(Callback):
    "Write a byte after each training batch, by which the parent knows when to kill"
    order,run_valid = 100,False
    def __init__(self, fd): self.fd = fd
    def after_batch(self): os.write(self.fd, b'.')

def train(name, path, epochs=2, every=1, resume=False, cbs=(), n=45, num_workers=0, metrics=False, n_acc=0, **kw):
    set_seed(0)                             # a fork seeds Python's random numbers anew
    cbs = [*cbs, Steps(), *[GradientAccumulation(n_acc)]*bool(n_acc), *([Checkpoint(path/name, every=every)] if every else [])]
    learn = make(name, dls_of(name, n=n), path=path, cbs=cbs, **kw)
    if metrics: learn.metrics,learn.recorder.train_metrics = ssl_metrics(learn, n=20),True
    for dl in learn.dls.loaders: dl.fake_l.num_workers = num_workers
    if resume: learn.resume(path/name, missing_ok=True)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-3)
    r = learn.recorder
    return plain(dict(model=learn.model.state_dict(), values=[list(map(repr, o)) for o in r.values], losses=r.losses, lrs=r.lrs, iters=r.iters, hps=r.hps)),learn.steps.n

def child(f):
    "Run `f` in a forked process; gives its id, and where it writes what it tells"
    r,w = os.pipe()
    pid = os.fork()
    if pid: os.close(w); return pid,r
    code = 1
    try: os.close(r); f(w); code = 0
    except BaseException as e:
        code = e.code if isinstance(e, SystemExit) else 1
        if code == 1: import traceback; traceback.print_exc()
    finally: sys.stdout.flush(); sys.stderr.flush(); os._exit(code)

def status(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def kill_after(f, n, folder):
    "Kill the child when it has told of `n` batches and there is a checkpoint"
    pid,r = child(f)
    while n > 0 or not checkpoints(folder):
        assert os.read(r, 1), 'the child ended by itself'
        n -= 1; time.sleep(.001)
    os.kill(pid, signal.SIGKILL); os.close(r)
    assert status(pid) == -signal.SIGKILL

def equal(a, b, what=''):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), what
        for k in a: equal(a[k], b[k], f'{what} {k}')
    elif isinstance(a, (list,tuple)):
        assert len(a) == len(b), (what, len(a), len(b))
        for i,(x,y) in enumerate(zip(a, b)): equal(x, y, f'{what} {i}')
    elif isinstance(a, torch.Tensor): assert torch.equal(a, b), what
    else: assert a == b, (what, a, b)

def finish(f, path):
    "Run `f` in a child and read what it saved"
    def save(w): torch.save(f(w), path)
    assert status(child(save)[0]) == 0
    return torch.load(path, weights_only=True)

HABITS = dict(workers=dict(num_workers=1), metrics=dict(metrics=True), accumulation=dict(n_acc=12))

def kill(path, name, habit, n):
    "After `n` batches, of which an epoch has four"
    torch.set_num_threads(1); path,kw = Path(path),dict(HABITS[habit])
    if habit == 'metrics' and 'whole' in inspect.signature(METHODS[name].cb).parameters: kw['whole'] = True
    want,steps = finish(lambda w: train(name, path, every=None, **kw), path/f'{name}.pth')
    kill_after(lambda w: train(name, path, cbs=[Tell(w)], **kw), n, path/name)
    got,rest = finish(lambda w: train(name, path, resume=True, **kw), path/f'{name}.pth')
    equal(got, want, name); assert rest < steps
    print(name, 'goes on exactly')

def soak(path, n=50, seed=0):
    "`n` kills at random moments, many of them while a checkpoint is written"
    torch.set_num_threads(1); path,name,rng = Path(path),'moco',random.Random(int(seed))
    kw = dict(epochs=40, n=61)
    want,all_steps = finish(lambda w: train(name, path, every=None, **kw), path/'want.pth')
    start = time.time(); finish(lambda w: train(name, path, resume=True, **kw), path/'whole.pth'); span = time.time()-start
    for o in (path/name).glob('*'): o.unlink()
    torn = 0
    for i in range(int(n)):
        pid,r = child(lambda w: train(name, path, resume=True, cbs=[Tell(w)], **kw))
        os.read(r, 1); time.sleep(rng.uniform(0, 1.5*span/int(n)))
        os.kill(pid, signal.SIGKILL); status(pid); os.close(r)
        for o in (path/name).glob('.*.tmp'):
            try: read_checkpoint(o)
            except ValueError: torn += 1
        last = checkpoints(path/name)
        for o in last: read_checkpoint(o)                      # none is torn
        print(f"kill {i+1}: {last[-1].stem if last else 'before the first checkpoint'}, {torn} in the middle of writing", flush=True)
    got,steps = finish(lambda w: train(name, path, resume=True, **kw), path/'last.pth')
    equal(got, want); assert steps < all_steps/2
    print(f'{n} kills, {torn} while writing: as uninterrupted')

def terminate(path):
    "Of all processes, as schedulers do: the loader's workers go on until there is a checkpoint"
    torch.set_num_threads(1); path = Path(path)
    def run(w):
        os.setpgid(0, 0)
        train('moco', path, every=None, epochs=50, cbs=[Checkpoint(path/'moco', epochs=0), Tell(w)], num_workers=2)
    pid,r = child(run)
    for _ in range(3): os.read(r, 1)
    os.killpg(pid, signal.SIGTERM)
    assert status(pid) == 128+signal.SIGTERM and len(checkpoints(path/'moco')) == 1

class Long(Callback):
    "A validation of a minute"
    def __init__(self, fd): self.fd = fd
    def before_validate(self):
        if self.epoch: os.write(self.fd, b'.'); time.sleep(60)

def terminate_validation(path):
    "It is left at once, and nothing of it or of the training before it is lost"
    torch.set_num_threads(1); path = Path(path)
    want,n = finish(lambda w: train('moco', path, every=None), path/'want.pth')
    start = time.time()
    pid,r = child(lambda w: train('moco', path, every=None, cbs=[Checkpoint(path/'moco'), Long(w)]))
    os.read(r, 1); time.sleep(.5)
    os.kill(pid, signal.SIGTERM)
    assert status(pid) == 128+signal.SIGTERM and time.time()-start < 30
    last = read_checkpoint(checkpoints(path/'moco')[-1])
    assert (last['epoch'],last['iter']) == (1,n//2)
    got,steps = finish(lambda w: train('moco', path, resume=True), path/'got.pth')
    equal(got, want); assert steps == 0

def full_disk(path):
    "A disk with no room: files may not grow beyond a megabyte"
    path = Path(path)
    learn = fit(make('moco', cbs=[Checkpoint(path)]))
    before = {o:o.read_bytes() for o in checkpoints(path)}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    try: fit(learn)
    except OSError as e: print('refused:', e)
    assert {o:o.read_bytes() for o in checkpoints(path)} == before

WAYS = list(itertools.product(HABITS, range(4, 8)))               # `make soak` takes all of them for each method
KILLS = [(name, *way) for i,name in enumerate(METHODS) for way in (WAYS if os.environ.get('SOAK') else [WAYS[5*i%12]])]

@pytest.mark.parametrize('name,habit,n', KILLS)
def test_killed(name, habit, n, tmp_path):
    "kill -9 at the end of an epoch or in the middle of the next"
    assert warm.run(kill, tmp_path, name, habit, n) == f'{name} goes on exactly\n'

@pytest.mark.parametrize('when', [terminate, terminate_validation])
def test_sigterm(when, tmp_path): warm.run(when, tmp_path)
def test_full_disk(tmp_path): assert 'free some space' in warm.run(full_disk, tmp_path)

@pytest.fixture(scope='module')
def moco(tmp_path_factory):
    path = tmp_path_factory.mktemp('ck')
    fit(make('moco', cbs=[Checkpoint(path, keep=2, every=2)]))
    return path

def test_keeps_the_last(moco): assert len(checkpoints(moco)) == 2

@pytest.mark.parametrize('change,msg', [(dict(K=32), 'K'), (dict(name='sup_con_moco'), 'method'), (dict(arch='resnet10t'), 'architecture')])
def test_another_learner(moco, change, msg):
    name,arch = change.pop('name', 'moco'),change.pop('arch', 'test_resnet')
    from self_supervised.vision.all import create_encoder
    learn = make(name, model=METHODS[name][1](create_encoder(arch, False)), **change); before = state(learn)
    with pytest.raises(ValueError, match=msg): learn.resume(moco)
    assert same(before, state(learn)) and not hasattr(learn, 'resumed')

def changed(path, to, change):
    s = read_checkpoint(checkpoints(path)[-1]); change(s)
    return write_checkpoint(s, to/'a.ckpt')

def test_another_version(moco, tmp_path):
    with pytest.raises(ValueError, match='version 99'): make('moco').resume(changed(moco, tmp_path, lambda s: s.update(ssl_checkpoint=99)))

def test_another_fit(moco, tmp_path):
    "Other epochs, processes or frozen layers: nothing is loaded, and the learner can be used"
    def refused(learn, n, msg):
        before = state(learn)
        with pytest.raises(ValueError, match=msg): fit(learn, n)
        assert same(before, state(learn)) and not hasattr(learn, 'resumed')
        fit(learn, n); assert len(learn.recorder.values) == n
    refused(make('moco').resume(moco), 3, 'epochs 1 there, 3 here')
    refused(make('moco').resume(changed(moco, tmp_path, lambda s: s['plan'].update(processes=4))), 1, 'processes 4 there, 1 here')
    refused(make('moco').resume(changed(moco, tmp_path, lambda s: s['plan'].update(frozen=1))), 1, 'frozen 1 there')

@pytest.mark.parametrize('damage', ['cut','half','foreign','pickle','empty'])
def test_damaged_files(moco, tmp_path, damage):
    "Refused by name, passed over in a folder, and no code of theirs is run"
    for o in checkpoints(moco): (tmp_path/o.name).write_bytes(o.read_bytes())
    f = tmp_path/'999999-epoch9-batch0.ckpt'; raw = checkpoints(moco)[-1].read_bytes()
    if damage == 'cut': f.write_bytes(raw[:-100])
    if damage == 'half': f.write_bytes(raw[:len(raw)//2])
    if damage == 'foreign': torch.save({'model':{}}, f)
    if damage == 'pickle': torch.save(Boom(), f)
    if damage == 'empty': f.write_bytes(b'')
    with pytest.raises(ValueError, match='999999'): make('moco').resume(f)
    with pytest.warns(UserWarning, match='trying the one before'): learn = make('moco').resume(tmp_path)
    assert fit(learn).recorder.values
    assert not Boom.called

class Boom:
    called = False
    def __reduce__(self): return (Boom.ring, ())
    @staticmethod
    def ring(): Boom.called = True

def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint'): make('moco').resume(tmp_path)
    fit(make('moco').resume(tmp_path, missing_ok=True))

def test_only_training_is_written(tmp_path):
    "lr_find and validate leave the folder as it is"
    learn = fit(make('moco', path=tmp_path, cbs=[Checkpoint(tmp_path/'c')]))
    before = {o.name:o.read_bytes() for o in checkpoints(tmp_path/'c')}
    with learn.no_bar(): learn.lr_find(num_it=10, show_plot=False); learn.validate()
    assert {o.name:o.read_bytes() for o in checkpoints(tmp_path/'c')} == before

def test_sigterm_handler_is_put_back(tmp_path):
    def mine(*_): pass
    old = signal.signal(signal.SIGTERM, mine)
    try: fit(make('moco', cbs=[Checkpoint(tmp_path)])); assert signal.getsignal(signal.SIGTERM) is mine
    finally: signal.signal(signal.SIGTERM, old)

class Leave(Callback):
    "Something happens at an event of the second epoch"
    order = 200
    def __init__(self, event, f): setattr(self, event, lambda: f() if self.learn.epoch == 1 else None)

@pytest.mark.parametrize('event,f,code', [('before_validate', lambda: signal.raise_signal(signal.SIGTERM), 128+signal.SIGTERM),
                                          ('before_epoch', lambda: sys.exit(3), 3)])
@pytest.mark.parametrize('n_acc', [1, 24])
def test_left(tmp_path, event, f, code, n_acc):
    "SIGTERM in a validation; and an end between epochs with gradients of 8 images of 24 accumulated"
    def learner(*cbs): return make('moco', cbs=[GradientAccumulation(n_acc), ParamScheduler({'eps': SchedCos(1e-5, 1e-3)}), *cbs])
    def whole(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-3)
        return plain(dict(model=learn.model.state_dict(), values=learn.recorder.values, losses=learn.recorder.losses, lrs=learn.recorder.lrs, hps=[o.hps for o in learn.cbs if isinstance(o, ParamScheduler)]))
    want = whole(learner())
    left = learner(Checkpoint(tmp_path), Leave(event, f))
    with pytest.raises(SystemExit) as e: whole(left)
    assert e.value.code == code
    left.checkpoint.finish()                # as the end of the process would
    again = learner(Steps()).resume(tmp_path)
    equal(whole(again), want); assert again.steps.n < (12 if n_acc == 1 else 4)

def test_next_fit(tmp_path):
    "A later fit's checkpoints are newer than an earlier one's, however short; another training in the folder is warned of"
    learn = make('moco', cbs=[Checkpoint(tmp_path, every=1)])
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        fit(learn, 2); fit(learn, 1)
    assert [read_checkpoint(o)['fit'] for o in checkpoints(tmp_path)] == [2,2]
    with pytest.warns(UserWarning, match='another fit'): fit(make('moco', cbs=[Checkpoint(tmp_path)]))

def test_several_fits(tmp_path):
    "fine_tune is two fits: what was over is passed by, and the second goes on"
    def whole(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-3); learn.fit_one_cycle(2, 1e-4)
        return plain(dict(model=learn.model.state_dict(), values=learn.recorder.values, lrs=learn.recorder.lrs))
    want = whole(make('moco'))
    left = make('moco', cbs=[Checkpoint(tmp_path), Leave('before_epoch', lambda: sys.exit() if left.checkpoint.n_fits == 2 else None)])
    with pytest.raises(SystemExit): whole(left)
    left.checkpoint.finish()
    again = make('moco', cbs=[Steps(), Checkpoint(tmp_path)]).resume(tmp_path)
    with pytest.warns(UserWarning, match='fit 1 was over'): equal(whole(again), want)
    assert again.steps.n == 4

def test_validate_around_a_resumed_fit(moco, tmp_path):
    "validate and get_preds have the events of a fit"
    class Validates(Callback):
        order = 50
        def after_epoch(self):
            if not self.learn.lock.locked(): set_seed(9); self.learn.validate()
    def whole(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-3)
        return plain(dict(model=learn.model.state_dict(), times=len(learn.checkpoint.times), n_steps=learn.checkpoint.n_steps))
    want = whole(make('moco', cbs=[Validates(), Checkpoint(tmp_path/'a')]))
    left = make('moco', cbs=[Validates(), Checkpoint(tmp_path/'b'), Leave('before_epoch', sys.exit)])
    with pytest.raises(SystemExit): whole(left)
    left.checkpoint.finish()
    again = make('moco', cbs=[Validates(), Checkpoint(tmp_path/'b')]).resume(tmp_path/'b')
    with again.no_bar(): again.validate()
    equal(whole(again), want)

def test_after_an_interrupt(tmp_path):
    "The learner exports without what the checkpoint held, and fits anew"
    learn = make('moco', path=tmp_path, cbs=[Checkpoint(tmp_path/'c'), Leave('before_validate', sys.exit)])
    with pytest.raises(SystemExit): fit(learn, 3)
    learn.remove_cb(Leave)
    learn.export('a.pkl')
    mb = (tmp_path/'a.pkl').stat().st_size
    learn = make('moco', path=tmp_path).resume(tmp_path/'c'); learn.export('b.pkl')
    assert (tmp_path/'b.pkl').stat().st_size < 1.1*mb < .5*checkpoints(tmp_path/'c')[-1].stat().st_size
    learn.add_cb(Leave('before_validate', sys.exit))
    with pytest.raises(SystemExit): fit(learn, 3)
    learn.remove_cb(Leave)
    assert not hasattr(learn, 'resumed')
    fit(learn); assert len(learn.recorder.values) == 1

def test_long_training(tmp_path):
    "What is recorded a step does not make a record a step"
    n = 5000
    class Long(Callback):
        def after_train(self):
            for o in (self.recorder.losses, self.recorder.lrs): o.extend(o[-1:]*n)
    learn = fit(make('moco', cbs=[Long(), Checkpoint(tmp_path)]))
    assert len(read_checkpoint(checkpoints(tmp_path)[-1])['recorder']['losses']) > n
    assert len(zipfile.ZipFile(checkpoints(tmp_path)[-1]).namelist()) < 1000

def test_scale_of_fp16(tmp_path):
    "It grows with the steps, and goes on where it was"
    class Scale(Callback):
        order = 100
        def after_train(self): self.last = self.learn.scaler.get_scale()
    def learner(*cbs): return make('sim_clr', size=32, cbs=[Scale(), *cbs]).to_fp16(init_scale=8., growth_interval=2)
    whole,left = fit(learner(), 2),learner(Checkpoint(tmp_path), Leave('before_validate', sys.exit))
    with pytest.raises(SystemExit): fit(left, 2)
    left.checkpoint.finish()
    again = fit(learner().resume(tmp_path), 2)
    assert again.scale.last == whole.scale.last > 64 and same(state(again), state(whole))

class Bars(Callback):
    "What the bars of epochs and of batches show, and when they began"
    order = 110
    def before_train(self):
        bar = self.progress.mbar.main_bar
        self.epochs = getattr(self, 'epochs', [])+[(self.epoch, bar.last_v)]
        self.began = bar.start_t
    def after_batch(self): self.batches = getattr(self, 'batches', [])+[(self.iter+1, self.progress.pbar.last_v)]

@pytest.mark.parametrize('epoch', [1,8])
def test_resume_with_a_progress_bar(tmp_path, epoch):
    "The bar of epochs goes on where it was, that of batches too, and both with the time that was spent before"
    class Leaves(Callback):
        order = 100
        def after_batch(self):
            if self.training and (self.epoch,self.iter) == (epoch,6): raise SystemExit
    dls = lambda: make_dls(n=120)
    left = make('moco', dls(), cbs=[Checkpoint(tmp_path, every=1), Leaves()])
    with pytest.raises(SystemExit): fit(left, epoch+2)
    left.checkpoint.finish()
    state = read_checkpoint(checkpoints(tmp_path)[-1])
    write_checkpoint(dict(state, times=[100.]*epoch, elapsed=14.), tmp_path/'later.ckpt')
    again,start = make('moco', dls(), cbs=[Bars()]).resume(tmp_path/'later.ckpt'),time.time()
    with contextlib.redirect_stdout(io.StringIO()) as out: again.fit(epoch+2, 1e-3)
    bars = again.bars
    assert bars.epochs == [(epoch,epoch),(epoch+1,epoch+1)] and bars.batches[0] == (8,8)
    assert abs(start-bars.began-100*epoch-14) < 5 and '01:40' in out.getvalue()
    assert len(again.recorder.values) == epoch+2

def test_resume_twice(moco):
    learn = make('moco').resume(moco).resume(moco)
    assert len(fit(learn).recorder.values) == 1 and not hasattr(learn, 'resumed')

def test_not_exact_with_as_many(moco):
    "As when a job that was restarted on other processes is restarted once more: exactly, with the batch of the checkpoint"
    learn = fit(make('moco', make_dls(bs=4)).resume(checkpoints(moco)[0], exact=False))
    assert learn.dls.train.bs == 8 and same(state(learn), read_checkpoint(checkpoints(moco)[-1])['model'])

def test_finished(moco):
    "A fit that was over is not run again"
    learn = make('moco').resume(moco); before = None
    learn = fit(learn); before = state(learn)
    assert len(learn.recorder.values) == 1
    assert same(before, read_checkpoint(checkpoints(moco)[-1])['model'])
    fit(learn); assert not same(before, state(learn))           # the next fit is a new one

def test_best_is_kept(tmp_path):
    "SaveModelCallback's best figure survives, so that a worse model does not replace a better one"
    learn = make('moco', path=tmp_path, cbs=[SaveModelCallback(), Checkpoint(tmp_path/'c')]); fit(learn, 2)
    best = learn.save_model.best
    again = make('moco', path=tmp_path, cbs=[SaveModelCallback()]).resume(tmp_path/'c'); fit(again, 2)
    assert again.save_model.best == best

@pytest.mark.parametrize('kw', [dict(every=0), dict(keep=0), dict(epochs=-1)])
def test_bad_arguments(tmp_path, kw):
    with pytest.raises(ValueError, match=list(kw)[0]): Checkpoint(tmp_path, **kw)

if __name__ == '__main__': globals()[sys.argv[1]](*sys.argv[2:])
