"""What a real GPU does with all of this library, in eight minutes at most: a line of JSON for each check, written at once, so that a run that is broken off
has told most. The checks stand in the order of what matters most; each ends after its own seconds. `docs/benchmarks.md` says what the lines mean."""
import faulthandler, gc, json, math, os, signal, subprocess, sys, tempfile, time, traceback, warnings
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from functools import cached_property
from pathlib import Path
from unittest.mock import patch as patched

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')           # asked for by deterministic algorithms, before CUDA begins
here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent/'tests')]
import self_supervised
from common import NoValidation, machine
from fastcore.script import call_parse, store_true
from kit import METHODS, dls_of, fit, loaders, make, state
from self_supervised.callback import methods as registry
from self_supervised.training.precision import measured_mode
from self_supervised.vision.all import *

# a check is a generator of figures, of which those are told that it came to

class Late(BaseException): "A check takes too long; no `except Exception` keeps it"
class Skip(Exception): "Why there is nothing to check"

checks = {}
def check(
    limit:float, # Seconds
    each=lambda m: [()] # Arguments of each line, of the machine
):
    "Enter a check, which gets the machine"
    def enter(f):
        checks[f.__name__] = f,limit,each
        return f
    return enter

class Machine:
    "The device, what not all devices have, and how much time is left"
    def __init__(self, device, tiny=False, minutes=8., cifar=None, folder=None, methods='simclr', epochs=None):
        self.device,self.tiny,self.cifar,self.folder = torch.device(device),tiny,cifar,folder and Path(folder)
        self.methods,self.epochs = [(o,) for o in methods.split(',')],epochs
        self.module,self.end = torch.get_device_module(self.device),time.perf_counter()+60*minutes
    @property
    def left(self): return self.end-time.perf_counter()
    @property
    def kind(self): return self.device.type
    def pick(self, real, tiny): return tiny if self.tiny else real
    def wait(self): getattr(self.module, 'synchronize', noop)()
    def seconds(self, f):
        self.wait()
        start = time.perf_counter()
        f()
        self.wait()
        return time.perf_counter()-start
    def allocated(self):
        "Bytes in use, of tensors that live where the device does not count them"
        gc.collect()
        if hasattr(self.module, 'memory_allocated'): return self.module.memory_allocated()
        return sum(o.nbytes for o in gc.get_objects() if issubclass(type(o), Tensor) and o.device.type == self.kind)
    def free(self):
        "What a check has used"
        gc.collect()
        getattr(self.module, 'empty_cache', noop)()
    @cached_property
    def photos(self): return sample_photos(self.folder/'photos', *self.pick((64,280), (4,40)))

def figures(m, f, args, limit):
    "What a check says, up to where it was ended"
    res,start = dict(ok=True),time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, limit, 10)
    try:
        with redirect_stdout(sys.stderr):
            for o in f(m, *args): res = {**res, **o, 'ok':res['ok'] and bool(o.get('ok', True))}
    except Skip as e: return dict(skipped=str(e))
    except (Exception,Late) as e:
        if not isinstance(e, Late): traceback.print_exc()
        said = f'ended after {limit:.0f} seconds' if isinstance(e, Late) else f'{type(e).__name__}: {e}'
        res |= dict(ok=False, error=' '.join(said.split())[:300])
    finally: signal.setitimer(signal.ITIMER_REAL, 0)
    return {**res, 'seconds':time.perf_counter()-start}

def lines(m, only=''):
    "A dictionary for each line"
    wanted = {k:checks[k] for k in ('versions',only)} if only else checks
    for name,(f,limit,each) in wanted.items():
        for args in each(m):
            if m.left < 1: said = dict(skipped='no time is left: --minutes gives more')
            else: said = figures(m, f, args, min(limit, m.left))
            m.free()
            yield dict(check=' '.join([name, *map(str, args)]), **said)

