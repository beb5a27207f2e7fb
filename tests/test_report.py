"The report of a training, opened in a browser: complete, readable on a telephone, by keyboard and by a screen reader."
import itertools, math, os, re, shutil
from html import unescape
from pathlib import Path
import matplotlib; matplotlib.use('Agg')
import pandas as pd, pytest, torch
from fastai.vision.all import Callback, Categorize, Learner, Pipeline, noop
from kit import METHODS, dls_of, fit, fitted, image, loaders, make, make_dls, same, state
from self_supervised.evaluation.alarms import Alarm, Alarms
from self_supervised.evaluation.health import ssl_metrics
from self_supervised.evaluation.pictures import is_empty, show_beside, views_beside
from self_supervised.evaluation.protocol import Verdict, evaluate
from self_supervised.evaluation.report import Evidence, _again, _alarms, _directions, _result, _time, _valid_loss, _verdict, _view_code, _views_code, duration, learned
from self_supervised.training.checkpoint import Checkpoint
from self_supervised.vision.all import get_batch_augs, get_dino_aug_pipelines

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
    for level,text,mine,pixels in (('Cannot tell','cannot tell it from raw pixels',.72,.7), ('Nothing learned, or worse','no better than raw pixels',.5,.7),
                                   ('Learned something','by more than chance',.95,.3)):
        o.df.loc[own, 'mean'],o.df.loc[raw, 'mean'] = mine,pixels
        said = _verdict(_result(o, None), '', []).replace('\xa0', ' ')
        assert f'<strong>{level}.</strong><p>{100*mine:.1f} %' in said and 'untrained encoder' in said and '95 % interval' in said and text in said
    page = learn.report(tmp_path/'r.html', evaluation=o).read_text()
    head = page[:page.index('<nav')]
    assert 'Learned something.' in head and 'No alarm' in head and 'A model that guesses has' in head and head.count('held-out images') == 1
    assert page.index('Evaluation beside baselines</h2>') < page.index('Course of training</h2>')
    assert 'No few-label result' in page and page.count('<details>') == 1
    assert page.count('<summary>All 12 epochs') == 1 and '<dt>valid_loss</dt>' in page and '<a href="https://arxiv.org/abs/2004.11362">' in page
    assert 'begun 20' in page and 'per epoch' in page and '12 epochs, ' in page

def test_before_a_fit_and_without_a_method(tmp_path):
    with pytest.raises(ValueError, match='has not trained'): make('sim_clr').report(tmp_path/'r.html')
    with pytest.raises(ValueError, match='no method'): Learner(make_dls(), make('sim_clr').model, noop).report(tmp_path/'r.html')

def test_names_are_escaped_and_labels_not_needed(tmp_path):
    learn = fit(make('byol', make_dls(labels=False, drop_last=True)))
    text = learn.report(tmp_path/'deep'/'r.html', title='<b>&').read_text()
    assert '<b>&' not in text and '&lt;b&gt;&amp;' in text and 'no labels to evaluate with' in text and 'Nobody watched' in text and 'Cannot tell.' in text and 'takes labels for some held-out images' in text

@pytest.mark.parametrize('name,labels', [*((n, True) for n in METHODS), ('moco',False), ('clip',False)])
def test_every_method_has_a_whole_report(name, labels, tmp_path):
    "Nothing in it is no number, undrawn or empty"
    learn = fit(make(name, dls_of(name, labels=labels, **({} if labels else dict(drop_last=True))), cbs=[Alarms(min_steps=1000)]))
    text = learn.report(tmp_path/'r.html', evaluation=False).read_text()
    bare = re.sub(r'<[^>]+>', ' ', re.sub(r'src="data:[^"]+"', '', text))
    assert 'cannot be drawn' not in bare and not re.search(r'\bnan\b', bare, re.I), re.findall(r'.{80}(?:\bnan\b|cannot be drawn).{80}', bare, re.I)
    compile(unescape(re.search('<pre[^>]*><code>(.*?)</code>', text, re.S)[1]), 'again', 'exec')
    assert text.count('<img ') >= 5 and not re.search(r'</h2>\s*</section>', text)
    assert ('Retrieval</h2>' in text and 'rank their own text' in bare) == (METHODS[name].cb.n_inp == 2)

flags = 'collapsed','narrow','flat','void'

def test_never_good_if_anything_speaks_against_it():
    for result,*on in itertools.product(('good','unsure','bad','none'), *[(False,True)]*4):
        level = learned(result, *on)
        assert (level == 'good') == (result == 'good' and not any(on)), (result, on)

