"Encoders of every family: flat features of the announced width, forward and backward; and the files."
import re
from functools import partial
import pytest, timm, torch, torchvision
from torch import nn
from packaging.version import Version
from safetensors.torch import save_file
from fastai.vision.all import SGD, DataLoaders, Learner, TensorImage, resnet18, xresnet18
from self_supervised.momentum import MomentumEncoder
from self_supervised.encoder_files import load_encoder, save_encoder
from self_supervised.layers import _first_conv, PoolingType, create_encoder, create_model, create_projection_model, model_splitter, num_features
from self_supervised.training.finetune import layer_lrs, layer_splitter
from self_supervised.vision.dino import DINO, create_dino_model, get_dino_aug_pipelines

# (architecture, pixels), families in rows
ARCHS = [("resnet10t",32), ("resnet18",32), ("resnet26d",64), ("resnext26ts",64), ("seresnext26t_32x4d",64),
         ("vit_tiny_patch16_224",64), ("vit_small_patch32_224",64), ("deit_tiny_patch16_224",224), ("deit_tiny_distilled_patch16_224",64), ("beit_base_patch16_224",224),
         ("swin_tiny_patch4_window7_224",224), ("swinv2_cr_tiny_ns_224",224),
         ("convnext_atto",32), ("convnextv2_atto",64), ("efficientnet_b0",32), ("tf_efficientnet_b0",64), ("efficientnetv2_rw_t",64),
         ("mobilenetv2_050",32), ("mobilenetv3_small_050",64), ("mobilenetv4_conv_small_035",64), ("regnetx_002",32), ("regnety_002",64),
         ("densenet121",64), ("mixer_s32_224",224), ("edgenext_xx_small",64), ("mobilevit_xxs",64), ("ghostnet_050",64),
         ("rexnet_100",64), ("poolformer_s12",64), ("xcit_nano_12_p16_224",64), ("levit_128s",224), ("coatnet_nano_rw_224",224), ("repvgg_a0",64), ("vgg11_bn",64),
         ("xresnet18",32), ("squeezenet1_1",64)]

@pytest.mark.parametrize("arch,size", ARCHS, ids=[a for a,_ in ARCHS])
def test_flat_features(arch, size):
    n_in = [1,3,5][len(arch)%3]
    enc = create_encoder(arch, pretrained=False, n_in=n_in, **(dict(depth=2) if arch.startswith("beit") else {}))       # others are small
    out = enc(torch.randn(2, n_in, size, size))
    assert out.shape == (2, enc.nf)
    out.pow(2).mean().backward()
    assert next(p for p in enc.parameters() if p.grad is not None).grad.isfinite().all()

