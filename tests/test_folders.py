"One's own photographs: whatever is in the folder, from the files to a prediction in another process."
import os
import pickle
import signal
import time
import warnings
from pathlib import Path

import numpy as np, pandas as pd, PIL.Image, pretended_gpu, pytest, torch, warm
from collections import Counter
from functools import partial
from fastai.vision.all import (Callback, CategoryBlock, DataBlock, Datasets, ImageBlock, ImageDataLoaders, IntToFloatTensor, Learner,
                               PILImage, RandomSplitter, Resize, ToTensor, first, get_image_files, imagenet_stats, parent_label, random, set_seed, to_device)
from self_supervised.vision.all import (KNN, Checkpoint, ImageCache, SimCLR, SupCon, classifier_learner, create_encoder, create_simclr_model,
                                        create_supcon_model, decoded_once, embed, export_onnx, find_images, folder_dls, get_features,
                                        get_simclr_aug_pipelines, get_supcon_aug_pipelines, labelled_dls, layer_lrs, load_encoder,
                                        plot_embedding, read_image, readable, save_encoder, show_nearest, spread, load_learner)
from kit import fit, make, same, state
from pretended_gpu import Pretended, counting, pretending
from self_supervised.data import cache as cache_module, image_dls
from self_supervised.data.images import usual_side
from self_supervised.augmentations import get_norm
from self_supervised.evaluation.features import whole_loader

SIZE,kinds = 32,('disc','bars')

def picture(kind, i, h=48, w=64):
    "A coloured disc or bars, each a little different"
    rng = np.random.default_rng(i+1000*(kind == 'bars'))
    y,x = np.mgrid[:h,:w]
    on = (y-h/2)**2+(x-w/2)**2 < (h*rng.uniform(.25,.4))**2 if kind == 'disc' else (x+int(rng.integers(8)))//8 % 2 == 0
    a = np.where(on[...,None], rng.integers(120,256,3), rng.integers(0,100,3)) + rng.normal(0, 8, (h,w,3))
    return PIL.Image.fromarray(a.clip(0,255).astype(np.uint8))

