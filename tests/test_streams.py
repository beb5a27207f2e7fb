"Streams: each process and each worker reads its own shards, and a training goes on in the middle of an epoch."
import random
from pathlib import Path

import pytest, torch, warm
from fastai.vision.all import Callback, DataLoaders, TensorImage, TensorImageBW, TfmdDL, rank_distrib, set_seed, to_cpu
from self_supervised.training.checkpoint import Checkpoint, checkpoints
from self_supervised.training.distributed import StreamDL
from self_supervised.vision.all import create_encoder, create_moco_model
from kit import image, make, make_dls, same, state
from pretended_gpus import on_gpus

examples = Path(__file__).parent.parent/'examples'

class Interrupt(Callback):
    order = 200
    def after_batch(self):
        if self.training and (self.epoch,self.iter) == (1,2): raise KeyboardInterrupt

class Images(Callback):
    "What was read, by the first number of each image"
    order = 1
    def __init__(self): self.seen = []
    def before_batch(self):
        if self.training: self.seen.append(self.learn.xb[0][:,0,0,0].tolist())

def goes_on(loader, path, valid=None, **kw):
    "Images and weights of a training, and of the rest of one that was interrupted in the third batch of the second epoch"
    def learner(*cbs):
        set_seed(0)
        args = {**kw, **(dict(model=kw['model']()) if 'model' in kw else {})}
        learn = make('moco', DataLoaders(loader(), valid or make_dls().valid), cbs=[Images(), *cbs], **args)
        learn.remove_cb(learn.progress)
        return learn
    def run(learn):
        with learn.no_logging(): learn.fit_one_cycle(3, 1e-3)
        return learn
    whole = run(learner())
    with pytest.raises(KeyboardInterrupt): run(learner(Checkpoint(path, every=2), Interrupt()))
    set_seed(99)                                            # another process would have other random numbers
    rest = run(learner().resume(path))
    return whole,rest

def assert_exact(whole, rest):
    n = len(rest.images.seen)
    assert n == len(whole.images.seen)//3*2-3                 # three batches of the second epoch were not trained on again
    assert rest.images.seen == whole.images.seen[-n:]
    assert same(state(rest), state(whole)) and list(rest.recorder.values) == list(whole.recorder.values)

class Unknown(torch.utils.data.IterableDataset):
    "40 images in another order each time"
    def order(self): return random.SystemRandom()
    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        idxs = list(range(40))[worker.id if worker else 0::worker.num_workers if worker else 1]
        self.order().shuffle(idxs)
        return ((image(i),torch.tensor(i%3)) for i in idxs)

class Numbered(Unknown):
    "In an order that comes from the number of the epoch, as that of Hugging Face's streams"
    epoch = 0
    def set_epoch(self, epoch): self.epoch = epoch
    def order(self): return random.Random(self.epoch)

def loader(ds, workers=0): return TfmdDL(ds, bs=8, n=40, num_workers=workers)

@pytest.mark.parametrize('workers', [0, 2])
def test_numbered(tmp_path, workers): assert_exact(*goes_on(lambda: loader(Numbered(), workers), tmp_path))

@pytest.mark.parametrize('workers', [0, 2])
def test_webdataset(tmp_path, monkeypatch, workers):
    monkeypatch.syspath_prepend(examples)
    from streaming import stream_dl, write_shards
    grey = TfmdDL([(TensorImageBW(image(i)[:1]),0) for i in range(40)], bs=8, num_workers=0)
    urls = write_shards(DataLoaders(grey), tmp_path)
    def model(): return create_moco_model(create_encoder('test_resnet', False, n_in=1))
    assert_exact(*goes_on(lambda: stream_dl(urls, 8, 40, workers), tmp_path/'c', grey, model=model, stats=None))

@pytest.mark.parametrize('workers', [0, 2])
def test_hugging_face(tmp_path, workers):
    "They give dictionaries, of which `after_item` makes tuples; the loader has to hold the stream itself, which is told the epoch"
    from datasets import Dataset
    def stream():
        ds = Dataset.from_dict(dict(i=list(range(40)))).to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=10)
        return TfmdDL(ds.with_format('torch'), bs=8, n=40, num_workers=workers, after_item=lambda o: (image(o['i']),))
    assert_exact(*goes_on(stream, tmp_path))

def test_unknown_order(tmp_path):
    "It cannot be found again, and that is said"
    with pytest.warns(UserWarning, match='gives other images(.|\n)*3 batches(.|\n)*set_epoch'): whole,rest = goes_on(lambda: loader(Unknown()), tmp_path)
    assert len(rest.images.seen) == 7 and len(rest.recorder.values) == 3

def test_no_length():
    ds = Numbered()
    with pytest.raises(ValueError, match='n: a stream has no length'): StreamDL(TfmdDL(ds, bs=4))

class Uneven(torch.utils.data.IterableDataset):
    "All announce 40 images; the second process has 19"
    def __iter__(self): return ((image(i),torch.tensor(0)) for i in range(19 if rank_distrib() else 40))

def uneven(path):
    learn = make('sim_clr', cbs=[Images()])
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        learn.dls = DataLoaders(StreamDL(loader(Uneven())), learn.dls.valid)
        learn.fit(2, 1e-3)
    torch.save(dict(sizes=[len(o) for o in learn.images.seen], state=to_cpu(learn.model.state_dict())), f'{path}/{rank_distrib()}')

def test_uneven_shards(tmp_path):
    "Nobody waits for a process that has read its last image"
    warm.group(on_gpus, uneven, tmp_path, timeout=120)
    a,b = (torch.load(tmp_path/str(r), weights_only=True) for r in (0,1))
    assert a['sizes'] == [8,8,8]*2 and b['sizes'] == [8,8,3]*2
    assert same(a['state'], b['state'])

def test_example(tmp_path):
    assert '2 processes, kNN' in warm.group(on_gpus, warm.script, examples/'streaming.py', '--epochs', 1, '--bs', 256, '--path', tmp_path/'c')
    assert checkpoints(tmp_path/'c')

def test_each_image_once(tmp_path, monkeypatch):
    "Workers read different shards: an epoch has no image twice"
    monkeypatch.syspath_prepend(examples)
    from streaming import stream_dl, write_shards
    dls = DataLoaders(TfmdDL([(TensorImage(torch.full((1,8,8), i/255)), 0) for i in range(64)], bs=4))
    dl = stream_dl(write_shards(dls, tmp_path), 8, 64, num_workers=2)
    for _ in range(2): assert (torch.cat([b[0][:,0,0,0] for b in dl])*255).round().sort()[0].tolist() == list(range(64))
