"The assertions of the source document about SupConMOCO, with its own small model."
import torch
import torch.nn.functional as F
from fastai.test_utils import synth_dbunch, synth_learner
from fastai.vision.all import Module, Pipeline, nn, noop, tensor

from self_supervised.vision.all import SupConMOCO, UnsupMethod

class ContrastiveModel(Module):
    def __init__(self):
        self.encoder = nn.Parameter(tensor([1.]))
        self.projector = nn.Linear(1,5, bias=False)
        self.projector.weight.data.fill_(1)
        self.projector = nn.Sequential(self.projector)
    def forward(self, x): return self.projector(x*self.encoder)

def close(a, b): return torch.allclose(a, b, atol=1e-6)

def test_source():
    cb = SupConMOCO([Pipeline([noop],0),Pipeline([noop],0)], unsup_class_id=0, unsup_method="all", K=8, m=0.999, reg_lambda=1.0, temp=0.07)
    learner = synth_learner(cbs=cb, data=synth_dbunch(a=0,b=0,bs=4), model=ContrastiveModel())
    sc = learner.sup_con_moco
    assert sc.aug1 is not sc.aug2
    learner('before_fit')
    assert sc.emb_queue.shape == (8,5)
    assert torch.all(sc.label_queue == torch.zeros(8))
    assert not any(o.requires_grad for o in sc.encoder_k.parameters())
    assert torch.all(sc.encoder_k.projector[0].weight == 1)

    m_val,y = 1.,tensor([1,1,2,2])
    for i,x in enumerate([tensor([1,1,-1,1]), tensor([-1,-1,1,-1])]):
        b = x.reshape(-1,1).float(),y
        learner._split(b); learner('before_batch')
        key_embs,labels = learner.yb
        assert close(F.normalize(sc.encoder_k(b[0])), key_embs) and torch.equal(labels, b[1])
        if i == 0:
            learner.model.encoder.data += 0.1
            learner.model.projector[0].weight.data += 0.1
        learner('after_step')
        assert torch.equal(sc.emb_queue[4*i:4*i+4], key_embs)
        m_val = m_val*cb.m + 1.1*(1-cb.m)
        assert close(sc.encoder_k.encoder.data, tensor([m_val])) and close(sc.encoder_k.projector[0].weight, torch.full((5,1), m_val))
    assert torch.equal(sc.label_queue, tensor([1,1,2,2,1,1,2,2]))

    pred,queue = F.normalize(learner.model(learner.x)),sc.emb_queue
    logits = pred @ torch.cat([key_embs,queue]).T / sc.temp
    assert close(sc.unsup_lf(pred, *learner.yb), F.cross_entropy(logits, tensor([0,1,2,3])))

    sc.unsup_method,sc.unsup_class_id = UnsupMethod.Only,1
    logits1 = pred[labels==1] @ torch.cat([key_embs[labels==1],queue[sc.label_queue==1]]).T / sc.temp
    assert close(sc.unsup_lf(pred, *learner.yb), F.cross_entropy(logits1, tensor([0,1])))

    def sup(logits, ohe): return (F.cross_entropy(logits, ohe, reduction='none')/ohe.sum(1)).mean()
    ohe = tensor([[1.,1,0,0]*3]*2 + [[0,0,1,1]*3]*2)
    sc.unsup_class_id = 0
    assert close(sc.sup_lf(pred, *learner.yb), sup(logits, ohe))
    sc.unsup_class_id = 2
    keep,qkeep = labels != 2,sc.label_queue != 2
    assert close(sc.sup_lf(pred, *learner.yb), sup(pred[keep] @ torch.cat([key_embs[keep],queue[qkeep]]).T / sc.temp, torch.ones(2,6)))

    sc.unsup_class_id,(x,y) = 3,(learner.x,learner.yb[1])
    for at in (4, 2):                                    # an unlabelled image at the end, or in the middle
        def put(o, v): return torch.cat([o[:at], v, o[at:]])
        xs,ks,ys = put(x, torch.zeros(1,1)),put(key_embs, key_embs[:1]),put(y, tensor([3]))
        pred,keep = F.normalize(learner.model(xs)),ys != 3
        logits = pred[keep] @ torch.cat([ks[keep],queue]).T / sc.temp
        assert close(sc.sup_lf(pred, ks, ys), sup(logits, ohe))
