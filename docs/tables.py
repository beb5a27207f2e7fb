"""The tables of README, notebooks and site, made of the measurements in benchmarks/results, and the links to the repository: python docs/tables.py fills them in, between the comments that name them.
tests/test_results.py looks up the figures in their text."""
import json
from pathlib import Path

import links
import pandas as pd

from self_supervised.evaluation.protocol import interval

from self_supervised.callback import QueueMixin, TeacherCallback, methods as registry
from self_supervised.evaluation.alarms import Alarms, checks
from self_supervised.vision import all as _all                  # which makes all methods known

root = Path(__file__).parent.parent
pages = [*sorted((root/'docs').glob('*.md')), *sorted((root/'nbs').glob('*.ipynb'))]
baselines = 'labels alone','raw pixels','untrained encoder'
begin,end = '<!-- table: {} -->\n','\n<!-- /table -->'

def read(name:str) -> pd.DataFrame: return pd.read_csv(root/'benchmarks'/'results'/f'{name}.csv')

def markdown(head:list, rows:list) -> str: return '\n'.join('| '+' | '.join(map(str, o))+' |' for o in (head, ['---']*len(head), *rows))

def machines(*names:str) -> str:
    "On what the figures of these files were measured"
    df = pd.concat([read(n) for n in names])
    return '; '.join(f"{r.cores} cores of an {r.cpu}, torch {r.torch}" for r in df[['cores','cpu','torch']].drop_duplicates().itertuples())

def spread(x:pd.Series, digits:int=3) -> str:
    x = x.dropna()                                                   # seeds that only others have
    return f"{x.mean():.{digits}f} ± {interval(x):.{digits}f}"

# what the classes of the methods and the functions of the alarms say

def besides(o) -> str:
    "What the method has besides the student"
    heads = [p for p in o.parts if p not in ('encoder','projector')]*(o.n_inp == 1)
    has = [o.learns_from(), 'teacher'*issubclass(o, TeacherCallback), *heads, 'queue'*issubclass(o, QueueMixin)]
    return ', '.join(filter(None, has)) or 'nothing'

def methods():
    link = lambda n: f'[{n}](https://arxiv.org/abs/{n})'
    rows = [(f'`{o.__name__}`', ', '.join(map(link, o.paper.arxiv.split(', '))), besides(o), o.small_batch[0] or '', o.when) for o in registry.values()]
    return markdown(['callback','paper','besides images and encoder','images per batch, at least','for whom'], rows)

def alarm_rows(when):
    rows = {k:v for f in checks if f.when == when for k,v in f.rows.items()}
    if when == 'training': rows |= Alarms.rows
    return markdown(['alarm','what was seen','what it usually is'], [(k,*v) for k,v in rows.items()])
def alarms_start(): return alarm_rows('start')
def alarms_training(): return alarm_rows('training')

# the digits, with 5 labels per class

def accuracy() -> pd.DataFrame:
    "Of each method and baseline on the digits, by seed"
    return read('methods').pivot(index='seed', columns='method', values='accuracy')

def over(method:str, other:str) -> tuple:
    "The mean difference, seed by seed, as pages write it, and whether it is positive"
    df = accuracy()
    d = df[method]-df[other]
    return f"{abs(d.mean()):.3f} ± {interval(d):.3f}".replace('0.', '.'),d.mean() > 0

def digits():
    df = accuracy()
    best = sorted(('SupCon','VICReg','SimCLR'), key=lambda o: -df[o].mean())
    names = {'SupCon':'SupCon (with the 50 labels), kNN', 'VICReg':'VICReg, kNN', 'SimCLR':'SimCLR, kNN', 'raw pixels':'*raw pixels, kNN*',
             'untrained encoder':'*untrained encoder, kNN*', 'labels alone':'*the same encoder, trained on the 50 labelled images alone*'}
    rows = [(names[o], f'**{spread(df[o])}**' if i == 0 else spread(df[o])) for i,o in enumerate((*best, *baselines))]
    slow = df[['BYOL','SimSiam','DINO']].mean()
    return markdown(['','accuracy'], [*rows, ('BYOL, SimSiam, DINO, kNN', f'{slow.min():.2f} to {slow.max():.2f}')])

# what things cost

