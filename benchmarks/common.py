"""What the benchmarks share: where measurements go, a file for each benchmark, each row with the machine and the versions that it was made with; a small encoder, and the
accuracy of nearest neighbours."""
import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
from fastai.vision.all import Callback, CancelValidException
from filelock import FileLock

from self_supervised.evaluation.features import is_labelled, knn_accuracy
from self_supervised.layers import create_encoder

folder = Path(__file__).parent/'results'
packages = 'torch','torchvision','fastai','timm','kornia','lightly','pytorch-metric-learning'

def machine() -> dict:
    "Processor, cores and the versions that matter"
    info = Path('/proc/cpuinfo')
    names = [o.split(':')[1].strip() for o in info.read_text().splitlines() if o.startswith('model name')] if info.exists() else []
    versions = {}
    for p in packages:
        try: versions[p] = version(p)
        except PackageNotFoundError: pass
    return dict(cpu=(names or [platform.processor()])[0], cores=os.cpu_count(), **versions)

def same(v) -> str:
    "A value as it is compared: 1, 1.0 and '1' are one"
    try: return f'{float(v):.6g}'
    except (TypeError,ValueError): return str(v)

def record(name:str, # Of the benchmark: `name`.csv
           rows, # A dict for each, or a table
           key:list, # Columns that say what was measured; rows with the same are replaced
           fmt:str='%.4g' # Digits
) -> Path:
    "Write `rows` beside those of other runs"
    folder.mkdir(exist_ok=True)
    file,df = folder/f'{name}.csv',pd.DataFrame(rows).assign(**machine())
    with FileLock(Path(tempfile.gettempdir())/f'{name}.results.lock'):              # runs of several processes
        if file.exists():
            old = pd.read_csv(file)
            new = set(map(tuple, df[key].map(same).values))
            df = pd.concat([old[[tuple(o) not in new for o in old[key].map(same).values]], df])
        part = file.with_suffix('.part')
        df.to_csv(part, index=False, float_format=fmt)
        os.replace(part, file)
    return file

def encoder():
    "Half as wide as usual: enough for digits of 16 pixels"
    return create_encoder("resnet10t", pretrained=False, n_in=1, channels=(32,64,128,128))

def knn(train:tuple, valid:tuple, # Features and labels, as `get_features` gives them
        unsup:int|None=None # Label of the images that have none
) -> float:
    "Accuracy on `valid` with the labelled images of `train` as neighbours"
    (bank,y),(x,t) = train,valid
    known = is_labelled(y, unsup)
    return knn_accuracy(bank[known], y[known], x, t)

class NoValidation(Callback):
    "Trains without looking at the held-out images"
    order = -50
    def before_validate(self): raise CancelValidException
