"The name of the distribution, and all that follows from the address of the repository: links where there is one, none where there is not."
import json, re, shutil, sys
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'docs'))
import links, pages, tables

URL = 'https://github.com/Someone/ssl'

@pytest.fixture(params=['', URL, URL+'/', 'https://example.org/ssl'], ids=['nowhere','GitHub','slash','elsewhere'])
def copied(request, tmp_path, monkeypatch):
    "The files that say where the project is, with another address"
    text = re.sub(r'(?m)^repo_url =.*$', f'repo_url = {request.param}', (root/'settings.ini').read_text())
    (tmp_path/'settings.ini').write_text(text)
    for f in ('setup.py','README.md','pyproject.toml'): shutil.copy(root/f, tmp_path)
    (tmp_path/'self_supervised').mkdir()
    monkeypatch.setattr(links, 'root', tmp_path)
    return tmp_path,request.param.rstrip('/')

def metadata(folder, monkeypatch):
    "What `setup.py` in `folder` says to a package index"
    from distutils.core import run_setup
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    dist = run_setup('setup.py', ['--name'], stop_after='init')
    dist.metadata.write_pkg_info('.')
    return message_from_string(Path('PKG-INFO').read_text())

def test_wheel(copied, monkeypatch):
    "A name that no other library has, addresses where there are some, and in the README no link that an index cannot follow"
    folder,url = copied
    info = metadata(folder, monkeypatch)
    assert info['Name'] == 'fastai-self-supervised' and info['License'] == 'Apache-2.0'
    assert info.get_all('Project-URL', []) == ([f'Source, {url}', f'Issues, {url}/issues', f'Changelog, {url}/blob/main/CHANGELOG.md'] if url else [])
    text = info.get_payload()
    page,picture = 'nbs/90_own_photographs.ipynb','nbs/images/neighbours.png'
    wanted = [f'{url}/blob/main/{page}',f'{url}/raw/main/{picture}'] if url else [page,picture]
    assert all(f']({o})' in text for o in wanted) and (not url or not re.findall(r'\]\((?!https?:|#)[^)]*', text))

def test_readme(copied):
    folder,url = copied
    text = tables.filled('<!-- table: badges -->\n\n<!-- /table -->\n\n<!-- table: install -->\n<!-- /table -->\n')
    assert ('pip install git+'+url+'\n' in text and f'git clone {url} && cd ssl' in text) if url else ('git clone <this' in text and 'git+' not in text)
    github = url == URL
    for o in (f'{URL}/actions/workflows/test.yaml/badge.svg', 'https://someone.github.io/ssl/', 'https://colab.research.google.com/github/Someone/ssl/blob/main/nbs/90_own_photographs.ipynb'):
        assert (o in text) == github
    assert ('[![' in text) == github and tables.filled(text) == text

def test_a_notebook_in_colab(copied, tmp_path):
    "It begins with a cell that installs, once, which the site does not show; the site has a button. Both go when the address goes"
    _,url = copied
    nb = tmp_path/'91_which_method.ipynb'
    shutil.copy(root/'nbs'/nb.name, nb)
    plain = json.loads(nb.read_text())
    for _ in range(2): tables.fill(nb)
    cells = json.loads(nb.read_text())['cells']
    button = ''.join(c.source for c in pages.shown(nb).cells if 'Open in Colab' in c.source)
    if url != URL:
        assert not button and cells == plain['cells']
        return
    code, = (''.join(c['source']) for c in cells if c['id'] == links.cell_id)
    assert cells[0] == plain['cells'][0] and cells[2:] == plain['cells'][1:] and f'git clone -q --depth 1 {URL} /content/ssl && pip install' in code
    assert code.startswith('#| hide\n#| eval: false\n') and 'pip install' not in ''.join(c.source for c in pages.shown(nb).cells)
    assert f'(https://colab.research.google.com/github/Someone/ssl/blob/main/nbs/{nb.name})' in button
    from IPython.core.inputtransformer2 import TransformerManager
    compile(TransformerManager().transform_cell(code), 'cell', 'exec')
    (tmp_path/'settings.ini').write_text((root/'settings.ini').read_text())
    tables.fill(nb)
    assert json.loads(nb.read_text()) == plain

def test_now():
    "What this repository says of itself is what its settings say"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini')
    name = cfg['DEFAULT']['dist_name']
    assert f'`{name}`' in (root/'README.md').read_text() and f'"{name}=' in (root/'docs'/'faq.md').read_text()
    for p in (root/'nbs').glob('[0-9]*.ipynb'):
        assert [c['id'] for c in json.loads(p.read_text())['cells']].count(links.cell_id) == len(links.colab_cell()), f'{p.name}: run `make docs`'
