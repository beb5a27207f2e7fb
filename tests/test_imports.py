"The package imports with fastai, timm and kornia alone: extras are for tests and several processes."
import subprocess
import sys
from pathlib import Path

extras = "accelerate webdataset lightly pytorch_metric_learning pytest hypothesis nbdev nbconvert wandb tensorboard skimage onnx onnxscript onnxruntime faiss".split()
modules = [".".join(p.with_suffix("").parts) for p in Path("self_supervised").rglob("*.py") if p.name[0] != "_" and p.stem != "distributed"]     # which needs accelerate, and says so

def test_without_extras():
    code = f"""import sys, importlib
for o in {extras}: sys.modules[o] = None
for o in {sorted(modules)}: importlib.import_module(o)"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "self_supervised.vision.all" in modules

def test_several_processes_need_accelerate():
    "One import is enough, and without accelerate `distrib_ctx` says what to install"
    code = """import sys; sys.modules['accelerate'] = None
from self_supervised.vision.all import *
learn = Learner(DataLoaders(DataLoader([0]), DataLoader([0])), nn.Linear(1,1), noop)
try: learn.distrib_ctx()
except ImportError as e: assert 'pip install accelerate' in str(e), e
else: raise AssertionError('not refused')"""
    subprocess.run([sys.executable, "-c", code], check=True)
