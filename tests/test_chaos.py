"""One learner through random sequences of what people do in a notebook; after every step it is as clean as a fresh one.

`make chaos` runs 300 sequences, `make test` 15."""
import contextlib
import copy
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import pytest, torch
from PIL import Image
from torch import nn
from fastai.vision.all import Callback, GradientAccumulation, L, Learner, get_model, load_learner, noop, set_seed
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from self_supervised.callback import FitCallback, SSLCallback
from self_supervised.fit import kept
from self_supervised.training.checkpoint import Checkpoint, checkpoints, only_writer, read_checkpoint
from self_supervised.vision import all as ssl
from self_supervised.training.big_batches import Chunks
from self_supervised.vision.all import KNN, folder_dls, model_splitter
from test_interrupts import EVENTS, Raises, hooks
from kit import KINDS, METHODS, TEACHER, image, make_dls, same, state, text, tokens

class Encoder(nn.Module):
    "Small and quick, without statistics of a batch"
    nf = 8
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.LayerNorm(8))
    def forward(self, x): return self.f(x)

ALIKE = 'sim_clr','sup_con','moco','sup_con_moco','barlow_twins','vic_reg','simple'       # one model serves them all
@cache
def folder():
    "Files of images in folders of their classes, for a cache"
    path = Path(tempfile.mkdtemp())
    for i in range(36):
        file = path/'images'/KINDS[i%3]/f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image(i).permute(1, 2, 0)*255).byte().numpy()).save(file)
    return path
def cached_dls(n_inp):
    texts = dict(texts=lambda f: text(int(f.stem)), tokens=tokens) if n_inp == 2 else {}
    return folder_dls(folder()/'images', 24, labels='parent', bs=8, cache=folder()/'cache', valid=.3, num_workers=0, **texts)
EXCS = KeyboardInterrupt,RuntimeError,SystemExit
class Simple(SSLCallback):
    def lf(self, pred, *yb): return ssl.nt_xent(pred)
def method(name):
    if name == 'simple': return Simple(ssl.get_simclr_aug_pipelines(12))
    cb,_,augs,args = METHODS[name]
    return cb(augs(12), **args)
def own_loss(pred, *yb): return sum(o.square().mean() for o in L(pred))