@pytest.mark.parametrize('result,flag,level', [
    ('good',None,'good'), ('unsure',None,'unsure'), ('bad',None,'bad'), ('none',None,'unsure'),
    *[('good',o,'unsure') for o in flags], *[('none',o,'bad') for o in flags[:2]], *[('none',o,'unsure') for o in flags[2:]],
    *[('unsure',o,'bad') for o in flags[:2]], *[('unsure',o,'unsure') for o in flags[2:]],
    ('bad','collapsed','bad'), ('bad','narrow','bad'), ('bad','flat','bad'), ('bad','void','unsure')])
def test_each_piece_of_evidence(result, flag, level): assert learned(result, **({flag:True} if flag else {})) == level

def test_evidence_of_the_validation_loss():
    "It fell, rose, was never a number, is no number any more, has one epoch, or is not there; a method that knows no loss of guessing says none"
    learn = fitted('vic_reg')
    for losses,kind,text in (([3,2,1], 'good', 'from 3 in the first epoch to 1.'), ([3,1,2], 'good', 'to 1 in epoch 1; in the last one it was 2'),
                             ([3,math.nan,2], 'good', 'to 2.'), ([1,1,2], 'bad', 'never fell below the 1'), ([3,2,math.nan], 'bad', 'NaN or infinite'),
                             ([math.nan]*2, 'bad', 'NaN or infinite'), ([None,None], 'bad', 'NaN or infinite'), ([3], 'unsure', 'no trend')):
        o = _valid_loss(learn, pd.Series(losses))
        assert o.kind == kind and text in o.text and 'guesses' not in o.text and o.doubt == 'flat'*(kind == 'bad'), (losses, o)

def test_evidence_of_directions():
    learn,z = fitted('sim_clr'),torch.randn(200, 64)
    line = torch.randn(200, 1)*torch.ones(64)
    for features,kind,text in ((z,'good','of 64 directions'), (line,'bad','1.0 of 64'), (z*math.nan,'bad','NaN or infinite'), (torch.zeros(200, 64),'bad','0.0 of 64')):
        o = _directions(learn, features, 'validation')
        assert o.kind == kind and text in o.text and o.doubt == 'narrow'*(kind == 'bad')
    classes = torch.eye(2).repeat(100, 100)                                                # two classes are two directions
    assert [_directions(fitted(n), classes, 'validation').kind for n in ('sup_con','sim_clr')] == ['good','bad']

def test_evidence_of_alarms():
    "A collapse counts as long as it stands, what is said of the data always, and what denies nothing is shown"
    learn = fit(make('sim_clr', cbs=[Alarms(min_steps=1000)]))
    cb,tries = learn.alarms,('a','b')
    made = dict(gone=Alarm('collapse', 'f', 0, 0, 'w', tries, 0, 'features'), teacher=Alarm('teacher stands still', 'f', 0, 0, 'w', tries, 0),
                leak=Alarm('validation images in training', 'f', 1, 1, 'w', tries, None, 'evaluation'), dark=Alarm('dark images', 'f', 0, 1, 'w', tries),
                nan=Alarm('NaN', 'f', math.nan, math.nan, 'w', tries, 0, 'features'))
    cb.raised = list(made.values())
    seen = dict(zip(made, _alarms(learn)))
    assert {k:(o.kind,o.doubt) for k,o in seen.items()} == dict(gone=('unsure',''), teacher=('unsure',''), leak=('bad','void'), dark=('bad',''), nan=('bad','collapsed'))
    assert 'this was over' in seen['gone'].text
    cb.looks[-1].spread = .01
    assert (_alarms(learn)[0].kind,_alarms(learn)[0].doubt) == ('bad','collapsed')
    cb.raised,cb.min_steps = [],1
    assert [o.name for o in _alarms(learn)] == ['No alarm'] and [o.name for o in _alarms(fitted('sim_clr'))] == ['Alarms']

def test_a_sentence_for_each_case():
    "The answer names what decided it"
    good,bad = Verdict(.9, 500, 'are found', {'raw pixels':.5}, .1),Verdict(.4, 500, 'are found', {'raw pixels':.5}, .1)
    broken,flat = Evidence('Alarm', 'bad', 'it broke', 'collapsed'),Evidence('Validation loss', 'bad', 'it rose', 'flat')
    for result,evidence,level,text in ((good, [], 'Learned something', 'above raw pixels'), (good, [flat], 'Cannot tell', 'However, the validation loss never improved.'),
                                       (None, [], 'Cannot tell', 'Why not. Telling whether the features are good takes labels'), (bad, [flat], 'Nothing learned', 'no better than raw'),
                                       (None, [broken,flat], 'Nothing learned', 'An alarm still stands and the validation loss never improved, and no evaluation says otherwise.')):
        page = _verdict(result, 'Why not.', evidence)
        assert level in page and text in page and all(o.text in page for o in evidence), (level, page)

