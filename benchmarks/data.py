"From JPEG files to views: CPU time per image against lightly, batches from the cache, and what a SimCLR step costs besides the encoder."
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import tempfile, time, warnings
import PIL.Image

from common import record
from fastcore.script import call_parse
from sklearn.datasets import load_sample_images

from self_supervised.data import GatherDL
from self_supervised.vision.all import *
warnings.filterwarnings('ignore')

def photographs(path, n, size=(640,427)):
    "`n` JPEGs of 640 × 427 pixels: scikit-learn's two photographs, each a little shifted"
    for i in range(n): PILImage.create(np.roll(load_sample_images().images[i%2], 7*i, 1)).resize(size).save(path/f'{i:04}.jpg', quality=90)

def cpu(f):
    "CPU seconds of `f()`, all threads"
    s = time.process_time(); f()
    return time.process_time()-s

def per_image(path, size, n, rounds):
    "CPU milliseconds per image from JPEG to two views on one core: lightly, ours from files, while the cache is filled, and from the cache; rounds in turn"
    from lightly.transforms import SimCLRTransform
    theirs,files = SimCLRTransform(input_size=size),find_images(path)
    augs = get_simclr_aug_pipelines(size, rotate=False)
    kw = dict(size=size*5//4, bs=32, num_workers=0, valid=1/len(files)+1e-6, device='cpu')
    def epoch(dls):
        for x, in dls.train: make_views(augs, x)
    res = {k:[] for k in ('lightly','from files, no cache','first epoch, cache filled','later epochs')}
    for r in range(rounds):
        res['lightly'].append(cpu(lambda: [theirs(PIL.Image.open(f).convert('RGB')) for f in files]))
        res['from files, no cache'].append(cpu(lambda: epoch(folder_dls(path, **kw))))
        cache = path/f'.cache{r}'
        res['first epoch, cache filled'].append(cpu(lambda: epoch(folder_dls(path, cache=cache, **kw))))
        dls = folder_dls(path, cache=cache, **kw)
        res['later epochs'].append(cpu(lambda: epoch(dls)))
    return {k:np.median(v)/n*1e3 for k,v in res.items()}

def from_cache(path, n=20_000, bs=256, size=32):
    "Images per second and core in batches from a cache of `n` images"
    files = find_images(path)
    cache = ImageCache(path/'.many', size)
    cache.add([(str(i),0,0) for i in range(n)], lambda i: read_image(files[i%len(files)], size))
    reader = ReadImage(size, cache=cache, root=path)
    items = [Path(str(i)) for i in range(n)]
    reader.found = {p:i for i,p in enumerate(items)}
    dl = GatherDL(Datasets(items, [[reader]]), bs=bs, shuffle=True, drop_last=True, num_workers=0, after_item=[ToTensor], after_batch=[IntToFloatTensor], device='cpu')
    def epoch(): return sum(len(x) for x, in dl)
    epoch()
    s = time.perf_counter(); seen = sum(epoch() for _ in range(3))
    return seen/(time.perf_counter()-s)

class Steps(Callback):
    "Time from the end of one step to the end of the next, loading included"
    order = 100
    def before_epoch(self): self.last,self.times = None,[]
    def after_batch(self):
        if not self.training: return
        now = time.perf_counter()
        if self.last: self.times.append(now-self.last)
        self.last = now

def steps(path, size=64, bs=64, n_steps=6, rounds=3):
    "Seconds of a SimCLR step with ResNet-18 on cached JPEGs, and of forward and backward of the encoder alone on the same views; in turn"
    dls = folder_dls(path, size*5//4, bs=bs, cache=path/'.steps', valid=.1, device='cpu')
    learn = Learner(dls, create_simclr_model(create_encoder('resnet18', False)), cbs=[SimCLR(get_simclr_aug_pipelines(size, rotate=False)), Steps()])
    views = torch.cat(make_views(learn.sim_clr.aug_pipelines, first(dls.train)[0])).as_subclass(torch.Tensor)
    encoder = create_encoder('resnet18', False)
    ours,alone = [],[]
    for r in range(rounds+1):
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        ours += learn.steps.times[1:] if r else []
        for _ in range(n_steps):
            s = time.perf_counter()
            encoder(views).sum().backward(); encoder.zero_grad()
            if r: alone.append(time.perf_counter()-s)
    return np.median(ours),np.median(alone)

def listing(n=100_000):
    "Seconds to find and check `n` small files"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        PILImage.create(np.random.randint(0, 255, (24,24,3), dtype=np.uint8)).save(d/'0.jpg')
        jpeg = (d/'0.jpg').read_bytes()
        for i in range(100): (d/f'{i}').mkdir()
        for i in range(1, n): (d/f'{i%100}'/f'{i}.jpg').write_bytes(jpeg)
        s = time.perf_counter(); good,_ = readable(find_images(d))
        assert len(good) == n
        return time.perf_counter()-s

@call_parse
def main(
    n:int=225, # JPEGs, of which one is held out and the others fill batches of 32
    size:int=128, # Height and width of the views
    rounds:int=3 # Rounds, of which the median counts
):
    "Print the times, and their ratios to lightly's and the encoder's"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d); photographs(d, n)
        res = per_image(d, size, n, rounds)
        base = res['lightly']
        print(f"\nCPU time from JPEG (640 × 427) to two views of {size} pixels, {n} images, one core, median of {rounds}")
        for k,v in res.items(): print(f"  {k:28} {v:6.2f} ms per image, {v/base:.2f} of lightly")
        record('data', [dict(who=k, size=size, n=n, ms_per_image=v, of_lightly=v/base, rounds=rounds) for k,v in res.items()], ['who','size'])
        print(f"Batches of 256 from the cache at 32 pixels: {from_cache(d):,.0f} images per second on one core")
        print(f"Finding and checking 100,000 small files: {listing():.1f} s on {os.cpu_count()} cores")
        torch.set_num_threads(os.cpu_count())
        for i in range(n, 420): PILImage.create(np.roll(load_sample_images().images[i%2], 7*i, 1)).save(d/f'{i:04}.jpg', quality=90)
        ours,alone = steps(d)
        print(f"SimCLR step, ResNet-18, 64 × 64 pixels, batch 64, {os.cpu_count()} cores: {ours:.3f} s; encoder alone {alone:.3f} s; ratio {ours/alone:.2f}")