POOLS = PoolingType.Fast,PoolingType.Avg,PoolingType.AvgMax,PoolingType.CatAvgMax,PoolingType.Max
@pytest.mark.parametrize("pool,n_in", [(None,1),(None,3),(None,5),*((o,5) for o in POOLS)])
@pytest.mark.parametrize("arch", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", xresnet18, resnet18])
def test_pooling(arch, pool, n_in):
    if (arch, pool) == ("convnext_atto", PoolingType.CatAvgMax) and Version(timm.__version__) < Version("1.0.31"):
        pytest.skip("the norm in timm's own head then expects half the width")
    enc = create_encoder(arch, False, n_in, pool)
    assert enc(torch.randn(2, n_in, 64, 64)).shape == (2, enc.nf)

def test_catavgmax_doubles(): assert create_encoder("resnet10t", False, pool_type="catavgmax").nf == 2*create_encoder("resnet10t", False).nf

def test_no_choice_of_pooling():
    with pytest.warns(UserWarning, match="its own"): enc = create_encoder("vit_tiny_patch16_224", False, pool_type="catavgmax")
    assert enc(torch.randn(2,3,64,64)).shape == (2, enc.nf)

def test_width_changes_nothing():
    enc = create_encoder("resnet10t", False)
    before = {k:v.clone() for k,v in enc.state_dict().items()}
    modes = [m.training for m in enc.modules()]
    assert num_features(enc) == 512
    assert [m.training for m in enc.modules()] == modes
    assert all(torch.equal(v, before[k]) for k,v in enc.state_dict().items())

def test_grad_checkpointing():
    torch.manual_seed(0); a = create_encoder("vit_tiny_patch16_224", False)
    b = create_encoder("vit_tiny_patch16_224", False, grad_checkpointing=True); b.load_state_dict(a.state_dict())
    x = torch.randn(2,3,32,32)
    for m in (a,b): m(x).sum().backward()
    torch.testing.assert_close(a.patch_embed.proj.weight.grad, b.patch_embed.proj.weight.grad)
    with pytest.raises(ValueError, match="grad_checkpointing"): create_encoder(xresnet18, False, grad_checkpointing=True)

def before_the_classes(net, x):
    "What goes into the last layer of a network, of which nobody has taken anything away"
    last,seen = [m for m in net.modules() if isinstance(m, (nn.Linear,nn.Conv2d))][-1],[]
    last.register_forward_hook(lambda m, i, out: seen.append(i[0]))
    net(x)
    return seen[0]

# a larger network of a family that is here with a smaller one, of the same layers
LARGER = re.compile(r"resnet(34|101|152)|(wide_resnet|resnext)101\w+|vgg1[369](_bn)?|densenet(161|169|201)|efficientnet_(b[1-7]|v2_[ml])|mnasnet(0_75|1\w+)|"
                    r"shufflenet_v2_x[12]\w+|regnet_._(?!400mf)\w+|convnext_(small|base|large)|swin(_v2)?_[sb]|vit_(b_32|[lh]\w+)")
@pytest.mark.parametrize("arch", [o for o in torchvision.models.list_models(torchvision.models) if not LARGER.fullmatch(o)])
def test_every_classifier_of_torchvision(arch):
    "As an encoder it is the whole network without its last layer; in shapes for every family, in numbers for those that are not huge"
    size = 299 if arch == "inception_v3" else 224
    extra = dict(aux_logits=False, init_weights=True) if arch in ("googlenet","inception_v3") else {}
    with torch.device("cpu" if arch.startswith("regnet") else "meta"):                     # RegNets compute their widths with tensors
        net,enc = getattr(torchvision.models, arch)(**extra).eval(),create_encoder(f"torchvision:{arch}", False)
        x = torch.empty(2, 3, size, size)
        want = before_the_classes(net, x)
    assert want.shape[1] == enc.nf                                                         # the width that the encoder's own forward gave
    own,rest = ({k:v.shape for k,v in o.state_dict().items()} for o in (net, enc))
    assert {k:v for k,v in own.items() if k in rest} == rest and len(own)-len(rest) in (1,2)

@pytest.mark.parametrize("arch", "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 "
                                 "squeezenet1_1".split())
def test_features_are_the_networks_own(arch):
    torch.manual_seed(0)
    enc = create_encoder(f"torchvision:{arch}", False).eval()
    net = getattr(torchvision.models, arch)(**(dict(aux_logits=False, init_weights=False) if arch == "googlenet" else {})).eval()
    net.load_state_dict(enc.state_dict(), strict=False)
    x = torch.randn(2, 3, 96, 96)
    want = before_the_classes(net, x)
    if want.ndim == 4: want = want.relu().mean((2,3)) if arch == "squeezenet1_1" else want.flatten(1)
    torch.testing.assert_close(enc(x), want)

@pytest.mark.parametrize("n_in", [1,5])
def test_the_first_convolution_keeps_what_it_learned(n_in):
    "Of a network with weights: summed over colours, or repeated; and its bias"
    net = torchvision.models.squeezenet1_1()
    old = net.features[0]
    torch.nn.init.normal_(old.bias)
    _first_conv(net, n_in, True)
    new = net.features[0]
    assert torch.equal(new.bias, old.bias) and new.weight.shape[1] == n_in and new.stride == old.stride
    if n_in == 1: torch.testing.assert_close(new.weight, old.weight.sum(1, keepdim=True))

def test_blocks_with_two_names():
    "Nothing of the caller's module is lost when its width is asked for, in a teacher or in a file (pytorch 164759)"
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem,self.a = nn.Conv2d(3, 8, 3, 2),nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.b = self.a
            self.scale = nn.Parameter(torch.ones(8))
            self.again = self.scale                               # a parameter with two names
        def forward(self, x): return self.b(self.a(self.stem(x))).mean((2,3))*self.scale*self.again
    for enc,size in ((Shared(),64), (create_encoder("coat_tiny", False),224)):
        before,x = {k:v.clone() for k,v in enc.state_dict().items()},torch.rand(2, 3, size, size)
        model = create_projection_model(enc, 8, 8)
        teacher = MomentumEncoder(model)
        teacher.update(model, .5)
        for m in (enc, teacher.module.encoder):
            assert all(not v.is_meta and torch.equal(v, before[k]) for k,v in m.state_dict().items())
        assert torch.equal(model.eval()(x), teacher.eval()(x))

@pytest.mark.parametrize("kw,msg", [(dict(arch="resnet5O"), "resnet50"), (dict(arch="zzzzzz"), "zzzzzz"), (dict(arch="resnet18", n_in=0), "n_in"), (dict(arch="resnet18", pool_type="mean"), "pool_type")])
def test_bad_input(kw, msg):
    with pytest.raises(ValueError, match=msg): create_encoder(pretrained=False, **kw)

@pytest.mark.parametrize("arch,pool", [("resnet10t","catavgmax"), ("vit_tiny_patch16_224",None), ("xresnet18",None), (resnet18,None), (xresnet18,"max")])
def test_encoder_file(arch, pool, tmp_path):
    enc = create_encoder(arch, False, 5, pool).eval()
    path = save_encoder(enc, tmp_path/"a"/"e.safetensors", ([.1]*5,[.2]*5))
    enc2,x = load_encoder(path).eval(),torch.randn(2,5,64,64)
    assert torch.equal(enc(x), enc2(x)) and enc2.nf == enc.nf and enc2.info["stats"] == [[.1]*5,[.2]*5] and enc2.info["version"]
    if isinstance(arch, str) and timm.is_model(arch):
        kw = dict(global_pool=pool) if pool else dict(dynamic_img_size=True)
        assert torch.equal(timm.create_model(arch, in_chans=5, num_classes=0, checkpoint_path=path, **kw).eval()(x), enc(x))

def test_encoder_that_a_file_cannot_name(tmp_path):
    def own(pretrained=False): return resnet18()
    for enc in (create_encoder(own, False), create_encoder("xresnet18", False, act_cls=torch.nn.GELU)):
        path,x = save_encoder(enc.eval(), tmp_path/"e.safetensors"),torch.randn(2,3,64,64)
        with pytest.raises(ValueError, match="pass a module"): load_encoder(path)
        torch.nn.init.zeros_(next(p for p in enc.parameters())); want = load_encoder(path, enc)(x)
        assert want.abs().sum() > 0

def test_foreign_file(tmp_path):
    from safetensors.torch import save_file
    save_file({"a":torch.zeros(1)}, tmp_path/"x.safetensors")
    with pytest.raises(ValueError, match="not written by save_encoder"): load_encoder(tmp_path/"x.safetensors")

def test_fine_tune_freezes_encoder():
    from self_supervised.data import digits_dls
    m = create_model("resnet10t", 10, n_in=1, lin_ftrs=[])
    learn = Learner(digits_dls(bs=64), m, splitter=model_splitter)
    learn.freeze()
    assert not m.encoder.conv1[0].weight.requires_grad and all(p.requires_grad for p in m.head.parameters())
    before = m.encoder.conv1[0].weight.clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert torch.equal(before, m.encoder.conv1[0].weight)
    learn.unfreeze(); assert m.encoder.conv1[0].weight.requires_grad

@pytest.fixture(scope='module')
def foundation(tmp_path_factory):
    "Weights as those of a foundation model, made here: timm reads them from a file as it would from the hub"
    path = tmp_path_factory.mktemp('weights')/'vit.safetensors'
    torch.manual_seed(0)
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=0, depth=2)
    torch.nn.init.normal_(vit.pos_embed)
    save_file(vit.state_dict(), path)
    return vit,partial(create_encoder, 'vit_tiny_patch16_224', True, depth=2, pretrained_cfg_overlay=dict(file=str(path)))

