"Every figure equals a naive computation, on random and on degenerate input, and columns suit any method, with labels or without."
import math, random, warnings
import numpy as np, pytest, scipy.linalg, torch
import torch.nn.functional as F
from torch import nn
from fastai.vision.all import Callback, GradientAccumulation, Learner, noop
from kit import METHODS, dls_of, fit, make, make_dls
from self_supervised.callback import SSLCallback, TermsMixin
from self_supervised.evaluation.alarms import auc
from self_supervised.vision.all import Alarms, EmbeddingMetric, FeatureSample, GradNorm, KNN, alignment, alpha_req, false_negatives, get_features, learner_knn, lidar, rankme, spread, ssl_metrics, teacher_distance, uniformity
from self_supervised.evaluation.health import batch_embeddings

# one image, constant features, more dimensions than images, images that are zero
torch.manual_seed(0)
INPUTS = {'random':torch.randn(3, 40, 8), 'wide':torch.randn(2, 6, 30), 'one image':torch.randn(2, 1, 5), 'constant':torch.ones(2, 7, 5),
          'constant images':torch.randn(2, 1, 5).expand(2, 9, 5), 'views alike':torch.randn(1, 9, 5).expand(2, 9, 5),
          'one column':torch.randn(2, 9, 1), 'far from zero':torch.randn(2, 30, 6)+50}
every = pytest.mark.parametrize('z', INPUTS.values(), ids=INPUTS)

def close(a, b): assert a == pytest.approx(b, rel=1e-5, abs=1e-5, nan_ok=True), (a, b)
def unit(v): return v/max(math.sqrt(sum(o*o for o in v)), 1e-12)

def count(values):
    total = sum(values)
    if total == 0: return 0.
    return math.exp(-sum((v/total+1e-7)*math.log(v/total+1e-7) for v in values))

@every
def test_spread(z):
    x = [unit(o) for o in z[0].double().numpy()]
    naive = math.nan
    if len(x) > 1: naive = np.mean([np.std([o[j] for o in x], ddof=1) for j in range(len(x[0]))])*math.sqrt(len(x[0]))
    close(spread(z[0]), naive)

@every
def test_rankme(z): close(rankme(z[0]), count(scipy.linalg.svd(z[0].double().numpy(), compute_uv=False)))

@every
def test_alpha_req(z):
    x = z[0].double().numpy()
    l = scipy.linalg.svd(x-x.mean(0), compute_uv=False)**2
    l = l[l > l[0]*1e-12]
    naive = -np.polyfit(np.log(np.arange(1, len(l)+1)), np.log(l), 1)[0] if len(l) > 1 else math.nan
    close(alpha_req(z[0]), naive)

@every
def test_lidar(z):
    "The generalised eigenvalues of the covariances between and within images"
    x = z.double().numpy()
    V,n,d = x.shape
    mean = [sum(x[v,i] for v in range(V))/V for i in range(n)]
    whole = sum(mean)/n
    b = sum(np.outer(m-whole, m-whole) for m in mean)/n
    w = sum(np.outer(x[v,i]-mean[i], x[v,i]-mean[i]) for v in range(V) for i in range(n))/(V*n) + 1e-4*np.eye(d)
    naive = count([max(o, 0) for o in scipy.linalg.eigh(b, w, eigvals_only=True)]) if np.abs(b).max() > 1e-20 else 0.
    assert lidar(z) == pytest.approx(naive, rel=1e-5)

@every
def test_alignment(z):
    x = [[unit(o) for o in v] for v in z.double().numpy()]
    pairs = [(a,b) for a in range(len(x)) for b in range(a)]
    close(alignment(z), np.mean([sum((x[a][i]-x[b][i])**2) for a,b in pairs for i in range(z.shape[1])]))

@every
def test_uniformity(z):
    x = [unit(o) for o in z[0].double().numpy()]
    es = [math.exp(-2*sum((a-b)**2)) for i,a in enumerate(x) for b in x[:i]]
    close(uniformity(z[0]), math.log(np.mean(es)) if es else math.nan)

@every
def test_auc(z):
    from sklearn.metrics import roc_auc_score
    s = (F.normalize(z[0].double(), dim=1) @ F.normalize(z[1].double(), dim=1).T).round(decimals=7)          # nearer is a tie
    n = len(s)
    if n < 2: return close(auc(z), math.nan)
    if (s == s[0,0]).all() or 'constant' in [k for k,v in INPUTS.items() if v is z][0]: return close(auc(z), .5)
    close(auc(z), np.mean([roc_auc_score(np.arange(n) == i, s[i].numpy()) for i in range(n)]))

def test_false_negatives():
    q,k,queue = torch.randn(9, 4),torch.randn(9, 4),torch.randn(30, 4)
    cos = lambda a,b: float(a @ b/a.norm()/b.norm())
    close(false_negatives(q, k, queue), np.mean([[cos(a, o) >= cos(a, b) for o in queue] for a,b in zip(q, k)]))
    assert math.isnan(false_negatives(q, k, queue[:0]))

