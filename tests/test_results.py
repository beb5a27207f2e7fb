"Every table of the pages is made of benchmarks/results, and every other figure that they state is found there."
import json
import re
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'docs'))
import tables
from tables import *

number = r'(?:\d[\d,]*)?(?:\.\d+)?'
figure = re.compile(rf'(?<![\w.,^{{(\[/=:-])(?:{number} ± {number}|{number} ?%|{number}×(?! ?\d)|{number} (?:s|ms|MB|GB|seconds?|minutes?|milliseconds?|times|points?)\b|0?\.\d{{3}}\b)')

def text_of(path):
    "What a page says outside of code, formulas, links and generated tables"
    if path.suffix == '.ipynb':
        text = '\n\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown')
    else: text = path.read_text()
    for junk in (r'<!-- table: .*?<!-- /table -->', r'```.*?```', r'\$\$.*?\$\$', r'\$[^$\n]+\$', r'`[^`\n]*`', r'\]\([^)]*\)'): text = re.sub(junk, ' ', text, flags=re.S)
    return text

def figures(path): return sorted({o.strip() for o in figure.findall(text_of(path)) if re.search(r'\d', o)})

# What pages state in their text, from the measurements
def plain(x, digits=3): return f'{x:.{digits}f}'.replace('0.', '.')
def mb(x): return f'{x:,.0f} MB'
def over_pixels(*methods): return {over(m, 'raw pixels')[0] for m in methods}
def over_labels(*methods): return {over(m, 'labels alone')[0] for m in methods}
def row(name, **where):
    df = read(name)
    for k,v in where.items(): df = df[df[k] == v]
    assert len(df) == 1, f'{name}: {len(df)} rows with {where}'
    return df.iloc[0]

def of_scaling():
    df = read('scaling_counted')
    cell = lambda m,w: df[(df.method == m) & (df.processes == w)].iloc[0]
    wide = cell('BarlowTwins', 8)
    added = (2*wide.gradients_mb+wide.received_mb)/1e3/300/(wide.encoder_tflop/(.3*312))
    return {mb(cell('SimCLR', 1024).received_mb), mb(cell('MOCOV3', 1024).received_mb), mb(cell('BarlowTwins', 64).received_mb), mb(wide.gradients_mb),
            mb(row('blocks', n=16_384).plain_mb), f'{100*added:.0f} %'}

def of_views():
    knn = lambda e: row('views_knn', engine=e)
    return {f"{row('views_memory', who='ours').over_size:.2f} times", f"{row('views_share', part='views').pct:.1f} %",
            *(f"{knn(e).knn:.3f} ± {knn(e)['std']:.3f}" for e in ('ours','kornia'))}

def of_settings():
    df = read('settings')
    trials = read('settings_trials').groupby(['method','setting','value']).knn.mean()
    return {plain(df[df.method == 'raw pixels'].knn.mean()), *map(plain, trials)}

def fashion_pairs():
    "Accuracy of each method and library by column and seed, at the budget that all have"
    df = read('fashion').query('epochs == epochs.min()')
    assert (df.groupby(['method','lib']).seed.nunique() == 5).all()
    df = df.assign(knn_few=df.knn_few.fillna(df.probe_few))                            # a classifier has no neighbours
    return {k:df.pivot(index='seed', columns=['method','lib'], values=k) for k in kinds}

def of_fashion():
    def apart(k, a, b, digits=3, lib='ours'): x = of[k][a,'ours']-of[k][b,lib]; return f'{plain(x.mean(), digits)} ± {plain(interval(x), digits)}'
    of = fashion_pairs()
    return {apart('probe_all', 'simclr', 'simclr', 4, 'lightly').lstrip('-'), *(apart(k, 'nnclr', 'nnclr, paper') for k in ('knn_few','knn_all')),
            apart('knn_few', 'labels alone', 'simclr'), *(apart('knn_few', o, 'labels alone') for o in ('supcon','supcon, fine-tuned'))}

def of_cifar10(method='supcon'):
    "The linear classifier of a method over each of what it has to beat, seed by seed, the better of their two accuracies"
    df = read('cifar10').query("lib == 'ours'")
    few = df.assign(few=with_few(df)).pivot(index='seed', columns='method', values='few')
    return {o:(few[method]-few[o]).dropna() for o in ('labels alone','raw pixels','histogram of colours','untrained encoder')}

