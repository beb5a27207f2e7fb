"U-Nets on encoders of every library: whole, trainable, savable, and refused where there is nothing to build on."
import warnings
from copy import deepcopy

import pytest, torch
from fastai.vision.all import (CrossEntropyLossFlat, DataBlock, DataLoaders, DiceMulti, FuncSplitter, Image, ImageBlock, Learner, MaskBlock,
                               PILImageBW, TfmdDL, foreground_acc, get_files, load_learner, nn, partial, set_seed)
from torch.nn.parallel import DistributedDataParallel

from self_supervised.encoder_files import load_encoder, save_encoder
from self_supervised.layers import create_encoder, model_splitter
from self_supervised.training.segmentation import UnetModel, create_unet, feature_maps, map_info

# architecture, its arguments, and a size of images, odd where the architecture takes it
ARCHS = {'resnet18':({},(97,70)), 'convnext_atto':({},(65,64)), 'efficientnet_b0':({},(67,64)),
         'vit_tiny_patch16_224':(dict(depth=4),(64,96)), 'xresnet18':({},(97,70)), 'torchvision:resnet18':({},(97,70)),
         'torchvision:densenet121':({},(33,40)), 'test_resnet':({},(33,40))}
each = pytest.mark.parametrize('arch', ARCHS)

def make(arch, n_in=3): return create_encoder(arch, False, n_in, **ARCHS[arch][0])

@each
def test_masks_have_the_size_of_images_and_the_encoder_learns(arch):
    set_seed(0); enc = make(arch); names = {k:v.clone() for k,v in enc.state_dict().items()}
    model = create_unet(enc, 4)
    assert model.encoder is enc and enc.state_dict().keys() == names.keys()
    assert all(torch.equal(v, names[k]) for k,v in enc.state_dict().items())               # finding the maps changed no statistics
    assert all(m.training for m in enc.modules())
    out = model(torch.randn(2,3,*ARCHS[arch][1])); assert out.shape == (2,4,*ARCHS[arch][1])
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p not in set(enc.parameters()))
    first = next(enc.parameters()); assert first.grad.abs().sum() > 0

@each
def test_maps_are_those_of_the_encoder(arch, tmp_path):
    "A saved encoder makes the same maps, and the coarsest one is what its features are made of"
    set_seed(0); enc = make(arch).eval(); x = torch.randn(2,3,64,64)
    maps = feature_maps(enc, x)
    for a,b in zip(maps, feature_maps(load_encoder(save_encoder(enc, tmp_path/'e.safetensors')).eval(), x)): assert torch.equal(a, b)
    assert [m.shape[1] for m in maps] == [o['num_chs'] for o in map_info(enc)]
    assert all(a.shape[-1] > b.shape[-1] for a,b in zip(maps, maps[1:]))
    if 'resnet' in arch: torch.testing.assert_close(maps[-1].mean((2,3)), enc(x))
    if 'densenet' in arch: torch.testing.assert_close(maps[-1].relu().mean((2,3)), enc(x))

def test_maps_of_transformers_are_of_blocks_evenly_spaced():
    enc = create_encoder('vit_tiny_patch16_224', False)
    assert [(o['layer'],o['scale'],o['reduction']) for o in map_info(enc)] == [(2,4,4), (5,2,8), (8,1,16), (11,.5,32)]
    x = torch.randn(1,3,64,96); enc.eval()
    block = enc.norm(enc.forward_intermediates(x, indices=[8], intermediates_only=True, output_fmt='NLC')[0])
    torch.testing.assert_close(feature_maps(enc, x)[2].flatten(2).mT, block)
    assert [o['layer'] for o in map_info(create_encoder('vit_tiny_patch16_224', False, depth=1))] == [0]*4
    small = create_unet(create_encoder('vit_tiny_patch16_224', False, n_in=1, img_size=16, patch_size=16, depth=2), 2)
    assert small(torch.randn(2,1,16,16)).shape == (2,2,16,16)                                # half of one patch is one

def test_of_equally_large_maps_the_last_one_counts():
    assert [(o['layer'],o['reduction']) for o in map_info(create_encoder('sequencer2d_s', False))] == [(0,7), (3,14)]

