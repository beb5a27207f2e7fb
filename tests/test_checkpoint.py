"Processes are killed, disks are full, files are torn: training goes on exactly, or says why not."
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest, torch
from fastai.vision.all import Callback, SaveModelCallback, set_seed
from self_supervised.checkpoint import Checkpoint, checkpoints, plain, read_checkpoint, write_checkpoint
from test_methods import METHODS, fit, make, make_dls, same, state

# a process of one thread forks one child for each run, so that torch is imported once

class Tell(Callback):
    "Write a byte after each training batch, by which the parent knows when to kill"
    order,run_valid = 100,False
    def __init__(self, fd): self.fd = fd
    def after_batch(self): os.write(self.fd, b'.')

def train(name, path, epochs=2, every=1, resume=False, cbs=(), n=45):
    set_seed(0)                             # a fork seeds Python's random numbers anew
    learn = make(name, make_dls(n=n), path=path, cbs=[*cbs, *([Checkpoint(path/name, every=every)] if every else [])])
    if resume: learn.resume(path/name, missing_ok=True)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-3)
    r = learn.recorder
    return plain(dict(model=learn.model.state_dict(), values=r.values, losses=r.losses, lrs=r.lrs, iters=r.iters, hps=r.hps))

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
    while n > 0 or not checkpoints(folder): n -= os.read(r, 1) == b'.'; time.sleep(.001)
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

def kill(path, *names):
    torch.set_num_threads(1); path = Path(path)
    for i,name in enumerate(names):
        want = finish(lambda w: train(name, path, every=None), path/f'{name}.pth')
        kill_after(lambda w: train(name, path, every=2, cbs=[Tell(w)]), 5+i%3, path/name)
        equal(finish(lambda w: train(name, path, every=2, resume=True), path/f'{name}.pth'), want, name)
        print(name, 'goes on exactly')

def soak(path, n=50, seed=0):
    "`n` kills at random moments, many of them while a checkpoint is written"
    torch.set_num_threads(1); path,name,rng = Path(path),'moco',random.Random(int(seed))
    kw = dict(epochs=40, n=61)
    want = finish(lambda w: train(name, path, every=None, **kw), path/'want.pth')
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
    equal(finish(lambda w: train(name, path, resume=True, **kw), path/'last.pth'), want)
    print(f'{n} kills, {torn} while writing: as uninterrupted')

def terminate(path):
    torch.set_num_threads(1); path = Path(path)
    pid,r = child(lambda w: train('moco', path, every=None, epochs=50, cbs=[Checkpoint(path/'moco', epochs=0), Tell(w)]))
    for _ in range(3): os.read(r, 1)
    os.kill(pid, signal.SIGTERM)
    assert status(pid) == 128+signal.SIGTERM and len(checkpoints(path/'moco')) == 1

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

def run(*args, n=1):
    return subprocess.Popen([sys.executable, __file__, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})

def done(p):
    out,err = p.communicate()
    assert p.returncode == 0, out+err[-3000:]
    return out

def test_killed(tmp_path):
    "kill -9 in the middle of an epoch, for every method"
    names = list(METHODS)
    for o in [done(p) for p in [run('kill', tmp_path, *names[i::2]) for i in (0,1)]]: assert o.count('goes on exactly') == len(names)//2

def test_sigterm(tmp_path): done(run('terminate', tmp_path))
def test_full_disk(tmp_path): assert 'free some space' in done(run('full_disk', tmp_path))

@pytest.fixture(scope='module')
def moco(tmp_path_factory):
    path = tmp_path_factory.mktemp('ck')
    fit(make('moco', cbs=[Checkpoint(path, keep=2, every=2)]))
    return path

def test_keeps_the_last(moco): assert len(checkpoints(moco)) == 2

@pytest.mark.parametrize('change,msg', [(dict(K=32), 'K'), (dict(name='sup_con_moco'), 'method'), (dict(arch='resnet14t'), 'architecture')])
def test_another_learner(moco, change, msg):
    name,arch = change.pop('name', 'moco'),change.pop('arch', 'resnet10t')
    from self_supervised.vision.all import create_encoder
    learn = make(name, model=METHODS[name][1](create_encoder(arch, False)), **change); before = state(learn)
    with pytest.raises(ValueError, match=msg): learn.resume(moco)
    assert same(before, state(learn)) and not hasattr(learn, 'resumed')

@pytest.mark.parametrize('key,value,msg', [('ssl_checkpoint', 99, 'version 99'), ('processes', 4, 'processes 4')])
def test_another_version_or_world(moco, tmp_path, key, value, msg):
    s = read_checkpoint(checkpoints(moco)[-1])
    (s if key in s else s['meta'])[key] = value
    write_checkpoint(s, tmp_path/'a.ckpt')
    with pytest.raises(ValueError, match=msg): make('moco').resume(tmp_path/'a.ckpt')

def test_another_fit(moco):
    learn = make('moco').resume(moco)
    with pytest.raises(ValueError, match='fit of 1 epochs of 4 batches, this one has 3'): fit(learn, 3)

@pytest.mark.parametrize('damage', ['cut','half','foreign','pickle','empty'])
def test_damaged_files(moco, tmp_path, damage):
    "Refused by name, passed over in a folder, and no code of theirs is run"
    for o in checkpoints(moco): (tmp_path/o.name).write_bytes(o.read_bytes())
    f = tmp_path/'999999999-9.ckpt'; raw = checkpoints(moco)[-1].read_bytes()
    if damage == 'cut': f.write_bytes(raw[:-100])
    if damage == 'half': f.write_bytes(raw[:len(raw)//2])
    if damage == 'foreign': torch.save({'model':{}}, f)
    if damage == 'pickle': torch.save(Boom(), f)
    if damage == 'empty': f.write_bytes(b'')
    with pytest.raises(ValueError, match='999999999'): make('moco').resume(f)
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

def test_resume_twice(moco):
    learn = make('moco').resume(moco).resume(moco)
    assert len(fit(learn).recorder.values) == 1 and not hasattr(learn, 'resumed')

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
