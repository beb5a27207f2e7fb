"The site: built without a warning, complete, with links that lead somewhere, readable in a narrow and a wide window, and searchable."
import os, re, shutil, sys, threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest, warm
from self_supervised.evaluation import alarms

root = Path(__file__).parent.parent
chromium = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
browser_there = pytest.mark.skipif(not chromium, reason='there is no Chromium: install Debian\'s package `chromium`, or set CHROMIUM to its path')

def sphinx(args):
    from sphinx.cmd.build import main
    sys.exit(main(list(map(str, args))))

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    d = tmp_path_factory.mktemp('site')
    warm.run(warm.script, root/'docs'/'pages.py', d/'pages', cwd=root)
    warm.run(sphinx, ['-q','-W','--keep-going','-b','html','-c',root/'docs',d/'pages',d/'html'], cwd=root)
    return d/'html'

class Page(HTMLParser):
    def __init__(self, text): super().__init__(); self.links,self.ids,self.images = [],set(),[]; self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag == 'img': self.images.append(a['src'])

def test_links(site):
    "Every link within the site leads to a page and a place that are there, every picture is there"
    pages,bad = {p:Page(p.read_text()) for p in site.rglob('*.html')},[]
    assert len(pages) > 70
    for p,page in pages.items():
        for l in page.links+page.images:
            url = urlsplit(l)
            if url.scheme or url.netloc: continue
            to = (p.parent/unquote(url.path)).resolve() if url.path else p
            if not to.exists(): bad.append((p.name, l))
            elif url.fragment and to.suffix == '.html' and unquote(url.fragment) not in pages[to].ids: bad.append((p.name, l))
    assert not bad, bad[:20]

def test_nothing_for_nbdev_alone(site):
    for p in site.glob('*.html'):
        assert not re.search(r'#\| ?(export|hide)', re.sub('<[^>]+>', '', p.read_text())), p

def test_methods(site):
    "Each method has its page: when, formula, settings, result"
    text = (site/'choosing.html').read_text()
    for p in site.glob('[23]?_vision.*.html'):
        page = p.read_text()
        assert p.name in text and all(o in page for o in ('When to use','Settings')) and 'class="math' in page, p
        assert ('raw pixels' in page) == ('Result' in page)

def test_reference(site):
    "Types, and what each parameter is"
    page = re.sub('<[^>]+>', '', (site/'api'/'self_supervised.data.loaders.html').read_text())
    assert re.search(r'path:(Union\[str, pathlib\.\w*\.?Path\]|str \| )', page) and 'Share of labelled images in a training batch' in page

def test_every_alarm_is_explained():
    named = set(re.findall(r"Alarm\('([^']+)'", Path(alarms.__file__).read_text()))
    text = (root/'docs'/'alarms.md').read_text()
    assert len(named) > 15 and not [o for o in named if f'| {o} |' not in text]

@pytest.fixture(scope='module')
def served(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

@pytest.fixture(params=[1400, 360], ids=['wide','telephone'])
def tab(served, request):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox','--disable-gpu'])
        tab = browser.new_page(viewport=dict(width=request.param, height=800))
        tab.route('**/*', lambda r: r.continue_() if r.request.url.startswith(served) else r.abort())
        yield tab
        browser.close()

@browser_there
def test_windows(tab, served, site):
    "No page is wider than a narrow window, and every picture has loaded; of the reference, and in a wide window, some"
    wide,gone = [],[]
    pages = sorted(site.glob('*.html')) + sorted(site.glob('api/*.html'))[::6]
    for p in pages[::1 if tab.viewport_size['width'] < 400 else 5]:
        tab.goto(f'{served}/{p.relative_to(site).as_posix()}')
        if not tab.evaluate('document.documentElement.scrollWidth <= window.innerWidth'): wide.append(p.name)
        tab.evaluate("for (const o of document.images) o.loading = 'eager'")
        tab.wait_for_function("[...document.images].every(o => o.complete)")
        if not tab.evaluate("[...document.images].every(o => o.naturalWidth > 0)"): gone.append(p.name)
    assert not wide and not gone, (wide, gone)

@browser_there
def test_accessible(tab, served):
    "axe finds nothing serious"
    from axe_playwright_python.sync_playwright import Axe
    for o in ('index','choosing','faq','20_vision.simclr','95_is_it_learning','api/self_supervised.data.loaders'):
        tab.goto(f'{served}/{o}.html')
        found = [v for v in Axe().run(tab).response['violations'] if v['impact'] in ('serious','critical')]
        assert not found, (o, [(v['id'], [n['html'][:200] for n in v['nodes'][:3]]) for v in found])

@browser_there
def test_search(tab, served):
    tab.goto(f'{served}/search.html?q=collapse')
    tab.wait_for_selector('ul.search li a', timeout=15_000)
    assert any('alarms' in o.get_attribute('href') for o in tab.locator('ul.search li a').all())