def test_teacher_distance():
    learn = fit(make('byol'))
    ps,ts = dict(learn.model.named_parameters()),dict(learn.model.encoder_k.module.named_parameters())
    a = math.sqrt(sum(((ts[n]-ps[n]).double()**2).sum().item() for n in ts))/math.sqrt(sum((ps[n].double()**2).sum().item() for n in ts))
    assert a > 0
    close(teacher_distance(learn.model), a)

@pytest.mark.parametrize('name,labels', [*((n, True) for n in METHODS), ('sim_clr',False), ('moco',False), ('byol',False)])
def test_columns(name, labels):
    "Figures of all validation images are those of the embeddings that the loss gets"
    learn = make(name, dls_of(name, labels=labels, **({} if labels else dict(drop_last=True))))
    seen = []
    class See(Callback):
        def after_loss(self):
            if not self.training: seen.append(batch_embeddings(self.learn))
    learn.metrics = ssl_metrics(learn)
    learn.add_cbs([See(), GradNorm()])
    fit(learn)
    row = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))
    z = torch.cat(seen, 1)
    assert len(z) == 2 or METHODS[name][0].multi_crop
    for f in (rankme, spread, uniformity): close(row[f.__name__], f(z[0]))
    for f in (alignment, lidar): close(row[f.__name__], f(z))
    assert ('knn' in row) == ('probe' in row) == labels
    assert ('teacher' in row) == hasattr(learn.model, 'encoder_k') and ('false_negs' in row) == (name in ('moco','sup_con_moco','nnclr'))
    assert row['grad_norm'] > 0 and len(learn.metrics) == len(row)-3-len(METHODS[name].cb.term_names)*issubclass(METHODS[name].cb, TermsMixin)          # terms are there for a fit only

def test_a_sample_is_spread_over_the_set():
    learn = fit(make('sim_clr'))
    learn.metrics = [EmbeddingMetric(len, n=5)]
    with learn.no_bar(): assert learn.validate()[1] == 4                                   # 12 images, every third

def test_gradient_norm():
    "As computed by torch, also when steps are put off"
    norms = []
    class Norm(Callback):
        order = 60
        def before_step(self): norms.append(nn.utils.clip_grad_norm_(self.model.parameters(), math.inf).item())
    for cbs in ([], [GradientAccumulation(16)]):
        norms.clear()
        learn = fit(make('sim_clr', cbs=[GradNorm(), Norm(), *cbs]))
        close(dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))['grad_norm'], np.mean(norms))

def test_knn_of_all_and_of_a_sample():
    learn = fit(make('sup_con'))
    for n,want in ((None,22),(7,7)):
        bank,y,x,t = FeatureSample(n)(learn)
        assert len(bank) == len(y) == want and 2 not in y and 2 not in t
    assert KNN(n=None).figure(*FeatureSample(None)(learn)) == learner_knn(learn)
    with pytest.raises(ValueError, match='no method'): ssl_metrics(Learner(make_dls(), nn.Identity(), noop))

@pytest.mark.parametrize('name', ['sim_clr','sup_con_moco','swav','clip'])
def test_training_is_not_disturbed(name):
    "Columns and alarms leave weights and random numbers as they would be without them"
    def trained(*cbs, columns=False):
        torch.manual_seed(0); random.seed(0)
        learn = make(name, dls_of(name), cbs=list(cbs))
        if columns: learn.metrics = ssl_metrics(learn)
        torch.manual_seed(1); random.seed(1)
        fit(learn, 2)
        return [*learn.model.state_dict().values(), torch.rand(1), torch.tensor(random.random())]
    plain,watched = trained(),trained(Alarms(), GradNorm(), columns=True)
    assert all(torch.equal(a, b) for a,b in zip(plain, watched))

def test_features_take_no_random_numbers():
    learn = make('sim_clr')
    before = torch.get_rng_state(),random.getstate()
    get_features(learn, 0); get_features(learn.model.encoder, learn.dls.train, size=16)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()

class Guesses(Callback):
    "What guessing gives on each validation batch, and what the method does"
    def before_validate(self): self.seen = []
    def after_loss(self):
        cb = self.learn._grab_cbs(SSLCallback)[0]
        if not self.training: self.seen.append((len(self.learn.yb[0]), cb.trivial_loss(*self.learn.yb), self.learn.loss.item()))

@pytest.mark.parametrize('name', ['sim_clr','sup_con','moco','byol','vic_reg'])
def test_below_guess(name):
    "A column for methods whose guess is above what learning gives"
    learn = make(name, dls_of(name), cbs=[guesses := Guesses()])
    learn.metrics = ssl_metrics(learn)
    fit(learn)
    row = dict(zip(learn.recorder.metric_names[1:], learn.final_record))
    if name in ('byol','vic_reg'): assert 'below_guess' not in row; return
    n = sum(o for o,_,_ in guesses.seen)
    close(row['below_guess'], sum(o*(guess-loss) for o,guess,loss in guesses.seen)/n)