def counted():
    df = read('scaling_counted')
    r = df.iloc[0]
    cells = df.assign(cell=[f'{a:,.1f} · {b:,.2f}' for a,b in zip(df.received_mb, df.loss_tflop)]).pivot(index='method', columns='processes', values='cell')
    mb = df.groupby('method').gradients_mb.first()
    return (f"{r.encoder}, {r.bs} images per process, two views of 224 pixels. The encoder takes {r.encoder_tflop:.1f} TFLOP per step and process, forward and backward; "
            "a teacher adds its\nforward pass, a third of that. Each cell: what a process receives for the loss in MB · what it computes for the loss in TFLOP.\n\n"
            + markdown(['method','gradients summed by DDP, MB',*[f'{w:,} GPUs, {w*r.bs:,} images' for w in cells]],
                       [(m, f'{mb[m]:.0f}', *cells.loc[m]) for m in df.method.unique()]))

def share():
    df = read('scaling_share')
    rows = [(f'{r.n:,}', r.processes, f'{r.seconds:.4g}', f'{r.time_share:.3f}', f'{r.mb:.0f}', f'{r.mb_share:.2f}') for r in df.itertuples()]
    return (f"{machines('scaling_share')}; medians of {df.times.max()} steps, those of more than 20 seconds timed once\n\n"
            + markdown(['embeddings','processes','seconds','of the whole','MB','of the whole'], rows))

def ddp():
    rows = [(r.processes, f'{r.alone_s:.3f}', f'{r.ddp_s:.3f}', f'{r.more_pct:+.1f} %') for r in read('scaling_ddp').itertuples()]
    return (f"{machines('scaling_ddp')}; medians of two epochs of each kind\n\n"
            + markdown(['processes','seconds per step, each on its own','with DDP and shared embeddings','more'], rows))

def waits():
    df = read('waits').pivot(index='method', columns='size', values=['waits','copies','ops'])
    rows = [(m, *(f"{r[k,32]:.0f} · {r[k,224]:.0f}" for k in ('waits','copies')), f"{r['ops',224]:,.0f}") for m,r in df.sort_values(('waits',224)).iterrows()]
    return markdown(['method, 256 images','waits at 32 · 224 pixels','copies that are not pinned','operations'], rows)

def views():
    df = read('views')
    def cell(s, who):
        r = df[(df['size'] == s) & (df.who == who)].iloc[0]
        return f'{r.views_per_s:,.0f}' if who == 'ours' else f'{r.views_per_s:,.0f} ({r.ours_over:.1f}×)'
    whos = {'ours':'here', 'kornia':'kornia', 'torchvision_v2':'torchvision v2, image by image', 'lightly, 2 workers':'lightly, 2 workers'}
    return markdown(['pixels',*whos.values()], [(s, *[cell(s, w) for w in whos]) for s in df['size'].unique()])

def precision():
    names = dict(resnet50='ResNet-50', resnet18='ResNet-18', resnet10t='ResNet-10-T')
    return markdown(['','fp32','bf16',''], [(f"{names[r['arch']]}, {r['bs']} images of {r['size']} pixels", f"{r['fp32_s']:.2f} s", f"{r['bf16_s']:.2f} s",
                                             f"{r['ratio']:.1f} times faster") for r in read('precision').to_dict('records')])

def blocks():
    return markdown(['N','whole','','in blocks',''], [(f'{r.n:,}', f'{r.plain_s:.2f} s', f'{r.plain_mb:,.0f} MB', f'{r.blocks_s:.2f} s', f'{r.blocks_mb:,.0f} MB')
                                                      for r in read('blocks').itertuples()])

# beside other libraries

def ratio(r) -> str: return f"{r.ratio:.2g} (once)" if r.times == 1 else f"{r.ratio:.2g} ({r.least:.2g} to {r.most:.2g})"

def losses():
    df,peers = read('losses'),{'lightly':'lightly', 'metric_learning':'pytorch-metric-learning'}
    rows = []
    for (loss,peer,d),g in df.groupby(['loss','peer','d'], sort=False):
        cell = {r.n: ratio(r) for r in g.itertuples()}
        mb = max(g.dropna(subset='ours_mb').itertuples(), key=lambda r: r.n)
        rows.append((loss, d, peers[peer], *[cell.get(n, '') for n in (512,2048,8192)], f'{mb.ours_mb/mb.peer_mb:.2g} (N = {mb.n:,})'))
    return (f"{machines('losses')}; medians of three to five steps, the two libraries in turn, and their range; some were timed once\n\n"
            + markdown(['loss','width','beside','N = 512','2,048','8,192','memory'], rows))

