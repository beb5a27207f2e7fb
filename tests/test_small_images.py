"Encoders for images of at most 40 pixels: what their stem is, through every use of an encoder, and what a user changes by hand."
import re
import warnings

import numpy as np, pytest, timm, torch
from fastai.vision.all import nn, resnet18
from self_supervised.encoder_files import encoder_info, export_onnx, load_encoder, save_encoder
from self_supervised.evaluation.protocol import untrained_encoder
from self_supervised.layers import create_encoder, source_of
from self_supervised.training.finetune import layer_splitter
from self_supervised.training.segmentation import create_unet, feature_maps, map_info
from self_supervised.training.settings import suggest
from self_supervised.vision.all import create_simclr_model, imagenet_stats, pretrain, sample_photos

def convs(enc): return [m for m in enc.modules() if isinstance(m, nn.Conv2d)]

# architecture, and how many pixels lie between its features with the usual stem and with the small one
ARCHS = [('resnet18',32,8), ('resnet10t',32,8), ('resnetblur18',32,8), ('resnetv2_18',32,8), ('convnext_atto',32,8), ('tf_efficientnet_b0',32,16),
         ('dm_nfnet_f0',32,8), ('xresnet18',32,8), ('torchvision:resnet18',32,8), ('torchvision:convnext_tiny',32,8), ('torchvision:mobilenet_v2',32,16)]

@pytest.mark.parametrize('arch,usual,small', ARCHS)
def test_what_lies_between_features(arch, usual, small):
    "Announced, measured, and the same width, of images of any channels"
    with torch.device('meta'): a,b = create_encoder(arch, False, 2),create_encoder(arch, False, 2, stem='small')
    assert [map_info(o)[-1]['reduction'] for o in (a,b)] == [usual,small] and a.nf == b.nf
    assert convs(b)[0].stride == (1,1) and convs(b)[0].kernel_size == (3,3) and convs(b)[0].in_channels == 2
    assert {*b.state_dict()} == {*a.state_dict()} and b.spec == {**a.spec, 'stem':'small'} and 'stem' not in a.spec
    assert source_of(a).layers(a) == source_of(b).layers(b)

def test_a_published_resnet():
    "What is replaced by hand everywhere for CIFAR"
    torch.manual_seed(0)
    net = resnet18()
    net.conv1,net.maxpool,net.fc = nn.Conv2d(3, 64, 3, padding=1, bias=False),nn.Identity(),nn.Identity()
    enc = create_encoder(resnet18, False, stem='small')
    enc.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(enc.eval()(x), net.eval()(x))

@pytest.mark.parametrize('arch', ['vit_tiny_patch16_224','swin_tiny_patch4_window7_224','mixer_s32_224','vgg11','torchvision:vit_b_16','levit_128s'])
def test_none_that_could_be_small(arch):
    with pytest.raises(ValueError, match='stem: '), torch.device('meta'): create_encoder(arch, False, stem='small')

def test_bad_input():
    with pytest.raises(ValueError, match="stem must be one of usual, small, got 'tiny'"): create_encoder('resnet10t', False, stem='tiny')

def test_weights_that_fit_are_kept(monkeypatch):
    "Those of the library are for 7 × 7 pixels; a stem of 3 × 3 keeps its own"
    made = timm.create_model
    net = {k:made(k, num_classes=0) for k in ('resnet18','resnet10t')}
    monkeypatch.setattr(timm, 'create_model', lambda arch, **kw: made(arch, num_classes=0) if arch not in net else load(made(arch, num_classes=0), net[arch]))
    def load(to, of): to.load_state_dict(of.state_dict()); return to
    with pytest.warns(UserWarning, match='new weights'): enc = create_encoder('resnet18', True, stem='small')
    assert torch.equal(enc.layer1[0].conv1.weight, net['resnet18'].layer1[0].conv1.weight)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        enc = create_encoder('resnet10t', True, stem='small')
    assert torch.equal(enc.conv1[0].weight, net['resnet10t'].conv1[0].weight)

