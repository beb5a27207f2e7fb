"What a fit sets up is undone whatever ends it, and what was interrupted can be run again, replaced, saved and resumed."
import copy
import os
import signal
import pytest, torch, warm
from fastai.vision.all import Callback, CancelFitException, SaveModelCallback, load_learner, noop
from self_supervised.fit import kept
from self_supervised.training.checkpoint import Checkpoint, checkpoints, only_writer, read_checkpoint
from self_supervised.training.big_batches import Chunks
from self_supervised.vision.all import KNN, create_encoder, get_model
from kit import METHODS, each, fit, make, make_dls, same, state

class Raises(Callback):
    "An exception at an event, at its n-th time"
    def __init__(self, event='after_backward', exc=KeyboardInterrupt, n=1, order=200):
        self.order,self.exc,self.left = order,exc,n
        setattr(self, event, self.happen)
    def happen(self):
        self.left -= 1
        if self.left == 0: raise self.exc('stop')

def interrupted(learn, *args, how=lambda learn: fit(learn, 2), exc=KeyboardInterrupt, **kw):
    cb = Raises(*args, exc=exc, **kw); learn.add_cb(cb)
    try:
        with learn.no_bar(), learn.no_logging(), pytest.raises(exc): how(learn)
    finally: learn.remove_cb(cb)
    return learn

def hooks(model): return sum(len(getattr(m, h)) for m in model.modules() for h in ('_forward_hooks','_forward_pre_hooks','_backward_hooks'))

def assert_clean(learn, loss_func, metrics=()):
    "As a learner that was never fitted"
    assert learn.loss_func is loss_func and list(learn.metrics.attrgot('name')) == list(metrics)
    assert hooks(learn.model) == 0 and not any('forward' in vars(m) or m._compiled_call_impl for m in learn.model.modules())
    assert not any(torch.is_autocast_enabled(o) for o in ('cpu','cuda'))
    assert not any(p.grad is not None and p.grad.any() for p in learn.model.parameters())
    assert not learn.lock.locked() and learn.pred is None and learn.loss is None and type(learn.model) is type(get_model(learn.model))

EVENTS = ['before_fit','before_train','before_batch','after_pred','after_loss','after_backward','before_step','after_step','after_batch','before_validate','after_epoch','after_fit']

@pytest.mark.parametrize('event,exc', [*((o, KeyboardInterrupt) for o in EVENTS), *((o, ValueError) for o in ('before_fit','after_loss','before_validate','after_fit'))])
def test_anywhere(event, exc, tmp_path):
    "Point 6: with all that sets something up, whichever event it happens at"
    handlers = signal.getsignal(signal.SIGTERM),signal.getsignal(signal.SIGCHLD)
    own = lambda *a: 0.
    learn = make('vic_reg', size=24, loss_func=own, path=tmp_path, cbs=[Chunks(3), Checkpoint(tmp_path/'c', every=1)]).to_bf16()
    interrupted(learn, event, exc=exc)
    assert_clean(learn, own)
    assert (signal.getsignal(signal.SIGTERM),signal.getsignal(signal.SIGCHLD)) == handlers
    with only_writer(tmp_path/'c', wait=0): pass
    learn.to_fp32(); copy.deepcopy(learn); learn.export('a.pkl')
    fit(learn); assert len(learn.recorder.values) == 1
    assert_clean(learn, own)

@pytest.mark.parametrize('name,how', [*((o, 'fit') for o in METHODS), *((o, how) for o in ('sim_clr','moco','dino') for how in ('validate','lr_find'))])
def test_each_method(name, how, tmp_path):
    calls = dict(fit=lambda l: fit(l, 2), validate=lambda l: l.validate(), lr_find=lambda l: l.lr_find(num_it=8, show_plot=False))
    own = lambda *a: 0.
    learn = make(name, loss_func=own, path=tmp_path)
    before = state(learn)
    interrupted(learn, 'after_loss', how=calls[how], n=2)
    assert_clean(learn, own)
    if how != 'fit': assert same(before, state(learn))                     # lr_find puts the weights back, too
    with learn.no_bar(), learn.no_logging(): learn.validate()
    fit(learn); assert_clean(learn, own)
    copy.deepcopy(learn); learn.export('a.pkl')

def test_another_method_on_the_same_model(tmp_path):
    "Point 6 and 7: nothing of the first is left, and what happens to its state is said"
    learn = interrupted(make('moco', path=tmp_path))
    learn.remove_cb(learn.moco)
    assert set(kept(learn.model)) == {'encoder_k','queue'}
    cb,_,augs,args = METHODS['sup_con']
    with pytest.warns(UserWarning, match=r'what moco kept there is dropped \(encoder_k, queue\)'): fit(learn.add_cb(cb(augs(16), **args)))
    assert not hasattr(learn.model, 'encoder_k') and not hasattr(learn.model, 'queue')

def test_the_same_method_again_goes_on():
    learn = fit(make('moco'))
    queue = learn.model.queue
    cb,_,augs,args = METHODS['moco']
    learn.remove_cb(learn.moco).add_cb(cb(augs(16), **args)); fit(learn)
    assert learn.model.queue is queue