@pytest.mark.parametrize('arch', ['vit_tiny_patch16_dinov3_qkvb','gmlp_ti16_224','test_vit_relpos'])
def test_other_models_with_maps_of_one_size(arch):
    enc = create_encoder(arch, False)
    with torch.no_grad(): out = create_unet(enc, 2).eval()(torch.randn(1,3,*enc.default_cfg['input_size'][1:]))
    assert out.shape[1:] == (2,*enc.default_cfg['input_size'][1:])

@pytest.mark.parametrize('arch', ['resnet18','xresnet18'])
def test_sizes_so_small_that_maps_stop_shrinking(arch):
    model = create_unet(create_encoder(arch, False), 2).eval()
    for s in (8,16,17,31): assert model(torch.randn(1,3,s,s)).shape == (1,2,s,s)

def test_channels():
    for arch in ('test_resnet','xresnet18','torchvision:resnet18'):
        assert create_unet(create_encoder(arch, False, 5), 2)(torch.randn(2,5,64,64)).shape == (2,2,64,64)
    assert create_unet('test_resnet', 2, n_in=2)(torch.randn(2,2,64,64)).shape == (2,2,64,64)

@pytest.mark.parametrize('encoder', [nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), nn.Linear(8, 4), nn.Sequential(), 'torchvision:swin_t'])
def test_no_maps(encoder):
    "The last one has maps, with their channels behind height and width"
    if isinstance(encoder, str): encoder = create_encoder(encoder, False)
    with pytest.raises(ValueError, match='encoder: no feature maps.*create_encoder'): UnetModel(encoder, 2)

def test_images_that_do_not_fit_the_patches():
    model = create_unet(create_encoder('vit_tiny_patch16_224', False, depth=1), 2)
    with pytest.raises(ValueError, match='x: images of 60×64 pixels.*dynamic_img_pad'): model(torch.randn(1,3,60,64))
    padded = create_unet(create_encoder('vit_tiny_patch16_224', False, depth=1, dynamic_img_pad=True), 2)
    assert padded(torch.randn(2,3,60,64)).shape == (2,2,60,64)

@pytest.mark.parametrize('n_out', [0,-1,2.,'two'])
def test_n_out(n_out):
    with pytest.raises(ValueError, match='n_out must be'): create_unet('test_resnet', n_out)

# parameters without a gradient, and several processes

UNUSED = {'test_resnet':[], 'xresnet18':[], 'vit_tiny_patch16_224':[],
          'convnext_atto':['head.norm.weight','head.norm.bias'], 'efficientnet_b0':['conv_head.weight','bn2.weight','bn2.bias']}

@pytest.mark.parametrize('arch', UNUSED)
def test_parameters_that_maps_do_not_need(arch):
    model = create_unet(make(arch), 2)
    model(torch.randn(2,3,64,64)).mean().backward()
    assert [n for n,p in model.named_parameters() if p.grad is None] == [f'encoder.{o}' for o in UNUSED[arch]]

@pytest.mark.parametrize('arch,find', [('test_resnet',False), ('vit_tiny_patch16_224',False), ('convnext_atto',True)])
def test_ddp(arch, find, tmp_path):
    "As the page says: only some encoders need find_unused_parameters"
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        def two_steps(find):
            ddp = DistributedDataParallel(create_unet(create_encoder(arch, False), 2), find_unused_parameters=find)
            for _ in range(2): ddp(torch.randn(2,3,64,64)).mean().backward()
        two_steps(find)
        if find:
            with pytest.raises(RuntimeError, match='find_unused_parameters'): two_steps(False)
    finally: torch.distributed.destroy_process_group()

# a learner

def disk(i, size=33):
    "A noisy disk on a noisy ground, and which pixels it covers"
    g = torch.Generator().manual_seed(i)
    at,r,yx = torch.rand(2, generator=g)*size,size*(.2+.2*torch.rand(1, generator=g)),torch.arange(size)
    y = ((yx[:,None]-at[0])**2 + (yx-at[1])**2 < r**2).long()
    return (y+.5*torch.randn(size, size, generator=g))[None],y

def disks(n=24):
    set_seed(0)
    dls = DataLoaders(*(TfmdDL([disk(i) for i in o], bs=8, num_workers=0, shuffle=s) for o,s in ((range(n),True), (range(100,116),False))))
    return Learner(dls, create_unet('test_resnet', 2, n_in=1), CrossEntropyLossFlat(axis=1), splitter=model_splitter,
                   metrics=[DiceMulti(), foreground_acc])

