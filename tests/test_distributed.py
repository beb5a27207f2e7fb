"Several processes on gloo compute what one does."
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from self_supervised.losses import sinkhorn

def start(rank, path):
    dist.init_process_group('gloo', init_method=f'file://{path}/sync', rank=rank, world_size=2)

def _sinkhorn(rank, path, scores, cut):
    start(rank, path)
    torch.save(sinkhorn(scores[:cut] if rank == 0 else scores[cut:], .02), f'{path}/{rank}')
    dist.destroy_process_group()

@pytest.mark.parametrize('cut', [16, 10])
def test_sinkhorn(tmp_path, cut):
    "Two processes with equal and unequal shares of the batch"
    scores = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    mp.spawn(_sinkhorn, (str(tmp_path), scores, cut), nprocs=2)
    torch.testing.assert_close(torch.cat([torch.load(tmp_path/str(i)) for i in range(2)]), sinkhorn(scores, .02), rtol=1e-5, atol=1e-6)