def test_photographs():
    "README's claim: above all that it has to beat, by more than the interval of the difference"
    for o,x in of_cifar10().items(): assert len(x) >= 3 and x.mean() > interval(x), o
    said, = over_labels_of_photographs('supcon')
    assert all(said in text_of(root/o) for o in ('README.md','docs/benchmarks.md'))

def over_labels_of_photographs(*methods):
    return {f'{plain(x.mean())} ± {plain(interval(x))}' for x in (of_cifar10(o)['labels alone'] for o in methods)}

def of_worth():
    def apart(df, a, b): x = df[a]-df[b]; return f'{plain(abs(x.mean()))} ± {plain(interval(x))}'
    df = read('continuing').fillna('')
    clothes,digits = (df[df.to == to].pivot(index='seed', columns=['method','way'], values='accuracy') for to in ('clothes','digits'))
    raw,frozen,*simclr = ('','raw pixels'),('','as it was'),*[('SimCLR',o) for o in ('a tenth','the same rate','from scratch')]
    tenth,same,scratch = simclr
    taught = read('distill').pivot(index='seed', columns=['method','epochs'], values='accuracy')
    few = fashion_pairs()['knn_few']
    return {apart(clothes, tenth, frozen), apart(clothes, tenth, scratch), apart(clothes, frozen, raw), apart(digits, frozen, raw),
            apart(digits, tenth, scratch), apart(digits, same, scratch), apart(taught, ('teacher',12), ('cosine',6)), apart(taught, ('cosine',6), ('SimCLR',12)),
            apart(few, ('labels alone','ours'), ('simclr','ours'))} | over_pixels('SimCLR') | over_labels('SimCLR', 'SupCon')

measured = {
    'worth.md': of_worth,
    'benchmarks.md': lambda: of_fashion() | over_labels_of_photographs('supcon', 'vicreg'),
    'README.md': lambda: over_labels_of_photographs('supcon'), 'index.ipynb': lambda: over_labels_of_photographs('supcon'),
    'scaling.md': of_scaling, '00_views.ipynb': of_views, '87_training.settings.ipynb': of_settings,
    '20_vision.simclr.ipynb': lambda: over_pixels('SimCLR') | over_labels('SimCLR'), '21_vision.supcon.ipynb': lambda: over_labels('SupCon'),
    '22_vision.moco.ipynb': lambda: over_pixels('MOCO'), '23_vision.byol.ipynb': lambda: over_pixels('BYOL'), '24_vision.simsiam.ipynb': lambda: over_pixels('SimSiam'),
    '25_vision.nnclr.ipynb': lambda: over_pixels('NNCLR'), '26_vision.barlow_twins.ipynb': lambda: over_pixels('BarlowTwins'),
    '27_vision.vicreg.ipynb': lambda: over_pixels('VICReg') | over_labels('VICReg'), '28_vision.swav.ipynb': lambda: over_pixels('SWAV'),
    '29_vision.dino.ipynb': lambda: over_pixels('DINO'), '91_which_method.ipynb': lambda: over_labels('SupCon', 'VICReg', 'SimCLR', 'LeJEPA'),
    '33_vision.tico.ipynb': lambda: over_pixels('TiCo') | over_labels('TiCo') | {over('TiCo', 'SimCLR')[0]},
    '30_vision.lejepa.ipynb': lambda: over_pixels('LeJEPA') | over_labels('LeJEPA') | {over('LeJEPA', 'SimCLR')[0]},
    '81_training.precision.ipynb': lambda: {f"{r['knn']:.3f} ± {r['std']:.3f}" for r in read('precision_knn').to_dict('records')},
    '83_training.big_batches.ipynb': lambda: {mb(row('chunks').whole_mb), mb(row('chunks').chunks_mb), f"{row('chunks').whole_s:.1f} s", f"{row('chunks').chunks_s:.1f} s"},
    '92_few_labels.ipynb': lambda: set(map(plain, read('photos').drop(columns='seed').select_dtypes('number').mean()))}

chosen = { # What a page sets, defines or takes from a paper, which nothing measured
    'benchmarks.md': {'1.25 times'}, '30_vision.lejepa.ipynb': {'17 points'}, 'scaling.md': {'16 MB','64 MB','100 MB','25 GB','300 GB','30 %','8 times'}, '13_data.loaders.ipynb': {'1.25 times','7.7 GB'}, '11_data.cache.ipynb': {'4.9 GB'}, 'faq.md': {'7.7 GB'},
    '73_evaluation.alarms.ipynb': {'100 times','3 %'}, '78_evaluation.cleaning.ipynb': {'1.25 times','10 %','99 %'}, '82_training.checkpoint.ipynb': {'50 times','60 MB'},
    '83_training.big_batches.ipynb': {'16 MB','64 MB','16 times'}, '87_training.settings.ipynb': {'.004','.996','33 times'}, '93_choosing_views.ipynb': {'8 %'}}

