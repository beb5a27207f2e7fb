"Two pretended GPUs, of a process each: a script of the FAQ, and figures of which one process fails."
import re, time, warnings
from datetime import timedelta
from pathlib import Path

import pytest, torch, warm
from fastai.vision.all import Learner, rank_distrib
import pretended_gpu
from kit import fit, make
from pretended_gpus import on_gpus, own
from readme import SOONER, one_epoch
from self_supervised import collectives
from self_supervised.data import sample_photos
from self_supervised.evaluation import features
from self_supervised.vision.all import KNN, LinearProbe, get_features

root = Path(__file__).parent.parent

def readme(path):
    "The script for several GPUs, sooner, and what it leaves"
    code, = [b for b in re.findall(r'```python\n(.*?)```', (root/'docs'/'faq.md').read_text(), re.S) if 'with learn.distrib_ctx()' in b]
    for o in SOONER: code = code.replace(*o)
    Learner.fit,names,fit = one_epoch,{},Learner.fit
    exec(compile(code, 'faq.md', 'exec'), names)
    learn = names['learn']
    assert {str(o.device) for o in (*learn.model.state_dict().values(), learn.dls, *learn.dls.loaders)} == {str(own)}
    assert pretended_gpu.current == own.index
    torch.save({k:v.cpu() for k,v in learn.model.state_dict().items()}, f'{path}/{rank_distrib()}')

def test_readme(tmp_path):
    "Loaders are made before `distrib_ctx`, on the first GPU; both processes end with the same weights, queue and teacher"
    sample_photos(tmp_path/'photos', n=8, size=64)
    warm.group(on_gpus, readme, tmp_path, cwd=tmp_path, timeout=120)
    a,b = (torch.load(tmp_path/str(r), weights_only=True) for r in (0,1))
    assert all(torch.equal(a[k], b[k]) for k in a)

def broken(path):
    "The second process cannot read its images for a figure, in the first of two epochs; then it computes none at all"
    r,loader = rank_distrib(),features.whole_loader
    def whole_loader(*args, **kwargs):
        if r and not learn.epoch: raise OSError('the disk is gone')
        return loader(*args, **kwargs)
    features.whole_loader = whole_loader
    learn = make('moco', stats=None)                                              # pretended tensors have no type by which `Normalize` would know them
    learn.epoch = 1
    x,_ = get_features(learn, 1)
    learn.metrics = [KNN(), LinearProbe()]
    with warnings.catch_warnings(record=True) as w, learn.distrib_ctx():
        trainer = learn.distributed_trainer
        warnings.simplefilter('always')
        torch.testing.assert_close(get_features(learn, 1)[0], x)                    # before a fit, when the model is on the processor
        fit(learn, 2)
    said = [str(o.message) for o in w if 'no accuracy' in str(o.message)]
    assert len(said) == 2 and all('process 1: OSError: the disk is gone' in o for o in said), said
    first,second = ([row[2:] for row in learn.recorder.values])
    assert all(o != o for o in first) and all(0 <= o <= 1 for o in second)
    collectives.patience = timedelta(seconds=1)
    t = time.time()
    if r: return time.sleep(2)
    learn.add_cb(trainer)
    with pytest.raises(collectives.FailedTogether, match='(?s)not come within 1 seconds.*Ranks 1'): get_features(learn, 1)
    assert time.time()-t < 10

def test_figures(tmp_path): warm.group(on_gpus, broken, tmp_path, timeout=60)