def short(o):
    "Numbers of four digits, and what is no number as text, which JSON can hold"
    if isinstance(o, dict): return {k:short(v) for k,v in o.items()}
    if isinstance(o, (list,tuple)): return [short(v) for v in o]
    return str(o) if isinstance(o, float) and not math.isfinite(o) else float(f'{o:.4g}') if isinstance(o, float) else o

# steps

class Steps(Callback):
    "The losses of the first `n` steps, after which the fit ends"
    order = 1000
    def __init__(self, n): self.n,self.losses = n,[]
    def after_batch(self):
        self.losses.append(self.learn.loss.detach())
        if len(self.losses) == self.n: raise CancelFitException

def first_steps(learn, n, *cbs):
    "Their losses"
    with learn.added_cbs([*cbs, steps := Steps(n), NoValidation()]): fit(learn, 10**6, 3e-4)
    return [float(o) for o in steps.losses]

def apart(got, want): return max(abs(a-b)/max(abs(b), 1) for a,b in zip(got, want))

def method_names(m): return [(o,) for o in m.pick(METHODS, ('moco',))]

@check(10)
def versions(m):
    "The machine, and what is installed"
    yield dict(device=str(m.device), self_supervised=self_supervised.__version__, **machine(), cuda=torch.version.cuda)
    if m.kind == 'cuda': yield dict(gpu=torch.cuda.get_device_name(), free_mb=torch.cuda.mem_get_info()[0]>>20)

@check(40, method_names)
def losses(m, name):
    "Two steps: in fp32 the losses of the processor, in half precision about the first of them, before a scaler skips steps"
    def of(device, precision='to_fp32'):
        learn = make(name, device=device, views=METHODS[name].cb.create_views(64))
        return first_steps(getattr(learn, precision)(), 2)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        want,got = of('cpu'),of(m.device)
    yield dict(cpu=want, fp32=got, fp32_apart=apart(got, want), ok=apart(got, want) < 1e-3)
    for o in ('fp16','bf16'):
        got = of(m.device, f'to_{o}')
        yield {o:got, f'{o}_apart':apart(got[:1], want), 'ok':all(map(math.isfinite, got)) and apart(got[:1], want) < .05}

# waits

def place():
    "The line of this library, or else of fastai, that is innermost"
    stack = traceback.extract_stack()
    for package in ('self_supervised','fastai','torch'):
        own = [o for o in stack if o.filename.startswith(f'{sys.modules[package].__path__[0]}/')]
        if own: return f'{Path(own[-1].filename).stem}.{own[-1].name}:{own[-1].lineno}'

@contextmanager
def warned(found):
    "Counts warnings of waits, by the line that waits"
    def note(message, *args, **kwargs): found.update([place()] if 'synchroniz' in str(message) else [])
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        yield

@contextmanager
def counted(m, found):
    "Counts waits in `found`"
    if m.kind == 'cuda':
        with warned(found):
            torch.cuda.set_sync_debug_mode('warn')
            try: yield
            finally: torch.cuda.set_sync_debug_mode('default')
    else:
        from pretended_gpu import counting
        with counting() as o: yield
        found.update(o['waits']+o['copies'])

class SecondStep(Callback):
    "Counts its waits, with the loading of its batch"
    order = 999
    def __init__(self, m, found): self.m,self.found,self.stack = m,found,ExitStack()
    def after_batch(self):
        if self.iter == 0: self.stack.enter_context(counted(self.m, self.found))
        else: self.stack.close()

@check(30, method_names)
def waits(m, name):
    "Of a step: for values, and copies that are not pinned"
    if m.kind not in ('cuda','pretended'): raise Skip(f'{m.kind} does not tell')
    for size in m.pick((32,224), (32,)):
        x,cb,found = torch.randint(256, (3,size,size), dtype=torch.uint8),METHODS[name].cb,Counter()
        bs = m.pick(256, 8)
        dls = loaders(name, [(TensorImage(x),i%3) for i in range(2*bs)], bs, device=m.device, after_batch=IntToFloatTensor())
        second = SecondStep(m, found)
        with second.stack: first_steps(make(name, dls, views=cb.create_views(size)), 2, second)
        yield {f'{size} pixels':dict(found), 'ok':found.total() <= 11}

