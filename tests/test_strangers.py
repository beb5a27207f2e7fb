"Files from strangers, and folders that others use: nothing of theirs is run, what is damaged is found, and nobody's file is written over."
import json
import os
import signal
import time

import pytest, torch, warm
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file
from self_supervised.encoder_files import encoder_info, load_encoder, save_encoder
from self_supervised.layers import create_encoder
from self_supervised.training.checkpoint import Checkpoint, checkpoints, only_writer, read_checkpoint, write_checkpoint
from kit import fit, make, same, state

@pytest.fixture(scope='module')
def good(tmp_path_factory): return save_encoder(create_encoder('test_resnet', False), tmp_path_factory.mktemp('e')/'e.safetensors', ([.5]*3,[.2]*3))

def crafted(good, path, **header):
    "The good file with another header"
    info = {**encoder_info(good), **header}
    save_file(load_file(good), path, {'self_supervised':'0', 'encoder':json.dumps(info)})
    return path

@pytest.mark.parametrize('arch', ['run','noop','tensor','untar_data','os.system','XResNet','Learner','__import__','torchvision:run','torchvision:load_url','fasterrcnn_resnet50_fpn'])
def test_only_registered_architectures(good, tmp_path, arch):
    "Point 1: what merely stands in a namespace is no architecture"
    with pytest.raises(ValueError, match='there is no architecture'): create_encoder(arch, False)
    flag = tmp_path/'executed'
    with pytest.raises(ValueError, match='x.safetensors'): load_encoder(crafted(good, tmp_path/'x.safetensors', arch=arch, kwargs={'cmd':f'touch {flag}'}))
    assert not flag.exists()

@pytest.mark.parametrize('header,msg', [
    (dict(arch='hf-hub:someone/model'), 'allow_hub'), (dict(arch='local-dir:/tmp/x'), 'allow_hub'), (dict(arch='HF-HUB:x/y'), 'allow_hub'),
    (dict(arch=7), 'names no architecture'), (dict(arch=['resnet18']), 'names no architecture'), (dict(n_in='3'), 'n_in'), (dict(n_in=-1), 'n_in'), (dict(n_in=True), 'n_in'),
    (dict(pool_type='eval'), 'pool_type'), (dict(kwargs=[1]), 'kwargs'), (dict(kwargs={'block_args':{'a':1}}), 'block_args'),
    (dict(kwargs={'pretrained_cfg':'x'}), 'pretrained_cfg'), (dict(kwargs={'checkpoint_path':'/etc/passwd'}), 'checkpoint_path'), (dict(kwargs={'weights':'DEFAULT'}), 'weights'),
    (dict(kwargs={'cache_dir':'/tmp'}), 'cache_dir'), (dict(kwargs={'no_such_argument':1}), 'no encoder can be built'), (dict(kwargs={'pretrained':True}), 'pretrained'),
    (dict(n_in=10**9), 'n_in'), (dict(kwargs={'width':10**9}), 'more than the weights'), (dict(stats='x'), 'stats'), (dict(stats=[[.5]]), 'stats'), (dict(reading=[1]), 'reading'), (dict(reading={'cache':'/tmp'}), 'reading'), (dict(reading={'white':-1}), 'reading'), (dict(origin='x'), 'origin'), (dict(origin=['a\nb']), 'origin'),
    (dict(arch='resnet10t'), 'do not fit')])
def test_headers(good, tmp_path, header, msg):
    with pytest.raises(ValueError, match='x.safetensors') as e: load_encoder(crafted(good, tmp_path/'x.safetensors', **header))
    assert msg in str(e.value)

@pytest.mark.parametrize('raw', [b'', b'\xff'*100, b'PK\3\4 not it', None, 'cut', 'json', 'list', 'deep'])
def test_malformed(good, tmp_path, raw):
    x = tmp_path/'x.safetensors'
    if raw in ('json','list','deep'): save_file(load_file(good), x, {'encoder':dict(json='{', list='[1]', deep='['*100_000)[raw], 'self_supervised':'0'})
    elif raw == 'cut': x.write_bytes(good.read_bytes()[:-100])
    elif raw is None: save_file(load_file(good), x)
    else: x.write_bytes(raw)
    with pytest.raises(ValueError, match='x.safetensors'): load_encoder(x)

