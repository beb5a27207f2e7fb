"All that a user does, on a GPU that is pretended: the same values as on the processor, and a handful of waits per step."
import math, os, re
from pathlib import Path
import matplotlib.pyplot as plt
import pytest, torch
from fastai.vision.all import TensorImage
from kit import METHODS, _fitted, dls_of, each, fit, loaders, make
from pretended_gpu import CountStep, gpu, pretending
from self_supervised import views
from self_supervised.vision.all import Alarms, classifier_learner, evaluate, get_features, labelled_dls, ssl_metrics

GPU = gpu(0)
scaling = (Path(__file__).parent.parent/'docs'/'scaling.md').read_text()
listed = set(re.findall(r'^\| `([\w.]+)` \|', scaling, re.M))
two = pytest.mark.parametrize('name', METHODS if os.environ.get('SOAK') else ['swav','clipmoco'])      # multi-crop; teacher, queue, texts

def trained(name, precision=None, **kw):
    "A learner of the method that was fitted on the GPU, with figures and alarms; its second step was counted"
    learn = make(name, cbs=[CountStep(), Alarms(n=16)], device=GPU, **kw)
    learn.metrics = ssl_metrics(learn)
    if precision: getattr(learn, precision)()
    return fit(learn)

@each
def test_trains(name):
    "The losses are those of the processor, and a step waits a few times, where docs/scaling.md says"
    with pretending(0): learn = trained(name)
    assert next(learn.model.parameters()).device == GPU
    torch.testing.assert_close(learn.recorder.values[0][:2], _fitted(name).recorder.values[0][:2], rtol=1e-4, atol=1e-4)
    waits,copies = learn.count_step.found['waits'],learn.count_step.found['copies']
    assert sum(waits.values()) <= (7 if METHODS[name].cb.learns_from_labels() else 2) and sum(copies.values()) <= 4, (waits,copies)
    assert {o for o in waits+copies if not o.startswith(('torch_core','learner'))} <= listed, (waits,copies)      # fastai's own

@two
@pytest.mark.parametrize('precision', ['to_fp16','to_bf16'])
def test_half_precision(name, precision):
    "Of views that no strided convolution sees as one pixel, whose bfloat16 gradient is wrong on processors, the pretended one's among them"
    with pretending(0): learn = trained(name, precision, dls=dls_of(name, n=28, device=GPU), views=METHODS[name].cb.create_views(64))
    assert all(math.isfinite(o) for o in learn.recorder.values[0]), learn.recorder.values

@two
def test_many_views_wait_no_more(name, monkeypatch):
    "Large images, whose views are made in several chunks, and reduced by several factors"
    monkeypatch.setattr(views, '_room', lambda device: 2**20)
    cb,ims = METHODS[name].cb,[(TensorImage(torch.rand(3,200,200)),i%2) for i in range(16)]
    with pretending(0): learn = fit(make(name, loaders(name, ims, device=GPU), cbs=[CountStep()], views=cb.create_views(56)))
    assert sum(learn.count_step.found['waits'].values()) <= 1 and sum(learn.count_step.found['copies'].values()) <= 4

@pytest.mark.parametrize('i,which', [(3,'the batch are'), (11,'the batch before'), (15,'the batch before')])
def test_wrong_images_are_refused(i, which):
    "In the first batch at once, in a later one with the next, and in the last one when the fit ends"
    ims = [(TensorImage(torch.rand(3,24,24) + 5*(i == k)),) for k in range(16)]
    with pretending(0), pytest.raises(ValueError, match=which): fit(make('sim_clr', loaders('sim_clr', ims, device=GPU)))

def test_afterwards(tmp_path):
    "Views, features, evaluation, report, pictures, fine-tuning and files"
    with pretending(0):
        learn = trained('moco', path=tmp_path)
        learn.moco.show(n=2)
        learn.lr_find(num_it=12, show_plot=False)
        x,y = get_features(learn, 0)
        assert x.device.type == y.device.type == 'cpu' and x.isfinite().all()
        result = evaluate(learn, labels=(1,))
        assert learn.report(tmp_path/'report.html', evaluation=result, n=12).exists()
        learn.export('learner.pkl'); learn.save_encoder(tmp_path/'encoder.safetensors')
        clf = fit(classifier_learner(learn, labelled_dls(learn.dls)))
        assert next(clf.model.parameters()).device == GPU and clf.final_record[-1] >= 0
    plt.close('all')
