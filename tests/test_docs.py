"README and package are in step with the notebooks, and the notebooks are clean."
import re, shutil, subprocess, sys
from pathlib import Path

root = Path(__file__).parent.parent
bin_ = Path(sys.executable).parent

def test_in_step(tmp_path):
    for d in ('nbs','self_supervised','docs','benchmarks/results'):
        shutil.copytree(root/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__','.ipynb_checkpoints'))
    for f in ('settings.ini','setup.py','pyproject.toml','README.md','Makefile'): shutil.copy(root/f, tmp_path/f)
    subprocess.run(['make','-o','.venv/.ready','docs',f'BIN={bin_}'], cwd=tmp_path, check=True, capture_output=True)
    files = [p.relative_to(tmp_path) for d in ('nbs','self_supervised','docs') for p in (tmp_path/d).rglob('*') if p.suffix in ('.ipynb','.py','.md','.json')]
    stale = [str(f) for f in [*files, Path('README.md')] if not (root/f).exists() or (root/f).read_bytes() != (tmp_path/f).read_bytes()]
    assert not stale, f"run `make docs` and commit: {stale}"

def test_no_paths_of_a_machine():
    bad = [p.name for p in [*(root/'nbs').glob('*.ipynb'), root/'README.md'] if re.search(r'site-packages|\.py:\d+: \w*Warning', p.read_text())]
    assert not bad, f"run again without warnings (CONTRIBUTING.md): {bad}"

def test_light():
    heavy = {p.name:p.stat().st_size//1024 for p in (root/'nbs').glob('*.ipynb') if p.stat().st_size > 300*1024}
    assert not heavy, f"notebooks over 300 KB: {heavy}"

def test_readable():
    "Lines of at most 140 characters; the base of all methods on one screen"
    mods = [p for p in (root/'self_supervised').rglob('*.py') if p.name != '_modidx.py']
    long = [f"{p.name}:{i}" for p in mods for i,l in enumerate(p.read_text().splitlines(), 1) if len(l) > 140]
    assert not long, f"over 140 characters: {long}"
    base = re.search(r'class SSLCallback\(.*?(?=\n# %%)', (root/'self_supervised'/'callback.py').read_text(), re.S).group()
    assert len([l for l in base.splitlines() if l.strip()]) <= 80
