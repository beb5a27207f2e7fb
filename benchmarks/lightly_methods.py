"Methods as lightly's own examples train them: its transforms, heads, losses and teacher, around an encoder that both libraries share."
from copy import deepcopy

import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.models.modules import NNMemoryBankModule, heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import (BYOLTransform, BYOLView1Transform, BYOLView2Transform, DINOTransform, MoCoV2Transform, SimCLRTransform, SimSiamTransform,
                                SwaVTransform, VICRegTransform)
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torch.nn import functional as F

class Peer(nn.Module):
    "A model whose `loss(views)` is one step's; `pct` is the part of the training that is over"
    pct = 0.
    def __init__(self, encoder, d): super().__init__(); self.encoder,self.d = encoder,d
    def before_step(self): "Between the gradients and the optimizer's step"

class PeerSimCLR(Peer):
    def __init__(self, encoder, d, hidden=2048, out=128, temp=.1):
        super().__init__(encoder, d)
        self.head,self.f = heads.SimCLRProjectionHead(d, hidden, out),NTXentLoss(temperature=temp)
    def loss(self, views): return self.f(*[self.head(self.encoder(v)) for v in views])

class PeerTeacher(Peer):
    "With a momentum copy of `parts`, updated before the forward passes as in lightly's examples; `m` rises from one value to another where it has two"
    def with_teacher(self, m):
        self.m,self.teacher = m,deepcopy(nn.ModuleList(self.parts()))
        deactivate_requires_grad(self.teacher)
    def parts(self): return [self.encoder,self.head]
    def follow(self):
        m = cosine_schedule(round(1000*self.pct), 1000, *self.m) if isinstance(self.m, tuple) else self.m
        for a,b in zip(self.parts(), self.teacher): update_momentum(a, b, m=m)
    @torch.no_grad()
    def target(self, x): return self.teacher[1](self.teacher[0](x))

class PeerMOCO(PeerTeacher):
    def __init__(self, encoder, d, hidden=2048, out=128, temp=.2, K=4096, m=.999):
        super().__init__(encoder, d)
        self.head,self.f = heads.MoCoProjectionHead(d, hidden, out),NTXentLoss(temperature=temp, memory_bank_size=(K,out))
        self.with_teacher(m)
    def loss(self, views):
        self.follow()
        return self.f(self.head(self.encoder(views[0])), self.target(views[1]))

class PeerBYOL(PeerTeacher):
    def __init__(self, encoder, d, hidden=4096, out=256, m=.996):
        super().__init__(encoder, d)
        self.head,self.predictor,self.f = heads.BYOLProjectionHead(d, hidden, out),heads.BYOLPredictionHead(out, hidden, out),NegativeCosineSimilarity()
        self.with_teacher(m)
    def loss(self, views):
        self.follow()
        p = [self.predictor(self.head(self.encoder(v))) for v in views]
        z = [self.target(v) for v in views]
        return .5*(self.f(p[0], z[1]) + self.f(p[1], z[0]))

class PeerSimSiam(Peer):
    def __init__(self, encoder, d, hidden=2048, out=2048, pred=512):
        super().__init__(encoder, d)
        self.head,self.predictor,self.f = heads.SimSiamProjectionHead(d, hidden, out),heads.SimSiamPredictionHead(out, pred, out),NegativeCosineSimilarity()
    def loss(self, views):
        z = [self.head(self.encoder(v)) for v in views]
        p = [self.predictor(o) for o in z]
        return .5*(self.f(z[0].detach(), p[1]) + self.f(z[1].detach(), p[0]))

class PeerNNCLR(Peer):
    def __init__(self, encoder, d, hidden=2048, out=256, pred=4096, temp=.1, K=65_536):
        super().__init__(encoder, d)
        self.head,self.predictor = heads.NNCLRProjectionHead(d, hidden, out),heads.NNCLRPredictionHead(out, pred, out)
        self.f,self.bank = NTXentLoss(temp),NNMemoryBankModule(size=(K,out))
    def loss(self, views):
        z = [self.head(self.encoder(v)) for v in views]
        p = [self.predictor(o) for o in z]
        near = [self.bank(o.detach(), update=i == 1) for i,o in enumerate(z)]
        return .5*(self.f(near[0], p[1]) + self.f(near[1], p[0]))

class PeerBarlowTwins(Peer):
    def __init__(self, encoder, d, hidden=2048, out=2048, lmb=5e-3):
        super().__init__(encoder, d)
        self.head,self.f = heads.BarlowTwinsProjectionHead(d, hidden, out),BarlowTwinsLoss(lambda_param=lmb)
    def loss(self, views): return self.f(*[self.head(self.encoder(v)) for v in views])

class PeerDINO(PeerTeacher):
    def __init__(self, encoder, d, hidden=2048, bottleneck=256, out=65_536, bn=False, frozen=0., m=(.996,1.)):
        super().__init__(encoder, d)
        self.head,self.f,self.frozen = heads.DINOProjectionHead(d, hidden, bottleneck, out, batch_norm=bn),DINOLoss(output_dim=out),frozen
        with torch.no_grad():                      # weight_norm's product is neither a leaf nor a parameter, and is not copied by deepcopy
            self.head.last_layer.weight = self.head.last_layer.weight.detach()
        self.with_teacher(m)
    def loss(self, views):
        self.follow()
        with torch.no_grad(): t = [self.target(v) for v in views[:2]]
        return self.f(t, [self.head(self.encoder(v)) for v in views])
    def before_step(self):
        if self.pct < self.frozen:
            for p in self.head.last_layer.parameters(): p.grad = None

class PeerSWAV(Peer):
    def __init__(self, encoder, d, hidden=2048, out=128, n_protos=512, temp=.1, eps=.05):
        super().__init__(encoder, d)
        self.head,self.prototypes = heads.SwaVProjectionHead(d, hidden, out),heads.SwaVPrototypes(out, n_protos)
        self.f = SwaVLoss(temperature=temp, sinkhorn_epsilon=eps)
    def loss(self, views):
        self.prototypes.normalize()
        p = [self.prototypes(F.normalize(self.head(self.encoder(v)), dim=1)) for v in views]
        return self.f(p[:2], p[2:])

class PeerVICReg(Peer):
    def __init__(self, encoder, d, hidden=2048, out=2048, layers=3):
        super().__init__(encoder, d)
        self.head,self.f = heads.VICRegProjectionHead(d, hidden, out, num_layers=layers),VICRegLoss()
    def loss(self, views): return self.f(*[self.head(self.encoder(v)) for v in views])

def byol_transform(size): return BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))

peers = { # The model, and what makes the views of an image
    'SimCLR': (PeerSimCLR, lambda size: SimCLRTransform(input_size=size)),
    'MOCO':   (PeerMOCO, lambda size: MoCoV2Transform(input_size=size)),
    'BYOL':   (PeerBYOL, byol_transform),
    'SimSiam': (PeerSimSiam, lambda size: SimSiamTransform(input_size=size)),
    'NNCLR':  (PeerNNCLR, lambda size: SimCLRTransform(input_size=size)),
    'BarlowTwins': (PeerBarlowTwins, byol_transform),
    'DINO':   (PeerDINO, lambda size: DINOTransform(global_crop_size=size, local_crop_size=size//2)),
    'SWAV':   (PeerSWAV, lambda size: SwaVTransform(crop_sizes=(size, size//2))),
    'VICReg': (PeerVICReg, lambda size: VICRegTransform(input_size=size))}
