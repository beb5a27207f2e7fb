"""Processes that begin where everything is imported: a fork of a server costs milliseconds, an import of fastai some seconds.

The server is `multiprocessing`'s. What it forks are processes like any other, with signals, locks and exit codes of their own."""
import contextlib, os, signal, socket, sys, tempfile, time
from multiprocessing import forkserver, get_context, get_start_method, set_start_method
from pathlib import Path

here = Path(__file__).parent
os.environ['PYTHONPATH'] = os.pathsep.join([str(here), str(here.parent), *os.environ.get('PYTHONPATH', '').split(os.pathsep)])
usual = get_start_method()
context = get_context('forkserver')
context.set_forkserver_preload(['preload'])

def server_cpu() -> float:
    "CPU seconds of the server and of what it has forked, as Linux counts them; it is no child whose time would be ours"
    stat = Path(f'/proc/{forkserver._forkserver._forkserver_pid}/stat')
    if not stat.exists(): return 0.
    return sum(map(int, stat.read_text().rpartition(')')[2].split()[11:15]))/os.sysconf('SC_CLK_TCK')

def _begin(f, args, out, err, cwd, env):
    "In the new process: what it prints goes to files; it leads a group, to which signals can be sent; it ends as a program would"
    os.setpgid(0, 0)
    for path,fd in ((out,1), (err,2)):
        file = os.open(path, os.O_WRONLY|os.O_CREAT|os.O_APPEND)
        os.dup2(file, fd); os.close(file)
    set_start_method(usual, force=True)                            # a server's child would begin loader workers by a server, too
    os.environ.update(env)
    os.chdir(cwd)
    f(*args)
    if (dist := sys.modules['torch.distributed']).is_initialized(): dist.destroy_process_group()

class Process:
    "`f(*args)` in a process of its own; `f` is a function of a module. What it prints are `out` and `err`"
    def __init__(self, f, *args, cwd='.', **env):
        self.dir = Path(tempfile.mkdtemp(prefix='warm'))
        paths = [str(self.dir/o) for o in ('out','err')]
        self.p = context.Process(target=_begin, args=(f, args, *paths, os.path.abspath(cwd), env))
        self.p.start()
        self.pid = self.p.pid
    def _read(self, name): return (self.dir/name).read_text() if (self.dir/name).exists() else ''
    out = property(lambda self: self._read('out'))
    err = property(lambda self: self._read('err'))
    running = property(lambda self: self.p.is_alive())
    def signal(self, sig): os.kill(self.pid, sig)
    def wait(self, timeout=300):
        "Its exit code, negative for the signal that ended it"
        self.p.join(timeout)
        if self.running:
            with contextlib.suppress(ProcessLookupError): os.killpg(self.pid, signal.SIGKILL)
            raise TimeoutError(f"still running after {timeout} seconds: {self.out[-2000:]}{self.err[-4000:]}")
        return self.p.exitcode
    def until(self, f, timeout=90):
        "Wait until `f()`, while the process runs"
        end = time.time()+timeout
        while not f():
            assert time.time() < end and self.running, self.out[-2000:]+self.err[-4000:]
            time.sleep(.02)
    def done(self, timeout=300):
        "What it printed; an error if it failed"
        code = self.wait(timeout)
        assert code == 0, f"exit code {code}: {self.out[-2000:]}{self.err[-4000:]}"
        return self.out

def run(f, *args, timeout=300, **kw) -> str:
    "What `f(*args)` prints in a process of its own, which must not fail"
    return Process(f, *args, **kw).done(timeout)

def command(name:str, *args):
    "A console script of this library, to be run in a `Process`"
    sys.argv = [name, *map(str, args)]
    sys.modules['self_supervised.start'].run(name)

def script(path:str, *args):
    "A file of Python, as `python path args` runs it"
    import runpy
    sys.argv = [str(path), *map(str, args)]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(str(path), run_name='__main__')

def free_port() -> int:
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]

def start_group(f, *args, n=2, **kw) -> list:
    "`n` processes that find each other as those of torchrun do"
    env = dict(WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='localhost', MASTER_PORT=str(free_port()), **kw)
    return [Process(f, *args, RANK=str(i), LOCAL_RANK=str(i), **env) for i in range(n)]

def group(f, *args, n=2, timeout=300, **kw) -> str:
    "What `n` processes print, the first one first; if one of them fails, the others are ended and its error is raised"
    ps,end = start_group(f, *args, n=n, **kw),time.time()+timeout
    while any(p.running for p in ps) and not any(p.p.exitcode for p in ps) and time.time() < end: time.sleep(.02)
    bad = [p for p in ps if p.p.exitcode] or [p for p in ps if p.running]
    for p in ps:
        if p.running: os.killpg(p.pid, signal.SIGKILL)
    for p in bad: p.done(5)
    return ''.join(p.out for p in ps)

def notebook(path:str):
    "Run a notebook as `nbdev-test` does"
    from nbdev.config import get_config
    from nbdev.test import test_nb
    flags = get_config(path).tst_flags
    ok,_ = test_nb(path, skip_flags=flags.split() if isinstance(flags, str) else flags, basepath=here.parent)
    sys.exit(not ok)