@pytest.fixture
def messy(tmp_path):
    "Two classes and some unlabelled images in all formats, with everything that can be wrong with a file"
    d = tmp_path/'photos'
    for k in (*kinds, 'unlabelled'): (d/k).mkdir(parents=True)
    for k in kinds:
        for i in range(20): picture(k, i).save(d/k/f'{i:02}.jpg')
    u = d/'unlabelled'
    for i in range(24): picture(kinds[i%2], 100+i).save(u/f'{i:02}.jpg')
    im = picture('disc', 200)
    im.save(u/'a.png'); im.save(u/'b.webp'); im.save(u/'c.bmp'); im.save(u/'d.tiff'); im.save(u/'UPPER.JPEG')
    im.convert('L').save(u/'grey.png'); im.convert('L').save(u/'grey.jpg'); im.convert('P').save(u/'palette.png'); im.convert('1').save(u/'bits.png')
    im.convert('CMYK').save(u/'cmyk.jpg'); im.convert('CMYK').save(u/'cmyk.tif')
    alpha = im.copy(); alpha.putalpha(128); alpha.save(u/'rgba.png')
    pal = im.convert('P'); pal.save(u/'clear.png', transparency=0)
    PIL.Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*257).save(u/'deep.png')
    PIL.Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*257).save(u/'deep.tif')
    PIL.Image.fromarray(np.asarray(im.convert('L')).astype(np.float32)/255).save(u/'float.tif')
    exif = PIL.Image.Exif(); exif[0x0112] = 6
    im.rotate(90, expand=True).save(u/'turned.jpg', exif=exif)
    picture('bars', 300, 40, 300).save(u/'long.jpg'); picture('bars', 301, 300, 40).save(u/'tall.jpg'); picture('disc', 302, 1, 1).save(u/'dot.png')
    whole = (u/'00.jpg').read_bytes()
    (u/'cut.jpg').write_bytes(whole[:len(whole)*2//3]); (u/'cut.png').write_bytes((u/'a.png').read_bytes()[:-40])
    (u/'cut.webp').write_bytes((u/'b.webp').read_bytes()[:-40]); (u/'cut.bmp').write_bytes((u/'c.bmp').read_bytes()[:-40])
    (u/'cut.tiff').write_bytes((u/'d.tiff').read_bytes()[:-400])
    (u/'empty.jpg').touch(); (u/'text.jpg').write_text('this is no image')
    (u/'.hidden.jpg').write_bytes(whole); (d/'.trash').mkdir(); (d/'.trash'/'x.jpg').write_bytes(whole)
    (d/'notes.txt').write_text('x'); (d/'Thumbs.db').write_bytes(b'x')
    return d

broken = {'cut.jpg','cut.png','cut.webp','cut.bmp','cut.tiff','empty.jpg','text.jpg'}
n_good = 40+24+20

def names(dls): return {o.name for ds in (dls.train_ds, dls.valid_ds) for o in ds.items}

def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(*args, **kwargs)

@pytest.mark.parametrize('cached', [False,True])
def test_everything_is_read(messy, tmp_path, cached):
    cache = tmp_path/'cache' if cached else None
    with pytest.warns(UserWarning, match='7 of 91 files cannot be read') as told: dls = folder_dls(messy, SIZE, bs=16, cache=cache, num_workers=0)
    assert len(told) == 1, [str(o.message) for o in told]
    assert all(o in str(told[0].message) for o in broken)
    assert {o.name for o in dls.left_out} == broken and dls.left_out[messy/'unlabelled'/'empty.jpg'] == 'empty'
    assert len(names(dls) & broken) == 0 and '.hidden.jpg' not in names(dls) and len(dls.train_ds)+len(dls.valid_ds) == n_good
    for dl in dls:
        for x, in dl: assert x.shape[1:] == (3,SIZE,SIZE) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
    assert sum(len(x) for x, in dls.valid) == len(dls.valid_ds)
    dls.show_batch(max_n=4)
    with pytest.raises(ValueError, match='7 of 91 files cannot be read'): folder_dls(messy, SIZE, on_error='raise')

def test_pixels_are_right(messy):
    "Every format, mode and orientation of one picture gives that picture"
    u = messy/'unlabelled'
    want = np.asarray(picture('disc', 200).resize((64,48))).astype(float)
    def far(name, want=want, **kw): return np.abs(np.asarray(read_image(u/name, (48,64), **kw)).astype(float)-want).mean()
    for name in ('a.png','b.webp','c.bmp','d.tiff','UPPER.JPEG','turned.jpg'): assert far(name) < 8, name
    assert far('cmyk.jpg') < 12 and far('palette.png') < 12
    assert far('rgba.png', want/2+127.5) < 2                                     # half transparent, on white
    grey = np.asarray(picture('disc', 200).convert('L')).astype(float)
    for name in ('grey.png','grey.jpg','deep.png','deep.tif','float.tif'): assert far(name, grey, n_in=1) < 6, name
    assert np.abs(np.asarray(read_image(u/'deep.png', (48,64), n_in=1, white=65535/2)).astype(float)-(2*grey).clip(0,255)).mean() < 2
    for n in (1,3): assert read_image(u/'long.jpg', (20,30), n_in=n).mode == {1:'L',3:'RGB'}[n]

def test_reduced_decoding_is_close(tmp_path):
    "A JPEG that is decoded at a fraction of its size looks like one that was decoded as a whole"
    from sklearn.datasets import load_sample_images
    for i,a in enumerate(load_sample_images().images):
        im = PIL.Image.fromarray(a); im.save(tmp_path/f'{i}.jpg', quality=95)
        want = cache_module.resized(PIL.Image.open(tmp_path/f'{i}.jpg').convert('RGB'), 64)
        assert np.abs(np.asarray(read_image(tmp_path/f'{i}.jpg', 64)).astype(float)-np.asarray(want)).mean() < 3

def test_links_and_loops(tmp_path):
    (tmp_path/'a').mkdir(); picture('disc', 0).save(tmp_path/'a'/'0.jpg')
    (tmp_path/'elsewhere').mkdir(); picture('disc', 1).save(tmp_path/'elsewhere'/'1.jpg')
    (tmp_path/'a'/'up').symlink_to(tmp_path/'a'); (tmp_path/'a'/'linked').symlink_to(tmp_path/'elsewhere')
    (tmp_path/'a'/'gone.jpg').symlink_to(tmp_path/'nowhere.jpg')
    found = find_images(tmp_path/'a')
    assert [o.name for o in found] == ['0.jpg','gone.jpg','1.jpg']
    good,bad = quiet(readable, found)
    assert [o.name for o in good] == ['0.jpg','1.jpg'] and 'FileNotFoundError' in first(bad.values())

def test_the_real_name_of_a_folder(tmp_path):
    "A link does not rename a class; what cannot be looked into, or is no regular file, is left out"
    for k in kinds:
        (tmp_path/k).mkdir()
        for i in range(6): picture(k, i).save(tmp_path/k/f'{i}.png')
    (tmp_path/'aaa').symlink_to(tmp_path/'disc'); (tmp_path/'round.jpg').symlink_to(tmp_path/'round.jpg')
    os.mkfifo(tmp_path/'pipe.jpg'); (tmp_path/'phone.heic').touch()
    with pytest.warns(UserWarning, match="1 images of other formats are left out: {'.heic': 1}"):
        dls = folder_dls(tmp_path, SIZE, labels='parent', bs=4, num_workers=0)
    assert list(dls.vocab) == sorted(kinds) and {o.name for o in dls.left_out} == {'round.jpg','pipe.jpg'}
    assert len(find_images(tmp_path, ('.PNG',))) == 12

def test_two_folders_in_one_cache(tmp_path):
    "Files of the same name, size and time are different files"
    def folder(name, colour):
        (tmp_path/name).mkdir()
        for i in range(8):
            PIL.Image.new('RGB', (8,8), colour).save(tmp_path/name/f'{i}.bmp'); os.utime(tmp_path/name/f'{i}.bmp', (1e9,1e9))
        return folder_dls(tmp_path/name, 8, bs=2, cache=tmp_path/'c').one_batch()[0].mean((0,2,3)).tolist()
    assert folder('red', 'red') == [1,0,0] and folder('blue', 'blue') == [0,0,1]

def test_the_same_images_are_held_out(tmp_path):
    "Whatever is cached, and as far as possible whatever comes later"
    for i in range(40): picture('disc', i).save(tmp_path/f'{i}.png')
    b = bytearray((tmp_path/'7.png').read_bytes()); b[200:400] = bytes(200); (tmp_path/'7.png').write_bytes(b)
    held = lambda **kw: {o.name for o in quiet(folder_dls, tmp_path, SIZE, bs=4, num_workers=0, **kw).valid_ds.items}
    a = held()
    assert len(a - held(cache=tmp_path/'.c')) <= 1
    for i in range(40, 50): picture('disc', i).save(tmp_path/f'{i}.png')
    assert len(a - held()) <= 3

def test_broken_in_the_middle(tmp_path):
    "What only decoding finds is skipped in training with one warning, left out of a cache, and raises elsewhere"
    for i in range(30): picture(kinds[i%2], i).save(tmp_path/f'{i:02}.png')
    bad = tmp_path/'07.png'; b = bytearray(bad.read_bytes()); b[len(b)//2:len(b)//2+200] = bytes(200); bad.write_bytes(b)
    dls = folder_dls(tmp_path, SIZE, bs=4, num_workers=0)
    assert not dls.left_out
    with pytest.warns(UserWarning, match='07.png cannot be read and is skipped') as told:
        for _ in range(2): assert sum(len(x) for dl in dls for x, in dl.new(drop_last=False)) == 29
    assert len(told) == 1
    with pytest.warns(UserWarning, match='1 of 30 files cannot be read'): cached = folder_dls(tmp_path, SIZE, bs=4, cache=tmp_path/'.c')
    assert list(cached.left_out) == [bad] and len(names(cached)) == 29
    learn = simclr(dls)
    with pytest.raises(ValueError, match='1 of .* images could not be read'): quiet(get_features, learn, int(bad in dls.valid_ds.items))
    with pytest.raises(OSError, match='07.png cannot be read'): folder_dls(tmp_path, SIZE, bs=24, num_workers=0, valid=lambda o: o.stem > '23', on_error='raise').one_batch()
    enc = create_encoder('test_resnet', False)
    with pytest.warns(UserWarning, match='07.png'): assert len(embed(enc, tmp_path, size=SIZE)) == 29

def test_labels(messy):
    dls = quiet(folder_dls, messy, SIZE, labels='parent', num_workers=0)
    assert list(dls.vocab) == ['bars','disc','unsup'] and dls.c == 3
    y = lambda ds: [dls.vocab[int(o)] for o in ds.tls[1]]
    assert [Counter(y(dls.valid_ds))[k] for k in ('disc','bars','unsup')] == [4,4,9]          # a fifth of each
    assert all(o.parent.name.replace('unlabelled','unsup') == k for o,k in zip(dls.train_ds.items, y(dls.train_ds)))
    by_f = quiet(folder_dls, messy, SIZE, labels=lambda o: o.parent.name if o.stem < '05' and o.parent.name in kinds else None, num_workers=0)
    assert Counter(y(by_f.train_ds)+y(by_f.valid_ds)) == {'disc':5,'bars':5,'unsup':n_good-10}
    rows = pd.DataFrame([(f'disc/{i:02}.jpg','round') for i in range(20)]+[('bars/03.jpg','striped'),('bars/04.jpg',None),('a.png','Unknown')], columns=['file','what'])
    rows.to_csv(messy/'labels.csv', index=False)
    for table in (messy/'labels.csv', rows):
        dls = quiet(folder_dls, messy, SIZE, labels=table, num_workers=0)
        assert list(dls.vocab) == ['round','striped','unsup'] and Counter(y(dls.train_ds)+y(dls.valid_ds)) == {'round':20,'striped':1,'unsup':n_good-21}
    swapped = quiet(folder_dls, messy, SIZE, labels=rows[['what','file']], cols=('file','what'), num_workers=0)
    assert list(swapped.vocab) == ['round','striped','unsup']
    with pytest.raises(ValueError, match="'03.jpg' is the name of several files"): quiet(folder_dls, messy, SIZE, labels=pd.DataFrame([('03.jpg','x')]))
    with pytest.raises(ValueError, match='none of the names'): quiet(folder_dls, messy, SIZE, labels=pd.DataFrame([('zzz.jpg','x')]))
    with pytest.raises(ValueError, match='none of 84 images has one'): quiet(folder_dls, messy, SIZE, labels=lambda o: 'unknown')
    with pytest.raises(ValueError, match="labels must be None"): quiet(folder_dls, messy, SIZE, labels='folders')
    for odd in (rows.assign(file='./'+rows.file), rows.assign(file=rows.file.str.replace('/', '\\')), rows.assign(file=[str(messy/o) for o in rows.file])):
        assert list(quiet(folder_dls, messy, SIZE, labels=odd).vocab) == ['round','striped','unsup']
    rows.to_csv(messy/'excel.csv', index=False, sep=';'); rows.to_csv(messy/'bare.csv', index=False, header=False)
    assert list(quiet(folder_dls, messy, SIZE, labels=messy/'excel.csv').vocab) == ['round','striped','unsup']
    with pytest.raises(ValueError, match='first line with names of columns'): quiet(folder_dls, messy, SIZE, labels=messy/'bare.csv')
    with pytest.raises(ValueError, match='has two labels'): quiet(folder_dls, messy, SIZE, labels=pd.concat([rows, rows.assign(what='x')]))
    with pytest.raises(ValueError, match='which is no class'): quiet(folder_dls, messy, SIZE, labels=lambda o: ['x','y'])
    with pytest.raises(ValueError, match='no column'): quiet(folder_dls, messy, SIZE, labels=rows[['file']])
    numbers = pd.DataFrame(dict(file=[f'disc/{i:02}.jpg' for i in range(20)], what=[1,2]*9+[None]*2))
    for df in (numbers, numbers.convert_dtypes()): assert list(quiet(folder_dls, messy, SIZE, labels=df).vocab) == ['1','2','unsup']
    wide = rows.assign(who='Al')[['file','who','what']]
    with pytest.warns(UserWarning, match="cols="): folder_dls(messy, SIZE, labels=wide)
    assert list(quiet(folder_dls, messy, SIZE, labels=wide, cols=('file','what')).vocab) == ['round','striped','unsup']
    with pytest.warns(UserWarning, match='20 of 20 classes have one image'): folder_dls(messy, SIZE, labels=rows[:20].assign(what=[f'{i}.5' for i in range(20)]))
    numbers.to_csv(messy/'numbers.csv', index=False)
    assert list(quiet(folder_dls, messy, SIZE, labels=messy/'numbers.csv').vocab) == ['1','2','unsup']
    few = quiet(folder_dls, messy, SIZE, labels=rows.iloc[[0,1]])                                           # one of two labels is held out
    assert Counter(y(few.valid_ds))['round'] == Counter(y(few.train_ds))['round'] == 1
    with pytest.warns(UserWarning, match='no image for validation has a label'): folder_dls(messy, SIZE, labels=rows.iloc[:1])
    picture('disc', 5).save(messy/'03.jpg')
    both = quiet(folder_dls, messy, SIZE, labels=pd.DataFrame([('03.jpg','root'),('disc/03.jpg','deep')]))       # a whole path is no short name
    assert list(both.vocab) == ['deep','root','unsup']
    (messy/'03.jpg').unlink()
    with pytest.warns(UserWarning, match='1 of 24 rows name no image'): folder_dls(messy, SIZE, labels=pd.concat([rows, pd.DataFrame([dict(file='zzz', what='x')])]))

def test_what_is_held_out(messy):
    assert {o.parent.name for o in quiet(folder_dls, messy, SIZE, valid='disc').valid_ds.items} == {'disc'}
    assert {o.stem for o in quiet(folder_dls, messy, SIZE, valid=lambda o: o.stem == '03').valid_ds.items} == {'03'}
    a,b = (quiet(folder_dls, messy, SIZE, seed=s).valid_ds.items for s in (1,2))
    assert a == quiet(folder_dls, messy, SIZE, seed=1).valid_ds.items and a != b
    for bad in (0, 1., 'nowhere'):
        with pytest.raises(ValueError, match='valid'): quiet(folder_dls, messy, SIZE, valid=bad)

@pytest.mark.parametrize('kw,msg', [(dict(size=0),'size'), (dict(size='big'),'size'), (dict(method='stretch'),'method'), (dict(n_in=4),'n_in'), (dict(on_error='ignore'),'on_error'),
                                    (dict(labels='parent', share=2),'share'), (dict(share=.5),'no labels to share'), (dict(bs=500),'bs=500'), (dict(exts=('.heic',)),'no image')])
def test_bad_arguments(messy, kw, msg):
    with pytest.raises(ValueError, match=msg): quiet(folder_dls, messy, **{'size':SIZE, **kw})

def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match='no folder'): folder_dls(tmp_path/'nowhere')
    (tmp_path/'a.heic').touch()
    with pytest.raises(ValueError, match=r"only files with \{'.heic': 1\}"): folder_dls(tmp_path)

@pytest.mark.parametrize('cached', [False,True])
def test_enlarged_images_are_said(tmp_path, monkeypatch, cached):
    "Once, with both sizes, before a file is decoded; a large one among small ones does not hide it, and a pipe does not stop it"
    (tmp_path/'p').mkdir()
    for i in range(12): PIL.Image.new('RGB', (40,24) if i else (200,200), (9*i,0,0)).save(tmp_path/'p'/f'{i:02}.png')
    os.mkfifo(tmp_path/'p'/'aa.jpg')
    decoded = []
    monkeypatch.setattr(PIL.Image.Image, 'load', lambda *a: decoded.append(1) or 1/0)
    files = find_images(tmp_path/'p')
    assert usual_side(files) == 24 and usual_side(files, 'pad') == 40 and usual_side([]) is None and not decoded
    monkeypatch.undo()
    make = partial(folder_dls, tmp_path/'p', bs=2, num_workers=0, cache=tmp_path/'c' if cached else None, exts=('.png',))
    for kw in (dict(size=24), dict(size=40, method='pad')):
        with warnings.catch_warnings(): warnings.simplefilter('error'); make(**kw)
    with pytest.warns(UserWarning, match='images of 32 × 48 pixels are enlarged from files whose shorter side has 24') as told: make(size=(32,48)).one_batch()
    assert len(told) == 1
    monkeypatch.setattr(cache_module, 'read_image', lambda *a: 1/0)
    with warnings.catch_warnings(), pytest.raises(UserWarning, match='enlarged'): warnings.simplefilter('error'); make(size=48)

def test_what_is_held_out_need_not_be_decoded(tmp_path):
    "A file that is broken in the middle is left out, or counted by its header"
    for i in range(20): picture('disc', i).save(tmp_path/f'{i:02}.png')
    b = bytearray((tmp_path/'07.png').read_bytes()); b[len(b)//2:len(b)//2+200] = bytes(200); (tmp_path/'07.png').write_bytes(b)
    n = lambda **kw: len(quiet(folder_dls, tmp_path, SIZE, bs=4, num_workers=0, valid=lambda f: f.stem < '10', **kw).valid_ds)
    assert (n(),n(whole=False)) == (9,10)

# the cache

def test_cache_is_found_again_and_grows(messy, tmp_path, monkeypatch):
    read = []
    real = cache_module.read_image
    monkeypatch.setattr(cache_module, 'read_image', lambda p, *a: read.append((p, a[0])) or real(p, *a))
    make = lambda **kw: quiet(folder_dls, messy, **{'size':SIZE, 'cache':tmp_path/'c', **kw})
    def n_read(**kw):
        read.clear(); dls = make(**kw)
        list(dls.train), list(dls.valid)
        return len([o for o,size in read if o.name not in broken and size != 16])      # not those that were only checked
    assert n_read() == n_good and n_read() == 0 and n_read(labels='parent', bs=7) == 0     # found by content, whatever else is asked
    picture('disc', 999).save(messy/'new.png'); assert n_read() == 1                       # only what is new
    picture('bars', 998).save(messy/'new.png'); assert n_read() == 1                       # or has changed
    assert n_read(method='squish') == n_read(size=(SIZE,2*SIZE)) == n_read(n_in=1) == n_good+1
    assert n_read() == 0

def test_cached_batches_are_the_images(messy, tmp_path):
    kw = dict(size=SIZE, labels='parent', bs=16)
    plain,cached = quiet(folder_dls, messy, num_workers=0, **kw),quiet(folder_dls, messy, cache=tmp_path/'c', **kw)
    assert cached.train.decoded() and cached.valid.decoded() and not plain.train.decoded()
    assert plain.valid_ds.items == cached.valid_ds.items and len(plain.valid) == len(cached.valid)
    for (a,ya),(b,yb) in zip(plain.valid, cached.valid):
        assert torch.equal(a, b) and torch.equal(ya, yb) and type(a) == type(b) and type(ya) == type(yb) and a.device == b.device
    files = cached.train_ds.items
    dl = cached.train.new(shuffle=True)
    random.seed(0); dl.rng = random.Random(0)
    for x,y in dl: assert x.shape == (16,3,SIZE,SIZE)
    one = lambda i: plain.train_ds[i]
    got = cached.train.new(shuffle=False, get_idxs=lambda: [5,2,9], bs=3).one_batch()
    assert torch.equal((got[0]*255).round().byte(), torch.stack([ToTensor()(one(i)[0]) for i in (5,2,9)])) and got[1].tolist() == [int(one(i)[1]) for i in (5,2,9)]
    assert len(pickle.dumps(cached.new_empty())) < 20_000                                  # none of the images or names

def decode_slowly(folder, cache):
    real,n = cache_module.read_image,[0]
    def slow(p, *args):
        n[0] += 1
        if n[0] == 40: print('now', flush=True); time.sleep(60)
        return real(p, *args)
    cache_module.read_image,ImageCache.add.__defaults__ = slow,(1, 8)
    folder_dls(folder, 32, cache=cache)

def test_kill_while_writing(messy, tmp_path):
    "The images that were written are kept; nothing is read half"
    p = warm.Process(decode_slowly, messy, tmp_path/'c')
    p.until(lambda: 'now' in p.out)
    p.signal(signal.SIGKILL); p.wait()
    folder = first((tmp_path/'c').iterdir())
    with open(folder/'images.jsonl', 'ab') as f: f.write(b'[99, "unlabelled/00.')                 # the line it was killed in
    with open(folder/'images.bin', 'ab') as f: f.write(bytes(100))                                # and an image
    dls = quiet(folder_dls, messy, SIZE, cache=tmp_path/'c', valid=.5, bs=16)
    plain = quiet(folder_dls, messy, SIZE, valid=.5, bs=16, num_workers=0)
    for a,b in zip(dls.valid, plain.valid): assert torch.equal(a[0], b[0])
    rows = ImageCache(tmp_path/'c', SIZE, 3, method='crop', white=None).rows
    assert len(rows) == n_good and sorted(rows.values()) == list(range(n_good))

def first_sum(folder, cache): print(float(folder_dls(folder, 32, cache=cache).valid.one_batch()[0].sum()))

def test_two_processes_fill_one_cache(messy, tmp_path):
    ps = [warm.Process(first_sum, messy, tmp_path/'c') for _ in range(2)]
    a,b = (p.done().split()[-1] for p in ps)
    assert a == b and len(ImageCache(tmp_path/'c', SIZE, 3, method='crop', white=None).rows) == n_good

def test_interrupt_while_decoding(messy, tmp_path, monkeypatch):
    real,n = cache_module.read_image,[0]
    def interrupted(p, *a):
        n[0] += 1
        if n[0] == 30: os.kill(os.getpid(), signal.SIGINT)
        return real(p, *a)
    monkeypatch.setattr(cache_module, 'read_image', interrupted)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)            # which pytest's workers ignore
    try:
        with pytest.raises(KeyboardInterrupt): quiet(folder_dls, messy, SIZE, cache=tmp_path/'c')
    finally: signal.signal(signal.SIGINT, old)
    assert len(quiet(folder_dls, messy, SIZE, cache=tmp_path/'c').train_ds) > 60

def test_disk_full(messy, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module.shutil, 'disk_usage', lambda p: type('U', (), dict(free=1000)))
    with pytest.raises(ValueError, match='cache: 84 images need'): quiet(folder_dls, messy, SIZE, cache=tmp_path/'c')

@pytest.mark.parametrize('make', [
    lambda d: DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=0)).datasets(d),
    lambda d: DataBlock((ImageBlock,), get_items=get_image_files, splitter=RandomSplitter(seed=0)).datasets(d),
    lambda d: DataBlock((ImageBlock,CategoryBlock), get_x=lambda r: r['f'], get_y=lambda r: r['y'], splitter=RandomSplitter(seed=0)).datasets(
        pd.DataFrame([dict(f=o, y=o.parent.name) for o in get_image_files(d)]))])
