"Two pretended GPUs, of a process each: README's script, and figures of which one process fails."
import re
from pathlib import Path

import pytest, torch, warm
from fastai.vision.all import Learner, rank_distrib
from pretended_gpus import on_gpus, own
from readme import SOONER, one_epoch
from self_supervised.data import sample_photos
import pretended_gpu

root = Path(__file__).parent.parent

def readme(path):
    "The script for several GPUs, sooner, and what it leaves"
    code, = [b for b in re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(), re.S) if 'with learn.distrib_ctx()' in b]
    for o in SOONER[1:]: code = code.replace(*o)
    Learner.fit,names,fit = one_epoch,{},Learner.fit
    exec(compile(code, 'README.md', 'exec'), names)
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
