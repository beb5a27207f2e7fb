"The report of a training, opened in a browser: complete, readable on a telephone, by keyboard and by a screen reader."
import os, re, shutil
from html import unescape
from pathlib import Path
import matplotlib; matplotlib.use('Agg')
import pytest
from fastai.vision.all import DataLoaders, Learner, TfmdDL, noop, set_seed
from kit import METHODS, dls_of, fit, image, make, make_dls
from self_supervised.evaluation.alarms import Alarms
from self_supervised.evaluation.health import ssl_metrics
from self_supervised.evaluation.protocol import evaluate
import self_supervised.evaluation.report

chromium = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
browser_there = pytest.mark.skipif(not chromium, reason='there is no Chromium: install Debian\'s package `chromium`, or set CHROMIUM to its path')

@pytest.fixture(scope='module')
def path(tmp_path_factory):
    learn = make('moco', make_dls(n=60), cbs=[Alarms(min_steps=2)])
    learn.metrics = ssl_metrics(learn)
    fit(learn, 2)
    return learn.report(tmp_path_factory.mktemp('report')/'r.html', evaluation=False)

@pytest.fixture(params=[1280, 360], ids=['wide','telephone'])
def page(path, request):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        args = ['--no-sandbox','--disable-gpu','--disable-background-networking','--disable-component-update','--disable-sync','--no-first-run']
        browser = p.chromium.launch(executable_path=chromium, args=args)
        page = browser.new_page(viewport=dict(width=request.param, height=800))
        page.problems,page.asked = [],[]
        page.on('console', lambda m: page.problems.append(m.text) if m.type in ('error','warning') else None)
        page.on('pageerror', lambda e: page.problems.append(str(e)))
        page.on('request', lambda r: page.asked.append(r.url))
        page.goto(path.as_uri())
        yield page
        browser.close()

@browser_there
def test_complete(page):
    "No errors, no network, every picture loaded and described, nothing wider than the window"
    assert page.problems == [] and all(o.startswith(('file:','data:')) for o in page.asked)
    images = page.evaluate("[...document.images].map(o => [o.complete && o.naturalWidth > 100, o.alt.length > 10])")
    assert len(images) >= 5 and all(all(o) for o in images)
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
    assert page.locator('h1').count() == 1 and page.title()

@browser_there
@pytest.mark.parametrize('scheme', ['light','dark'])
def test_accessible(page, scheme):
    "axe finds nothing, in light and dark; the keyboard reaches what scrolls"
    from axe_playwright_python.sync_playwright import Axe
    page.emulate_media(color_scheme=scheme)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    for _ in range(40): page.keyboard.press('Tab')
    scrolls = page.evaluate("[...document.querySelectorAll('.scroll, pre')].every(o => o.tabIndex == 0)")
    assert scrolls

def test_says_what_happened(path):
    text = path.read_text()
    assert path.stat().st_size < 5e6
    for o in ('MOCO','test_resnet','rankme','false_negs','Alarm','create_encoder','torch','No evaluation was asked for'): assert o in text, o

def test_result_comes_first(tmp_path):
    "The accuracy, with its baselines and interval, before all sections; a loss to a baseline is called one"
    learn = fit(make('sup_con', make_dls(n=60), cbs=[Alarms(min_steps=1000)]), 12)
    assert 'Too short to be judged' in learn.report(tmp_path/'r.html', evaluation=False).read_text()
    learn.alarms.min_steps = 1                                                   # as if they had judged
    o = evaluate(learn, labels=(1,), Cs=(.1,))
    own,raw = (o.df.features == n for n in ('SupCon (trained with the labels)','raw pixels'))
    for better,mine,pixels in ((None,.72,.7), (False,.5,.7), (True,.95,.3)):
        o.df.loc[own, 'mean'],o.df.loc[raw, 'mean'] = mine,pixels
        page = learn.report(tmp_path/'r.html', evaluation=o).read_text()
        head = page[:page.index('<nav')]
        assert f'{100*mine:.1f} %</strong>' in head and 'untrained encoder' in head and '95 % interval' in head
        assert ('no better than raw pixels' in head) == (better is False) and ('above raw pixels by more than chance' in head or 'above the untrained' in head) == (better is True) and ('cannot tell it from raw pixels' in head) == (better is None)
        assert 'No alarm' in head and 'that of a model that guesses' in head
    assert page.index('Evaluation beside baselines</h2>') < page.index('Course of training</h2>')
    assert 'No few-label result' in page and page.count('<details>') == 1
    assert page.count('<summary>All 12 epochs') == 1 and '<dt>valid_loss</dt>' in page and '<a href="https://arxiv.org/abs/2004.11362">' in page
    code = page[page.index('<pre'):page.index('</pre>')]
    compile(unescape(code[code.index('<code>')+6:code.index('</code>')]), 'again', 'exec')

def test_no_value_for_guessing(tmp_path):
    "VICReg has no loss of a model that guesses"
    learn = fit(make('vic_reg', cbs=[Alarms(min_steps=1000)]))
    learn.alarms.min_steps = 1
    text = learn.report(tmp_path/'r.html', evaluation=False).read_text()
    assert 'No alarm' in text and 'that guesses' not in text

def test_before_a_fit_and_without_a_method(tmp_path):
    with pytest.raises(ValueError, match='has not trained'): make('sim_clr').report(tmp_path/'r.html')
    with pytest.raises(ValueError, match='no method'): Learner(make_dls(), make('sim_clr').model, noop).report(tmp_path/'r.html')

def test_names_are_escaped_and_labels_not_needed(tmp_path):
    learn = fit(make('byol', make_dls(labels=False, drop_last=True)))
    text = learn.report(tmp_path/'deep'/'r.html', title='<b>&').read_text()
    assert '<b>&' not in text and '&lt;b&gt;&amp;' in text and 'no labels to evaluate with' in text and 'Nobody watched' in text

@pytest.mark.parametrize('name,labels', [*((n, True) for n in METHODS), ('moco',False), ('clip',False)])
def test_every_method_has_a_whole_report(name, labels, tmp_path):
    "Nothing in it is no number, undrawn or empty"
    learn = fit(make(name, dls_of(name, labels=labels, **({} if labels else dict(drop_last=True))), cbs=[Alarms(min_steps=1000)]))
    text = learn.report(tmp_path/'r.html', evaluation=False).read_text()
    bare = re.sub(r'<[^>]+>', ' ', re.sub(r'src="data:[^"]+"', '', text))
    assert 'cannot be drawn' not in bare and not re.search(r'\bnan\b', bare, re.I), re.findall(r'.{80}(?:\bnan\b|cannot be drawn).{80}', bare, re.I)
    assert text.count('<img ') >= 5 and not re.search(r'</h2>\s*</section>', text)
    assert ('Retrieval</h2>' in text and 'guessing' in bare) == (METHODS[name].cb.n_inp == 2)