def test_any_data_set_is_cached(tmp_path, make):
    d = tmp_path/'d'
    for k in kinds:
        (d/k).mkdir(parents=True)
        for i in range(10): picture(k, i).save(d/k/f'{i}.png')
    dsets = make(d)
    dls = decoded_once(dsets, tmp_path/'c', SIZE).dataloaders(bs=4, after_item=[ToTensor], after_batch=[IntToFloatTensor], num_workers=0)
    assert dls.train.decoded() and len(dls.one_batch()) == len(dsets.tls)
    x = torch.cat([b[0] for b in dls.valid])
    want = torch.stack([torch.tensor(np.asarray(cache_module.resized(o[0], SIZE))).permute(2,0,1) for o in dsets.valid]).float()/255
    assert torch.allclose(x, want)

# batches on their way to a GPU, and images that are there

@pytest.fixture(scope='module')
def few(tmp_path_factory):
    d = tmp_path_factory.mktemp('few')/'d'
    for k in kinds:
        (d/k).mkdir(parents=True)
        for i in range(10): picture(k, i).save(d/k/f'{i}.png')
    return d

def few_dls(d, how, **kw):
    if how == 'memory': return image_dls(torch.rand(20, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), list('ab')*10, bs=4, **kw)
    if 'cache' in how: kw['cache'] = d.parent/'cache'
    if 'GPU' in how: kw['cache'] = 'device'
    if 'texts' in how: kw |= dict(texts=lambda f: [f.stem, f.name, f.parent.name], tokens=lambda o: torch.tensor([len(random.choice(o))]))
    return quiet(folder_dls, d, SIZE, labels='parent', bs=4, **{'num_workers':2*(how == 'workers'), **kw})