def test_one_class(tmp_path):
    "The page says why it has no evaluation"
    learn = fit(make('sim_clr', make_dls(n=60, tfms=[lambda i: 'a', Categorize()])))
    text = learn.report(tmp_path/'r.html').read_text()
    assert 'There can be no evaluation: ' in text and 'it takes two' in text and 'Cannot tell.' in text

class Stop(Callback):
    "Ctrl-C in an epoch"
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.training and self.epoch == self.at and self.iter == 1: raise KeyboardInterrupt

def test_interrupted_and_resumed(tmp_path):
    "How many of the epochs there were; both beginnings, and the time of all epochs"
    learn = make('sim_clr', cbs=[Stop(1), Checkpoint(tmp_path/'c')])
    with pytest.raises(KeyboardInterrupt): fit(learn, 3)
    text = learn.report(tmp_path/'r.html', evaluation=False).read_text()
    assert '1 of 3 epochs, as it was interrupted' in text and 'went on' not in text and len(learn.sim_clr.times) == 1
    again = make('sim_clr', cbs=[Checkpoint(tmp_path/'c')]).resume(tmp_path/'c')
    fit(again, 3)
    cb = again.sim_clr
    assert len(cb.times) == 3 and cb.times[0] == learn.sim_clr.times[0] and cb.began[0] == learn.sim_clr.began[0] and len(cb.began) == 2 and 'went on 20' in _time(cb)
    again.validate()
    assert len(cb.times) == 3 and [duration(o) for o in (5.123, 119, 150, 9000, 180000)] == ['5.12 seconds','119 seconds','2.5 minutes','2.5 hours','2.1 days']

def test_empty_views_are_named(tmp_path):
    "A bright spot on black: crops that miss it are counted, named in the picture and said"
    def spot(i):
        x = torch.zeros(3, 24, 24); x[:,2:6,2:6] = image(i)[:,:4,:4]
        return x
    learn = fit(make('sim_clr', loaders('sim_clr', [(spot(i),) for i in range(16)], drop_last=True)))
    x,views = views_beside(learn)
    share = is_empty(torch.cat(views)).float().mean().item()
    assert len(x) == 16 and .1 < share < .9 and not is_empty(x).any() and is_empty(torch.full((1,3,4,4), .3)).all()
    assert any('(empty)' in o.get_title() for o in show_beside(x, views).flat)
    text = learn.report(tmp_path/'r.html', evaluation=False).read_text()
    assert f'{100*share:.1f} % of the views are empty.' in text and 'a single colour from edge to edge' in text and 'is empty, that is' not in text

@pytest.mark.parametrize('kw', [{}, dict(rotate=False, bw=False, blur=False), dict(solarize=True, solarize_p=1., stats=None), dict(jitter=False, resize_scale=(.5,1.)),
                                dict(jitter_s=.2, flip_p=0., same_on_batch=True, stats=([.5],[.2]))])
def test_code_of_views(kw):
    a = get_batch_augs((16,20), **kw)
    b = eval(_view_code(a), dict(get_batch_augs=get_batch_augs))
    assert b.fs[0].recipe == a.fs[0].recipe or not kw.get('rotate', True)

def test_code_of_several_views():
    "Those that follow each other and are alike are written once, as small crops are; what is not of get_batch_augs is three dots"
    pipes = get_dino_aug_pipelines(32, n_small=3)
    code = _views_code(pipes)
    again = eval(code, dict(get_batch_augs=get_batch_augs))
    assert [p.fs[0].recipe for p in again] == [p.fs[0].recipe for p in pipes] and code.count('get_batch_augs') == 3 and 'range(3)' in code
    assert _views_code([Pipeline([noop], split_idx=0)]) == '[...]' and 'xtra_tfms=...' in _view_code(get_batch_augs(16, xtra_tfms=[noop]))

@pytest.mark.parametrize('name,schedule', [('sim_clr','fit'), ('byol','fit_one_cycle'), ('moco','fit_flat_cos')])
def test_cells_of_a_notebook_repeat_the_training(name, schedule):
    "With what they do not know filled in"
    learn = make(name, cbs=[Alarms()])
    if name == 'byol': learn.metrics = ssl_metrics(learn)
    with learn.no_bar(), learn.no_logging(): getattr(learn, schedule)(2, 1e-3)
    code,missing = _again(learn, getattr(learn, name))
    assert code.count('...') == len(missing) == 2 and f'learn.{schedule}(2, 0.001, wd=0.01)' in code, code
    env = {}
    exec(code.replace('set_seed(...)', 'set_seed(0)').replace('dls = ...', 'from kit import make_dls; dls = make_dls()')
             .replace('learn.fit', 'learn.remove_cb(ProgressCallback); learn.logger = noop; learn.fit'), env)
    assert same(state(env['learn']), state(learn))
