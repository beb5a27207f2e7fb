"Workers and nodes are taken away: the training goes on exactly, or on another number of processes."
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest, torch, warm
import torch.distributed as dist
from fastai.vision.all import Callback, rank_distrib
from self_supervised.training.checkpoint import Checkpoint, checkpoints, of_epochs, plain
from self_supervised.training.distributed import DistributedDL
from self_supervised.vision.all import KNN, get_model
from test_distributed import learner

class Killed(Callback):
    "The second process dies in the middle of the second epoch, with its first starter"
    order = 100
    def after_batch(self):
        if self.training and rank_distrib() and (self.epoch,self.iter) == (1,1): os.kill(os.getpid(), signal.SIGKILL)

class Slow(Callback):
    "Time to be signalled in, in the training of the second epoch"
    order = 100
    def __init__(self, path): self.path = path
    def after_batch(self):
        if self.epoch and self.training: (self.path/f'slow-{rank_distrib()}').touch(); time.sleep(.5)

def go_on(path, what, resume='', epochs='3'):
    from accelerate import Accelerator
    Accelerator(cpu=True)                                  # so that `learner` divides its images as `test_distributed` does
    path,learn = Path(path),learner('moco', metrics=[KNN(k=3)])
    if what == 'three': learn.dls.loaders[0] = DistributedDL(learn.dls.train.dl)
    folder = path/(resume or what)
    if what != 'whole': learn.add_cb(Checkpoint(folder, every=1))
    if what == 'slow' and not checkpoints(folder): learn.add_cb(Slow(path))
    if what == 'restarted' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': learn.add_cb(Killed())
    if what == 'soak': (path/f'pid-{rank_distrib()}').write_text(str(os.getpid()))
    with learn.distrib_ctx(sync_bn=False, cpu=True), learn.no_bar(), learn.no_logging():
        learn.resume(folder, missing_ok=True, exact=not resume)
        learn.fit_one_cycle(int(epochs), .02)
    (path/'result').mkdir(exist_ok=True)
    torch.save(summary(learn), path/'result'/f'{what}-{rank_distrib()}')

def summary(learn):
    r = learn.recorder
    return plain(dict(values=r.values, lrs=r.lrs, state=get_model(learn.model).state_dict()))

def result(path, name): return torch.load(path/'result'/name, weights_only=True)

def assert_same(a, b):
    assert a['values'] == b['values'] and a['lrs'] == b['lrs']
    for k,v in a['state'].items(): assert torch.equal(v, b['state'][k]), k

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The uninterrupted training, by two processes"
    path = tmp_path_factory.mktemp('whole')
    warm.group(go_on, path, 'whole')
    return path

def elastic(restarts, f, *args):
    "Two processes under torchrun's agent, forked as those of a group are"
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    config = LaunchConfig(1, 1, 2, run_id='tests', rdzv_backend='c10d', rdzv_endpoint='localhost:0', max_restarts=restarts, start_method='fork')
    elastic_launch(config, f)(*args)