def as_bytes(o):
    "Values of a batch; a pretended tensor is no `TensorImage`, so that its images are bytes still"
    o = (o.inner if isinstance(o, Pretended) else o).as_subclass(torch.Tensor)
    return (o*255).round().byte() if o.is_floating_point() else o.clone()

def epoch(dl):
    "Batches, and where random numbers are when each of them comes"
    set_seed(0); dl.rng = random.Random(0)
    return [([as_bytes(o) for o in b], random.getstate(), torch.get_rng_state().tolist()) for b in dl]

@pytest.mark.parametrize('how', ['files','workers','memory','cache','cache and texts','GPU','GPU and texts'])
def test_batches_in_flight(few, how):
    "A GPU gets the batches that a processor gets, with the same random numbers before and after each, and is not waited for"
    want = epoch(few_dls(few, how.replace('GPU', 'cache'), device='cpu').train)
    with pretending(0) as G:
        dl = few_dls(few, how).train
        for _ in range(2):
            with counting() as c:
                got = epoch(dl)
                if how != 'workers': to_device(list(dl.create_batches(range(8))))      # as `DistributedDL` takes them
            assert not c['waits'] and not c['copies']
        assert dl.one_batch()[0].device == G
    assert len(want) == len(got) > 2
    for (a,*ra),(b,*rb) in zip(want, got): assert all(map(torch.equal, a, b)) and ra == rb

