"The package imports with fastai, timm and kornia alone: extras are for tests and several processes."
import os, subprocess, sys
from pathlib import Path
import warm

extras = "accelerate webdataset lightly pytorch_metric_learning pytest hypothesis nbdev nbconvert wandb tensorboard skimage onnx onnxscript onnxruntime faiss".split()
modules = [".".join(p.with_suffix("").parts) for p in Path("self_supervised").rglob("*.py") if p.name[0] != "_" and p.stem != "distributed"]     # which needs accelerate, and says so

def test_without_extras():
    "In a new process, the second of torchrun's, which takes its GPU; there `distrib_ctx` says what to install"
    code = f"""import sys, importlib, pretended_gpu
for o in {extras}: sys.modules[o] = None
for o in {sorted(modules)}: importlib.import_module(o)
from self_supervised.vision.all import *
learn = Learner(DataLoaders(DataLoader([0]), DataLoader([0])), nn.Linear(1,1), noop)
try: learn.distrib_ctx()
except ImportError as e: assert 'pip install accelerate' in str(e), e
else: raise AssertionError('not refused')
assert pretended_gpu.current == 1"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, 'LOCAL_RANK':'1'})
    assert "self_supervised.vision.all" in modules

def import_ours_first():
    gone = 'wandb','tensorboard'
    for o in [o for o in sys.modules if o.partition('.')[0] in gone or o == 'self_supervised.training.loggers']: del sys.modules[o]
    for o in gone: sys.modules[o] = None                               # as if not installed
    import self_supervised.training.loggers
    for o in gone: del sys.modules[o]
    from fastai.test_utils import synth_learner
    from fastai.callback.wandb import WandbCallback
    import wandb
    with wandb.init(project='tests') as run:
        learn = synth_learner(cbs=WandbCallback(log_preds=False))
        with learn.no_bar(): learn.fit(1)
        assert run.config['Learner']['lr'] == .001

def test_loggers_are_imported_later(tmp_path):
    "Neither wandb nor tensorboard is needed for our module, and the import of `WandbCallback` may come after it"
    warm.run(import_ours_first, WANDB_MODE='offline', WANDB_DIR=str(tmp_path), WANDB_SILENT='true')