def test_restarted(whole, tmp_path):
    "torchrun ends the others and starts all of them again; here its agent has a function to start"
    warm.run(elastic, 1, go_on, tmp_path, 'restarted', TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')
    for r in (0,1): assert_same(result(tmp_path, f'restarted-{r}'), result(whole, f'whole-{r}'))

# a node is taken away: SLURM's commands are stand-ins, its job file, torchrun and the training are not

def stand_in(folder, name, text):
    (folder/name).write_text(f'#!/bin/bash\n{text}\n'); (folder/name).chmod(0o755)

@pytest.fixture(scope='module')
def preempted(tmp_path_factory):
    "The folder of a job that was ended in the second epoch"
    path = tmp_path_factory.mktemp('preempted')
    bin = path/'bin'; bin.mkdir()
    stand_in(bin, 'srun', f'echo $$ > {path}/step; exec "$@"')
    stand_in(bin, 'scancel', f'p=$(cat {path}/step); pkill -TERM -P $p; kill -TERM $p')
    stand_in(bin, 'scontrol', f'if [ $1 = show ]; then echo localhost; else touch {path}/requeued; fi')
    port = random.randint(20000, 60000)
    job = path/'job'; job.write_text((Path(__file__).parent.parent/'examples/job.slurm').read_text().replace('29500', str(port)))
    env = {**os.environ, 'PATH':f"{bin}:{Path(sys.executable).parent}:{os.environ['PATH']}", 'OMP_NUM_THREADS':'1', 'SLURM_JOB_ID':'7',
           'SLURM_NNODES':'1', 'SLURM_GPUS_ON_NODE':'2', 'SLURM_JOB_NODELIST':'n1'}
    log = path/'log'
    with open(log, 'w') as f: p = subprocess.Popen(['bash',str(job),__file__,'go_on',str(path),'slow'], env=env, stdout=f, stderr=f)
    until(lambda: all((path/f'slow-{r}').exists() for r in (0,1)), p, log)
    t = time.time(); p.send_signal(signal.SIGTERM)
    assert p.wait(60) == 143 and time.time()-t < 30 and (path/'requeued').exists(), log.read_text()
    files = checkpoints(path/'slow')
    assert files[-1].stem.split('-')[1] in ('epoch1','epoch2') and not (path/'result').exists()
    assert of_epochs(files) and len(files) in (2,3)           # that of the last finished epoch is kept, whatever follows it
    shutil.copytree(path/'slow', path/'left')
    return path

def test_preempted(whole, preempted):
    "The job's second start does what its first one began"
    warm.group(go_on, preempted, 'slow')
    for r in (0,1): assert_same(result(preempted, f'slow-{r}'), result(whole, f'whole-{r}'))

def with_one(path, **kw):
    learn = learner('moco', metrics=[KNN(k=3)])            # one process gives the batches of two, in halves unless `resume` mends that
    learn.dls.train.bs = 4
    learn.resume(path, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, .02)
    return learn

def test_with_one_process(whole, preempted):
    left = preempted/'left'
    with pytest.raises(ValueError, match='processes 2 there, 1 here(.|\n)*exact=False'): with_one(left)
    with pytest.warns(UserWarning, match='written by 2 processes, and 1 go on, with batches of 8 images') as w: learn = with_one(left, exact=False)
    assert sum('go on' in str(o.message) for o in w) == 1 and learn.dls.train.bs == 8
    one,two = summary(learn),result(whole, 'whole-0')
    assert one['values'][0] == two['values'][0] and one['lrs'] == two['lrs']
    for a,b in zip(one['values'], two['values']):                 # but valid_loss: validation has other batches
        assert a[:1]+a[2:] == pytest.approx(b[:1]+b[2:], rel=1e-5, abs=1e-5)
    for k,v in two['state'].items(): torch.testing.assert_close(one['state'][k], v, rtol=0, atol=1e-5, msg=lambda m: f'{k}: {m}')

def test_with_three_processes(whole, preempted, tmp_path):
    shutil.copytree(preempted/'left', tmp_path/'left')
    warm.group(go_on, tmp_path, 'three', 'left', n=3)
    a,b,c,two = *(result(tmp_path, f'three-{r}') for r in range(3)),result(whole, 'whole-0')
    assert a['lrs'] == pytest.approx(two['lrs']) and a['values'][0] == two['values'][0] and len(a['values']) == 3
    for k,v in a['state'].items():
        assert torch.equal(v, b['state'][k]) and torch.equal(v, c['state'][k]), k
        if v.is_floating_point(): assert v.isfinite().all(), k

def test_no_finished_epoch(preempted, tmp_path):
    "Then there is nothing that another number of processes could go on from"
    for f in checkpoints(preempted/'left'):
        if f not in of_epochs([f]): shutil.copy(f, tmp_path)
    with pytest.raises(ValueError, match='finished epoch'): learner('moco').resume(tmp_path, exact=False)

def until(f, p, log, seconds=90):
    end = time.time()+seconds
    while not f():
        assert time.time() < end and p.poll() is None, log.read_text()
        time.sleep(.05)

def soak(path, n=20, seed=0):
    "`n` kills of one of two workers at random moments"
    path,rng = Path(path),random.Random(int(seed))
    warm.group(go_on, path, 'whole', '', 200)
    p = warm.Process(elastic, int(n)+5, go_on, path, 'soak', '', '200', TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')
    pids = path/'pid-0',path/'pid-1'
    for i in range(int(n)):
        p.until(lambda: all(o.exists() for o in pids))
        time.sleep(rng.uniform(0, 4))
        who = rng.randrange(2); pid = int(pids[who].read_text())
        for o in pids: o.unlink()
        os.kill(pid, signal.SIGKILL)
        last = checkpoints(path/'soak')
        print(f"kill {i+1}, of worker {who}: {last[-1].stem if last else 'before the first checkpoint'}", flush=True)
    p.done()
    for r in (0,1): assert_same(result(path, f'soak-{r}'), result(path, f'whole-{r}'))
    print(f'{n} kills of one worker: as uninterrupted')

if __name__ == '__main__':
    globals()[sys.argv[1]](*sys.argv[2:])
    if dist.is_initialized(): dist.destroy_process_group()
