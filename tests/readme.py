"Run the code of the README, in its order, in this folder, on photographs made here: python readme.py README.md"
import re
import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from fastai.vision.all import Learner

from self_supervised.data import sample_photos

def one_epoch(self, n_epoch, *args, fit=Learner.fit, **kwargs): return fit(self, 1, *args, **kwargs)

def main(readme:Path):
    Learner.fit = one_epoch
    sample_photos('photos', n=8, size=64)
    Path('photos/unsup').mkdir()
    for f in list(Path('photos/train/coffee').iterdir())[:6]: f.rename(Path('photos/unsup')/f.name)     # some are unlabelled
    blocks,names = re.findall(r'```python\n(.*?)```', readme.read_text(), re.S),{}
    assert len(blocks) >= 4
    for b in blocks:
        b = b.replace('distrib_ctx()', 'distrib_ctx(sync_bn=False, cpu=True)').replace('resnet18', 'resnet10t')       # without GPUs, and sooner
        exec(compile(b, '<README>', 'exec'), names)
    missing = {'encoder.safetensors','features.parquet','classifier.pkl','runs','pretrained.pkl','report.html'} - {o.name for o in Path().iterdir()}
    assert not missing, f"the README did not write {missing}"

if __name__ == '__main__':
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        main(Path(sys.argv[1]))
