"The assertions of the source document about SupCon."
import pytest, torch, torch.nn.functional as F
from fastai.vision.all import Categorize, Datasets, Learner, Pipeline, RandomSplitter, TensorImage, tensor
from self_supervised.vision.all import SupCon, UnsupMethod, create_encoder, create_supcon_model, get_supcon_aug_pipelines

OHE = tensor([[1,1,0,0,1,1,0,0]]*2 + [[0,0,1,1,0,0,1,1]]*2).repeat(2,1)

def make(method): return SupCon([Pipeline([],0),Pipeline([],0)], unsup_class_id=0, unsup_method=method)

def nll(sc, pred): return -(sc._remove_diag(F.normalize(pred) @ F.normalize(pred).T)/sc.temp).log_softmax(1)

def unsup_ref(sc, pred): return torch.stack([nll(sc, pred)[i,j] for i,j in enumerate([3,4,5,6,0,1,2,3])]).mean()

def sup_ref(sc, pred, ohe): return torch.stack([row[m.bool()].sum()/m.sum() for row,m in zip(nll(sc, pred), sc._remove_diag(ohe))]).mean()

@pytest.fixture
def pred():
    torch.manual_seed(0)
    return torch.randn(8,128)

def test_all_labelled(pred):
    y = tensor([1,1,2,2])
    assert torch.isclose(make("all").unsup_lf(pred, y), unsup_ref(make("all"), pred))
    assert make("only").unsup_lf(pred, y) == 0
    for m in ("all","only"): assert torch.isclose(make(m).sup_lf(pred, y), sup_ref(make(m), pred, OHE))

def test_none_labelled(pred):
    y = tensor([0,0,0,0])
    for m in ("all","only"):
        assert torch.isclose(make(m).unsup_lf(pred, y), unsup_ref(make(m), pred))
        assert make(m).sup_lf(pred, y) == 0

def test_one_unlabelled(pred):
    y = tensor([1,1,2,0])
    assert torch.isclose(make("all").unsup_lf(pred, y), unsup_ref(make("all"), pred))
    assert make("only").unsup_lf(pred, y) == 0
    ohe = tensor([[1,1,0,1,1,0]]*2 + [[0,0,1,0,0,1]]).repeat(2,1)
    assert torch.isclose(make("only").sup_lf(pred, y), sup_ref(make("only"), pred[[0,1,2,4,5,6]], ohe))

def test_learner(capsys):
    items = list(range(40)); x = torch.rand(40,3,32,32)
    dsets = Datasets(items, [[lambda i: TensorImage(x[i])], [lambda i: ['a','b','unsup'][i%3], Categorize()]], splits=RandomSplitter(seed=0)(items))
    dls = dsets.dataloaders(bs=5, num_workers=0, device='cpu')
    model = create_supcon_model(create_encoder('xresnet18', n_in=3, pretrained=False), hidden_size=2048, projection_size=128)
    augs = get_supcon_aug_pipelines(size=28, rotate=False, jitter=False, bw=False, blur=False, stats=None, cuda=False)
    learn = Learner(dls, model, cbs=[SupCon(augs, dls.vocab.o2i['unsup'], unsup_method=UnsupMethod.All, reg_lambda=1.0, temp=0.07, print_augs=True)])
    assert 'View 1' in capsys.readouterr().out
    learn._split(dls.one_batch()); learn('before_batch')
    assert learn.sup_con.show(n=5).shape == (5,2)
    with learn.no_bar(): learn.fit(1)
    assert all(torch.isfinite(o) for o in learn.recorder.losses)