class Stop(Callback):
    order = 100
    def after_batch(self):
        if self.training and self.iter == 1: raise KeyboardInterrupt

class Seed(Callback):
    order = -10
    def before_batch(self): set_seed(self.train_iter)

def test_resumed_with_batches_in_flight(few, tmp_path):
    "A batch that was on its way when a checkpoint was written is trained on once"
    def learner(*cbs):
        set_seed(0)                                                          # from which loaders draw theirs
        return make('sim_clr', few_dls(few, 'cache'), cbs=[Seed(), *cbs], path=tmp_path)
    written = Checkpoint(tmp_path, every=1)
    with pretending(0):
        want = state(fit(learner()))
        with pytest.raises(KeyboardInterrupt): fit(learner(written, Stop()))
        again = learner(written).resume(tmp_path)
        assert again.resumed.where.startswith('epoch 0, batch 2')
        assert same(state(fit(again)), want)

def test_images_on_the_device(messy, few, tmp_path, monkeypatch):
    "All that is done with other loaders: new ones, labelled images, pictures, other data sets; and the images leave with none of them"
    args = dict(size=SIZE, labels='parent', bs=16)
    dls = few_dls(few, 'GPU', device='cpu')
    dls.show_batch(max_n=2)
    make('sim_clr', dls, path=tmp_path).export('learner')
    assert dls.train.decoded()[0].cache.images[0].numpy().tobytes() not in (tmp_path/'learner').read_bytes()
    new = load_learner(tmp_path/'learner').dls.test_dl(dls.valid_ds.items, num_workers=0)                # files are read again
    assert torch.equal(new.one_batch()[0], dls.valid.one_batch()[0])
    want = quiet(folder_dls, messy, cache=tmp_path/'c', device='cpu', **args)
    with pretending(0) as G:
        dls = quiet(folder_dls, messy, cache='device', num_workers=2, **args)
        assert dls.left_out == want.left_out and dls.train.fake_l.num_workers == 0
        assert np.array_equal(dls.train_ds[3][0], want.train_ds[3][0])
        for f in (lambda o: o.valid, lambda o: labelled_dls(o).valid, lambda o: whole_loader(o.train)):
            for a,b in zip(f(want), f(dls), strict=True): assert torch.equal(as_bytes(a[0]), as_bytes(b[0])) and torch.equal(a[1], b[1].inner)
        images = dls.train.decoded()[0].cache.images
        assert images.device == G and images.shape == (n_good,3,SIZE,SIZE)
        own = decoded_once(Datasets(get_image_files(few), [[PILImage.create]]), 'device', SIZE)
        assert own.dataloaders(bs=4, after_item=[ToTensor]).train.one_batch()[0].device == G
        monkeypatch.setattr(pretended_gpu, 'free', 2**15)
        with pytest.raises(ValueError, match='cache: 20 images need 0 MB, pretended:0 has 0 MB free'): few_dls(few, 'GPU')

