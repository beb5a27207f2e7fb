"The code of the README runs, in its order, on a folder of photographs."
import re
import warnings
from pathlib import Path

import pytest
from fastai.vision.all import Learner, noop

text = (Path(__file__).parent.parent/'README.md').read_text()

def test_code_runs(tmp_path, monkeypatch):
    import matplotlib
    matplotlib.use('Agg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Learner, 'fit', lambda self, n_epoch, *args, _fit=Learner.fit, **kw: _fit(self, 1, *args, **kw))      # one epoch will do
    from self_supervised.data import sample_photos
    sample_photos('photos', n=8, size=64)
    for f in list(Path('photos/train/coffee').iterdir())[:6]:                                          # some are unlabelled
        (Path('photos')/'unsup').mkdir(exist_ok=True); f.rename(Path('photos')/'unsup'/f.name)
    blocks = re.findall(r'```python\n(.*?)```', text, re.S)
    assert len(blocks) >= 4
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for b in blocks:
            if 'distrib_ctx()' in b: b = b.replace('distrib_ctx()', 'distrib_ctx(sync_bn=False, cpu=True)')     # the tests have no GPU
            exec(compile(b.replace('resnet18', 'resnet10t'), '<README>', 'exec'), names)
    assert {o.name for o in Path().iterdir()} >= {'encoder.safetensors','features.parquet','classifier.pkl','runs','pretrained.pkl'}

def test_every_notebook_is_named():
    "A stranger finds each page in the table of the README"
    pages = [o.stem for o in (Path(__file__).parent.parent/'nbs').glob('*.ipynb') if o.stem not in ('index','19_vision.all')]
    ranges = [o for o in pages if '10_' <= o < '21_']                                                 # given as `10_vision.simclr` … `20_vision.dino`
    assert not [o for o in pages if f'`{o}`' not in text and o not in ranges]
