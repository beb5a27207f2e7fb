"""Where the project is: all that follows from the one setting `repo_url` of settings.ini. While it is empty, nothing is linked, and what is installed comes from the sources."""
import re
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).parent.parent

def repo_url() -> str:
    "Address of the repository, such as https://github.com/someone/self_supervised; empty if it has none"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']['repo_url'].rstrip('/')

def on_github() -> tuple:
    "Owner and name of the repository; empty if it is not there"
    found = re.fullmatch(r'https://github\.com/([^/]+)/([^/]+)', repo_url())
    return found.groups() if found else ()

def _badge(text, image, link): return f'[![{text}]({image})]({link})'

def colab(path:str) -> str:
    "A button that opens a notebook of the repository in Colab"
    if not on_github(): return ''
    at = '/'.join(on_github())
    return _badge('Open in Colab', 'https://colab.research.google.com/assets/colab-badge.svg', f'https://colab.research.google.com/github/{at}/blob/main/{path}')

def badges() -> str:
    "The first line of README"
    if not on_github(): return ''
    (owner,name),url = on_github(),repo_url()
    return ' '.join([_badge('test', f'{url}/actions/workflows/test.yaml/badge.svg', f'{url}/actions/workflows/test.yaml'),
                     _badge('documentation', 'https://img.shields.io/badge/documentation-site-blue', f'https://{owner.lower()}.github.io/{name}/'),
                     colab('nbs/90_own_photographs.ipynb')])

def install() -> str:
    "How README has it installed"
    url = repo_url()
    name = url.rpartition('/')[2] or 'self_supervised'
    clone = f"git clone {url or '<this repository>'} && cd {name}"
    lines = [f'pip install git+{url}', '', f'{clone}      # for the demo'] if url else [clone, 'pip install .']
    return '\n'.join(['```sh', *lines, 'make demo    # some minutes: real digits with 50 labels, a table, and runs/digits/seed0/report.html', '```'])

cell_id = 'c01abc01'                                             # of the cell that installs

def colab_cell() -> list:
    "The cell with which a notebook begins, so that it needs nothing else in Colab: the library, and the files of the repository beside it"
    if not on_github(): return []
    at = f'/content/{on_github()[1]}'
    code = f"""#| hide
#| eval: false
import os
if os.path.exists('/content') and not os.path.exists('{at}'):      # in Colab
    !git clone -q --depth 1 {repo_url()} {at} && pip install -q {at}
    %cd -q {at}/nbs"""
    return [dict(cell_type='code', execution_count=None, id=cell_id, metadata={}, outputs=[], source=code.splitlines(keepends=True))]