# training without labels

def simclr(dls, **kw):
    return Learner(dls, create_simclr_model(create_encoder('resnet10t', False), 32, 16), cbs=SimCLR(get_simclr_aug_pipelines(24)), metrics=KNN(), **kw)

@pytest.mark.parametrize('make', [
    lambda d: folder_dls(d, SIZE, bs=8, num_workers=0),
    lambda d: ImageDataLoaders.from_folder(d, valid_pct=.2, item_tfms=Resize(SIZE), bs=8, num_workers=0),
    lambda d: DataBlock((ImageBlock,), get_items=get_image_files, item_tfms=Resize(SIZE)).dataloaders(d, bs=8, num_workers=0)])
def test_no_loss_func_needed(tmp_path, make):
    for k in kinds:
        (tmp_path/k).mkdir()
        for i in range(10): picture(k, i).save(tmp_path/k/f'{i}.png')
    learn = simclr(make(tmp_path))
    with learn.no_bar(), learn.no_logging(): quiet(learn.fit, 1)
    assert np.isfinite(learn.recorder.values[-1][0])
    x,y = get_features(learn)
    assert len(x) == len(learn.dls.valid_ds) and spread(x) >= 0

def embed_both(folder, images):
    embed(load_learner(folder/'pretrained.pkl'), images).to_pickle(folder/'a.pkl')
    embed(load_encoder(folder/'enc.safetensors'), images).to_pickle(folder/'b.pkl')

