"Encoders as the Hugging Face Hub has them: plain timm loads what was written, with the images of the training, and gives the same features."
import re, sys, tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest, timm, torch
from fastai.vision.all import nn
import self_supervised
from kit import METHODS, fit, fitted, make, same, state
from self_supervised.encoder_files import encoder_info, load_encoder, save_encoder, save_for_hub
from self_supervised.layers import create_encoder
from self_supervised.evaluation.protocol import evaluate
from shelf import TIMM, no_network, shelf

root = Path(__file__).parent.parent
STATS = [.25,.5,.75,.125],[.5,.25,.125,1.]
def stats(n): return [o[:n] for o in STATS]

ENCODERS = [('test_resnet',3,32,{}), ('test_resnet',1,(32,48),dict(pool_type='max')), ('test_resnet',4,32,{}), ('convnext_atto',4,32,dict(depths=(1,1,1,1), dims=(8,8,8,8))),
            ('test_vit',3,(32,64),{}), ('vit_tiny_patch16_224',4,(32,48),dict(depth=1, img_size=(32,48))),
            ('vit_tiny_patch16_224',1,32,dict(depth=1, img_size=32, patch_size=8, pool_type='avg')), ('test_coatnet',3,160,{})]

@pytest.mark.parametrize('arch,n_in,size,kw', ENCODERS)
def test_plain_timm(arch, n_in, size, kw, tmp_path):
    "The same features to the bit, and what it says of its images is what the training had"
    enc = create_encoder(arch, False, n_in, **kw).eval()
    folder = save_for_hub(save_encoder(enc, tmp_path/'e.safetensors', stats(n_in), size), tmp_path/'hub', 'mit')
    h,w = size if isinstance(size, tuple) else (size,size)
    x = torch.rand(2, n_in, h, w)
    with torch.no_grad():
        want,plain = enc(x),timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        assert torch.equal(plain(x), want) and torch.equal(load_encoder(folder/'model.safetensors').eval()(x), want)
        data = timm.data.resolve_model_data_config(plain)
        assert data['input_size'] == (n_in,h,w) and [list(data['mean']),list(data['std'])] == stats(n_in) and data['crop_pct'] == 1
        assert plain.num_classes == 0 and plain.pretrained_cfg['license'] == 'mit' and 'tag' not in plain.pretrained_cfg
        names = dict(images=x)
        code = re.search('```python\n(.*?)```', (folder/'README.md').read_text(), re.S)[1].replace('hf-hub:USER/hub', f'local-dir:{folder}')
        exec(code, names)
        mean,std = (torch.tensor(o)[:,None,None] for o in stats(n_in))
        assert torch.equal(names['features'], enc((x-mean)/std))
    if n_in == 3: assert timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=5)(x).shape == (2,5)

def changed():
    enc = create_encoder('test_resnet', False)
    enc.layer1[0].act1 = nn.GELU()
    return enc

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make,why', [(lambda: create_encoder('xresnet18', False), "xresnet18 is none of timm's"), (lambda: create_encoder('torchvision:resnet18', False), "torchvision:resnet18 is none of timm's"),
                                      (lambda: create_encoder('test_resnet', False, stem='small'), 'its conv1.* in place of'), (changed, 'it was changed after')])
def test_what_timm_cannot_build(make, why, tmp_path):
    "One error says why, and what to do; nothing is written"
    file = save_encoder(make(), tmp_path/'e.safetensors', stats(3), 32)
    with pytest.raises(ValueError, match=f'^file: timm cannot build the encoder in .*{why}.*Share the file itself'): save_for_hub(file, tmp_path/'hub', 'mit')
    assert not (tmp_path/'hub').exists()