@pytest.mark.parametrize('size,n_in', [(224,3),(96,3),((64,128),1),(112,4)])
def test_foundation_weights(foundation, size, n_in):
    "They go on at other sizes and with other channels, resampled by timm, and say for which images they are"
    vit,make = foundation
    enc = make(n_in=n_in, img_size=size)
    h,w = (size,size) if isinstance(size, int) else size
    assert enc.info['size'] == [h,w] and len(enc.info['stats'][0]) == n_in
    assert torch.equal(enc.blocks[1].mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight) and enc.pos_embed.shape[1] == 1+h*w//256
    assert torch.equal(enc.pos_embed[:,0], vit.pos_embed[:,0])
    if (size,n_in) == (224,3):
        x = torch.rand(2,3,224,224)
        assert torch.equal(enc.eval()(x), vit.eval()(x))
    grid = vit.pos_embed[:,1:].reshape(1,14,14,-1).permute(0,3,1,2)
    want = torch.nn.functional.interpolate(grid, (h//16,w//16), mode='bicubic', antialias=True).flatten(2).transpose(1,2)
    torch.testing.assert_close(enc.pos_embed[:,1:], want, atol=1e-5, rtol=1e-5)
    if n_in == 1: torch.testing.assert_close(enc.patch_embed.proj.weight, vit.patch_embed.proj.weight.sum(1, keepdim=True))
    assert enc(torch.rand(2,n_in,h,w)).shape == (2,192)

def test_going_on_from_foundation_weights(foundation):
    "DINO with layer-wise learning rates and drop path: every layer moves, lower ones less, and the teacher is in no group"
    _,make = foundation
    enc = make(img_size=64, drop_path_rate=.1)
    dls = DataLoaders.from_dsets(*[[(TensorImage(torch.rand(3,64,64)),) for _ in range(16)] for _ in range(2)], bs=8, num_workers=0)
    augs = get_dino_aug_pipelines(64, n_small=0, stats=enc.info['stats'])
    learn = Learner(dls, create_dino_model(enc, n_out=32, hidden_size=32), cbs=DINO(augs, freeze_last_layer=0), splitter=layer_splitter, opt_func=SGD)
    assert {id(p) for g in layer_splitter(learn.model) for p in g} == {id(p) for n,p in learn.model.named_parameters() if not n.startswith('encoder_k')}
    before = [[p.clone() for p in g] for g in layer_splitter(learn.model)]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, layer_lrs(learn.model, 1e-2, .5))
    lrs = [h['lr'] for h in learn.opt.hypers]
    assert lrs == pytest.approx([1e-2*.5**i for i in range(len(lrs))][::-1])
    assert all(any(not torch.equal(a, b) for a,b in zip(g, o)) for g,o in zip(layer_splitter(learn.model), before))