def test_first_hour(messy, tmp_path):
    "No labels: pretrain, look, resume, neighbours, a table, a file; then the exported learner in a process that has no data"
    dls = quiet(folder_dls, messy, SIZE, bs=16, cache=tmp_path/'c')
    def learner(): return simclr(dls, path=tmp_path)
    learn = learner()
    assert learn.sim_clr.show(n=3).shape == (3,2)
    with learn.no_bar(), learn.no_logging():
        quiet(learn.fit, 2, cbs=Checkpoint(tmp_path/'run', every=2))
        quiet(learn.resume, tmp_path/'run', missing_ok=True); quiet(learn.fit, 2)
    assert np.isnan(learn.recorder.values[-1][-1])                          # kNN without labels
    x,y = get_features(learn, 0)
    assert y is None and len(x) == len(dls.train_ds)
    plot_embedding(learn)
    assert show_nearest(dls.train_ds, x, 3, k=4).shape == (3,5)
    assert torch.allclose(get_features(learn, dls.train_ds.items[:7])[0], x[:7], atol=1e-5)
    assert torch.allclose(get_features(learn, dls.train)[0], x, atol=1e-5)
    df = quiet(embed, learn, messy, tmp_path/'e.parquet')
    assert len(df) == n_good and pd.read_parquet(tmp_path/'e.parquet').equals(df)
    npz = quiet(embed, learn.model.encoder, messy, tmp_path/'e.npz', size=SIZE) is not None and np.load(tmp_path/'e.npz')
    assert npz['features'].shape == (n_good, 512) and len(npz['files']) == n_good
    assert (show_nearest(df.sort_values('f0').file, torch.tensor(df.sort_values('f0').filter(regex='f[0-9]').to_numpy()), [0], k=1)[0,0].images[0].get_array()
            == np.asarray(read_image(df.sort_values('f0').file.iloc[0]))).all()
    assert len(quiet(embed, learn, messy/'disc', tmp_path/'new'/'e.npz')) == len(get_features(learn, messy/'disc')[0]) == 20
    with pytest.raises(ValueError, match='.parquet or .npz'): embed(learn, messy, 'e.txt')
    with pytest.raises(ValueError, match='get_features or embed'): quiet(learn.predict, messy/'disc'/'00.jpg')
    learn.export('pretrained.pkl'); learn.save_encoder(tmp_path/'enc.safetensors')
    cache_module.shutil.rmtree(tmp_path/'c')                                # another machine
    warm.run(embed_both, tmp_path, messy/'disc')
    a,b = (pd.read_pickle(tmp_path/f'{o}.pkl').set_index('file') for o in 'ab')
    want = df.set_index('file').loc[a.index]
    assert len(a) == 20 and np.allclose(a, want, atol=1e-4) and a.index.equals(b.index)
    assert (torch.cosine_similarity(torch.tensor(b.values), torch.tensor(want.values)) > .95).all()        # files read at the views' size

def predict(path, file): print(load_learner(path).predict(file)[2].tolist())

def test_some_labels_to_prediction(messy, tmp_path):
    "SupCon with unlabelled images, a probe that is frozen, fine-tuning, export, prediction in a new process"
    dls = quiet(folder_dls, messy, SIZE, labels='parent', share=.5, bs=16, cache=tmp_path/'c')
    set_seed(0)
    learn = Learner(dls, create_supcon_model(create_encoder('resnet10t', False), 32, 16), metrics=KNN(), path=tmp_path,
                    cbs=SupCon(get_supcon_aug_pipelines(24), unsup_class_id=dls.vocab.o2i['unsup'], unsup_method='only'))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 3e-3)
    probe = classifier_learner(learn, frozen=True, repeat=2, bs=16)
    assert list(probe.dls.vocab) == list(kinds[::-1]) and probe.dls.c == 2 and probe.dls.train.decoded()
    before = {k:v.clone() for k,v in probe.model.encoder.state_dict().items()}
    head = probe.model.head.state_dict(); head = {k:v.clone() for k,v in head.items()}
    with probe.no_bar(), probe.no_logging(): probe.fine_tune(2, 1e-2); probe.unfreeze(); probe.fit(1, 1e-2, wd=.1)
    assert all(torch.equal(v, before[k]) for k,v in probe.model.encoder.state_dict().items())
    assert any(not torch.equal(v, head[k]) for k,v in probe.model.head.state_dict().items())
    tuned = classifier_learner(learn, repeat=4, bs=16, path=tmp_path)
    with tuned.no_bar(), tuned.no_logging(): tuned.fine_tune(8, 5e-3)
    assert tuned.final_record[-1] >= .75
    assert all(torch.equal(v, before[k]) for k,v in learn.model.encoder.state_dict().items())
    x = get_features(tuned)[0]                                               # as it is validated: at the size of the views, normalised
    assert torch.allclose(x, get_features(tuned, tuned.dls.valid_ds.items)[0], atol=1e-4)
    assert tuned.dls.valid.one_batch()[0].shape[2:] == tuned.dls.one_batch()[0].shape[2:] == (24,24)
    again = pickle.loads(pickle.dumps(tuned.dls.train_ds))                   # as workers that are spawned get it
    assert torch.equal(ToTensor()(again[3][0]), ToTensor()(tuned.dls.train_ds[3][0])) and again[3][1] == tuned.dls.train_ds[3][1]
    test = tuned.dls.test_dl(tuned.dls.valid_ds.items, with_labels=True)      # what fastai's pictures of the largest losses ask for
    assert [int(o) for o in test.dataset.tls[1]] == [int(o) for o in tuned.dls.valid_ds.tls[1]]
    tuned.export('classifier.pkl')
    assert (tmp_path/'classifier.pkl').read_bytes().count(b'unlabelled/') == 0
    cache_module.shutil.rmtree(tmp_path/'c')
    out = warm.run(predict, tmp_path/'classifier.pkl', messy/'disc'/'03.jpg')
    probs = tuned.predict(PIL.Image.open(messy/'disc'/'03.jpg'))[2]                    # an image will do
    assert np.allclose(probs, tuned.predict(np.asarray(PIL.Image.open(messy/'disc'/'03.jpg')))[2]) and np.allclose(probs, tuned.predict(messy/'disc'/'03.jpg')[2], atol=.1)
    assert np.allclose(eval(out.splitlines()[-1]), tuned.predict(messy/'disc'/'03.jpg')[2], atol=1e-4)

