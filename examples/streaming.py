"""SimCLR on a stream of shards, for data that is too large for a list of files:
python examples/streaming.py, or torchrun --nproc_per_node 2 examples/streaming.py. Needs `pip install webdataset`.
With `--path runs/stream` the same command goes on where it was stopped, in the middle of an epoch too."""
import io
import random
import tempfile

import webdataset as wds
from fastcore.script import call_parse
from PIL import Image

from self_supervised.vision.all import *
from self_supervised.training.distributed import *

def write_shards(dls:DataLoaders, folder:Path, n:int=8) -> list:
    "The training images of `dls` as PNG files in `n` tar shards: in their place come yours, from `tar` or wds.ShardWriter"
    for s in range(n):
        with wds.TarWriter(str(folder/f'digits-{s:03}.tar')) as w:
            for i in range(s, len(dls.train_ds), n):
                x,_ = dls.train_ds[i]
                f = io.BytesIO(); Image.fromarray((x[0]*255).byte().numpy()).save(f, 'png')
                w.write({'__key__':f'{i:06}', 'png':f.getvalue()})
    return sorted(map(str, folder.glob('*.tar')))

def shuffled(src, n:int):
    "By Python's own random numbers, which a checkpoint holds: WebDataset's would be others each time"
    return wds.shuffle(n, rng=random)(src)

def image(x:Tensor) -> TensorImageBW: return TensorImageBW(x.view(1, *x.shape[-2:]))

def stream_dl(urls:list, bs:int, n:int, num_workers:int=0) -> DataLoader:
    "Endless stream of `urls`, of which each process and each worker reads its own; `n` images of a process are an epoch"
    ds = wds.DataPipeline(wds.SimpleShardList(urls), wds.split_by_node, wds.split_by_worker, partial(shuffled, n=len(urls)),
                          wds.tarfile_to_samples(), partial(shuffled, n=256), wds.decode('torchl'), wds.to_tuple('png'),
                          wds.map_tuple(image)).repeat()
    dl = TfmdDL(ds, bs=bs, n=n, num_workers=num_workers, drop_last=True, device=default_device())
    return StreamDL(dl) if num_distrib() > 1 else dl

@call_parse
def main(
    epochs:int=3, # Epochs
    bs:int=64, # Images per batch and process
    num_workers:int=0, # Workers per process
    path:Path=None # Folder of the checkpoints
):
    set_seed(0)
    cpu,world = default_device().type == 'cpu',max(num_distrib(), 1)
    held = digits_dls(bs=bs)                 # for the shards and for validation
    with tempfile.TemporaryDirectory() as folder:
        urls = write_shards(held, Path(folder))
        model = create_simclr_model(create_encoder('resnet10t', pretrained=False, n_in=1))
        learn = Learner(held, model, cbs=SimCLR(get_simclr_aug_pipelines(16, **digits_views), temp=.5))
        with learn.distrib_ctx(sync_bn=not cpu, cpu=cpu):
            learn.dls = DataLoaders(stream_dl(urls, bs, len(held.train_ds)//world, num_workers), held.valid, device=held.device)
            if path: learn.add_cb(Checkpoint(path, every=10)).resume(path, missing_ok=True)
            learn.fit_one_cycle(epochs, 4e-3)
            learn.dls = held
            (bank,y),(x,t) = get_features(learn, 0),get_features(learn, 1)
    if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
    if not rank_distrib(): print(f"{world} processes, kNN {knn_accuracy(bank, y, x, t):.3f}")