def steps():
    df = read('steps')
    kinds = df.who.unique()
    def cell(m, who):
        r = df[(df.method == m) & (df.who == who)].iloc[0]
        base = df[(df.method == m) & (df.who == kinds[0])].least.item()
        times = f'{r.least:.2f} s (to {r.most:.2f})' + (f', {r.mb:,.0f} MB' if r.mb == r.mb else '')     # not measured in a short run
        if who in kinds[:2]: return times
        encoders = f'{r.least/base:.2f} encoders'
        return f"{times}; {encoders}; {r['mode']}" if 'mode' in who else f'{times}; **{r.share:.2f}**; {encoders}'
    assert len(df[['n','size','bs','arch']].drop_duplicates()) == 1, "steps.csv: rows of different settings"
    return f"{machines('steps')}; seconds per step, the least and the most of {' to '.join(map(str, sorted({*df.rounds})))} epochs of each, in turn\n\n"+markdown(['method',*kinds], [(m, *[cell(m, k) for k in kinds]) for m in df.method.unique()])

def data():
    df = read('data')
    r = df.iloc[0]
    return (f"{machines('data')}; one core, {r.n} photographs of 640 × 427 pixels to two views of {r['size']}, median of {r.rounds} rounds\n\n"
            + markdown(['','ms per image','of lightly'], [(r.who, f'{r.ms_per_image:.2f}', f'{r.of_lightly:.2f}') for r in df.itertuples()]))

kinds = {'knn_few':'kNN, 10 labels per class', 'probe_few':'linear, 10 per class', 'knn_all':'kNN, all labels', 'probe_all':'linear, all labels'}

def with_few(df:pd.DataFrame) -> pd.Series: return df[['knn_few','probe_few']].max(axis=1)

def same_budget(name, order):
    "Each method and library, and what stands beside them, at the least number of epochs that was run"
    df = read(name)
    df = df[df.epochs == df.epochs.min()]
    assert (df.groupby(['method','lib']).lr.nunique() == 1).all(), f"{name}.csv: rows of one method with different learning rates"
    g = df.groupby(['method','lib'])
    means = g[list(kinds)].mean()
    libs,untrained = dict(ours='here', lightly='lightly'),df[df.lr == 0].method.unique()
    def cell(o, k):
        x = g.get_group(o)[k].dropna()
        return spread(x) if len(x) > 1 else f'{x.item():.3f}' if len(x) else ''
    rows = [(o[0], libs[o[1]] if o[0] not in ('labels alone',*untrained) else '', *[cell(o, k) for k in kinds], '' if o[0] in untrained else f"{g.get_group(o).lr.iloc[0]:g}", len(g.get_group(o)))
            for o in order(means).sort_values(ascending=False).index]
    return f"{machines(name)}; {df.epochs.max()} epochs\n\n"+markdown(['method','losses and heads of',*kinds.values(),'learning rate','seeds'], rows)

def fashion(): return same_budget('fashion', lambda df: df.knn_few.fillna(df.probe_few))
def cifar10(): return same_budget('cifar10', with_few)

def photographs():
    "What README shows of `cifar10`: the methods that do best with labels and without, and what they have to beat"
    df = read('cifar10').query("lib == 'ours'")
    df = df[df.epochs == df.epochs.max()]
    few = df.assign(few=with_few(df)).groupby('method').few.mean().sort_values(ascending=False)
    learned = registry.keys() & few.index
    best = [next(o for o in few.index if o in learned and registry[o].learns_from_labels() == k) for k in (True,False)]
    rows = {best[0]:f'**{registry[best[0]].__name__}**, trained on the 100 labels and on all images', best[1]:f'**{registry[best[1]].__name__}**, trained on all images, without labels',
            'labels alone':'*the same network, trained on the 100 labelled images alone*', 'raw pixels':'*raw pixels*', 'histogram of colours':'*colour histogram*', 'untrained encoder':'*untrained encoder*'}
    cells = {k:g for k,g in df.groupby('method')}
    seeds = {len(cells[k]) for k in rows}
    assert len(seeds) == 1, "cifar10.csv: rows of README with different seeds, which draw different labels"
    return (f"{machines('cifar10')}; {seeds.pop()} seeds\n\n"
            + markdown(['','nearest neighbours','linear classifier'], [(v, *(spread(cells[k][o]) for o in ('knn_few','probe_few'))) for k,v in rows.items()]))

def fashion_longer():
    "What more epochs do, for the methods that were given them"
    df,base = read('fashion'),read('fashion').query('method == "raw pixels"')
    most = df.epochs.max()
    df = df[(df.lib == 'ours') & df.method.isin(df[df.epochs == most].method) & (df.lr > 0)]
    rows = [(m, n, *[spread(g[k]) if g[k].notna().all() else '' for k in kinds]) for (m,n),g in df.groupby(['method','epochs'])]
    rows.append(('raw pixels', '', *[spread(base[k]) for k in kinds]))
    return (f"{machines('fashion')}; {df.seed.nunique()} seeds\n\n"
            + markdown(['method','epochs',*kinds.values()], rows))