@pytest.mark.parametrize('first_class', [True,False])
def test_unlabelled_class_in_any_place(messy, first_class):
    "`unsup` before the real classes, as a sorted vocabulary may have it"
    name = 'aaa' if first_class else 'zzz'
    (messy/'unlabelled').rename(messy/name)
    dls = quiet(ImageDataLoaders.from_folder, messy, valid_pct=.3, seed=0, item_tfms=Resize(SIZE), bs=8, num_workers=0) if False else \
          quiet(folder_dls, messy, SIZE, labels='parent', num_workers=0, bs=8)
    few = labelled_dls(dls, dls.vocab.o2i[name], get_supcon_aug_pipelines(24)[0], bs=8)
    assert list(few.vocab) == ['bars','disc'] and few.c == 2
    for x,y in few.train: assert set(y.tolist()) <= {0,1}
    want = {o:['bars','disc'].index(o.parent.name) for o in few.train_ds.items}
    assert [int(y) for _,y in few.train_ds] == list(want.values())

def test_classifier_from_other_places(messy, tmp_path):
    "An encoder, a file of one, own data loaders: normalised as the encoder was trained"
    enc = create_encoder('resnet10t', False)
    stats = ([.4]*3,[.2]*3)
    path = save_encoder(enc, tmp_path/'e.safetensors', stats, SIZE)
    dls = lambda: quiet(folder_dls, messy, SIZE, labels=lambda o: o.parent.name if o.parent.name in kinds else None, bs=8, num_workers=0)
    for source in (path, load_encoder(path)):
        clf = classifier_learner(source, labelled_dls(dls()))
        norm = get_norm(clf.dls.valid.after_batch)
        assert norm is not None and abs(float(norm.mean.flatten()[0])-.4) < 1e-5 and clf.dls.one_batch()[0].min() < -1
        with clf.no_bar(), clf.no_logging(): clf.fit(1)
    with pytest.raises(ValueError, match="'unsup' is no class"): classifier_learner(enc, dls())
    mine = labelled_dls(dls()); classifier_learner(path, mine)
    assert get_norm(mine.valid.after_batch) is None                         # the user's own loaders stay what they are
    with pytest.raises(ValueError, match='dls'): classifier_learner(enc)
    with pytest.raises(ValueError, match='no labels in it'): classifier_learner(simclr(quiet(folder_dls, messy, SIZE, num_workers=0)))
    with pytest.raises(ValueError, match='layerwise'): classifier_learner(create_encoder('xresnet18', False), labelled_dls(dls()), layerwise=True).create_opt()

def test_layers_learn_at_their_own_rate(messy):
    enc = create_encoder('vit_tiny_patch16_224', False, img_size=32, depth=4)
    dls = labelled_dls(quiet(folder_dls, messy, SIZE, labels='parent', bs=8, num_workers=0))
    clf = classifier_learner(enc, dls, layerwise=True)
    with clf.no_bar(), clf.no_logging(): clf.fit(1, layer_lrs(clf.model, 1e-3, .5))
    rates = [h['lr'] for h in clf.opt.hypers]
    assert np.allclose(rates[-1], 1e-3) and np.allclose(np.array(rates[1:])/np.array(rates[:-1]), 2)
    owned = [p for pl in clf.opt.param_lists for p in pl]
    assert len(owned) == len({id(p) for p in owned}) == len(list(clf.model.parameters()))

def test_encoder_elsewhere(tmp_path):
    "Plain timm opens the file, ONNX runtime computes the same features"
    import onnxruntime, timm
    for arch in ('resnet10t','vit_tiny_patch16_224','convnext_atto'):
        small = dict(img_size=32, depth=2) if 'vit' in arch else {}
        enc = create_encoder(arch, False, **small).eval()
        path = save_encoder(enc, tmp_path/'e.safetensors', imagenet_stats, 32)
        x = torch.rand(5, 3, 32, 32)
        mean,std = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
        with torch.no_grad(): want = enc((x-mean)/std)
        plain = timm.create_model(arch, num_classes=0, checkpoint_path=path, **small).eval()
        with torch.no_grad(): assert torch.allclose(plain((x-mean)/std), want, atol=1e-5)
        onnx = quiet(export_onnx, load_encoder(path), tmp_path/'e.onnx')
        got = onnxruntime.InferenceSession(onnx).run(None, {'images':x.numpy()})[0]
        assert np.allclose(got, want, atol=1e-3), arch
    with pytest.raises(ValueError, match='size=None'): export_onnx(create_encoder('resnet10t', False), tmp_path/'e.onnx')

def test_an_argument_without_its_switch_is_said():
    for f in (get_simclr_aug_pipelines, get_supcon_aug_pipelines):
        with pytest.warns(UserWarning, match='rotate=True'): f(32, rotate_deg=180)
    with pytest.warns(UserWarning, match='bw=True'): get_simclr_aug_pipelines(32, bw=False, bw_p=1.)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        get_simclr_aug_pipelines(32, rotate=True, rotate_deg=180, bw_p=1.)

def test_no_such_folder_and_nothing_to_share(tmp_path):
    encoder = create_encoder('resnet10t', False)
    for o in ('photoz','photos/no.tif'):
        with pytest.raises(ValueError, match='no file or folder'): embed(encoder, tmp_path/o, size=32)
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(6): PIL.Image.new('RGB', (40,40), (i*40,0,0)).save(tmp_path/c/f'{i}.png')
    with pytest.raises(ValueError, match='every image has a label'): folder_dls(tmp_path, 32, labels='parent', bs=2, share=.5)
