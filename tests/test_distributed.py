"Two processes with a pretended GPU each compute what one does, for every method; `test_three_processes` has the processor, DDP and Accelerate as they are."
import inspect
from functools import partial
from pathlib import Path
import fastai.distributed, pytest, torch, warm
import torch.distributed as dist
from torch import nn
from fastai.vision.all import Callback, DataLoaders, DisplayedTransform, GradientAccumulation, Learner, Pipeline, SGD, Tensor, TensorImage, TfmdDL, default_device, noop, rank_distrib, set_seed
from self_supervised.training.distributed import DistributedDL
from self_supervised.vision.swav import sinkhorn
from self_supervised.training.big_batches import Chunks
from self_supervised.vision.all import Alarms, EmbeddingMetric, KNN, ToImageBatch, alignment, get_model, lidar, rankme, spread, uniformity
from kit import METHODS, image, text, tokens
from pretended_gpus import on_gpus, own

# three steps of every method: one process with batches of 8, 8 and 4; two with 4, 4, 3 and 4, 4, 1; three with 3, 3, 2 and twice 3, 3, 1

def figures(): return [KNN(k=3), *map(EmbeddingMetric, (spread,rankme,lidar,alignment,uniformity))]
MEASURED = 'sim_clr','dino','clip'                            # one of those with two views, with small ones, and with texts
N,LR = {2:20, 3:22},{'':.02, 'barlow_twins':2e-5, 'vic_reg':1e-3, 'mocov3':4e-3, 'byol':4e-3}    # sums have large gradients; steps of the last two make 1e-5 of a change of 1e-8
SHARES,BS = {2:(range(11),range(11,20)), 3:(range(8),range(8,15),range(15,22))},{2:4, 3:3}
def rate(name): return LR.get(name, LR.get(name.partition('+')[0], LR['']))
RUNS = [*METHODS, 'sim_clr+acc', 'byol+acc']                  # the last two step after two batches, of all processes
VARIANTS = ['sim_clr+views','sup_con+views','sim_clr+dcl','sim_clr+dclw','sup_con+only','sup_con_moco+only','moco+alpha','barlow_twins+narrow','vic_reg+narrow','sim_clr+chunks','dino+koleo','distill+cosine','nnclr+within','moco+last']
OTHER = dict(dcl=dict(decoupled=True), dclw=dict(decoupled=True, sigma=.5), only=dict(unsup_method='only', unsup_class_id=1),
             alpha=dict(alpha=100., batch_negs=False, symmetric=True), koleo=dict(koleo=.1), cosine=dict(loss='cosine', whole=True), within=dict(within=True))
def order(W): return [i for s in range(0, 12, BS[W]) for share in SHARES[W] for i in share[s:s+BS[W]]]

class Fixed(DisplayedTransform):
    "A view that depends on the image alone"
    split_idx = 0
    def __init__(self, i, size): self.i,self.size = i,size
    def encodes(self, x:Tensor): return x if x.ndim < 4 else TensorImage((x[..., self.i:self.i+self.size, :self.size]-.5)*(2+self.i))

class Shares(DistributedDL):
    def get_idxs(self):
        self.n,self.n_padded = len(self.dataset),len(self.dataset)+1
        return list(SHARES[self.world_size][self.rank])

class Records(Callback):
    def before_fit(self): self.losses,self.moves = [],[]
    def after_batch(self): self.losses.append(self.learn.to_detach(self.learn.loss, gather=True).item())

def without_bn(m):
    "Normalisation an image, in place of a batch"
    for n,c in m.named_children():
        if isinstance(c, nn.BatchNorm2d): setattr(m, n, nn.Sequential(nn.GroupNorm(1, c.num_features), *[o for o in (getattr(c, 'drop', None), getattr(c, 'act', None)) if o is not None]))
        elif isinstance(c, nn.BatchNorm1d): setattr(m, n, nn.LayerNorm(c.num_features))
        else: without_bn(c)
    return m