# views, and speed

@check(20, lambda m: [(o,) for o in m.pick((32,224), (32,))])
def views_alike(m, size):
    "The same views as on the processor, where a pixel is at most moved by the rounding of its coordinates"
    from views import sharp
    x,pipes = sharp(m.pick(64, 8), size),get_simclr_aug_pipelines(size)
    set_seed(0)
    drawn = draw_views(pipes, x)
    a,b = (torch.stack(make_views(pipes, x.to(o), drawn)).as_subclass(Tensor).cpu() for o in ('cpu',m.device))
    off = (a-b).abs().flatten().sort().values
    most = off[int(.999*len(off))].item()
    yield dict(apart=most, most=off[-1].item(), mean=off.mean().item(), ok=most < 1e-4 and off[-1] < 1e-2)

@check(60, lambda m: [(o,) for o in m.pick((32,224), (32,))])
def views_rate(m, size):
    "Views per second: here and kornia's on the device, lightly's on the processor"
    from views import kornia_pipe, lightly_rate, ours, sharp
    x = sharp(m.pick(256, 4), size)
    there,pipe = x.to(m.device),kornia_pipe(size).to(m.device)
    for name,f in dict(ours=ours(size), kornia=lambda o: [pipe(o) for _ in range(2)]).items():
        for _ in range(2): f(there)
        n = m.pick(10, 1)
        yield {f'{name}_per_s':2*len(x)*n/m.seconds(lambda: [f(there) for _ in range(n)])}
    yield dict(lightly_per_s=lightly_rate(x[:32], size))

