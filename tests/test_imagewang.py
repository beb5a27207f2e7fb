"The example for fastai's leaderboard, on a folder like that of ImageWang: stopped, continued, and with another run."
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import warm
from fastai.data.external import URLs
from self_supervised.data import sample_photos

examples = Path(__file__).parent.parent/'examples'

@pytest.fixture(scope='module')
def wang(tmp_path_factory):
    "16 classes in `train`; of eight of them most images are in `unsup` and the others for validation are in `val`"
    d = sample_photos(tmp_path_factory.mktemp('wang')/'photos', n=8, size=40)
    (d/'valid').rename(d/'val')
    (d/'unsup').mkdir()
    for i,c in enumerate(sorted(o.name for o in (d/'train').iterdir())):
        moved = list((d/'train'/c).iterdir())[2:] if i%2 else []
        for f in moved: f.rename(d/'unsup'/f'{c}_{f.name}')
        if not i%2:
            for f in (d/'val'/c).iterdir(): f.unlink()
            (d/'val'/c).rmdir()
    return d

def start(wang, out):
    return warm.Process(warm.script, examples/'imagewang.py', '--path', wang, '--out', out, '--runs', 2, '--size', 32, '--epochs', 1,
                        '--pretrain-epochs', 2, '--arch', 'test_resnet', '--bs', 16, '--tune-bs', 16, '--precision', 'fp32')

def test_protocol(wang, tmp_path):
    out,table = tmp_path/'o',tmp_path/'o'/'finetuned-1-epochs-lr-0.004.csv'
    p = start(wang, out)
    p.until(lambda: re.search(r'^ *epoch .*\n.*\n', p.out, re.M))
    p.signal(signal.SIGINT)
    assert p.wait() == 130 and not (out/'encoder.safetensors').exists()
    table.write_text('run,accuracy\n0,0.75\n')                       # as if the second fine-tuning had been stopped
    said = start(wang, out).done()
    assert 'supcon on 128 images' in said and '16 held out' in said and 'Going on from' in said
    assert 'run 2 of 2' in said and 'run 1 of' not in said
    assert re.search('pretraining +2 epochs of supcon, test_resnet', said) and '1 epochs, 80 images, 16 classes' in said
    acc = pd.read_csv(table).accuracy
    assert len(pd.read_csv(out/'metrics.csv')) == len(acc) == 2 and acc[0] == .75
    assert f'{acc.mean():.4f} ± {acc.std():.4f}' in said

def test_downloads(monkeypatch, tmp_path):
    "Which of fastai's archives is asked for, unless there is a folder"
    monkeypatch.syspath_prepend(examples)
    import imagewang
    monkeypatch.setattr(imagewang, 'untar_data', lambda url: url)
    assert [imagewang.images(o) for o in (128,192,256)] == [URLs.IMAGEWANG_160, URLs.IMAGEWANG_320, URLs.IMAGEWANG_320]
    assert imagewang.images(128, tmp_path) == tmp_path