def test_bad_input(tmp_path):
    enc = create_encoder('test_resnet', False)
    full,bare = save_encoder(enc, tmp_path/'e.safetensors', stats(3), 32),save_encoder(enc, tmp_path/'b.safetensors', stats(3))
    for bad in ('', 'Apache 2.0', None): pytest.raises(ValueError, save_for_hub, full, tmp_path/'hub', bad).match('license: .*apache-2.0')
    with pytest.raises(ValueError, match='b.safetensors does not say the size'): save_for_hub(bare, tmp_path/'hub', 'mit')
    assert not (tmp_path/'hub').exists()

# with a card of the training

def test_of_a_learner(tmp_path):
    "The card has the facts of the report, and the accuracies beside their baselines"
    learn = fit(make('sim_clr'))
    folder = learn.save_for_hub(tmp_path/'birds', license='cc-by-nc-4.0', evaluation=evaluate(learn))
    card = (folder/'README.md').read_text()
    for o in ('license: cc-by-nc-4.0\n', '# birds\n', '| method | SimCLR (2002.05709)', '| images | 33 for training, 12 for validation', '| training | 1 epoch, 4 steps, batches of 8', 'temp=', '| raw pixels | untrained encoder | SimCLR |',
              'guessing the commonest class', f'self_supervised {self_supervised.__version__}', 'The weights: cc-by-nc-4.0', 'No other weights are known'): assert o in card, o
    x = torch.rand(2, 3, 16, 16)
    plain,enc = timm.create_model(f'local-dir:{folder}', pretrained=True).eval(),learn.model.encoder.eval()
    with torch.no_grad(): assert torch.equal(plain(x), enc(x))
    assert [*plain.pretrained_cfg['input_size']] == [3,16,16] and sorted(o.name for o in folder.iterdir()) == ['README.md','config.json','model.safetensors']

def test_weights_of_others(tmp_path, no_network):
    "Their names go from training to training, and their terms are named"
    def began(enc, name='sim_clr', **kw): return make(name, model=METHODS[name].model(enc), **kw).save_encoder(tmp_path/'e.safetensors')
    file = began(create_encoder(TIMM, True))
    assert (origin := encoder_info(file)['origin']) and re.fullmatch(r'timm/test_resnet.r160_in1k( \(.*\))?', origin[0]) and len(origin) == 1
    file = began(load_encoder(file))
    assert encoder_info(file)['origin'] == [*origin, 'an encoder file (test_resnet.r160_in1k)']
    card = (save_for_hub(file, tmp_path/'hub', 'mit')/'README.md').read_text()
    assert f'continued or distilled from {origin[0]}, an encoder file' in card and 'the terms of those weights stay in force' in card
    for teacher,want in ((create_encoder('test_resnet', False),'a teacher (test_resnet)'), (load_encoder(file),'an encoder file (test_resnet.r160_in1k)')):
        assert encoder_info(began(create_encoder('test_resnet', False), 'distill', teacher=teacher))['origin'][-1] == want
    assert encoder_info(began(create_encoder('test_resnet', False)))['origin'] == []

def test_a_learner_of_fastai(tmp_path, monkeypatch):
    "`from_pretrained_fastai` reads a learner whose pyproject.toml names this library too, behind fastai"
    from huggingface_hub import fastai_utils, from_pretrained_fastai
    monkeypatch.setitem(sys.modules, 'toml', SimpleNamespace(load=lambda p: tomllib.loads(Path(p).read_text())))
    monkeypatch.chdir(tmp_path)
    learn = fitted('sim_clr')
    fastai_utils._save_pretrained_fastai(learn, 'learner')                      # what push_to_hub_fastai uploads
    requires = Path('learner/pyproject.toml')
    text,own = requires.read_text(),re.search('"fastai-self[^"]*"', (root/'docs'/'faq.md').read_text())[0]
    for behind in (True,False):
        requires.write_text(text.replace('"]', f'", {own}]') if behind else text.replace('["', f'[{own}, "'))
        assert own in requires.read_text()
        if behind: assert same(state(from_pretrained_fastai('learner')), state(learn))
        else: pytest.raises(ImportError, from_pretrained_fastai, 'learner').match(self_supervised.__version__)