def test_the_good_file_loads(good):
    enc = load_encoder(good)
    assert enc.info['arch'] == 'test_resnet'

def test_arguments_that_architectures_do_take(tmp_path):
    enc = create_encoder('vit_tiny_patch16_224', False, img_size=32, depth=1, drop_path_rate=.1, patch_size=8)
    assert load_encoder(save_encoder(enc, tmp_path/'v.safetensors')).nf == enc.nf

# checkpoints

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('ck')
    fit(make('moco', cbs=[Checkpoint(path, every=2)]))
    return path

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bits(folder, tmp_path, at, bit):
    "Point 2: a flipped bit is found, or is in none of the contents"
    raw = bytearray(checkpoints(folder)[-1].read_bytes())
    raw[int(at*len(raw))] ^= 1 << bit
    f = tmp_path/'000009-epoch1-batch0.ckpt'; f.write_bytes(raw)
    try: got = read_checkpoint(f)
    except ValueError: return
    assert same(got['model'], read_checkpoint(checkpoints(folder)[-1])['model'])

def test_damaged_and_the_one_before(folder, tmp_path):
    for o in checkpoints(folder): (tmp_path/o.name).write_bytes(o.read_bytes())
    last = checkpoints(tmp_path)[-1]; raw = bytearray(last.read_bytes())
    i = raw.find(read_checkpoint(last)['model']['queue.embs'].numpy().tobytes()); assert i > 0
    raw[i+5] ^= 16; last.write_bytes(raw)
    with pytest.raises(ValueError, match='damaged'): make('moco').resume(last)
    with pytest.warns(UserWarning, match='damaged.*trying the one before'): learn = make('moco').resume(tmp_path)
    fit(learn)

def test_a_hash_is_cheap(tmp_path):
    "Milliseconds for 60 MB, far less than the writing"
    state = dict(ssl_checkpoint=3, w=torch.randn(15*2**20))
    from self_supervised.training.checkpoint import checksum
    checksum(state); t = time.perf_counter(); checksum(state); hashing = time.perf_counter()-t
    t = time.perf_counter(); write_checkpoint(state, tmp_path/'a.ckpt'); writing = time.perf_counter()-t
    assert hashing < .5*writing

def test_no_file_is_written_over(tmp_path):
    "Point 3: hard links and symlinks keep what they had"
    path,elsewhere = tmp_path/'c',tmp_path/'kept'
    fit(make('moco', cbs=[Checkpoint(path, keep=1)]))
    old = checkpoints(path)[-1]; raw = old.read_bytes()
    os.link(old, elsewhere)
    (path/'link').symlink_to(elsewhere)
    write_checkpoint(read_checkpoint(old), path/'link')                    # replaces the link, not what it points to
    fit(make('moco', cbs=[Checkpoint(path, keep=1)]), 2)
    assert elsewhere.read_bytes() == raw and not (path/'link').is_symlink()
    assert len(checkpoints(path)) == 1 and not list(path.glob('.*.tmp'))

def write_alone(folder):
    with only_writer(folder): print('in', flush=True); time.sleep(60)

def test_one_writer(tmp_path):
    "A second training in the folder is refused, under any name of the folder; the lock dies with its process"
    (tmp_path/'alias').symlink_to(tmp_path/'c', target_is_directory=True)
    p = warm.Process(write_alone, tmp_path/'c')
    p.until(lambda: p.out == 'in\n')
    learn = make('moco', cbs=[Checkpoint(tmp_path/'alias')]); before = state(learn)
    with pytest.raises(ValueError, match='another training'): fit(learn)
    assert same(before, state(learn)) and not checkpoints(tmp_path/'c')
    (tmp_path/'c'/'.000001-x.tmp').write_bytes(b'torn')
    p.signal(signal.SIGKILL); p.wait()
    fit(learn)
    assert len(checkpoints(tmp_path/'c')) == 1 and not list((tmp_path/'c').glob('.*.tmp'))

def test_two_in_one_process(tmp_path):
    class Inner(Checkpoint): name = 'inner'
    with pytest.raises(ValueError, match='another training'): fit(make('moco', cbs=[Checkpoint(tmp_path), Inner(tmp_path)]))
    fit(make('moco', cbs=[Checkpoint(tmp_path)]))