@pytest.mark.parametrize('arch', ['test_resnet','xresnet18'])
def test_everywhere(arch, tmp_path):
    "Saved, loaded, as an untrained baseline, in ONNX, as a U-Net, with layers for their own rates"
    import onnxruntime
    enc = create_encoder(arch, False, 3, stem='small').eval()
    path,x = save_encoder(enc, tmp_path/'e.safetensors', imagenet_stats, 32),torch.rand(2, 3, 32, 32)
    mean,std = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    with torch.no_grad(): want = enc((x-mean)/std)
    again = load_encoder(path).eval()
    assert torch.equal(again((x-mean)/std), want) and again.spec == enc.spec and encoder_info(path)['stem'] == 'small'
    assert [m.shape[-1] for m in feature_maps(again, x)] == [32,16,8,4]
    assert [o.stride for o in convs(untrained_encoder(again))] == [o.stride for o in convs(enc)]
    if arch == 'xresnet18': return
    assert len(layer_splitter(create_simclr_model(again))) > 4 and create_unet(again, 2)(x).shape == (2,2,32,32)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        onnx = export_onnx(again, tmp_path/'e.onnx')
    assert np.allclose(onnxruntime.InferenceSession(onnx).run(None, {'images':x.numpy()})[0], want, atol=1e-3)

def test_pretrain(tmp_path, capsys):
    "Which stem it takes, and what it says of it; what becomes of an encoder with the small one is in `test_cli`"
    photos = sample_photos(tmp_path/'photos', n=4, size=40)
    file = save_encoder(create_encoder('test_resnet', False, stem='small'), tmp_path/'e.safetensors')
    for args,said,positions in (({},'at most 40 pixels',16), (dict(stem='usual'),'as asked',1), (dict(size=48),None,1), (dict(size=48, stem='small'),'as asked',36),
                                (dict(encoder=file),None,16), (dict(arch='vit_tiny_patch16_224', arch_set=dict(depth=1)),None,4),
                                (dict(arch='darknet17'),'has no other',1)):
        pretrain(photos, out=tmp_path/'b', dry_run=True, **{**dict(arch='test_resnet', size=32, bs=16), **args})
        out = capsys.readouterr().out
        assert (said in out if said else ' stem ' not in out) and re.search(rf'positions +{positions} ', out), (args,out)
    with pytest.raises(ValueError, match='leave out pretrained, arch_set and stem'): pretrain(photos, out=tmp_path/'b', encoder=file, stem='small', size=32)

def test_suggestions():
    of = lambda size, **kw: suggest('SimCLR', 2000, 64, size, **kw)
    assert of(40).encoder == {'stem':'small'} and of(40).about.positions == 25 and 'usual stem' in repr(of(40))
    assert not of(41).encoder and not of(32, arch='vit').encoder and not of(32, pretrained=True).encoder
    assert of(32, stride=16).about.positions == 4 and of(41).about.positions == 1

# changed by hand

def conv(enc): enc.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
def pool(enc): enc.maxpool = nn.Identity()
def stride(enc): enc.conv1[0].stride = (1,1)
def act(enc): enc.layer1[0].act1 = nn.GELU()
def head(enc): enc.global_pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
def more(enc): enc.layer4.append(nn.Conv2d(96, 96, 1))
def forward(enc): enc.forward = lambda x, f=enc.forward: f(x)*2
def kwargs(enc): enc.spec['kwargs'] = dict(pretrained_cfg_overlay={})

@pytest.mark.parametrize('change', [conv, pool, stride, act, head, more, forward, kwargs])
def test_found_when_it_is_written(change, tmp_path):
    "A file that names no architecture, and a warning that says what to do; its weights go into an encoder changed alike"
    a,b = (create_encoder('test_resnet', False) for _ in range(2))
    change(a); change(b)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"encoder: .*load_encoder\(path, encoder\)"): path = save_encoder(a, tmp_path/'e.safetensors', size=32)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match='pass a module'): load_encoder(path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_encoder(path, b).eval()(x), a.eval()(x)) and b.info['n_in'] == 3

def test_what_matters_in_training_alone_may_change(tmp_path):
    enc = create_encoder('test_resnet', False, drop_rate=.1)
    for m in enc.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = .01
        if isinstance(m, nn.Dropout): m.p = .5
    enc = nn.SyncBatchNorm.convert_sync_batchnorm(enc)
    assert isinstance(enc.bn1, nn.SyncBatchNorm)
    enc.set_grad_checkpointing()
    enc.half().compile()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_encoder(save_encoder(enc, tmp_path/'e.safetensors')).nf == enc.nf
