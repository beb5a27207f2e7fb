"A method is one declaration: a toy of ten lines, in a module of its own, is known everywhere, with no other change."
import sys

import matplotlib; matplotlib.use('Agg')
import pytest, torch
from fastai.vision.all import Learner

import kit
from self_supervised.callback import SSLCallback, methods
from self_supervised.evaluation.alarms import Alarms
from self_supervised.evaluation.health import ssl_metrics
from self_supervised.training.settings import suggest
from self_supervised.vision.all import create_encoder, pretrain

toy = '''
from fastai.vision.all import *
from self_supervised.callback import Paper, SSLCallback
from self_supervised.vision.all import create_simclr_model, get_simclr_aug_pipelines, nt_xent

class Toy(SSLCallback):
    "Toy (1234.56789): neighbours, and a term that counts"
    create_model,create_views = create_simclr_model,get_simclr_aug_pipelines
    paper,heads = Paper('1234.56789', temp=.25),dict(hidden_size=(512,64), projection_size=(64,32))
    small_batch,when = (96,"a toy likes company"),"You play"
    term_names = dict(count='images of the batch')
    @classmethod
    def suggest(cls, s, a): s.add('method', "a toy's", a.paper, temp=.75)
    def __init__(self, aug_pipelines, temp:float=.5, print_augs:bool=False):
        super().__init__(aug_pipelines, print_augs); self.temp = temp
    def trivial_loss(self, y, *yb): return math.log(2*len(y)-1)
    def lf(self, pred, y):
        self.terms = dict(count=tensor(float(len(y))))
        return nt_xent(pred, self.temp)
'''

@pytest.fixture
def Toy(tmp_path, monkeypatch):
    (tmp_path/'playroom.py').write_text(toy)
    monkeypatch.syspath_prepend(tmp_path)
    import playroom
    yield playroom.Toy
    methods.pop('toy'); sys.modules.pop('playroom')

def test_in_one_call(Toy, capsys, tmp_path):
    learn = pretrain('digits', Toy, tmp_path/'toy', 'test_resnet', epochs=1, bs=64, precision='fp32', temp=.3, report=False)
    assert 'toy on 1,401 images' in capsys.readouterr().out
    assert type(learn.toy) is Toy and learn.toy.temp == .3 and learn.model.projector[0].out_features == 64

def test_suggestions(Toy):
    s = suggest('Toy', 2000, 64, 128)
    assert s.method.temp == .75 and s.model.hidden_size == 512 and s.about.bs == 64
    assert 'a toy likes company' in repr(s) and 'paper 1234.56789' in repr(s) and suggest(Toy, 2000, 64, 128).why == s.why

def test_shared_suite(Toy, tmp_path):
    "What the tests make of every method, alarms and a report"
    o = kit.small(Toy)
    learn = Learner(kit.make_dls(), o.model(create_encoder('test_resnet', False)), cbs=[o.cb(o.augs(16), **o.args), Alarms(min_steps=1)])
    learn.metrics = ssl_metrics(learn)
    kit.fit(learn)
    text = learn.report(tmp_path/'r.html', evaluation=False).read_text()
    assert 'count' in learn.recorder.metric_names and learn.alarms.looks[-1].trivial > 0
    assert 'Toy (<a' in text and 'images of the batch' in text

def test_words(Toy, capsys):
    Toy(Toy.create_views(32)).describe()
    said = capsys.readouterr().out
    assert 'Toy (1234.56789)' in said and 'You play' in said and 'temp' in said

def test_tables(Toy, monkeypatch):
    "What `make docs` would write"
    monkeypatch.syspath_prepend('docs'); monkeypatch.syspath_prepend('benchmarks')
    import tables
    assert '`Toy`' in tables.methods() and 'You play' in tables.methods()

def test_only_declared():
    "Bases are no methods, nor are classes that only change one"
    class Mine(methods['byol']): pass
    assert 'mine' not in methods and 'sslcallback' not in methods and all(o.create_views for o in methods.values())

@pytest.mark.parametrize('name,views', [('sim_clr',2), ('moco',1), ('byol',2)])
def test_what_batchnorm_sees(name, views):
    "`describe` says which views share statistics, and the encoder gets them so"
    learn,seen = kit.make(name),set()
    norm = next(o for o in learn.model.encoder.modules() if isinstance(o, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda m, xs: seen.add(len(xs[0])) if m.training else None)
    kit.fit(learn)
    cb = learn._grab_cbs(SSLCallback)[0]
    assert seen == {8*views} and cb.joint == (views > 1)
    assert cb.facts()['BatchNorm sees'] == dict(sim_clr="all views of a size together, as in the authors' code", moco="each view by itself, as in the authors' code",
                                                byol="all views of a size together; in the authors' code each view by itself")[name]