@pytest.mark.parametrize('path', [root/'README.md', *pages], ids=lambda o: o.name)
def test_figures_of_a_page(path):
    known = measured.get(path.name, set)() | chosen.get(path.name, set()) | {'95 %'}
    assert not set(figures(path)) - known, f"{path.name} states what benchmarks/results does not say"

@pytest.mark.parametrize('path', pages, ids=lambda o: o.name)
def test_tables_of_a_page(path):
    text = path.read_text() if path.suffix == '.md' else '\n\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'])
    assert filled(text) == text, f"{path.name}: run python docs/tables.py"

def test_above_and_below():
    "What pages of methods call above or below raw pixels or labels alone is so"
    n = 0
    for path in (root/'nbs').glob('[23]*.ipynb'):
        for d,word,other in re.findall(r'([.\d]+ ± [.\d]+) (above|below) (raw pixels|labels alone)', text_of(path)):
            said = [over(m, other) for m in accuracy().columns]
            assert (d, word == 'above') in said, f'{path.name}: {d} {word} {other}'
            n += 1
    assert n >= 8

def test_alarms_that_the_page_counts():
    df = pd.read_csv(root/'benchmarks'/'results'/'alarms.csv', keep_default_na=False)
    sick = df[df.sick]
    text = (root/'docs'/'alarms.md').read_text()
    assert f"no alarm in {len(df)-len(sick)} healthy trainings of the twelve older methods and one in each of {len(sick)} sick ones" in text
    assert (sick.alarms != '').all() and (df[~df.sick].alarms == '').all()

def test_what_the_page_says_of_fashion():
    "Which methods are below lightly's by more than the interval, and what SupCon and raw pixels are above"
    page = (root/'docs'/'benchmarks.md').read_text()
    assert not [o for o in of_fashion() if o not in page]
    of = fashion_pairs()
    few,both = of['knn_few'],sorted(m for m,lib in of['knn_few'] if lib == 'lightly')
    d = {(m,k):of[k][m,'ours']-of[k][m,'lightly'] for m in both for k in of}
    assert len(both) == 9 and {o for o,x in d.items() if x.mean() < -interval(x)} == {('simclr','probe_all')}
    better = {m for m,lib in few if lib == 'ours' and few[m,lib].mean() > few['raw pixels','ours'].mean()}
    assert better == {'supcon','supcon, fine-tuned','supconmoco','simclr','lejepa','labels alone'}
    assert all(x.mean() < of['knn_all']['raw pixels','ours'].mean() for c,x in of['knn_all'].items() if c[0] != 'raw pixels' and x.notna().all())
    above = {c for c in few if (x := few['supcon','ours']-few[c]).mean() > interval(x)}
    assert set(few) - above == {(m,'ours') for m in ('supcon','supcon, fine-tuned','labels alone')}

def test_losses_that_are_compared_are_the_same():
    df = read('losses')
    assert df.difference.abs().max() < 1e-5, df.loc[df.difference.abs().idxmax()]

def test_an_empty_table_is_filled():
    "What comes after it stays, other tables among it"
    page = '<!-- table: fashion_longer -->\n<!-- /table -->\n\n## After it\n\n<!-- table: digits -->\nold\n<!-- /table -->\n'
    new = filled(page)
    assert '## After it' in new and new.count('<!-- /table -->') == 2 and 'old' not in new and filled(new) == new

def test_a_made_up_figure_is_found(tmp_path):
    page = tmp_path/'page.md'
    page.write_text('It reaches 0.987 ± 0.003 in 41 seconds, 7.2×, 12 % of `77 s`.\n\n<!-- table: x -->\n| 55 % |\n<!-- /table -->\n')
    assert figures(page) == ['0.987 ± 0.003','12 %','41 seconds','7.2×']

def test_every_file_of_results_says_its_machine():
    for f in sorted((root/'benchmarks'/'results').glob('*.csv')):
        df = pd.read_csv(f)
        assert {'cpu','cores','torch'} <= set(df) and df[['cpu','cores','torch']].notna().all(None), f.name
