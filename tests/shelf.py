"Fixtures: weights of timm that are here, and a network that is not."
import huggingface_hub as hub, pytest, timm
from fastai.vision.all import set_seed
from timm.models import save_for_hf

TIMM = 'test_resnet.r160_in1k'                                            # a name of timm, for images of 160 pixels

@pytest.fixture(scope='module')
def shelf(tmp_path_factory):
    "The weights of that name, in a folder and as the hub keeps them"
    d = tmp_path_factory.mktemp('shelf')
    set_seed(1)
    save_for_hf(timm.create_model('test_resnet'), d/'model', safe_serialization=True)
    kept = d/'hub'/f'models--timm--{TIMM}'
    (kept/'refs').mkdir(parents=True); (kept/'refs'/'main').write_text('a'*40)
    (kept/'snapshots').mkdir(); (kept/'snapshots'/('a'*40)).symlink_to(d/'model')
    return d

@pytest.fixture
def no_network(monkeypatch, shelf):
    "Nobody answers where the hub should be"
    monkeypatch.setattr(hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(hub.constants, 'HF_HUB_CACHE', str(shelf/'hub'))