@pytest.mark.parametrize('second', ['sim_clr','moco'])
def test_a_second_method_is_refused(second):
    learn = make('sim_clr'); n = len(learn.cbs)
    cb,_,augs,args = METHODS[second]
    new = cb(augs(16), **args)
    learn.add_cb(new)
    with pytest.raises(ValueError, match=r'remove_cb\(SimCLR\)'): fit(learn)
    fit(learn.remove_cb(new))
    assert len(learn.cbs) == n

def test_lr_find_interrupted_then_checkpoints(tmp_path):
    "Point 5"
    learn = make('moco', path=tmp_path, cbs=[Checkpoint(tmp_path/'c'), SaveModelCallback()])
    before = state(learn)
    interrupted(learn, how=lambda l: l.lr_find(num_it=20, show_plot=False), n=3)
    assert same(before, state(learn)) and not list((tmp_path/'models').glob('tmp*'))
    fit(learn)
    assert len(checkpoints(tmp_path/'c')) == 1 and (tmp_path/'models'/'model.pth').exists()

def straight(n=2, **kw):
    learn = make('moco', **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, 1e-3)
    return learn

def test_resume_survives_lr_find(tmp_path):
    want = straight()
    first = make('moco', cbs=[Checkpoint(tmp_path)])
    interrupted(first, 'before_epoch', n=2, how=lambda l: l.fit_one_cycle(2, 1e-3))
    again = make('moco', path=tmp_path).resume(tmp_path)
    with again.no_bar(): again.lr_find(num_it=4, show_plot=False)
    with again.no_bar(), again.no_logging(): again.fit_one_cycle(2, 1e-3)
    assert again.recorder.values == want.recorder.values and same(state(again), state(want))

def test_interrupted_run_again_and_resumed(tmp_path):
    "Point 4: Ctrl-C, the same cell, the machine is lost; a new process goes on with the second try"
    learn = make('moco', cbs=[Checkpoint(tmp_path, every=1)])
    interrupted(learn, n=3)
    interrupted(learn, 'before_epoch', n=2, exc=SystemExit)                 # as if the machine were lost
    again = make('moco', cbs=[Checkpoint(tmp_path)]).resume(tmp_path)
    weights,epoch = state(again),read_checkpoint(checkpoints(tmp_path)[-1])['epoch']
    class Epochs(Callback):
        def before_fit(self): self.seen = []
        def before_train(self): self.seen.append(self.learn.epoch)
    again.add_cb(Epochs()); fit(again, 2)
    assert again.epochs.seen == list(range(epoch, 2)) and len(again.recorder.values) == 2
    assert not same(weights, state(again))

def test_what_is_resumed_is_known_by_what_it_is(tmp_path):
    "In a notebook only the last of several cells is run again; a fit of another rate is none of them"
    def first(learn): learn.fit_one_cycle(1, 1e-3)
    def second(learn): learn.fit_one_cycle(2, 1e-4)
    learn = make('moco', cbs=[Checkpoint(tmp_path)])
    with learn.no_bar(), learn.no_logging(): first(learn)
    interrupted(learn, 'before_epoch', n=2, how=second)
    def go(f):
        again = make('moco').resume(tmp_path)
        with again.no_bar(), again.no_logging(): f(again)
        return again
    def both(learn): first(learn); second(learn)
    with pytest.warns(UserWarning, match='fit 1 was over'): want = go(both)
    assert same(state(go(second)), state(want))
    with pytest.raises(ValueError, match='schedule'): go(lambda learn: learn.fit_one_cycle(2, 1e-2))

def test_zero_epochs_never_leave_initial_weights(tmp_path):
    "A fit that was over is passed by, but the weights are those of the checkpoint"
    learn = make('moco', cbs=[Checkpoint(tmp_path)]); fit(learn)
    interrupted(learn, 'before_epoch', n=2)
    again = make('moco').resume(tmp_path)
    assert same(state(again), read_checkpoint(checkpoints(tmp_path)[-1])['model'])

def test_start_epoch(tmp_path):
    "Point 8"
    learn = make('moco', cbs=[Checkpoint(tmp_path)])
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-3, start_epoch=1)
    assert [read_checkpoint(o)['epoch'] for o in checkpoints(tmp_path)] == [2,3]
    again = make('moco').resume(tmp_path)
    with again.no_bar(), again.no_logging(): again.fit(3, 1e-3, start_epoch=1)
    assert same(state(again), state(learn))

def interrupted_then_ended(folder):
    interrupted(make('moco', cbs=[Checkpoint(folder)]))
    signal.raise_signal(signal.SIGTERM)
    print('still here', flush=True)

def test_sigterm_ends_the_process_again(tmp_path):
    "Point 6: after Ctrl-C in a fit with checkpoints SIGTERM does what it did before"
    p = warm.Process(interrupted_then_ended, tmp_path)
    assert p.wait() == -signal.SIGTERM and 'still here' not in p.out, p.err