def test_it_learns():
    learn = disks()
    with learn.no_bar(), learn.no_logging(): before = learn.validate()[1]; learn.fit_one_cycle(8, 1e-2)
    x,y = map(torch.stack, zip(*map(disk, range(100,116))))
    thresholded = (x[:,0] > .5).long()
    threshold = sum([2*((thresholded == c) & (y == c)).sum()/((thresholded == c).sum()+(y == c).sum()) for c in (0,1)])/2
    assert before < .6 and threshold < .85 and learn.final_record[-2] > .9

def test_freeze_and_rates():
    "Frozen are the encoder's convolutions; fastai goes on training its BatchNorm"
    learn = disks(); before = {n:p.clone() for n,p in learn.model.named_parameters()}
    def moved(): return {n for n,p in learn.model.named_parameters() if p.ndim == 4 and not torch.equal(p, before[n])}
    convs = {n for n,p in before.items() if p.ndim == 4}
    learn.freeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert moved() == {n for n in convs if not n.startswith('encoder.')}
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, slice(1e-6,1e-3))
    assert [h['lr'] for h in learn.opt.hypers] == [1e-6,1e-3] and moved() == convs

def test_nothing_stays_behind(tmp_path):
    "No activations are left in the model: it can be copied and pickled after a fit, and the encoder goes to a file"
    learn = disks()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert all(b.hook is None for b in learn.model.blocks)
    x = learn.dls.valid.one_batch()[0]
    torch.testing.assert_close(deepcopy(learn.model).eval()(x), learn.model.eval()(x))
    enc = load_encoder(learn.save_encoder(tmp_path/'e.safetensors'))
    assert all(torch.equal(v, learn.model.encoder.state_dict()[k]) for k,v in enc.state_dict().items())

def test_an_error_in_a_block_leaves_no_activations():
    model = create_unet(create_encoder('test_resnet', False), 2)
    with pytest.raises(RuntimeError): model.blocks[0](torch.randn(1,7,2,2), torch.randn(1,3,4,4))
    assert model.blocks[0].hook is None

def test_files_and_predict(tmp_path):
    for i in range(6):
        x,y = disk(i, 48)
        Image.fromarray(((x[0]+1)/3*255).clamp(0,255).byte().numpy()).save(tmp_path/f'{i}.png')
        Image.fromarray(y.byte().numpy()).save(tmp_path/f'{i}.bmp')
    block = DataBlock((ImageBlock(PILImageBW),MaskBlock(['ground','disk'])), get_items=partial(get_files, extensions='.png'),
                      get_y=lambda o: o.with_suffix('.bmp'), splitter=FuncSplitter(lambda o: int(o.stem) > 3))
    learn = Learner(block.dataloaders(tmp_path, bs=2, num_workers=0), create_unet('test_resnet', 2, n_in=1), splitter=model_splitter,
                    metrics=foreground_acc)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 1e-3)
        mask,_,probs = learn.predict(tmp_path/'5.png')
        learn.show_results()
    learn.export(tmp_path/'u.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                                                     # fastai warns of pickles
        loaded = load_learner(tmp_path/'u.pkl')
    with loaded.no_bar(): assert torch.equal(loaded.predict(tmp_path/'5.png')[0], mask)
    assert mask.shape == (48,48) and probs.shape == (2,48,48) and set(mask.unique().tolist()) <= {0,1}
    torch.testing.assert_close(probs.sum(0), torch.ones(48,48))

def test_compiled():
    "The encoder, or all of it, behind `torch.compile`"
    set_seed(0); enc = create_encoder('test_resnet', False); x = torch.randn(2,3,40,40)
    model = create_unet(enc, 2).eval(); want = model(x)
    for o in (enc.eval(), create_encoder('xresnet18', False).eval()):
        assert all(torch.equal(a, b) for a,b in zip(feature_maps(o, x), feature_maps(torch.compile(o, backend='eager'), x)))
    torch.testing.assert_close(torch.compile(model, backend='eager')(x), want)

def test_mixed_precision():
    model = create_unet('vit_tiny_patch16_224', 2)
    with torch.autocast('cpu', torch.bfloat16): out = model(torch.randn(2,3,32,32))
    assert out.shape == (2,2,32,32) and out.isfinite().all()