def learner(name, W=2, metrics=(), **kw):
    "For `W` processes, or for one with the batches of all of them; with metrics there are alarms, too"
    from self_supervised.vision.all import create_encoder
    name,_,other = name.partition('+')
    kw = {**kw, **OTHER.get(other, {})}
    cb,model_f,augs,args = METHODS[name]
    if other == 'narrow': model_f = partial(model_f, projection_size=4)         # sums over processes, not rows of their images
    own = dict(m=.9, tmom_start=.9, queue_start_pct=0., freeze_pct=0., K=10)
    args = {**args, **{k:v for k,v in own.items() if k in inspect.signature(cb).parameters}, **kw}
    set_seed(0)
    model = model_f(create_encoder('test_resnet', False))
    if other != 'bn': model = without_bn(model)
    n_views = 4 if 'n_small' in augs.keywords or other == 'views' else cb.n_views
    pipes = [Pipeline([ToImageBatch(), Fixed(i, 16 if i < 2 else 8)], split_idx=0) for i in range(n_views)]
    texts = [[tokens(text(i)[0])]*(cb.n_inp-1) for i in range(N[W])]
    items = [(image(i), *texts[i], torch.tensor(i%3)) for i in range(N[W])]     # of those for validation fastai repeats what does not divide
    trn = TfmdDL(items, bs=BS[W]*W, num_workers=0, get_idxs=lambda: order(W))
    if dist.is_initialized(): trn = Shares(TfmdDL(items, bs=BS[W], num_workers=0), device=default_device())
    dls = DataLoaders(trn, TfmdDL(items[:N[W]//W*W], bs=8, num_workers=0))
    dls.n_inp = cb.n_inp
    more = dict(acc=[GradientAccumulation(BS[W]*W*2)], chunks=[Chunks(3)]).get(other, [])
    if metrics: more = [*more, Alarms(min_steps=1000)]
    learn = Learner(dls, model, loss_func=noop, opt_func=partial(SGD, mom=0.), cbs=[cb(pipes, **args), Records(), *more], metrics=list(metrics))
    return learn.to_mode('fp32 channels_last') if other == 'last' else learn

def run(learn, lr):
    "Figures before, if there are metrics, and what three steps come to"
    with learn.no_bar(), learn.no_logging():
        before = list(learn.validate()[1:7]) if learn.metrics else []
        learn.fit(1, lr)
    return dict(figures=before, losses=learn.records.losses[:3], knn=list(learn.final_record[2:3]) if before else [],
                state=on_cpu(get_model(learn.model).state_dict()))

def measured(name, W): return learner(name, W, figures() if name in MEASURED else ())

def run_one(name, W):
    "The same in one process"
    learn = measured(name, W)
    before = [p.clone() for p in learn.model.parameters()]
    res = run(learn, rate(name))
    assert max((p-o).abs().max() for p,o in zip(learn.model.parameters(), before)) > 1e-4     # far more than the tolerance below
    return res

def start():
    "Make the group of processes, and give the arguments of `distrib_ctx`"
    cpu = default_device().type == 'cpu'
    where = dict(cpu=True) if cpu else {}
    fastai.distributed.Accelerator(**where)
    return dict(where, sync_bn=not cpu)

def on_cpu(state): return {k:v.cpu() for k,v in state.items()}

def fit_all(path, runs):
    where = start()
    for name in runs:
        learn = measured(name, dist.get_world_size())
        with learn.distrib_ctx(**where): torch.save(run(learn, rate(name)), f'{path}/{name}-{rank_distrib()}')

def assert_one(name, path, W):
    "`W` processes, whose results are in `path`, have computed what one does"
    one,(a,*_,b) = run_one(name, W),(torch.load(path/f'{name}-{r}', weights_only=True) for r in range(W))
    torch.testing.assert_close(torch.tensor(a['losses']), torch.tensor(one['losses']), rtol=1e-5, atol=1e-5)
    assert a['figures'] == pytest.approx(one['figures'], rel=1e-5, abs=1e-5) and len(a['figures']) == 6*(name in MEASURED)
    assert all(a[k] == b[k] for k in ('losses','figures','knn')) and a['knn'] == pytest.approx(one['knn'])
    for k,v in one['state'].items():
        torch.testing.assert_close(a['state'][k], v, rtol=0, atol=1e-5, msg=lambda m: f'{k}: {m}')
        assert torch.equal(a['state'][k], b['state'][k]), k               # queues, teachers and centres too, to the bit

ON_GPUS = [*RUNS,'sim_clr+bn']                                 # the last one with BatchNorm, over both

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    path = tmp_path_factory.mktemp('two')
    warm.group(on_gpus, fit_all, path, ON_GPUS)
    return path

@pytest.mark.parametrize('name', ON_GPUS)
def test_two_processes_are_one(name, two): assert_one(name, two, 2)

SCORES = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))

def shared_sinkhorn(path):
    for cut in (16,10): torch.save(sinkhorn((SCORES[cut:] if rank_distrib() else SCORES[:cut]).to(own), .02).cpu(), f'{path}/sinkhorn-{cut}-{rank_distrib()}')

def refuse(path):
    r = rank_distrib()
    def tell(what, e):
        if not r: print(what, 'refused:', str(e).replace('\n', ' '))
    def attempt(name, what, change):
        learn = learner(name); change(learn)
        with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
            try: learn.fit(1, 1e-3)
            except ValueError as e: tell(what, e)
    def seed(learn): set_seed(r); [nn.init.normal_(p) for p in learn.model.parameters()]
    def length(learn): learn.dls.train.dataset = learn.dls.train.dataset[:20-r]
    attempt('sim_clr', 'seed', seed); attempt('sim_clr', 'length', length)
    learn = learner('moco', K=10+r)
    with learn.distrib_ctx():
        try: learn.fit(1)
        except ValueError as e: tell('K', e)

@pytest.mark.parametrize('cut', [16, 10])
def test_sinkhorn(several_things, cut):
    "Two processes with equal and unequal shares of the batch"
    res = torch.cat([torch.load(several_things[0]/f'sinkhorn-{cut}-{r}') for r in range(2)])
    torch.testing.assert_close(res, sinkhorn(SCORES, .02), rtol=1e-5, atol=1e-6)

def test_processes_that_differ(several_things):
    out = several_things[1]
    for what,msg in (('seed','sum of the weights'),('length',"training images: [20, 19]"),('K','K: [10, 11]')):
        assert any(l.startswith(f'{what} refused') and msg in l for l in out.splitlines()), out

def written(path):
    "Files are written by the first process alone"
    learn,r = learner('sim_clr', metrics=[KNN(k=3)]),rank_distrib()
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging(): learn.fit(1, .02)
    learn.remove_cbs([learn.alarms, learn.records])
    learn.save_encoder(f'{path}/{r}.safetensors'); learn.report(f'{path}/{r}.html', evaluation=False)

def test_first_process_writes(several_things):
    assert sorted(o.name for o in several_things[0].iterdir() if o.suffix in ('.html','.safetensors')) == ['0.html','0.safetensors']

def together(path):
    "What two processes have to agree on, and what they must not begin"
    from self_supervised.vision.all import model_splitter
    r = rank_distrib()
    learn = learner('moco')
    if r: learn.model.queue.embs.normal_(); learn.model.queue.labels.fill_(9)                # point 12
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        try: learn.lr_find(num_it=4, show_plot=False)                                        # point 16
        except ValueError as e: print(r, 'refused:', e)
        learn.fit(1, .02)
    torch.save(on_cpu(learn.model.state_dict()), f'{path}/moco-{r}')
    for name in ('byol','sim_clr','moco'):                                                   # point 10
        learn = learner(name); learn.splitter = model_splitter
        with learn.distrib_ctx(), learn.no_bar(), learn.no_logging(): learn.fine_tune(1, .02)
        torch.save(on_cpu(learn.model.state_dict()), f'{path}/{name}-tuned-{r}')

def test_together(several_things):
    path,out = several_things
    assert out.count('lr_find: call it in one process') == 2
    for o in ('moco','byol-tuned','sim_clr-tuned','moco-tuned'):
        a,b = (torch.load(path/f'{o}-{r}', weights_only=True) for r in (0,1))
        assert all(torch.equal(a[k], b[k]) for k in a), o
    assert not (a['queue.labels'] == 9).any()

def own_loss(path):
    "A method whose `lf` is the user's own and knows nothing of processes"
    from self_supervised.losses import nt_xent
    for r,lf in enumerate([lambda cb,pred,*yb: nt_xent(pred, cb.temp), None]):
        learn = learner('sim_clr')
        if lf: learn.sim_clr.__class__ = type('SimCLR', (type(learn.sim_clr),), dict(lf=lf))
        with learn.distrib_ctx(), learn.no_bar(), learn.no_logging(): learn.fit(1, .02)
        if not rank_distrib(): torch.save(dict(losses=learn.records.losses, state=on_cpu(learn.model.state_dict())), f'{path}/own-{r}')

def test_own_loss(several_things):
    a,b = (torch.load(several_things[0]/f'own-{r}', weights_only=True) for r in (0,1))
    assert a['losses'] == pytest.approx(b['losses'], rel=1e-5)
    for k in a['state']: torch.testing.assert_close(a['state'][k], b['state'][k], rtol=0, atol=1e-5)

def in_turn(path):
    start()
    for f in (shared_sinkhorn, refuse, written, together, own_loss): f(path)

@pytest.fixture(scope='module')
def several_things(tmp_path_factory):
    "One start of two processes for all of these"
    path = tmp_path_factory.mktemp('things')
    return path,warm.group(on_gpus, in_turn, path)

examples = Path(__file__).parent.parent/'examples'

def test_example(): assert '2 processes, kNN' in warm.group(on_gpus, warm.script, examples/'distributed.py', '--epochs', 1, '--bs', 256)      # page 80 has accelerate, page 94 torchrun