class Notebook(RuleBasedStateMachine):
    @initialize(name=st.sampled_from([*METHODS,'simple']), seed=st.integers(0, 9), cached=st.booleans())
    def start(self, name, seed, cached):
        self.dir,self.name,self.cached = Path(tempfile.mkdtemp()),name,cached
        self.names = ALIKE if name in ALIKE else (name,)
        self.handlers = {s:signal.getsignal(s) for s in (signal.SIGTERM,signal.SIGINT,signal.SIGCHLD)}
        self.learn,self.saved,self.finished,self.wreck = self.new(seed),None,None,False
        self.learn.add_cb(method(name))

    def new(self, seed=0):
        set_seed(seed)
        o = METHODS.get(self.name, METHODS['sim_clr'])
        model = ssl.create_projection_model(Encoder(), 16, 8) if self.name in ALIKE else o.model(Encoder())
        dls = cached_dls(o.cb.n_inp) if self.cached else make_dls(n=36, n_inp=o.cb.n_inp)
        return Learner(dls, model, loss_func=own_loss, splitter=model_splitter, path=self.dir, metrics=KNN())

    def has(self, cb): return bool(self.learn._grab_cbs(cb))
    def quietly(self, f, *cbs):
        with contextlib.redirect_stdout(io.StringIO()), self.learn.no_bar(): return f()

    def do(self, f, event, exc, n):
        "`f`, with an interrupt if `exc`; gives whether it went through"
        cb = Raises(event, exc=exc, n=n) if exc else Callback()
        self.learn.add_cb(cb)
        try: self.quietly(f)
        except BaseException as e:
            if not exc or not isinstance(e, exc) or 'stop' not in str(e): raise
            self.wreck = not self.has(FitCallback)                 # of a plain learner fastai keeps the batch that failed
            return False
        finally: self.learn.remove_cb(cb)
        self.wreck = False
        return True

    interrupts = dict(event=st.sampled_from(EVENTS), exc=st.sampled_from((None,)+EXCS), n=st.integers(1, 4))

    @rule(epochs=st.integers(1, 2), one_cycle=st.booleans(), **interrupts)
    def fit(self, epochs, one_cycle, event, exc, n):
        self.finished = None
        f = self.learn.fit_one_cycle if one_cycle else self.learn.fit
        if self.do(lambda: f(epochs, 1e-3), event, exc, n) and self.has(Checkpoint):
            self.finished = (epochs,one_cycle)
            assert read_checkpoint(checkpoints(self.dir/'c')[-1])['epoch'] == epochs
        if self.has(SSLCallback): assert set(kept(self.learn.model).values()) <= {o.name for o in self.learn._grab_cbs(SSLCallback)}

    @rule(**interrupts)
    def lr_find(self, event, exc, n):
        before = state(self.learn)
        self.do(lambda: self.learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None), event, exc, n)
        after = state(self.learn)
        assert all(torch.equal(v, after[k]) for k,v in before.items() if k in after)

    @rule(**interrupts)
    def validate(self, event, exc, n):
        before = state(self.learn)
        self.do(self.learn.validate, event, exc, n)
        after = state(self.learn)
        assert all(torch.equal(v, after[k]) for k,v in before.items() if k in after)

    @rule(data=st.data())
    def add_or_refuse(self, data):
        n,name = len(self.learn.cbs),data.draw(st.sampled_from(self.names))
        if not self.has(SSLCallback): self.learn.add_cb(method(name)); self.finished = None
        else:
            old = self.learn._grab_cbs(SSLCallback)[0]
            self.learn.add_cb(method(name))
            with pytest.raises(ValueError, match='replace it'): self.learn.fit(1)
            self.learn.remove_cb(SSLCallback).add_cb(old); self.finished = None
            assert len(self.learn.cbs) == n

    @rule(data=st.data())
    def replace(self, data):
        self.learn.remove_cb(SSLCallback).add_cb(method(data.draw(st.sampled_from(self.names)))); self.finished = None

    @rule()
    def remove_method(self): self.learn.remove_cb(SSLCallback); self.finished = None

    @rule(size=st.integers(2, 9))
    def chunks(self, size): self.learn.remove_cb(Chunks) if self.has(Chunks) else self.learn.add_cb(Chunks(size))

    @rule()
    def accumulate(self):
        cb = GradientAccumulation
        self.learn.remove_cb(cb) if self.has(cb) else self.learn.add_cb(cb(16))
        self.finished = None
    @rule(on=st.booleans())
    def train_metrics(self, on): self.learn.recorder.train_metrics = on
    @rule(n=st.integers(0, 1))
    def workers(self, n):
        for dl in self.learn.dls.loaders: dl.fake_l.num_workers = n

    @rule(to=st.sampled_from(['to_bf16','to_fp32']))
    def precision(self, to): getattr(self.learn, to)()

    @rule(every=st.sampled_from([None,1,2]))
    def checkpoint(self, every):
        if self.has(Checkpoint): self.learn.remove_cb(Checkpoint)
        else: self.learn.add_cb(Checkpoint(self.dir/'c', every=every))
        self.finished = None

    @rule(to=st.sampled_from(['freeze','unfreeze']))
    def groups(self, to): getattr(self.learn, to)(); self.finished = None

    @rule()
    def save(self): self.learn.save('m'); self.saved = list(state(self.learn))
    @precondition(lambda self: self.saved and self.saved == list(state(self.learn)))
    @rule()
    def load(self): self.learn.load('m')

    @rule(training_state=st.booleans())
    def export(self, training_state):
        before = state(self.learn)
        self.learn.export('e.pkl', training_state=training_state)
        assert same(before, state(self.learn))
        again = load_learner(self.dir/'e.pkl'); again.dls = self.learn.dls
        if hasattr(again, 'distill'): again.distill.teacher = TEACHER
        again.remove_cb(Checkpoint)
        assert again.loss_func is own_loss or again.loss_func.__name__ == 'own_loss'
        with contextlib.redirect_stdout(io.StringIO()), again.no_bar(): again.fit(1, 1e-3)

    @precondition(lambda self: not self.wreck)
    @rule()
    def copied(self):
        before,twin = state(self.learn),copy.deepcopy(self.learn)
        twin.remove_cb(Checkpoint)
        with contextlib.redirect_stdout(io.StringIO()), twin.no_bar(): twin.fit(1, 1e-3)
        assert same(before, state(self.learn))

    @precondition(lambda self: self.finished and self.has(SSLCallback))
    @rule()
    def resume(self):
        "In a new process: the fit that ended is not trained again, and the weights are those that it ended with"
        (epochs,one_cycle),want = self.finished,read_checkpoint(checkpoints(self.dir/'c')[-1])
        name = self.learn._grab_cbs(SSLCallback)[0].name
        again = self.new(); again.add_cb(method(name))
        if want['plan']['frozen']: again.freeze()
        if self.learn.opt.frozen_idx == 0 and again.opt: again.unfreeze()
        again.resume(self.dir/'c')
        for _ in range(want['fit']):
            if not hasattr(again, 'resumed'): break
            try:
                with contextlib.redirect_stdout(io.StringIO()), again.no_bar(): (again.fit_one_cycle if one_cycle else again.fit)(epochs, 1e-3)
            except ValueError as e:
                assert 'another fit' in str(e); break
        assert same(state(again), want['model'])

    # what holds after every step

    @invariant()
    def clean(self):
        if not hasattr(self, 'learn'): return
        learn,model = self.learn,self.learn.model
        assert learn.loss_func is own_loss and learn.metrics.attrgot('name') == ['knn']
        assert type(model) is type(get_model(model)) and hooks(model) == 0
        assert not any('forward' in vars(m) or m._compiled_call_impl for m in model.modules())
        assert not torch.is_autocast_enabled('cpu') and torch.is_grad_enabled()
        assert {s:signal.getsignal(s) for s in self.handlers} == self.handlers
        assert not learn.lock.locked() and learn.logger is print and not learn._grab_cbs(Raises)
        assert not list((self.dir/'models').glob('tmp*')) and not list((self.dir/'c').glob('.*.tmp'))
        if (self.dir/'c').exists():
            with only_writer(self.dir/'c', wait=0): pass
        assert not any(p.grad is not None and p.grad.any() for p in model.parameters())

    @invariant()
    def teacher(self):
        if not hasattr(self, 'learn') or not hasattr(self.learn.model, 'encoder_k'): return
        ps,listed = list(self.learn.model.encoder_k.parameters()),{id(p) for pl in (self.learn.opt.param_lists if self.learn.opt else []) for p in pl}
        assert not any(p.requires_grad or id(p) in listed for p in ps)
        assert {p.device for p in ps} == {next(self.learn.model.encoder.parameters()).device}

    def teardown(self):
        if hasattr(self, 'dir'): shutil.rmtree(self.dir)

def chaos(n, **kw):
    list(torch.utils.data.DataLoader([0], num_workers=1))             # torch's handler of SIGCHLD stays from its first worker on
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run_state_machine_as_test(Notebook, settings=settings(max_examples=int(n), stateful_step_count=20, deadline=None,
                                  suppress_health_check=list(HealthCheck), print_blob=True, **kw))

def test_chaos(): chaos(15, derandomize=True, database=None)

if __name__ == '__main__':
    chaos(sys.argv[1])
    print(f"{sys.argv[1]} sequences, all clean")
