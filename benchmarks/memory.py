"Peak memory of a call, in a process of its own (Linux)."
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from torch.multiprocessing import get_context

def _status(k): return int(Path('/proc/self/status').read_text().split(k+':')[1].split()[0])

def _peak(setup, args):
    f = setup(*args)
    Path('/proc/self/clear_refs').write_text('5')             # the peak starts from here
    before = _status('VmRSS')
    res = f()
    return (_status('VmHWM')-before)/1024,res

def peak_mb(setup, *args) -> tuple: # MB, and what the call gave
    "`setup(*args)` gives a function; the memory that calling it adds at its peak, without that of its own processes"
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool: return pool.submit(_peak, setup, args).result()
