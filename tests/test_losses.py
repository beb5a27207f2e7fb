"Parity with lightly and pytorch-metric-learning, forward and gradient."
from functools import partial
import pytest, torch
from lightly.loss import BarlowTwinsLoss, DCLLoss, DCLWLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, TiCoLoss
from lightly.loss import VICRegLoss as LightlyVICReg
from lightly.loss import swav_loss
from pytorch_metric_learning.losses import SupConLoss, VICRegLoss as PMLVICReg, NTXentLoss as PMLNTXent
from self_supervised import losses
from self_supervised.losses import info_nce, nt_xent
from self_supervised.vision.barlow_twins import barlow_twins
from self_supervised.vision.byol import byol
from self_supervised.vision.clip import clip_loss, siglip_loss
from self_supervised.vision.dino import dino, koleo
from self_supervised.vision.distill import cosine, seed
from self_supervised.vision.lejepa import lejepa, sigreg
from self_supervised.vision.moco import moco_v3
from self_supervised.vision.nnclr import nnclr
from self_supervised.vision.simclr import dcl
from self_supervised.vision.simsiam import simsiam
from self_supervised.vision.supcon import supcon, supcon_keys
from self_supervised.vision.swav import sinkhorn, swav
from self_supervised.vision.tico import tico
from self_supervised.vision.vicreg import vicreg_loss

def grads(f, z):
    z = z.clone().requires_grad_(); l = f(z); l.backward()
    return l.detach(), z.grad

def same(f, g, z):
    (l1,g1),(l2,g2) = grads(f, z),grads(g, z)
    torch.testing.assert_close(l1, l2, rtol=1e-5, atol=1e-5); torch.testing.assert_close(g1, g2, rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('temp', [.07, .1, .5])
@pytest.mark.parametrize('b', [2, 7, 32])
def test_nt_xent(b, temp):
    z = torch.randn(2*b, 16, generator=torch.Generator().manual_seed(b))
    same(lambda z: nt_xent(z, temp), lambda z: NTXentLoss(temp)(*z.chunk(2)), z)
    same(lambda z: nt_xent(z, temp), lambda z: PMLNTXent(temp)(z, torch.arange(b).repeat(2)), z)

@pytest.mark.parametrize('temp', [.07, .1, .5])
def test_supcon(temp):
    z,y = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)),torch.arange(12).repeat(2)%5
    same(lambda z: supcon(z, y, temp), lambda z: SupConLoss(temp)(z, y), z)

def pair(seed=0, b=6, d=16):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2*b, d, generator=g),torch.randn(2*b, d, generator=g)

def test_byol_and_simsiam():
    p,z = pair(); cos = NegativeCosineSimilarity()
    def neg(p): return (cos(p[:6], z[6:]) + cos(p[6:], z[:6]))/2
    same(lambda p: simsiam(p, z)-1, neg, p)
    same(lambda p: byol(p, z), lambda p: 4+4*neg(p), p)

def test_no_gradient_to_the_targets():
    for f in (byol, simsiam, moco_v3, lambda p,z: nnclr(z, p), lambda p,z: tico(p, z, torch.eye(16))[0]):
        p,z = (o.requires_grad_() for o in pair())
        f(p, z).backward()
        assert z.grad is None and p.grad.abs().sum() > 0

def test_nnclr_and_moco_v3():
    p,z = pair(); peer = NTXentLoss
    def ce(a, b, t):
        norm = torch.nn.functional.normalize
        return torch.nn.functional.cross_entropy(norm(a) @ norm(b).T/t, torch.arange(6))
    same(lambda p: nnclr(z, p, .1), lambda p: (ce(z[:6], p[6:], .1) + ce(z[6:], p[:6], .1))/2, p)
    same(lambda p: nnclr(z, p, .1, within=True), lambda p: (peer(.1)(z[:6], p[6:]) + peer(.1)(z[6:], p[:6]))/2, p)
    same(lambda p: moco_v3(p, z, .2), lambda p: .4*(ce(p[:6], z[6:], .2) + ce(p[6:], z[:6], .2)), p)

def test_moco_against_lightly():
    "lightly's NT-Xent with a memory bank: the own key and the bank"
    g = torch.Generator().manual_seed(0)
    q,k,bank = (torch.randn(n, 8, generator=g) for n in (6,6,32))
    peer = NTXentLoss(temperature=.2, memory_bank_size=(32,8))
    def lightly(q):
        peer.memory_bank.bank = torch.nn.functional.normalize(bank, dim=1); peer.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
        return peer(q, k)
    same(lambda q: info_nce(q, k, bank, .2, batch_negs=False), lightly, q)

