"Every method in bf16 and fp16: what is computed in half precision, what is not, and what a skipped step leaves alone; the mode that is fastest."
import json, math
import pytest, torch
from fastai.vision.all import Callback, ChannelsLast, MixedPrecision, ShortEpochCallback, load_learner
from torch import nn
from self_supervised.training import pretraining
from self_supervised.evaluation.alarms import auc
from self_supervised.evaluation.health import alpha_req, figures
from self_supervised.evaluation.retrieval import places
from self_supervised.training import precision
from self_supervised.training.precision import _emulates, _tried, fast_cuda, fastest_mode, mode_seconds
from self_supervised.vision.all import Checkpoint, GradNorm, create_encoder, get_features, load_encoder
from kit import METHODS, each, fit, make, make_dls, same, state
from pretended_gpu import backend, pretending

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

# modes

def of_modes(monkeypatch, **seconds):
    "The fastest mode where passes take so long, in milliseconds; None is refused"
    def a_pass(enc, xs, mode):
        if seconds[mode.replace(' ', '_')] is None: raise ValueError
        return seconds[mode.replace(' ', '_')]/1000
    monkeypatch.setattr(precision, '_pass', a_pass)
    monkeypatch.setattr(precision, '_emulates', lambda dev, bf16=True: False)
    return fastest_mode(nn.Linear(2, 2), torch.rand(9,2))

@pytest.mark.parametrize('seconds,mode', [
    ((10,10,10,10), 'fp32'), ((10,9.9,9.5,9.5), 'fp32'), ((10,9.5,9,9), 'fp32 channels_last'), ((10,10,8,9), 'bf16'), ((10,8,None,None), 'fp32 channels_last'),
    ((10,9,8,5), 'bf16 channels_last'), ((10,20,90,90), 'fp32')])
def test_the_fastest(seconds, mode, monkeypatch):
    "Of what is as fast, the plainer one; what is refused is left out"
    found,times = of_modes(monkeypatch, **dict(zip(('fp32','fp32_channels_last','bf16','bf16_channels_last'), seconds)))
    assert found == mode and len(times) == 4-seconds.count(None)-2*(90 in seconds)

def test_measuring_leaves_no_trace():
    "Also of an encoder that is frozen, in batches of two sizes"
    enc = create_encoder('test_resnet', False).eval().requires_grad_(False); before = {k:v.clone() for k,v in enc.state_dict().items()}
    times = mode_seconds(enc, [torch.rand(16,3,24,24), torch.rand(16,3,16,16)], n=1)
    assert set(times) >= {'fp32','fp32 channels_last'} and all(o > 0 for o in times.values())
    assert same(before, enc.state_dict()) and not enc.training and all(p.grad is None and not p.requires_grad for p in enc.parameters())

def test_no_memory_for_fp32(monkeypatch):
    def a_pass(enc, xs, mode):
        if 'fp32' in mode and len(xs[0]) > 8: raise torch.OutOfMemoryError
        return .001
    monkeypatch.setattr(precision, '_pass', a_pass); monkeypatch.setattr(precision, '_emulates', lambda dev, bf16=True: False)
    assert fastest_mode(nn.Linear(2, 2), torch.rand(32,2))[0] == 'bf16'

def test_gpus_without_bf16(monkeypatch):
    "fp16 is tried there in its place, and bf16 warned of; elsewhere what is not known is tried"
    assert _tried('pretended') == ['fp32','fp32 channels_last','bf16','bf16 channels_last']
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    assert _tried('cuda') == ['fp32','fp32 channels_last','fp16','fp16 channels_last'] and _emulates('cuda') and not _emulates('cuda', False)
    with pytest.warns(UserWarning, match='this GPU has no instructions'): precision._check_device('cuda', True)

def test_tf32():
    "On CUDA alone, and undone"
    def now(): return torch.get_float32_matmul_precision(),torch.backends.cudnn.benchmark
    was = now()
    with fast_cuda(torch.device('cpu')): assert now() == was
    with fast_cuda(torch.device('cuda')): assert now() == ('high',True)
    assert now() == was

class Stop(Callback):
    order = 90
    def after_batch(self):
        if self.training and self.train_iter == 3: raise KeyboardInterrupt

