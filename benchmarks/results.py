"Where measurements go: a file for each benchmark, each row with the machine and the versions that it was made with."
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from filelock import FileLock

folder = Path(__file__).parent/'results'

def machine() -> dict:
    "Processor, cores and the versions that matter"
    info = Path('/proc/cpuinfo')
    names = [o.split(':')[1].strip() for o in info.read_text().splitlines() if o.startswith('model name')] if info.exists() else []
    return dict(cpu=(names or [platform.processor()])[0], cores=os.cpu_count(), torch=version('torch'), fastai=version('fastai'), timm=version('timm'))

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
            new = set(map(tuple, df[key].astype(str).values))
            df = pd.concat([old[[tuple(o) not in new for o in old[key].astype(str).values]], df])
        df.to_csv(file, index=False, float_format=fmt)
    return file