def simclr(m, arch, size, bs, cache='device', **kwargs):
    dls = folder_dls(m.photos, size*5//4, bs=bs, valid='valid', cache=cache, device=m.device, **kwargs)
    set_seed(0)
    return Learner(dls, create_simclr_model(create_encoder(arch, False)), cbs=[SimCLR(get_simclr_aug_pipelines(size)), NoValidation()])

class Began(Callback):
    order = -100
    def before_batch(self): self.split.mark()

class Split(Callback):
    "Seconds of the parts of a step, with the device waited for after each"
    order = 100
    def __init__(self, m): self.m,self.parts = m,defaultdict(list)
    def mark(self, part=None):
        self.m.wait()
        now = time.perf_counter()
        if part: self.parts[part].append(now-self.at)
        self.at = now
    def before_batch(self): self.mark('views')
    def after_loss(self): self.mark('forward')
    def after_backward(self): self.mark('backward')
    def after_step(self): self.mark('optimiser')

@check(90, lambda m: m.pick([('resnet18',224,256), ('resnet50',224,128), ('resnet18',32,256), ('resnet50',32,256)], [('test_resnet',32,8)]))
def step(m, arch, size, bs):
    "Milliseconds of the parts of SimCLR's step, the first steps left out, in fp32 and in the mode that is measured to be fastest"
    learn = simclr(m, arch, size, bs)
    warm,n = m.pick((3,13), (1,2))
    mode,why = measured_mode(learn)
    yield dict(mode=why)
    for o in dict.fromkeys(('fp32',mode)):
        split = Split(m)
        first_steps(learn.to_mode(o), n, Began(), split)
        ms = {k:1e3*float(np.median(v[warm:] or v)) for k,v in split.parts.items()}
        yield {o:dict(ms, images_per_s=1e3*bs/sum(ms.values()))}

@check(60)
def fit_rate(m):
    "Steps per second of whole fits, after an epoch that fills caches: images on the device, decoded in a folder, and in files"
    arch,size,bs = m.pick(('resnet18',64,64), ('test_resnet',32,32))
    for name,cache in dict(device='device', folder=m.folder/'decoded', files=None).items():
        learn = simclr(m, arch, size, bs, cache, **m.pick({}, dict(num_workers=0)))
        fit(learn)
        n = m.pick(5, 1)
        yield {f'{name}_per_s':n*len(learn.dls.train)/m.seconds(lambda: fit(learn, n))}

# what lasts

class Kill(Callback):
    "Ends the process in the middle of an epoch; the checkpoint of an earlier step is on the disk"
    order = 1000
    def after_batch(self):
        if self.iter == 2: os.kill(os.getpid(), signal.SIGKILL)

def moco(m, folder=None, *cbs):
    "The weights after an epoch of four steps, which goes on if there are checkpoints in `folder`"
    learn = make('moco', device=m.device, cbs=[NoValidation(), *cbs])
    if folder: learn.add_cb(Checkpoint(folder, every=1)).resume(folder, missing_ok=True)
    return {k:v.cpu() for k,v in state(fit(learn)).items()}

@contextmanager
def deterministic(on):
    torch.use_deterministic_algorithms(on)
    try: yield
    finally: torch.use_deterministic_algorithms(False)

@check(90)
def resume(m):
    "A process is killed in mid-epoch, this one goes on; the largest difference from weights that were not interrupted"
    for how in m.pick(('as it is','deterministic'), ('deterministic',)):
        folder,exact = m.folder/how,how == 'deterministic'
        args = ['--kill',folder, '--device',m.device, *['--exact']*exact]
        child = subprocess.run([sys.executable, '-W','ignore', __file__, *map(str, args)], capture_output=True, text=True)
        if child.returncode != -signal.SIGKILL: raise RuntimeError(f'the process was not killed: {child.stderr[-200:]}')
        if not checkpoints(folder): raise RuntimeError('there is no checkpoint')
        with deterministic(exact): want,got = moco(m),moco(m, folder)
        most = max((got[k]-v).abs().max().item() for k,v in want.items())
        yield {how:most, 'ok':not (exact and most)}

@contextmanager
def process_group(backend):
    "Of this process alone"
    from accelerate.state import AcceleratorState
    dist = torch.distributed
    with patched.dict(os.environ, WORLD_SIZE='1', RANK='0', LOCAL_RANK='0'):
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try: yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            dist.destroy_process_group()

@check(60)
def group(m):
    "A process group of one process, with SyncBatchNorm on a GPU: the losses are those without"
    if m.kind not in ('cuda','cpu'): raise Skip(f'there is no process group on {m.kind}')
    def last(learn): return list(fit(learn).recorder.values[-1])
    want,learn = last(make('sim_clr', device=m.device)),make('sim_clr', device=m.device)
    gpu = m.kind == 'cuda'
    with process_group('nccl' if gpu else 'gloo'), learn.distrib_ctx(sync_bn=gpu, **({} if gpu else dict(cpu=True))): got = last(learn)
    yield dict(alone=want, group=got, apart=apart(got, want), ok=apart(got, want) < 1e-3)

class Held(Callback):
    "Bytes in use after epochs, by the number of steps"
    order = 1000
    def before_fit(self): self.bytes = {}
    def after_epoch(self): self.bytes[self.train_iter] = self.m.allocated()

@check(60)
def memory(m):
    "MoCo in bf16, with figures and alarms, holds after 200 steps what it holds after 20"
    learn = make('moco', device=m.device, size=32, cbs=[Alarms(n=16), held := Held()]).to_bf16()
    held.m,learn.metrics = m,ssl_metrics(learn)
    early,late = m.pick((20,200), (4,8))
    fit(learn, late//len(learn.dls.train))
    grown = held.bytes[late]-held.bytes[early]
    yield dict(bytes=held.bytes[early], grown=grown, ok=grown < 2**14)

@check(90)
def compiled(m):
    "The number of graphs after four batches is that after two"
    if m.kind == 'pretended': raise Skip('torch compiles nothing that a dispatch mode sees')
    torch._dynamo.reset()
    backend,seen = m.pick('inductor', 'eager'),[]
    class Graphs(Callback):
        def after_batch(self): seen.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    enc = torch.compile(create_encoder('test_resnet', False), backend=backend)
    got = first_steps(make('sim_clr', device=m.device, model=METHODS['sim_clr'].model(enc)), 4, Graphs())
    yield dict(graphs=seen, backend=backend, ok=0 < seen[1] == seen[-1] and all(map(math.isfinite, got)))

# what is learnt

@check(math.inf, lambda m: m.methods)
def cifar10(m, name):
    "A method on CIFAR-10, for so many epochs or as many as there is time for, beside raw pixels and the untrained encoder"
    if not (m.cifar or m.tiny): raise Skip('no folder is given: --cifar')
    reserve,least = m.pick((60,30), (0,0))                            # for the evaluation, and for training
    if m.left < reserve+least: raise Skip(f'{m.left:.0f} seconds are left: --minutes gives more')
    path,valid = (m.cifar,'test') if m.cifar else (m.photos,'valid')
    bs = m.pick(512, 16)
    dls = folder_dls(path, 32, 'parent', bs, 'device', valid, device=m.device)
    set_seed(0)
    enc = create_encoder('test_resnet', False) if m.tiny else create_encoder('resnet18', False, stem='small')
    s = suggest(registry[name], len(dls.train_ds), bs, 32, m.epochs)
    learn = registry[name].learner(dls, enc, 32, cbs=NoValidation(), **s.method, **s.model, **s.views, **s.learner)
    mode,why = measured_mode(learn)
    first_steps(learn.to_mode(mode), m.pick(5, 1))
    n = m.pick(20, 1)
    per_step = m.seconds(lambda: first_steps(learn, n))/n
    epochs = m.epochs or m.pick(int((m.left-reserve)/(per_step*len(dls.train))), 1)
    yield dict(mode=why, images=len(dls.train_ds), images_per_s=bs/per_step, epochs=epochs)
    if not epochs: raise Skip(f'{m.left:.0f} seconds are left, an epoch takes {per_step*len(dls.train):.0f}: --minutes gives more')
    with learn.no_bar(), learn.no_logging(): getattr(learn, s.schedule)(**{**s.fit, 'n_epoch':epochs})
    df = evaluate(learn, name=name, labels=(), n=m.pick(5000, 32), Cs=m.pick((.001,.01,.1,1.), (.001,))).df
    yield {f'{o.features}, {o.figure}':o.mean for o in df.itertuples()}

def on_device(device):
    "Within it there is the pretended GPU of the tests, if that is the device"
    if not device.startswith('pretended'): return nullcontext()
    from pretended_gpu import pretending
    return pretending(0)

def late(*_): raise Late

@call_parse
def main(
    device:str='', # Default: fastai's, which is CUDA, MPS or the processor
    minutes:float=8, # After these, checks that are left are not begun
    cifar:str='', # Folder of CIFAR-10: train/<class>/*.jpg and test/<class>/*.jpg
    methods:str='simclr', # On CIFAR-10, with commas between them
    epochs:int=None, # On CIFAR-10; as many as there is time for, if it is not given
    only:str='', # One check
    out:str='gpu.jsonl', # File to which the lines are added, too
    tiny:store_true=False, # Small, to try the script itself
    kill:str='', # Of `resume`: train with checkpoints in this folder, and be killed
    exact:store_true=False # Of `resume`, too
):
    "Run all checks on one device"
    if kill:
        with on_device(device), deterministic(exact): return moco(Machine(device), Path(kill), Kill())
    gc.freeze()                                                       # what is imported need not be looked through again and again
    signal.signal(signal.SIGALRM, late)
    faulthandler.dump_traceback_later(60*minutes+60, exit=True)       # where no alarm is heard
    ok = True
    with tempfile.TemporaryDirectory() as d, on_device(device), open(out, 'a') as file:
        for said in lines(Machine(device or default_device(), tiny, minutes, cifar, d, methods, epochs), only):
            line = json.dumps(short(said))
            print(line, flush=True)
            print(line, file=file, flush=True)
            ok = ok and said.get('ok', True)
    faulthandler.cancel_dump_traceback_later()
    sys.exit(not ok)
