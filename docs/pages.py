"""Assemble the pages of the site from the notebooks, README, docs and docstrings, for Sphinx: python docs/pages.py build/pages.
What a page says stands in one place: a notebook, a file of this folder, or a table below."""
import importlib
import re
import shutil
import sys
from pathlib import Path

import links
import nbformat
from fastcore.docments import MarkdownRenderer
from tables import accuracy, baselines, markdown, spread

from self_supervised.callback import methods
from self_supervised.vision.all import suggest

root = Path(__file__).parent.parent

questions = [ # Of the decision table
    ("Does each image come with a text?", "[CLIP or SigLIP](32_vision.clip.ipynb)"),
    ("Do some images have a label?", "SupCon; with batches below 256 SupConMOCO"),
    ("Is there a good encoder for images like yours, but it is too large?", "Distill"),
    ("Is the encoder a vision transformer?", "DINO or MOCOV3"),
    ("Fewer than 256 images in a batch?", "VICReg or MOCO; SimCLR with decoupled=True"),
    ("Are many images nearly alike (frames, slices, tiles)?", "BYOL or VICReg, which push no two images apart"),
    ("None of these?", "SimCLR")]

names = {o.__name__: k for k,o in methods.items()}
when = {o.__name__: o.when for o in methods.values()}
notebooks = {p.stem:p for p in sorted((root/'nbs').glob('[0-9]*.ipynb'))}

def linked(text:str) -> str:
    "Names of notebooks become links to their pages, and pictures are found beside the pages"
    text = re.sub(r'`(?:nbs/)?(\d\d_[\w.]+?)(?:\.ipynb)?`', lambda m: f'[{m[1]}]({m[1]}.ipynb)' if m[1] in notebooks else m[0], text)
    text = re.sub(r'`(?:docs/(\w+)|(CONTRIBUTING))\.md`', lambda m: f'[{m[1] or m[2].lower()}]({m[1] or m[2].lower()}.md)', text)
    text = re.sub(r'\]\(\.\./(?:docs/)?(\w+)\.md\)', lambda m: f']({m[1].lower()}.md)', text)
    return text.replace('](nbs/images/', '](images/')

def shown(path:Path):
    "A notebook without what is for nbdev alone"
    nb = nbformat.read(path, 4)
    keep = [c for c in nb.cells if not re.match(r'#\| *(hide|default_exp)\b', c.source)]
    for c in keep:
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M) if c.cell_type == 'code' else linked(c.source)
    nb.cells = [c for c in keep if c.source.strip()]
    button = links.colab(f'nbs/{path.name}')
    if button: nb.cells.insert(1, nbformat.v4.new_markdown_cell(button))
    return nb

def result(name:str, df) -> str:
    "On the digits; the page of a method that cannot be compared there has a section of its own"
    if name not in df: return ''
    rows = [(f"**{n}**" if n == name else n, spread(df[n])) for n in sorted((name, *baselines), key=lambda o: -df[o].mean())]
    return f"""## Result

Accuracy on held-out digits with 5 labels per class, {df[name].count()} seeds, 315 steps (`make bench-methods`); `±` is half of the 95 % interval. It is the accuracy of nearest neighbours, except for the labels alone, which train a classifier.

{markdown(['','accuracy'], rows)}
"""

def about(name:str) -> str:
    "What stands at the end of a method's page"
    s,df,module = suggest(name, 5000, 64, 128),accuracy(),methods[names[name]].__module__
    return f"""## When to use {name}

{when[name]}. On the command line: `ssl_pretrain photos --method {names[name]}`.

## Settings

This is what `suggest` proposes for 5,000 images of 128 pixels in batches of 64:

{markdown(['setting','value','reason'], [(f"`{o['name']}`", o['value'], f"{o['reason']} ({o['source']})") for o in s.why])}

{result(name, df)}

Every argument with its type and meaning is in the reference: [{module}](api/{module}.md).
"""

def choosing() -> str:
    res = accuracy().mean()
    rows = [(f"[{n}]({page_of(n)}.ipynb)", w, f"{res[n]:.3f}" if n in res else 'its page') for n,w in when.items()]
    base = ', '.join(f"{n} {res[n]:.3f}" for n in baselines)
    return f"""# Which method?

Find the first question that you would answer with yes.

{markdown(['question','method'], questions)}

Switching methods takes one line, so try two. The last column is the accuracy on held-out digits with 5 labels per class after 315 steps ({base}), which favours methods that learn fast; [91_which_method](91_which_method.ipynb) has all figures with their spread.

{markdown(['method','for whom','digits'], rows)}
"""

def page_of(name:str) -> str:
    "The notebook of a method"
    module = methods[names[name]].__module__.split('.')[-1]
    return next(k for k in notebooks if k.endswith(f'vision.{module}'))

def api(module:str) -> str:
    "Signatures and parameters of what a module exports, from docments"
    mod = importlib.import_module(module)
    own = [getattr(mod, n) for n in mod.__all__ if callable(getattr(mod, n, None)) and getattr(getattr(mod, n), '__module__', '') == module]
    parts = [f'## {o.__name__}\n\n{MarkdownRenderer(o)._repr_markdown_()}' for o in own]
    return f"# {module}\n\n{(mod.__doc__ or '').strip()}\n\n"+'\n\n'.join(parts)

def toc(caption:str, pages:list) -> str: return f"```{{toctree}}\n:caption: {caption}\n:hidden:\n\n"+'\n'.join(pages)+"\n```\n"

def main(to:Path):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root/'docs', to, ignore=shutil.ignore_patterns('*.py','__pycache__','_static'))
    shutil.copytree(root/'nbs'/'images', to/'images', dirs_exist_ok=True)
    for f in ('CHANGELOG.md','CONTRIBUTING.md','SECURITY.md'): shutil.copy(root/f, to/f.lower())
    for f in to.glob('*.md'): f.write_text(linked(f.read_text()))
    of_method = {page_of(n):n for n in reversed(when)}                  # of a page with several the first
    for k,p in notebooks.items():
        nb = shown(p)
        if k in of_method: nb.cells.append(nbformat.v4.new_markdown_cell(about(of_method[k])))
        nbformat.write(nb, to/f'{k}.ipynb')
    (to/'choosing.md').write_text(choosing())
    modules = sorted('.'.join(p.relative_to(root).with_suffix('').parts) for p in (root/'self_supervised').rglob('*.py')
                     if p.stem not in ('__init__','_modidx','all'))
    (to/'api').mkdir()
    for m in modules: (to/'api'/f'{m}.md').write_text(api(m))
    start = linked(nbformat.read(root/'nbs'/'index.ipynb', 4).cells[0].source)
    pages = lambda lo,hi: [k for k in notebooks if lo <= int(k[:2]) <= hi]
    tocs = [toc('Start', ['Quick start <self>','choosing','worth','words','benchmarks','faq','coming_from','98_cli']), toc('Tutorials', pages(90, 96)), toc('Methods', pages(20, 39)),
            toc('Is it learning?', ['alarms',*pages(70, 79)]), toc('Training', [*pages(80, 89),'scaling','security']),
            toc('Building blocks', [*pages(0, 19),'97_start']), toc('Reference', [f'api/{m}' for m in modules]), toc('Project', ['changelog','contributing'])]
    (to/'index.md').write_text(start+'\n\n'+'\n'.join(tocs))
    print(f"{len(list(to.rglob('*.md')))+len(list(to.glob('*.ipynb')))} pages in {to}")

if __name__ == '__main__': main(Path(sys.argv[1]))
