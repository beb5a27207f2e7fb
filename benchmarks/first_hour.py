"""How long a newcomer waits at the command line, on 340 small photographs: for the first line, in the longest silence, and after Ctrl-C for an answer.
`--tree` is a folder with another version of the library, to be measured by the same script."""
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import record
from fastcore.script import call_parse

called = """
import sys
name,*sys.argv[1:] = sys.argv[1:]
sys.argv[0] = name
try: import self_supervised.start as commands
except ImportError: import self_supervised.cli as commands
getattr(commands, name)()"""

def watch(tree:Path, *args, stop:str='', cwd='.') -> dict:
    "Seconds until the first line, in the longest silence and in all; with `stop`, from Ctrl-C at the line with this text to the answer and to the end"
    env = {**os.environ, 'PYTHONPATH':str(tree), 'PYTHONUNBUFFERED':'1', 'PYTHONWARNINGS':'ignore'}
    p = subprocess.Popen([sys.executable, '-c', called, *map(str, args)], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    times,asked,res = [time.perf_counter()],None,{}
    for line in p.stdout:
        times.append(time.perf_counter())
        if asked and 'answer' not in res: res['answer'] = times[-1]-asked
        if stop and not asked and stop in line:
            time.sleep(1)
            asked = time.perf_counter()
            p.send_signal(signal.SIGINT)
    p.wait()
    times.append(time.perf_counter())
    if asked: res['end'] = times[-1]-asked
    return dict(first_line=times[1]-times[0], silence=max(b-a for a,b in zip(times, times[1:])), total=times[-1]-times[0], **res)

@call_parse
def main(
    tree:Path=Path(__file__).resolve().parent.parent, # A checkout of the library
    name:str='now' # What to call it
):
    "Watch each command; writes first_hour.csv"
    from self_supervised.data import sample_photos
    d = Path(tempfile.mkdtemp())
    sample_photos(d/'photos', n=17, size=96)
    enc = 'runs/photos-simclr/encoder.safetensors'
    train = ['ssl_pretrain','photos','--arch','resnet10t','--size','64','--epochs','3','--labels','parent','--valid','valid']
    commands = dict(help=['ssl_pretrain','--help'], views=['ssl_views','photos'], pretrain=train, evaluate=['ssl_evaluate','photos','--encoder',enc],
                    embed=['ssl_embed','photos','--encoder',enc], finetune=['ssl_finetune','photos','--encoder',enc,'--epochs','4'])
    rows = [dict(version=name, command=k, **watch(tree, *args, cwd=d)) for k,args in commands.items()]
    rows.append(dict(version=name, command='Ctrl-C', **watch(tree, *train, '--out', 'runs/stopped', stop='epoch ', cwd=d)))
    for o in rows: print({k:round(v, 2) if isinstance(v, float) else v for k,v in o.items()})
    record('first_hour', rows, ['version','command'], '%.3g')
