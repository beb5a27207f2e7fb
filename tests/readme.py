"Run the code of pages, in its order, in this folder, on photographs made here, and ask scripts for help: python readme.py README.md docs/faq.md bin/ssl_views"
import re
import runpy
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
from fastai.vision.all import Learner

import self_supervised
from self_supervised.data import sample_photos

SOONER = ('resnet18','test_resnet'),('size=80','size=40'),('size=64','size=32'),('", 64','", 32'),('encoder, 64','encoder, 32'),('pipelines(64','pipelines(32')

def one_epoch(self, n_epoch, *args, fit=Learner.fit, **kwargs): return fit(self, 1, *args, **kwargs)

def main(*pages:Path):
    Learner.fit = one_epoch
    sample_photos('photos', n=8, size=64)
    Path('photos/unsup').mkdir()
    for f in list(Path('photos/train/coffee').iterdir())[:6]: f.rename(Path('photos/unsup')/f.name)     # some are unlabelled
    Path('tiles').mkdir()
    for i in range(40): np.save(f'tiles/{i}.npy', np.random.default_rng(i).integers(0, 10_000, (4,40,40), dtype=np.uint16))
    blocks,names = [b for p in pages for b in re.findall(r'```python\n(.*?)```', p.read_text(), re.S)],{}
    assert len(blocks) >= 4
    for b in blocks:
        for old,new in SOONER: b = b.replace(old, new)
        exec(compile(b, '<page>', 'exec'), names)
    missing = {'encoder.safetensors','features.parquet','classifier.pkl','runs','pretrained.pkl','report.html'} - {o.name for o in Path().iterdir()}
    assert not missing, f"the pages did not write {missing}"

def ask(script:Path):
    sys.argv = [script.name,'--help']
    try: runpy.run_path(str(script), run_name='__main__')
    except SystemExit as e: assert not e.code, script
    else: raise AssertionError(f'{script} did not end')

if __name__ == '__main__':
    files = [Path(o) for o in sys.argv[1:]]
    print(self_supervised.__file__)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        main(*[o for o in files if o.suffix == '.md'])
        for o in files:
            if o.suffix != '.md': ask(o)
