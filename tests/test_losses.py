"Parity with lightly and pytorch-metric-learning, forward and gradient."
import pytest, torch
from lightly.loss import NTXentLoss
from pytorch_metric_learning.losses import SupConLoss, NTXentLoss as PMLNTXent
from self_supervised.losses import nt_xent, supcon

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
