"The code of README and FAQ runs with the wheel, away from the sources."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
text = (root/'CONTRIBUTING.md').read_text()

def run(*args, **kw):
    res = subprocess.run(list(map(str, args)), capture_output=True, text=True, **kw)
    assert res.returncode == 0, (res.stdout+res.stderr)[-3000:]
    return res.stdout

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Where the wheel is installed, made of a copy of the sources with the tools that are here; `make dist` fetches those that it names"
    d = tmp_path_factory.mktemp('wheel')
    shutil.copytree(root/'self_supervised', d/'src'/'self_supervised', ignore=shutil.ignore_patterns('__pycache__'))
    for f in ('setup.py','settings.ini','pyproject.toml','MANIFEST.in','README.md','LICENSE'): shutil.copy(root/f, d/'src')
    run(sys.executable, '-m', 'build', '-q', '-n', '--outdir', d/'dist', d/'src')
    assert len(list((d/'dist').glob('*.tar.gz'))) == 1
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--no-compile', '--target', d/'site', *(d/'dist').glob('*.whl'))
    return d/'site'

commands = 'ssl_views','ssl_pretrain','ssl_distill','ssl_evaluate','ssl_embed','ssl_finetune'

def test_code_runs(wheel, tmp_path):
    "And the commands are there; in one process, as most of the time is that of importing torch"
    said = run(sys.executable, '-W', 'ignore', root/'tests'/'readme.py', root/'README.md', root/'docs'/'faq.md', *(wheel/'bin'/o for o in commands),
               env={**os.environ, 'PYTHONPATH':str(wheel)}, cwd=tmp_path)
    assert said.startswith(str(wheel)) and all(f'usage: {o}' in said for o in commands)

def test_typed(wheel): assert (wheel/'self_supervised'/'py.typed').is_file()

def test_name(wheel):
    "No other library has it: `self-supervised` is another one"
    assert len(list(wheel.glob('fastai_self_supervised-*.dist-info'))) == 1

def test_every_notebook_is_named():
    "A stranger finds each page in the table of CONTRIBUTING"
    pages = [o.stem for o in (root/'nbs').glob('*.ipynb') if o.stem != 'index']
    ranges = [o for o in pages if '_vision.' in o and o != '89_vision.all']                            # given as `20_vision.simclr` to `39_vision.…`
    assert not [o for o in pages if f'`{o}`' not in text and o not in ranges]