def test_supcon_keys_is_supcon():
    "Against pytorch-metric-learning with reference embeddings"
    g = torch.Generator().manual_seed(0)
    q,k = torch.randn(6, 8, generator=g),torch.randn(20, 8, generator=g)
    yq,yk = torch.arange(6)%4,torch.arange(20)%3
    same(lambda q: supcon_keys(q, yq, k, yk, .1), lambda q: SupConLoss(.1)(q, yq, ref_emb=k, ref_labels=yk), q)

@pytest.mark.parametrize('temp', [.1, .5])
def test_dcl(temp):
    norm = torch.nn.functional.normalize
    def weights(a, b): return 2-len(a)*((a*b).sum(1).detach()/.5).softmax(0)
    z,_ = pair(b=9)
    same(lambda z: dcl(z, temp), lambda z: DCLLoss(temp)(*z.chunk(2)), z)
    same(lambda z: dcl(z, temp, .5), lambda z: DCLLoss(temp, weights)(*z.chunk(2)), z)
    with pytest.warns(UserWarning): same(lambda z: dcl(z, temp, .5), lambda z: DCLWLoss(temp)(*z.chunk(2)), z)     # it copies a tensor

@pytest.mark.parametrize('b,d', [(6,16), (32,8)])
def test_redundancy(b, d):
    "lightly and pytorch-metric-learning halve VICReg's variance term, as its authors' code does"
    z,_ = pair(b=b, d=d)
    same(lambda z: barlow_twins(z), lambda z: BarlowTwinsLoss()(*z.chunk(2)), z)
    same(lambda z: vicreg_loss(z, variance=12.5)[0], lambda z: LightlyVICReg()(*z.chunk(2)), z)
    same(lambda z: vicreg_loss(z, variance=12.5)[0], lambda z: PMLVICReg()(z[:b], ref_emb=z[b:]), z)

@pytest.mark.parametrize('b,d', [(6,16), (32,8), (8,8)])
def test_barlow_twins_from_either_matrix(b, d):
    "The paper's formula over the d×d correlations, whichever of them and the B×B Gram matrices is smaller"
    def naive(z):
        a,b = ((o-o.mean(0))/(o.var(0, unbiased=False)+1e-5).sqrt() for o in z.chunk(2))
        c = a.T @ b/len(a)
        off = c.square()
        return (c.diagonal()-1).square().sum() + .02*(off.sum()-off.diagonal().sum())
    same(lambda z: barlow_twins(z, .02), naive, pair(b=b, d=d)[0])
    same(lambda z: barlow_twins(z, .02, total=b), naive, pair(b=b, d=d)[0])             # sums over processes, of which there is one
    same(lambda z: vicreg_loss(z, total=b)[0], lambda z: vicreg_loss(z)[0], pair(b=b, d=d)[0])

@pytest.mark.parametrize('f', [nt_xent, dcl, lambda z: dcl(z, .2, .5), lambda z: supcon(z, torch.arange(len(z))%5),
                               lambda z: info_nce(*z.chunk(2), z.detach()[:7]), lambda z: barlow_twins(torch.cat([z, z.square()], 1)),
                               lambda z: vicreg_loss(z)[0]], ids='nt_xent dcl dclw supcon info_nce barlow_twins vicreg'.split())
def test_blocks_of_rows(f, monkeypatch):
    "Three rows at a time, with a rest of one, as all at once"
    z = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    whole = grads(f, z)
    monkeypatch.setattr(losses, '_held', 60)
    for a,b in zip(grads(f, z), whole): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with torch.no_grad(): torch.testing.assert_close(f(z), whole[0], rtol=1e-5, atol=1e-6)

Y = torch.tensor([0,0,1,2,2,2,3,0,9,2]*2)          # 1, 3 and 9 are only in two views of one image
DIVIDED = dict(nt_xent=nt_xent, multi_crop=lambda z,rows: nt_xent(z, .1, 4, rows), dcl=dcl, dclw=lambda z,rows: dcl(z, .2, .5, rows),
               supcon=lambda z,rows: supcon(z, Y, .1, rows), lonely=lambda z,rows: supcon(z, torch.arange(20), .1, rows),
               supcon_keys=lambda z,rows: supcon_keys(z[:12], Y[:12], z[12:].detach(), Y[12:], .1, rows[rows < 12] if rows is not None else None),
               **{f'info_nce_{k}':partial(lambda z,rows,**kw: info_nce(z[:10], z[10:], z.detach()[:7], rows=rows[rows < 10] if rows is not None else None, **kw), **kw)
                  for k,kw in dict(plain={}, eqco=dict(alpha=50., batch_negs=False)).items()},
               moco_v3=lambda z,rows: moco_v3(z, z.flip(0), .2, rows[rows < 10] if rows is not None else None),
               **{f'barlow_{d}':partial(lambda z,rows,d: barlow_twins(z[:,:d], .02, rows[rows < 10] if rows is not None else None), d=d) for d in (16,4)},
               **{f'vicreg_{d}':partial(lambda z,rows,d: vicreg_loss(z[:,:d], rows=rows[rows < 10] if rows is not None else None)[0], d=d) for d in (16,4)},
               koleo=lambda z,rows: koleo(z, rows=rows), seed=lambda z,rows: seed(z, z.flip(0), z[:7], rows=rows),
               clip=lambda z,rows: clip_loss(z, z.flip(0), z.norm(), rows), siglip=lambda z,rows: siglip_loss(z, z.flip(0), z.norm(), z.mean()-5, rows),
               **{f'nnclr_{w}':partial(lambda z,rows,w: nnclr(z.flip(0), z, .1, rows[rows < 10] if rows is not None else None, w), w=w) for w in (False,True)})

