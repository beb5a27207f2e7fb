"The code of README and FAQ runs with the wheel, away from the sources."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
text = (root/'README.md').read_text()

def run(*args, **kw):
    res = subprocess.run(list(map(str, args)), capture_output=True, text=True, **kw)
    assert res.returncode == 0, (res.stdout+res.stderr)[-3000:]
    return res.stdout

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Where the wheel is installed, made of a copy of the sources"
    d = tmp_path_factory.mktemp('wheel')
    shutil.copytree(root/'self_supervised', d/'src'/'self_supervised', ignore=shutil.ignore_patterns('__pycache__'))
    for f in ('setup.py','settings.ini','pyproject.toml','MANIFEST.in','README.md','LICENSE'): shutil.copy(root/f, d/'src')
    run(sys.executable, '-m', 'build', '-q', '--outdir', d/'dist', d/'src')
    assert len(list((d/'dist').glob('*.tar.gz'))) == 1
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', d/'site', *(d/'dist').glob('*.whl'))
    return d/'site'

def test_code_runs(wheel, tmp_path):
    env = {**os.environ, 'PYTHONPATH':str(wheel)}
    where = run(sys.executable, '-c', 'import self_supervised; print(self_supervised.__file__)', env=env, cwd=tmp_path)
    assert where.startswith(str(wheel))
    run(sys.executable, '-W', 'ignore', root/'tests'/'readme.py', root/'README.md', root/'docs'/'faq.md', env=env, cwd=tmp_path)

commands = 'ssl_views','ssl_pretrain','ssl_distill','ssl_evaluate','ssl_embed','ssl_finetune'

def test_commands_are_there(wheel, tmp_path):
    "One of them as a process, and all of them in one, as most of the time is that of importing torch"
    env = {**os.environ, 'PYTHONPATH':str(wheel)}
    assert commands[0] in run(sys.executable, wheel/'bin'/commands[0], '--help', env=env, cwd=tmp_path)
    code = """import runpy, sys
for o in sys.argv[1:]:
    sys.argv = [o,'--help']
    try: runpy.run_path(o, run_name='__main__')
    except SystemExit as e: assert not e.code, o
    else: raise AssertionError(f'{o} did not end')"""
    said = run(sys.executable, '-W', 'ignore', '-c', code, *(wheel/'bin'/o for o in commands), env=env, cwd=tmp_path)
    assert all(f'usage: {o}' in said for o in commands)

def test_typed(wheel): assert (wheel/'self_supervised'/'py.typed').is_file()

def test_every_notebook_is_named():
    "A stranger finds each page in the table of the README"
    pages = [o.stem for o in (root/'nbs').glob('*.ipynb') if o.stem not in ('index','19_vision.all')]
    ranges = [o for o in pages if '10_' <= o < '24_']                                                 # given as `10_vision.simclr` … `23_vision.clip`
    assert not [o for o in pages if f'`{o}`' not in text and o not in ranges]