def distilled():
    df = read('distill')
    names = {'teacher':'the teacher: SupCon with all labels', 'seed':"student, `'seed'`", 'cosine':"student, `'cosine'`", 'SimCLR':'SimCLR', 'raw pixels':'raw pixels'}
    rows = [(names[m], n or '', spread(g.accuracy), f'{g.best_epoch.min():.0f} to {g.best_epoch.max():.0f}' if g.best_epoch.notna().any() else '')
            for (m,n),g in sorted(df.groupby(['method','epochs']), key=lambda o: [*names].index(o[0][0]))]
    return f"{machines('distill')}; {df.seed.nunique()} seeds\n\n"+markdown(['','epochs','accuracy','best epoch'], rows)

def continuing():
    df = read('continuing')
    names = {('','raw pixels'):'raw pixels', ('','as it was'):'the encoder as it was'}
    of = {to:{k:spread(g.accuracy) for k,g in d.groupby(['method','way'])} for to,d in df.fillna({'method':''}).groupby('to')}
    ways = [('','raw pixels'),('','as it was'),*((m,w) for m in ('SimCLR','DINO') for w in ('from scratch','the same rate','a tenth','rising from a tenth'))]
    return (f"{machines('continuing')}; {df.seed.nunique()} seeds, {df.epochs.max()} epochs\n\n"
            + markdown(['method','learning rate of the encoder','to other clothes','to digits'], [(m, names.get((m,w), w), *(of[to].get((m,w), '') for to in ('clothes','digits'))) for m,w in ways]))

def worth():
    "What is done with an encoder that others have trained, from the same measurements as `continuing`"
    df = read('continuing').fillna({'method':''})
    of = {k:spread(g.accuracy) for k,g in df.groupby(['to','method','way'])}
    ways = {'raw pixels':('','raw pixels'), 'frozen, as it was':('','as it was'), 'continued with a tenth of the learning rate':('SimCLR','a tenth'),
            'continued with the full rate':('SimCLR','the same rate'), 'the same training from scratch':('SimCLR','from scratch')}
    return (f"{machines('continuing')}; {df.seed.nunique()} seeds, {df.epochs.max()} epochs\n\n"
            + markdown(['','clothes, which it knows','digits, which it does not'], [(o, *(of[to,*k] for to in ('clothes','digits'))) for o,k in ways.items()]))

def clip():
    df = read('clip')
    rows = [(m, spread(g.accuracy) if len(g) > 1 else f'{g.accuracy.mean():.3f}', f'{g.r5.mean():.3f}' if g.r5.notna().any() else '') for m,g in sorted(df.groupby('method'), key=lambda o: -o[1].accuracy.mean())]
    return f"{machines('clip')}; seeds: {df.seed.nunique()}, {df.epochs.max():.0f} epochs\n\n"+markdown(['','zero-shot accuracy','R@5, image to text'], rows)

tables = dict(badges=links.badges, install=links.install, methods=methods, waits=waits, alarms_start=alarms_start, alarms_training=alarms_training, clip=clip, continuing=continuing, worth=worth, distill=distilled, digits=digits, counted=counted, share=share, ddp=ddp, views=views, precision=precision, blocks=blocks, losses=losses, steps=steps, data=data, fashion=fashion, cifar10=cifar10, photographs=photographs, fashion_longer=fashion_longer)

def filled(text:str) -> str:
    "`text` with its tables made anew"
    for name,f in tables.items():
        a = begin.format(name)
        if a in text:
            i = text.index(a)+len(a)
            text = text[:i]+f()+text[text.index(end, i-1):]
    return text

def fill(path:Path):
    "Write the tables of a page"
    if path.suffix == '.md': return path.write_text(filled(path.read_text()))
    was = path.read_text()
    nb = json.loads(was)
    for c in nb['cells']:
        if c['cell_type'] == 'markdown': c['source'] = filled(''.join(c['source'])).splitlines(keepends=True)
    if path.stem != 'index': begin_with(nb, links.colab_cell())
    new = json.dumps(nb, indent=1, ensure_ascii=False)+'\n'
    if new != was: path.write_text(new)

def begin_with(nb:dict, cells:list):
    "The cell that installs comes after the title"
    own = [c for c in nb['cells'] if c['id'] != links.cell_id]
    nb['cells'] = own[:1]+cells+own[1:]

if __name__ == '__main__':
    for p in pages: fill(p)