def test_channels_last_goes_on(tmp_path):
    "To the bit; and files are as ever"
    def learner(*cbs): return make('moco', cbs=[Checkpoint(tmp_path/'c', every=1), *cbs], path=tmp_path).to_mode('fp32 channels_last')
    def seeded(learn): torch.manual_seed(1); return fit(learn, 2)
    straight = state(seeded(learner()))
    for o in (tmp_path/'c').iterdir(): o.unlink()
    with pytest.raises(KeyboardInterrupt): seeded(learner(Stop()))
    learn = fit(learner().resume(tmp_path/'c'), 2)
    assert same(state(learn), straight)
    ws = [p for p in learn.model.parameters() if p.ndim == 4 and p.shape[1] > 1 < p.shape[-1]]
    assert len(ws) > 2 and all(p.is_contiguous(memory_format=torch.channels_last) for p in ws)             # the teacher's among them
    assert same(load_encoder(learn.save_encoder(tmp_path/'e.safetensors')).state_dict(), learn.model.encoder.state_dict())
    learn.export('x.pkl'); assert same(load_learner(tmp_path/'x.pkl').model.encoder.state_dict(), learn.model.encoder.state_dict())
    assert not learn.to_mode('fp32')._grab_cbs(ChannelsLast) and ws[0].is_contiguous()

def test_the_mode_of_a_training_stays(tmp_path, monkeypatch, capsys):
    "What was measured is said and remembered, also in files that only know bf16"
    monkeypatch.setattr(pretraining, 'measured_mode', lambda learn: ('fp32 channels_last', 'fp32 channels_last (measured)'))
    kw = dict(out=tmp_path, arch='test_resnet', size=16, epochs=2, bs=256, report=False)
    learn = pretraining.pretrain('digits', **kw)
    assert 'precision: fp32 channels_last (measured)' in capsys.readouterr().out and learn._grab_cbs(ChannelsLast)
    f = tmp_path/'training.json'
    assert pretraining.read_asked(f)[1] == 'fp32 channels_last' and pretraining.chosen_mode(learn, 'auto', tmp_path)[0] == 'fp32 channels_last'
    f.write_text(json.dumps(dict(asked={}, bf16=True)))
    assert pretraining.read_asked(f)[1] == 'bf16' and pretraining.chosen_mode(learn, 'auto', tmp_path)[0] == 'bf16'
    assert pretraining.chosen_mode(learn, 'fp16', tmp_path)[0] == 'fp16'

# features, figures

def test_features_in_bf16(monkeypatch):
    "On a GPU that has it; they are given in fp32, on the processor"
    seen = set()
    with pretending(0) as gpu:
        enc,dl = create_encoder('test_resnet', False).to(gpu),make_dls().valid
        enc.register_forward_hook(lambda m,i,o: seen.add(o.dtype))
        x,y = get_features(enc, dl, size=16)
        monkeypatch.setattr(backend, 'is_bf16_supported', lambda including_emulation: True, raising=False)
        half,_ = get_features(enc, dl, size=16)
    assert seen == {torch.float32,torch.bfloat16} and half.dtype == torch.float32 and {o.device.type for o in (x,y,half)} == {'cpu'}
    torch.testing.assert_close(half, x, rtol=.05, atol=.05); assert not torch.equal(half, x)

def test_figures_without_float64():
    "As on Apple's GPUs: what is computed on the processor is as exact"
    z = torch.randn(2,20,8)
    fs = {**{k:(lambda z, o=o: o.f(z if o.views else z[0])) for k,o in figures.items() if o.f}, 'alpha_req':lambda z: alpha_req(z[0]),
          'auc':auc, 'places':lambda z: places(z[0], z[1]).float().mean().item()}
    want = {k:f(z) for k,f in fs.items()}
    with pretending(0, float64=False) as gpu:
        with pytest.raises(TypeError, match='float64'): z.to(gpu).double()
        assert {k:f(z.to(gpu)) for k,f in fs.items()} == pytest.approx(want, rel=1e-6)

def test_grad_norm_of_skipped_steps():
    "Those that fp16 skips do not count; without fp16 what is not finite is seen"
    for skips,want in ((True,2.), (False,math.inf)):
        cb = GradNorm(); cb.norms,cb.skips = [torch.tensor(o) for o in (1.,math.inf,3.)],skips
        assert cb.mean(None) == want
    learn = fit(learner('sim_clr').add_cb(GradNorm()).to_fp16(init_scale=2.**120, growth_interval=10**6, backoff_factor=.999))
    assert learn.grad_norm.norms and math.isnan(learn.grad_norm.mean(learn))