def test_gradients_of_an_interrupt_do_not_reach_the_next_fit():
    a,b = make('sim_clr'),make('sim_clr')
    interrupted(a, 'after_backward')
    b.model.load_state_dict(a.model.state_dict())
    for o in (a,b):
        for p in o.model.parameters(): assert p.grad is None or not p.grad.any()

def test_validate_inside_a_fit_keeps_the_place(tmp_path):
    class Inside(Callback):
        order = 10
        def after_epoch(self):
            if not self.learn.lock.locked(): self.learn.validate()
    learn = make('moco', cbs=[Inside(), Checkpoint(tmp_path)]); fit(learn, 3)
    assert [read_checkpoint(o)['epoch'] for o in checkpoints(tmp_path)] == [2,3]

def test_error_while_entering_a_validation():
    "fastcore's contexts stay entered then: the lock of the learner would be held for ever"
    learn = make('sim_clr'); own = learn.loss_func
    interrupted(learn, 'before_fit', how=lambda l: l.validate(), exc=ValueError)
    assert_clean(learn, own)
    with learn.no_bar(): learn.validate()

@each
def test_dino_and_others_validate_as_at_the_end(name):
    learn = fit(make(name))
    seen = []
    class Pct(Callback):
        def after_loss(self): seen.append(getattr(self.learn, name).pct)
    learn.add_cb(Pct())
    with learn.no_bar(): learn.validate()
    assert set(seen) == {1.}
    seen.clear(); fit(learn)
    assert seen[0] == 0 and max(seen) <= 1

def test_the_teachers_temperature_after_a_fit():
    "Point 20: `validate` after a fit uses the end of the warm-up"
    learn = fit(make('dino')); seen = []
    class Temp(Callback):
        def after_loss(self): seen.append(self.learn.dino.tpt)
    learn.add_cb(Temp())
    with learn.no_bar(): learn.validate()
    assert set(seen) == {learn.dino.tpt_end}

def test_the_fit_after_a_finished_one_goes_on_exactly(tmp_path):
    "The machine is lost after the first of two fits: the second draws the random numbers that it would have drawn"
    def two(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3); learn.fit(1, 2e-3)
        return learn
    want,left = two(make('moco')),make('moco', cbs=[Checkpoint(tmp_path)])
    interrupted(left, 'before_epoch', n=2, how=two, exc=SystemExit)
    assert same(state(two(make('moco').resume(tmp_path))), state(want))

def test_checkpoints_of_a_plain_classifier(tmp_path):
    "Whose loss is a tensor subclass of fastai: every file can be read"
    from fastai.vision.all import Learner
    from self_supervised.vision.all import create_model
    learn = Learner(make_dls(), create_model(create_encoder('test_resnet', False), 3), cbs=Checkpoint(tmp_path, every=1, keep=9)); fit(learn)
    assert len([read_checkpoint(o) for o in checkpoints(tmp_path)]) == 5
    learn.resume(tmp_path); fit(learn)

def test_other_loaders_in_the_middle(tmp_path):
    "A callback that exchanges learn.dls, as progressive resizing does, and an interrupt"
    big = make_dls(bs=4)
    class Swap(Callback):
        def before_epoch(self):
            if self.epoch == 1: self.learn.dls = big
    learn = make('sim_clr', cbs=[Swap()]); old = learn.dls
    interrupted(learn, 'before_epoch', n=2)
    assert learn.dls is big and big.train.bs == 4 and old.train.bs == 8

def test_a_plain_learner_keeps_what_failed():
    from fastai.vision.all import Learner
    from self_supervised.vision.all import create_model
    learn = interrupted(Learner(make_dls(), create_model(create_encoder('test_resnet', False), 3)), 'after_pred', exc=ValueError)
    assert learn.xb[0].shape == (8,3,24,24)

def test_all_or_none_of_the_callbacks_of_a_fit():
    learn = make('sim_clr'); n = len(learn.cbs)
    cb,_,augs,args = METHODS['moco']
    with pytest.raises(ValueError, match='replace it'): learn.fit(1, cbs=[Chunks(3), cb(augs(16), **args)])
    assert len(learn.cbs) == n and not hasattr(learn, 'chunks')

def test_export_in_the_middle_of_a_fit(tmp_path):
    own = lambda *a: 0.
    class Exports(Callback):
        def after_epoch(self): self.learn.export('mid.pkl')
    fit(make('vic_reg', loss_func=noop, path=tmp_path, cbs=[Exports()]))
    again = load_learner(tmp_path/'mid.pkl')
    assert again.loss_func.__name__ == 'noop' and not again.metrics

def test_a_resume_that_is_refused_says_what_to_do(tmp_path):
    fit(make('moco', cbs=[Checkpoint(tmp_path)]), 2)
    again = make('moco').resume(tmp_path)
    with pytest.raises(ValueError, match='Call learn.resume again'): fit(again, 3)
    fit(again.resume(tmp_path), 2); assert len(again.recorder.values) == 2
