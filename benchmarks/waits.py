"""What a step asks of a GPU that makes the program wait: values, and copies that are not pinned, counted on the pretended GPU of the tests.
The encoder is a small one, as it asks for nothing; images, batches and views are those of the tables."""
import sys
from pathlib import Path

from common import NoValidation, record
from fastcore.script import call_parse

sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
from kit import METHODS, fit, loaders, make
from pretended_gpu import CountStep, pretending
from self_supervised.vision.all import *

def count_step(name:str, size:int, bs:int) -> dict:
    "Waits, copies and operations of a step of the method `name`, each by place"
    set_seed(0)
    cb = METHODS[name].cb
    x = torch.randint(256, (1,3,size,size), dtype=torch.uint8)
    with pretending(0) as gpu:
        dls = loaders(name, [(TensorImage(x[0]),i%3) for i in range(2*bs)], bs, device=gpu, after_batch=IntToFloatTensor())
        learn = make(name, dls, cbs=[CountStep(), NoValidation()], views=cb.create_views(size))
        fit(learn)
    return learn.count_step.found

@call_parse
def main(only:str='' # One method
):
    "Write the counts of all methods, 256 images of 32 and of 224 pixels"
    rows = []
    for name in [only] if only else METHODS:
        for size in (32,224):
            found = count_step(name, size, 256)
            rows.append(dict(method=METHODS[name].cb.__name__, size=size, bs=256, **{k:sum(o.values()) for k,o in found.items()}))
            print(rows[-1], *(dict(found[k]) for k in ('waits','copies')), sep='\n  ', flush=True)
    record('waits', rows, ['method','size','bs'])