@pytest.mark.parametrize('name', DIVIDED)
def test_parts_add_up(name):
    "What processes compute of their own rows, one of them of none, is the loss, and its gradient"
    z,f = torch.randn(20, 16, generator=torch.Generator().manual_seed(0)),DIVIDED[name]
    cut = [torch.tensor(o, dtype=torch.long) for o in ([0,1,2,10,11,12],[3,13],[],[i for i in range(20) if i%10 > 3])]
    parts = [grads(partial(f, rows=o), z) for o in cut]
    for part,whole in zip(zip(*parts), grads(partial(f, rows=None), z)): torch.testing.assert_close(sum(part), whole, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('eps,n', [(.05,3), (.1,1), (.03,10)])
def test_sinkhorn_and_swav(eps, n):
    g = torch.Generator().manual_seed(0)
    norm = torch.nn.functional.normalize
    s = norm(torch.randn(4*12, 16, generator=g), dim=1) @ norm(torch.randn(7, 16, generator=g), dim=1).T
    queued = [s[i::5]*.9 for i in range(2)]
    torch.testing.assert_close(sinkhorn(s, eps, n), swav_loss.sinkhorn(s, n, eps), rtol=1e-4, atol=1e-6)
    peer = SwaVLoss(.1, n, eps)
    same(lambda s: swav(s, 4, (0,1), None, .1, eps, n), lambda s: peer(list(s.chunk(4)[:2]), list(s.chunk(4)[2:]))[0], s)
    same(lambda s: swav(s, 4, (0,1), queued, .1, eps, n), lambda s: peer(list(s.chunk(4)[:2]), list(s.chunk(4)[2:]), queued)[0], s)

def test_dino_over_epochs():
    "The loss at the temperature of each epoch, and the centre after each batch"
    g,d = torch.Generator().manual_seed(0),10
    peer,center = DINOLoss(d, warmup_teacher_temp=.04, teacher_temp=.07, warmup_teacher_temp_epochs=3),torch.zeros(d)
    for epoch in range(5):
        s,t = torch.randn(4*6, d, generator=g),torch.randn(2*6, d, generator=g)
        peer.center.copy_(center)
        tpt = min(.04+.03*epoch/2, .07)
        def lightly(s):
            peer.center = center[None,None].clone()
            return peer(list(t.chunk(2)), list(s.chunk(4)), epoch=epoch)
        same(lambda s: dino(s, t, center, .1, tpt, 4, (0,1)), lightly, s)
        center = center.lerp(t.mean(0), .1)
        torch.testing.assert_close(center, peer.center[0,0])

def test_fp32_under_autocast():
    z = torch.randn(16, 8)
    with torch.autocast('cpu', torch.bfloat16):
        assert nt_xent(z).dtype == torch.float32
        torch.testing.assert_close(nt_xent(z), nt_xent(z.double().float()))
    assert nt_xent(z.bfloat16()).dtype == torch.float32

@pytest.mark.parametrize('temp', [0, -1., '1', None])
def test_temp(temp):
    with pytest.raises(ValueError, match='temp'): nt_xent(torch.randn(4,2), temp)

def test_shapes():
    with pytest.raises(ValueError, match='z must be'): nt_xent(torch.randn(5,2))
    with pytest.raises(ValueError, match='z must be'): supcon(torch.randn(5,2), torch.zeros(4))
    for f in (nt_xent, dcl, barlow_twins, vicreg_loss):
        with pytest.raises(ValueError, match='z must be'): f(torch.randn(5,2))
    for f in (dcl, barlow_twins, vicreg_loss):
        with pytest.raises(ValueError, match='at least 2 images'): f(torch.randn(2,4))
    with pytest.raises(ValueError, match='targets and outputs'): dino(torch.randn(8,4), torch.randn(5,4), torch.zeros(4))
    with pytest.raises(ValueError, match='eps'): sinkhorn(torch.randn(4,3), 0)

@pytest.mark.parametrize('n,d', [(2,3), (33,16)])
def test_koleo(n, d):
    from lightly.loss import KoLeoLoss
    same(koleo, KoLeoLoss(), torch.randn(n, d, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(grads(koleo, torch.ones(4, d))[1]).all()                             # neighbours in the same place

@pytest.mark.parametrize('held', [2**22, 500])
def test_sigreg_and_lejepa(held, monkeypatch):
    "lightly draws its directions from torch's generator; its squared distance is a mean over dimensions too"
    from lightly.loss.lejepa_loss import LeJEPALoss, SIGReg
    monkeypatch.setattr(losses, '_held', held)
    def directions():
        torch.manual_seed(1)
        a = torch.randn(8, 64)
        return a/a.norm(dim=0)
    def seeded(f):
        def g(*args):
            torch.manual_seed(1)
            return f(*args)
        return g
    z = torch.randn(4*9, 8, generator=torch.Generator().manual_seed(0))
    peer = seeded(SIGReg(num_vectors=64))
    same(lambda z: sigreg(z, directions()), peer, z)
    same(lambda z: sigreg(z, directions(), total=len(z)), peer, z)                             # sums over processes, of which there is one
    both = LeJEPALoss(lambda_param=.05, sigreg_num_vectors=64)
    def views(z):
        v = z.view(4, 9, 8)
        return both(local_proj=v[2:], global_proj=v[:2])
    same(lambda z: lejepa(z, directions(), .05, 4, (0,1))[0], seeded(views), z)
    same(lambda z: lejepa(z, directions(), .05, 4, (0,1), total=9)[0], seeded(views), z)

@pytest.mark.parametrize('beta,rho', [(.9,8.), (.5,20.), (0.,1.)])
def test_tico(beta, rho):
    "lightly's value, over batches of which the matrix remembers; its gradient stops in the matrix, which is that of other weights"
    moments,past = torch.zeros(16, 16),TiCoLoss(beta, rho)
    for seed in range(3):
        z,t = pair(seed); other = t.roll(6, 0)
        r = rho*(2-beta)
        peer = TiCoLoss(rho*beta/r, r); peer.C = moments.clone()
        torch.testing.assert_close(grads(lambda z: tico(z, t, moments, beta, rho)[0], z)[1], grads(lambda z: peer(z, other), z)[1], rtol=1e-4, atol=1e-6)
        loss,_,batch = tico(z, t, moments, beta, rho)
        torch.testing.assert_close(tico(z, t, moments, beta, rho, total=6)[0], loss)            # sums over processes, of which there is one
        moments = moments.lerp(batch, 1-beta)
        torch.testing.assert_close(loss, past(z, other)); torch.testing.assert_close(moments, past.C)

def test_clip_against_its_formula():
    z = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    def ce(z):
        a,b = (torch.nn.functional.normalize(o, dim=1) for o in z.chunk(2))
        s = a @ b.T/.07
        return (torch.nn.functional.cross_entropy(s, torch.arange(6)) + torch.nn.functional.cross_entropy(s.T, torch.arange(6)))/2
    same(lambda z: clip_loss(*z.chunk(2)), ce, z)

@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16,torch.float32])
@pytest.mark.parametrize('loss', [
    lambda z, o: nt_xent(z), lambda z, o: dcl(z), lambda z, o: supcon(z, torch.arange(4).repeat(2)), lambda z, o: info_nce(z, o, o),
    lambda z, o: moco_v3(z, o), lambda z, o: byol(z, o), lambda z, o: simsiam(z, o), lambda z, o: nnclr(o, z), lambda z, o: koleo(z),
    lambda z, o: seed(z, o, o), lambda z, o: cosine(z, o), lambda z, o: clip_loss(z, o, torch.tensor(5.)),
    lambda z, o: siglip_loss(z, o, torch.tensor(5.), torch.tensor(-5.)), lambda z, o: tico(z, o, torch.eye(4))[0]])
def test_an_embedding_of_zeros(loss, dtype):
    "Has no direction, and gets a gradient of the size that others have"
    g = torch.Generator().manual_seed(0)
    z,o = torch.randn(8, 4, generator=g).to(dtype),torch.randn(8, 4, generator=g).to(dtype)
    z[0] = 0
    z.requires_grad_()
    loss(z, o).backward()
    assert z.grad.isfinite().all() and z.grad[0].norm() <= 20*z.grad[1:].norm(dim=1).max()
