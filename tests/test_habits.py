"Data and habits of strangers: labels of every kind, texts without words, images that are none, weights that are no numbers, caches that others cut."
import io, json, math, re, resource, shutil, signal, struct, sys, warnings, zlib
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, PIL.Image, pytest, tifffile, torch, warm
from fastai.vision.all import Callback, Categorize, DataLoaders, Datasets, Learner, MultiCategorize, OneHotEncode, TfmdDL, ToTensor, noop, rank_distrib
from safetensors.torch import load_file, save_file
from kit import METHODS, TEACHERS, each, fit, fitted, image, loaders, make, make_dls, same, state, text, tokens
from pretended_gpus import on_gpus
from self_supervised.cli import ssl_embed, ssl_finetune, ssl_pretrain, ssl_views
from self_supervised.start import unbreakable_output
from self_supervised.training.pretraining import check_asked, note_asked, read_asked, stopping
from self_supervised.evaluation.alarms import Alarms
from self_supervised.layers import encoder_nf
from self_supervised.data import image_texts
from self_supervised.data.cache import ReadImage
from self_supervised.evaluation.retrieval import embed_images, embed_texts, places
from self_supervised.vision.all import (KNN, Checkpoint, SimCLR, captioned_dls, classifier_learner, create_encoder, create_simclr_model,
                                        decoded_once, embed, encoder_info, evaluate, find_duplicates, find_outliers, folder_dls, get_features,
                                        get_simclr_aug_pipelines, image_dls, knn_accuracy, labelled_dls, learner_knn, load_encoder,
                                        plot_embedding, plot_map, read_image, save_encoder, show_activations, show_found,
                                        show_hard_negatives, show_nearest, suspicious_labels)
from self_supervised.training.checkpoint import checkpoints, read_checkpoint

# labels

@each
def test_two_labels(name):
    "The first counts, whoever asks"
    def second(i): return 'xyz'[i//3%3]
    n_inp = METHODS[name].cb.n_inp
    tfms = [[image], *[[text, tokens]]*(n_inp-1), [lambda i: 'ab'[i%2], Categorize()], [second, Categorize()]]
    dls = Datasets(range(45), tfms, splits=(list(range(33)), list(range(33,45))), n_inp=n_inp).dataloaders(bs=8, num_workers=0, device='cpu')
    learn = make(name, dls, **({'unsup_class_id':0} if 'unsup_class_id' in METHODS[name].args else {}))
    learn.metrics = KNN(unsup_class_id=7)
    fit(learn)
    assert math.isfinite(learn.final_record[-1]) and get_features(learn)[1].tolist() == [i%2 for i in range(33,45)]
    if name != 'sim_clr': return
    assert evaluate(learn, labels=(1,), Cs=(1.,)).protocol['own images']['classes'] == 2
    assert list(classifier_learner(learn).dls.vocab) == ['a','b'] and list(labelled_dls(dls).vocab) == ['a','b']

@pytest.mark.parametrize('unlabelled', [-1, 2])
def test_unlabelled_images_in_plain_lists(unlabelled):
    "Whose labels come with the image: neither in the bank nor among the targets"
    ys = [i%2 if i%3 else unlabelled for i in range(36)]
    learn = make('sup_con', loaders('sup_con', [(image(i), torch.tensor(y)) for i,y in enumerate(ys)]), loss_func=noop, unsup_class_id=unlabelled)
    learn.metrics = KNN()
    fit(learn)
    (bank,y),(x,t) = get_features(learn, 0),get_features(learn, 1)
    want = knn_accuracy(bank[y != unlabelled], y[y != unlabelled], x[t != unlabelled], t[t != unlabelled])
    assert learn.final_record[-1] == learner_knn(learn) == want

def pictures(folder, n=12, size=40, name='{}.png'):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): PIL.Image.fromarray(np.random.default_rng(i).integers(0, 255, (size,size,3), dtype=np.uint8)).save(folder/name.format(i))
    return folder

@pytest.mark.parametrize('na', ['NA','n/a','#N/A'])
def test_a_class_called_na(na, tmp_path):
    "Is a class, as only `no_label` names those that are none"
    pictures(tmp_path/'p')
    pd.DataFrame([(f'{i}.png', [na,'iron'][i%2]) for i in range(10)]+[('10.png','')], columns=['file','metal']).to_csv(tmp_path/'t.csv', index=False)
    dls = folder_dls(tmp_path/'p', 32, labels=tmp_path/'t.csv', bs=2, num_workers=0)
    assert set(dls.vocab) == {na,'iron','unsup'}

def test_several_classes_for_an_image(tmp_path):
    "Pass through the decoded cache, and are refused where one class is needed"
    files = sorted(pictures(tmp_path/'p').iterdir())
    ds = Datasets(files, [[lambda o: PIL.Image.open(o)],[lambda o: ['a','b'][:1+int(o.stem)%2], MultiCategorize(['a','b']), OneHotEncode(2)]], splits=(range(8),range(8,12)))
    dls = decoded_once(ds, tmp_path/'c', 32).dataloaders(bs=4, num_workers=0, device='cpu', after_item=[ToTensor])
    assert dls.one_batch()[1].shape[0] == 4
    with pytest.raises(ValueError, match='one class for each image'): labelled_dls(dls)

def test_unlabelled_images_in_pictures():
    "They are no class of the map, and neighbours without a label are not called another class"
    learn = fitted('sup_con')
    ax = plot_embedding(learn)
    assert 'no label' in [o.get_text() for o in ax.get_legend().get_texts()]
    axs = show_nearest(learn.dls.valid_ds, get_features(learn)[0], [0,1,2], k=4)
    for ax in axs.flat:
        if 'unsup' in ax.get_title(): assert ax.title.get_color() == 'black'

# texts

@pytest.mark.parametrize('name', [n for n,o in METHODS.items() if o.cb.n_inp == 2])
def test_a_text_without_words(name):
    "Has a finite feature, and ruins neither weights nor queue"
    items = [(image(i), tokens('???' if i == 3 else text(i)[0])) for i in range(16)]
    dls = DataLoaders(*[TfmdDL(items, bs=8, num_workers=0) for _ in range(2)])
    dls.n_inp = 2
    learn = fit(make(name, dls, loss_func=noop), 2)
    assert all(v.isfinite().all() for v in learn.model.state_dict().values() if v.is_floating_point())
    assert torch.isfinite(torch.stack(list(learn.recorder.losses))).all()

# what is no number

def test_nothing_is_made_of_nan(tmp_path):
    bad = create_encoder('test_resnet', False)
    torch.nn.init.constant_(next(bad.parameters()), math.nan)
    with pytest.raises(ValueError, match='NaN or infinite'): get_features(bad, make_dls().valid)
    with pytest.raises(ValueError, match='NaN or infinite'): save_encoder(bad, tmp_path/'e.safetensors')
    assert not (tmp_path/'e.safetensors').exists()
    z = torch.randn(8, 4)
    with pytest.raises(ValueError, match='1 of 8 embeddings'): places(z, torch.where(torch.arange(8)[:,None] == 3, math.nan, z))

class Breaks(Callback):
    "The weights are no numbers, from the second epoch on"
    def after_train(self):
        if self.epoch: torch.nn.init.constant_(next(self.model.encoder.parameters()), math.nan)

@pytest.mark.parametrize('name', ['sim_clr','moco'])
def test_nan_replaces_no_checkpoint(name, tmp_path):
    learn = make(name, cbs=[Checkpoint(tmp_path, every=1, keep=1), Breaks()])
    with pytest.warns(UserWarning, match='no checkpoint is written any more(.|\n)*epoch'): fit(learn, 3)
    for f in checkpoints(tmp_path): assert all(v.isfinite().all() for v in read_checkpoint(f)['model'].values() if v.is_floating_point())
    fit(make(name).resume(tmp_path), 3)

def test_a_command_that_ends_in_nan(tmp_path, monkeypatch):
    "Ends with an error, and writes no encoder"
    import self_supervised.training.pretraining as page
    real = page.pretraining_learner
    monkeypatch.setattr(page, 'pretraining_learner', lambda *a, **kw: real(*a, **kw).add_cb(Breaks()))
    with pytest.warns(UserWarning, match='no checkpoint'), pytest.raises(ValueError, match='NaN or infinite'):
        ssl_pretrain('digits', out=tmp_path/'o', arch='test_resnet', epochs=2, bs=256, precision='fp32', report=False)
    assert not (tmp_path/'o'/'encoder.safetensors').exists() and checkpoints(tmp_path/'o'/'checkpoints')

# batches

@pytest.mark.parametrize('item,said', [
    (lambda i: ([torch.rand(3,24,24)]*2, 0), 'a list of 2'), (lambda i: dict(image=torch.rand(3,24,24)), 'dictionar'), (lambda i: (torch.rand(24,24), 0), 'axis for the channels'),
    (lambda i: (torch.rand(3,4,24,24), 0), 'clips'), (lambda i: (torch.rand(24,34,3), 0), 'channels come last'), (lambda i: (torch.rand(7), 0), 'no images'),
    (lambda i: (torch.rand(3,24,24).double(), 0), 'float32')], ids=['views','dictionary','no channels','clips','channels last','vectors','double'])
@pytest.mark.parametrize('name', ['sim_clr','moco'])
def test_batches_that_are_no_images(name, item, said):
    dl = torch.utils.data.DataLoader([item(i) for i in range(16)], 8)
    with pytest.raises((ValueError,TypeError), match=said): fit(make(name, DataLoaders(dl, dl, device='cpu'), loss_func=noop))

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_models_of_other_types(dtype):
    learn = make('sim_clr')
    learn.model.to(dtype)
    with pytest.raises(TypeError, match=r'model\.float\(\)'): fit(learn)

@pytest.mark.parametrize('cbs', [[], [Alarms()], ['checkpoint']])
@pytest.mark.parametrize('name', ['sim_clr','moco'])
def test_no_batch(name, cbs, tmp_path):
    "A loader that drops all it has, and files that are gone in the middle of training"
    cbs = [Checkpoint(tmp_path) if o == 'checkpoint' else o for o in cbs]
    data = [(image(i), torch.tensor(0)) for i in range(16)]
    dl = torch.utils.data.DataLoader(data, 64, drop_last=True)
    with pytest.raises(ValueError, match='no batch of bs=64, as it has 16 images'): fit(make(name, DataLoaders(dl, dl), loss_func=noop, cbs=cbs))

def test_files_that_are_gone_in_the_middle(tmp_path):
    "End the training with an error, not with epochs of nothing"
    pictures(tmp_path/'p', 24)
    dls = folder_dls(tmp_path/'p', 32, bs=4, num_workers=0)
    class Gone(Callback):
        def after_epoch(self):
            for f in (tmp_path/'p').iterdir(): f.write_bytes(b'')
    learn = make('sim_clr', dls, cbs=[Checkpoint(tmp_path/'c'), Gone()])
    with pytest.warns(UserWarning, match='is skipped'), pytest.raises(ValueError, match='no batch of the training loader could be read'): fit(learn, 4)
    assert [read_checkpoint(f)['epoch'] for f in checkpoints(tmp_path/'c')] == [1]

# files of more than 8 bits

RNG = np.random.default_rng(0)
DEEP = {'rgb.tif':dict(a=RNG.integers(0, 4096, (30,40,3)).astype(np.uint16), photometric='rgb'), 'planes.tif':dict(a=RNG.integers(0, 4096, (3,30,40)).astype(np.uint16), photometric='rgb', planarconfig='separate'),
        'alpha.tif':dict(a=RNG.integers(0, 4096, (30,40,4)).astype(np.uint16), photometric='rgb', extrasamples=['unassalpha']), 'float.tif':dict(a=RNG.random((30,40,3)).astype(np.float32)*4095, photometric='rgb'),
        'grey.tif':dict(a=RNG.integers(0, 4096, (30,40)).astype(np.uint16)), 'signed.tif':dict(a=RNG.integers(0, 4096, (30,40)).astype(np.int16)), 'rgb.png':dict(a=RNG.integers(0, 4096, (30,40,3)).astype(np.uint16))}

def write(path, a, **kw):
    if path.suffix == '.png': torchvision_png(path, a)
    else: tifffile.imwrite(path, a, **kw)
    return path

def torchvision_png(path, a):
    "A PNG of 16 bits per colour, which PIL cannot write"
    h,w,_ = a.shape
    raw = b''.join(b'\0'+row.astype('>u2').tobytes() for row in a)
    def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    path.write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(raw))+chunk(b'IEND', b''))

@pytest.mark.parametrize('name', DEEP)
@pytest.mark.parametrize('white', [4095, (1000,3000)])
def test_files_of_twelve_bits(name, white, tmp_path):
    "Grey or colours, in planes or with alpha, signed or floats: as numpy computes them"
    path,a = write(tmp_path/name, **DEEP[name]),DEEP[name]['a'].astype(float)
    if name == 'planes.tif': a = np.moveaxis(a, 0, -1)
    low,high = white if isinstance(white, tuple) else (0,white)
    want = ((a-low)/(high-low)*255).round().clip(0, 255)
    got = np.asarray(read_image(path, None, n_in=1 if a.ndim == 2 else 3, white=white)).astype(float)
    if a.ndim == 3:
        alpha = (a[...,3:]/high).clip(0, 1) if a.shape[2] == 4 else 1
        want = want[...,:3]*alpha + 255*(1-alpha)                                  # transparent is white, as in files of 8 bits
    assert np.abs(got-want).max() <= 2

def test_values_that_are_clipped_are_said_once(tmp_path):
    for i in range(8): tifffile.imwrite(tmp_path/f'{i}.tif', RNG.integers(-1024, 3000, (30,30)).astype(np.int16))
    with pytest.warns(UserWarning, match=r'white: 2.% of the values(.|\n)*white=\(black, white\)') as told:
        dls = folder_dls(tmp_path, 24, bs=2, num_workers=0, n_in=1, white=3000)
        list(dls.train)
    assert sum('clipped' in str(o.message) for o in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls = folder_dls(tmp_path, 24, bs=2, num_workers=0, n_in=1, white=(-1024,3000))
        list(dls.train)
    learn = make('sim_clr', dls, model=METHODS['sim_clr'].model(create_encoder('test_resnet', False, 1)), stats=([.5],[.2]), size=16)
    f = fit(learn).save_encoder(tmp_path/'e.safetensors')
    assert load_encoder(f).info['reading'] == dict(method='crop', white=[-1024,3000])
    with pytest.raises(ValueError, match='black, white'): folder_dls(tmp_path, 24, white=(5,5))

@pytest.mark.parametrize('a,said', [(np.zeros((4,30,40), np.uint8), '4 pages'), (np.zeros((30,40,13), np.uint16), '13 bands')])
def test_files_that_are_no_single_image(a, said, tmp_path):
    "Are left out with the reason, and not read as their first page"
    pictures(tmp_path/'p', 8)
    tifffile.imwrite(tmp_path/'p'/'stack.tif', a, photometric='minisblack', **(dict(planarconfig='contig') if a.shape[-1] == 13 else dict(metadata=None)))
    with pytest.warns(UserWarning, match=said): dls = folder_dls(tmp_path/'p', 24, bs=2, num_workers=0)
    assert len(dls.train_ds)+len(dls.valid_ds) == 8

# the cache

@pytest.mark.parametrize('how', ['cut','gone','other','journal'])
def test_a_cache_that_was_damaged(how, tmp_path):
    "It is checked against what it says it holds, whatever was cached after it"
    a,b = pictures(tmp_path/'a'),tmp_path/'b'
    b.mkdir()
    for i in range(12): PIL.Image.new('RGB', (40,40), (i*20,0,0)).save(b/f'{i}.png')
    def images(folder):
        ds = folder_dls(folder, 32, valid=.5, bs=2, cache=tmp_path/'c').train_ds
        return {f.name:np.asarray(o[0]) for f,o in zip(ds.items, ds)}
    want = images(a)
    pixels,journal = next((tmp_path/'c').iterdir())/'images.bin',next((tmp_path/'c').iterdir())/'images.jsonl'
    if how == 'cut': pixels.write_bytes(pixels.read_bytes()[:5*3*32*32+7])
    if how == 'gone': pixels.unlink()
    if how == 'other': pixels.write_bytes(bytes(pixels.stat().st_size))
    if how == 'journal': journal.write_bytes(journal.read_bytes()[:100]+b'\xff\xfe{{'+journal.read_bytes()[100:])
    images(b)
    again = images(a)
    assert want.keys() == again.keys() and all((want[k] == again[k]).all() for k in want)

# going on

class Counts(Callback):
    "A user's callback that counts, and says what has to go on"
    n = 0
    def after_step(self): self.n += 1
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, s): self.n = s['n']

@pytest.mark.parametrize('name', ['moco','vic_reg','clip'])
@pytest.mark.parametrize('at', [(1,1), (2,0)])
def test_what_callbacks_have_seen_goes_on(name, at, tmp_path):
    "Alarms, their history, durations and the counts of others are as without an interrupt"
    class Stop(Callback):
        order = 200
        def before_batch(self):
            if self.training and (self.epoch,self.iter) == at: raise KeyboardInterrupt
    def learner(*cbs): return make(name, cbs=[Alarms(min_steps=1), Counts(), *cbs])
    whole,left = fit(learner(), 4),learner(Checkpoint(tmp_path, every=1), Stop())
    with pytest.raises(KeyboardInterrupt): fit(left, 4)
    again = fit(learner().resume(tmp_path), 4)
    assert same(state(whole), state(again)) and whole.alarms.raised == again.alarms.raised and again.counts.n == whole.counts.n
    a,b = ([{k:v for k,v in row.items() if v == v} for row in o.alarms.history.to_dict('records')] for o in (whole, again))
    assert all(x.keys() == y.keys() and all(x[k] == pytest.approx(y[k], rel=1e-5) for k in x) for x,y in zip(a, b, strict=True))

@pytest.mark.parametrize('name', ['moco','clip','clipmoco'])
def test_the_last_batch_of_an_epoch(name, tmp_path):
    "The loader may draw once more behind it, as here the text of an image that fills no batch"
    class Stop(Callback):
        order = 200
        def after_batch(self):
            if self.training and self.epoch == 1 and self.iter == self.n_iter-1: raise KeyboardInterrupt
    whole,left = fit(make(name), 3),make(name, cbs=[Checkpoint(tmp_path, every=1), Stop()])
    with pytest.raises(KeyboardInterrupt): fit(left, 3)
    assert checkpoints(tmp_path)[-1].name.endswith('epoch1-batch4.ckpt')
    assert same(state(whole), state(fit(make(name).resume(tmp_path), 3)))

def test_names_of_checkpoints(tmp_path):
    "In the order of their numbers; other files are neither read nor removed"
    fit(make('moco', cbs=[Checkpoint(tmp_path, keep=1)]))
    f = checkpoints(tmp_path)[-1]
    for o in ('999999-epoch1-batch0.ckpt','1000000-epoch2-batch0.ckpt','000001-epoch1-batch0 good.ckpt','20261130-epoch1-batch0-mine.ckpt','notes.ckpt'): shutil.copy(f, tmp_path/o)
    assert [o.name for o in checkpoints(tmp_path)][-2:] == ['999999-epoch1-batch0.ckpt','1000000-epoch2-batch0.ckpt']
    with pytest.warns(UserWarning): fit(make('moco', cbs=[Checkpoint(tmp_path, keep=1)]))
    assert {'000001-epoch1-batch0 good.ckpt','20261130-epoch1-batch0-mine.ckpt','notes.ckpt'} <= {o.name for o in tmp_path.iterdir()}

@pytest.mark.parametrize('what', ['classes','words'])
def test_numbers_that_mean_something_else(what, tmp_path):
    "A training does not go on with other classes or words under the same numbers"
    folder,name = pictures(tmp_path/'p', 16),'sup_con' if what == 'classes' else 'clip'
    def learner(names, *cbs):
        def of(f): return names[int(f.stem)%4]
        if what == 'classes': dls = folder_dls(folder, 32, labels=of, bs=4, num_workers=0)
        else: dls = captioned_dls(folder, lambda f: f'{of(f)} number {f.stem}', size=32, bs=4, num_workers=0)
        return make(name, dls, cbs=cbs, **({'unsup_class_id':None} if what == 'classes' else {}))
    fit(learner(['cat','dog','fish','owl'], Checkpoint(tmp_path/'c')))
    again = learner(['zebra','dog','fish','owl'])
    before = state(again)
    with pytest.raises(ValueError, match=f'the {what} are not those'): again.resume(tmp_path/'c')
    assert same(before, state(again))
    learner(['cat','dog','fish','owl']).resume(tmp_path/'c')

def test_other_settings_are_said(tmp_path):
    fit(make('sim_clr', cbs=[Checkpoint(tmp_path)]))
    with pytest.warns(UserWarning, match=r'temp was 0\.1, and is 0\.5'): make('sim_clr', temp=.5).resume(tmp_path)
    with pytest.warns(UserWarning, match='view 1 was'): make('sim_clr', size=12).resume(tmp_path)

def skip_in_one(folder, out):
    dls = folder_dls(folder, 24, bs=4, num_workers=0)
    learn = make('moco', dls)
    with learn.distrib_ctx(): fit(learn)
    (out/f'{rank_distrib()}-{len(learn.recorder.losses)}').touch()

def test_a_broken_image_in_one_of_two_processes(tmp_path):
    "Is replaced by the next one, so that both have as many batches"
    f = pictures(tmp_path/'p', 40, name='{:03}.png')/'009.png'
    b = bytearray(f.read_bytes())
    b[b.find(b'IDAT')+300] ^= 255
    f.write_bytes(b)
    (tmp_path/'out').mkdir()
    warm.group(on_gpus, skip_in_one, tmp_path/'p', tmp_path/'out', timeout=90)
    a,b = sorted(o.name.split('-') for o in (tmp_path/'out').iterdir())
    assert a[1] == b[1]

# what is judged by features

@pytest.mark.parametrize('useful', [True,False])
def test_labels_are_doubted_by_those_who_know(useful):
    "A classifier that knows little says so and proposes nothing; one that knows names the files"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(120)%4
    z = torch.randn(120, 8, generator=g) + useful*6*torch.nn.functional.one_hot(y, 8)
    wrong = y.clone(); wrong[7] = (y[7]+1)%4
    files = [f'{i}.jpg' for i in range(120)]
    if useful:
        found = suspicious_labels(z, wrong, images=files)
        assert found.file[0] == '7.jpg' and found.proposed[0] == y[7] and found.attrs['accuracy'] > .9
    else:
        with pytest.warns(UserWarning, match='right for .* of 120 labels.*\n?.*nothing is proposed'): found = suspicious_labels(z, wrong, images=files)
        assert not len(found) and found.attrs['accuracy'] < .5

def test_outliers_among_features_that_are_alike():
    with pytest.warns(UserWarning, match='nearly the same for all images'): find_outliers(torch.ones(30, 8)+torch.randn(30, 8)*1e-4)

def test_duplicates_are_files(tmp_path):
    files = sorted(pictures(tmp_path/'p').iterdir())
    shutil.copy(files[3], tmp_path/'p'/'zz.png')
    files = [*files, tmp_path/'p'/'zz.png']
    found = find_duplicates(get_features(create_encoder('test_resnet', False), files, size=32)[0], files, k=5)
    assert {found.file[0], found.other_file[0]} == {str(files[3]), str(files[-1])}

def test_images_and_texts_in_one_space():
    learn = fitted('clip')
    images,texts = embed_images(learn),embed_texts(learn, ['a photo of a a number 1'])
    assert images.shape == (12,32) and texts.shape == (1,32) and get_features(learn)[0].shape[1] != 32
    with pytest.raises(ValueError, match='no tower for texts'): embed_images(fitted('sim_clr'))

# files of encoders

@pytest.mark.parametrize('kwargs', [dict(depth=1_000_000), dict(depth=5000), dict(img_size=[10**6,10**6]), dict(embed_dim=10**7), dict(mlp_ratio=1e9), dict(num_heads=[10**7])])
def test_a_header_that_asks_for_all_memory(kwargs, tmp_path):
    "Is refused before anything of it is built"
    enc = create_encoder('vit_tiny_patch16_224', False, img_size=32, depth=1, embed_dim=24, num_heads=2)
    path = save_encoder(enc, tmp_path/'e.safetensors')
    info = {k:v for k,v in encoder_info(path).items() if k != 'version'}
    info['kwargs'] = {**info['kwargs'], **kwargs}
    save_file(load_file(path), tmp_path/'x.safetensors', {'self_supervised':'0', 'encoder':json.dumps(info)})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match='x.safetensors'): load_encoder(tmp_path/'x.safetensors')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000                       # kB
    assert torch.equal(load_encoder(path).eval()(torch.ones(1,3,32,32)), enc.eval()(torch.ones(1,3,32,32)))

@pytest.mark.parametrize('stats', [[[.5]*3,[0.]*3], [[float('nan')]*3,[.2]*3], [[.5]*3,[-.1]*3]])
def test_statistics_that_cannot_be(stats, tmp_path):
    path = save_encoder(create_encoder('test_resnet', False), tmp_path/'e.safetensors', ([.5]*3,[.2]*3))
    save_file(load_file(path), tmp_path/'x.safetensors', {'self_supervised':'0', 'encoder':json.dumps({**encoder_info(path), 'stats':stats})})
    with pytest.raises(ValueError, match='stats'): load_encoder(tmp_path/'x.safetensors')

# arguments and folders

def test_columns_and_folders(tmp_path):
    with pytest.raises(ValueError, match='which has no files'): folder_dls(tmp_path)
    pictures(tmp_path/'p')
    table = pd.DataFrame(dict(file=[f'{i}.png' for i in range(12)], label=['a','b']*6))
    with pytest.raises(ValueError, match="cols must be two columns.*'label'"): folder_dls(tmp_path/'p', 32, labels=table, cols='label')

def test_one_command_does_not_replace_what_another_wrote(tmp_path):
    (tmp_path/'training.json').write_text('{}')
    (tmp_path/'metrics.csv').write_text('old')
    with pytest.raises(ValueError, match='holds a pretraining'): ssl_finetune('digits', tmp_path/'e.safetensors', out=tmp_path)
    assert (tmp_path/'metrics.csv').read_text() == 'old'

# images of other channels, drawn

@pytest.mark.parametrize('c', [2,4,5])
def test_pictures_of_any_channels(c):
    "Every picture shows the first three channels, or the first alone"
    x = torch.rand(30, c, 16, 16)
    dls = image_dls(x, [0,1]*15, bs=8, device='cpu')
    encoder = create_encoder('test_resnet', False, c)
    z,y = get_features(encoder, dls.valid, size=16, stats=([0.]*c,[1.]*c))
    held,drawn = x[:len(z)],[]
    learn = Learner(dls, create_simclr_model(encoder), cbs=SimCLR(get_simclr_aug_pipelines(16, jitter=False, bw=False, stats=None)))
    for f in (dls.show_batch, lambda: learn.sim_clr.show(n=2), lambda: show_nearest(dls.valid_ds, z, 2, 2), lambda: show_nearest(held, z, 2, 2),
              lambda: plot_map(z, images=(held*255).byte()), lambda: show_hard_negatives(learn, n=2), lambda: show_activations(learn, held[:2]),
              lambda: show_found(find_outliers(z, k=3), held), lambda: classifier_learner(encoder, dls).show_results()):
        plt.close('all')
        f()
        plt.gcf().canvas.draw()
        drawn += [np.shape(im.get_array()) for ax in plt.gcf().axes for im in ax.images]
    assert len(drawn) > 50 and {s[2] if len(s) == 3 else 1 for s in drawn} == ({1} if c == 2 else {1,3})    # maps have one

def test_texts_are_shown_with_their_images(tmp_path):
    files = [f'{i}.png' for i in range(12)]
    for i,f in enumerate(files): PIL.Image.fromarray((image(i).permute(1, 2, 0)*255).byte().numpy()).save(tmp_path/f)
    dls = captioned_dls(tmp_path, pd.DataFrame(dict(file=files, text=[f'Photo of thing {i}' for i in range(12)])), size=16, bs=4, num_workers=0)
    plt.close('all')
    dls.show_batch()
    titles = [ax.get_title() for ax in plt.gcf().axes if ax.images]
    assert len(plt.get_fignums()) == 1 and len(titles) == 4 and all(re.fullmatch(r'photo of thing \d+', o) for o in titles)

# models of others

@pytest.mark.parametrize('norm', [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize('name', TEACHERS)
@pytest.mark.filterwarnings('ignore')
def test_normalised_weights_under_a_teacher(name, norm):
    "Which are computed from others: the teacher computes its own"
    model = METHODS[name].model(create_encoder('test_resnet', False))
    layer,lin = [(n,m) for n,m in model.named_modules() if n.startswith('projector') and isinstance(m, torch.nn.Linear)][-1]
    model.set_submodule(layer, norm(torch.nn.Linear(lin.in_features, lin.out_features)))
    model.projector.train()(torch.rand(4, model.encoder.nf))                        # as one does who looks whether it works
    learn = fit(make(name, model=model))
    z = torch.rand(4, model.encoder.nf)
    student,teacher = learn.model.projector.eval(),learn.model.encoder_k.module.projector.eval()
    assert teacher(z).isfinite().all() and not torch.equal(teacher(z), student(z))
    teacher.load_state_dict(student.state_dict())
    assert torch.equal(teacher(z), student(z))                                      # nothing of it is kept elsewhere

class OfVectors(torch.nn.Module):
    "Takes images of one size alone"
    def __init__(self, c, size, nf=16):
        super().__init__()
        self.f = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(c*size*size, nf))
    def forward(self, x): return self.f(x)

@pytest.mark.parametrize('encoder,c', [(OfVectors(1, 32), 1), (OfVectors(3, 32), 3), (torch.nn.Sequential(torch.nn.GroupNorm(1, 5), torch.nn.Conv2d(5, 16, 3), torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten()), 5)])
@each
def test_encoders_of_other_images(name, encoder, c):
    "Their width is found by images that they take"
    assert encoder_nf(METHODS[name].model(encoder).encoder) == 16

def test_an_encoder_whose_width_cannot_be_found():
    encoder = OfVectors(3, 17)
    with pytest.raises(ValueError, match=r'encoder\.nf ='): create_simclr_model(encoder)
    encoder.nf = 16
    learn = fit(Learner(make_dls(), create_simclr_model(encoder), cbs=SimCLR(get_simclr_aug_pipelines(17))))
    assert get_features(learn)[0].shape == (12,16) and len(evaluate(learn, labels=(1,), Cs=(1.,)).df)

# tables, names and numbers

@pytest.mark.parametrize('encoding', ['cp1252','utf-16','utf-8-sig'])
@pytest.mark.parametrize('sep', [',',';','\t'])
@pytest.mark.filterwarnings('ignore:table')
def test_tables_of_other_systems(encoding, sep, tmp_path):
    pictures(tmp_path/'p')
    lines = [f'file{sep}label', *[f'{i}.png{sep}Größe {i%2}' for i in range(12)]]
    (tmp_path/'t.csv').write_bytes('\r\n'.join(lines).encode(encoding))
    assert list(folder_dls(tmp_path/'p', 32, labels=tmp_path/'t.csv', bs=2).vocab) == ['Größe 0','Größe 1']

@pytest.mark.parametrize('text,why', [('', 'is empty'), ('file,label\n', 'no rows')])
def test_tables_without_rows(text, why, tmp_path):
    pictures(tmp_path/'p')
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(ValueError, match=why): folder_dls(tmp_path/'p', 32, labels=tmp_path/'t.csv')

@pytest.mark.parametrize('args,name', [(dict(lr=0.), 'lr'), (dict(lr=-1.), 'lr'), (dict(lr=math.nan), 'lr'), (dict(size=0), 'size'), (dict(size=-4), 'size'),
                                       (dict(epochs=0), 'epochs'), (dict(bs=0), 'bs'), (dict(every=0), 'every'), (dict(set=['n_epoch=0']), 'n_epoch'),
                                       (dict(set=['temp=abc']), 'temp'), (dict(set=['temp=0']), 'temp'), (dict(set=['lr_max=1e999']), 'lr_max')])
@pytest.mark.parametrize('dry_run', [True,False])
def test_numbers_that_cannot_be(args, name, dry_run, tmp_path):
    "Are refused by a dry run, too, and leave nothing behind"
    with pytest.raises((ValueError,TypeError), match=name): ssl_pretrain('digits', out=tmp_path/'o', arch='test_resnet', dry_run=dry_run, **args)
    assert not (tmp_path/'o').exists()

def test_class_names_are_no_formulas(tmp_path):
    names = ['$x_', 'a $ and $ b', '_x', r'$\frac']
    z,ys = torch.randn(40, 8),[names[i%4] for i in range(40)]
    ax = plot_map(z, ys)
    assert [o.get_text().replace(r'\$', '$') for o in ax.get_legend().get_texts()] == sorted(names)
    show_nearest(torch.rand(40, 3, 8, 8), z, 2, 2, labels=ys)
    for n in plt.get_fignums(): plt.figure(n).savefig(tmp_path/'x.png')                          # where formulas are set
    plt.close('all')

def test_k_of_one_is_said():
    knn = KNN(k=5)
    with pytest.warns(UserWarning, match='k is 1'): knn.figure(torch.randn(5, 4), torch.tensor([0,0,0,0,1]), torch.randn(3, 4), torch.tensor([0,1,0]))

def test_a_report_without_images_held_out(tmp_path):
    ds = Datasets(range(24), [[image],[lambda i: 'ab'[i%2], Categorize()]], splits=[list(range(24)),[]])
    learn = fit(make('sim_clr', ds.dataloaders(bs=8, num_workers=0, device='cpu')))
    page = learn.report(tmp_path/'r.html').read_text()
    assert 'Map of training images' in page and '0 for validation' in page and 'cannot be drawn' not in page
    with pytest.raises(ValueError, match='no validation images'): get_features(learn)
    with pytest.raises(ValueError, match='no loader for validation'): make('sim_clr', DataLoaders(make_dls().train))

@pytest.mark.parametrize('suffix', ['parquet','npz'])
def test_a_table_that_cannot_be_written(suffix, tmp_path, monkeypatch):
    "Leaves the one that was there"
    files = sorted(pictures(tmp_path/'p').iterdir())
    encoder,to = create_encoder('test_resnet', False),tmp_path/f'f.{suffix}'
    embed(encoder, files, to, size=16)
    before = to.read_bytes()
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez', full); monkeypatch.setattr(pd.DataFrame, 'to_parquet', full)
    with pytest.raises(OSError, match='what was there before still is'): embed(encoder, files[:3], to, size=16)
    assert to.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match='to: nothing can be written'): embed(encoder, files, files[0]/'x.npz', size=16)

def test_names_within_the_folder(tmp_path):
    "What ssl_embed writes is joined with a table of labels"
    for k in 'ab': pictures(tmp_path/'p'/k)
    save_encoder(create_encoder('test_resnet', False), tmp_path/'e.safetensors', size=16)
    ssl_embed(str(tmp_path/'p'), tmp_path/'e.safetensors', tmp_path/'f.parquet')
    table = pd.DataFrame(dict(file=[f'{k}/{i}.png' for k in 'ab' for i in range(12)], label=list('ab')*12))
    assert len(pd.read_parquet(tmp_path/'f.parquet').merge(table)) == 24

def test_views_are_no_images_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(pictures(tmp_path/'p'))
    before = sorted(Path('.').iterdir())
    ssl_views('.', size=16, n=2)
    assert sorted(Path('.').iterdir()) == before and (tmp_path/'views.png').exists()
    with pytest.raises(ValueError, match='would be one of the images'): ssl_views('.', size=16, n=2, out=Path('v.png'))

@pytest.mark.parametrize('text', ['', '{', '[]', '{"asked":1,"bf16":false}', '{"bf16":true}'])
def test_a_damaged_note(text, tmp_path):
    (tmp_path/'training.json').write_text(text)
    with pytest.raises(ValueError, match='training.json.*is damaged: remove it'): read_asked(tmp_path/'training.json')

class Narrow(io.StringIO):
    "A reader that goes away after a line"
    def write(self, s):
        if '\n' in self.getvalue(): raise BrokenPipeError
        return super().write(s)

def test_output_that_nobody_reads(monkeypatch):
    narrow = Narrow()
    monkeypatch.setattr(sys, 'stdout', narrow); monkeypatch.setattr(sys, 'stderr', None)
    unbreakable_output()
    for i in range(5): print('±', i)
    print('closed', file=sys.stderr)
    said = narrow.getvalue()
    monkeypatch.undo()
    assert said == '± 0\n'

@pytest.mark.parametrize('how', range(1, 9))
@pytest.mark.parametrize('kind', ['grey','colour','signed'])
def test_deep_tiffs_stand_upright(kind, how, tmp_path):
    "As Pillow turns arrays: it scrambles such files itself, those of 8 bits too"
    a = np.random.default_rng(0).integers(0, 256, (20, 30, 3) if kind == 'colour' else (20, 30), dtype=np.uint8)
    T = PIL.Image.Transpose
    turn = {2:T.FLIP_LEFT_RIGHT, 3:T.ROTATE_180, 4:T.FLIP_TOP_BOTTOM, 5:T.TRANSPOSE, 6:T.ROTATE_270, 7:T.TRANSVERSE, 8:T.ROTATE_90}.get(how)
    want = np.asarray(PIL.Image.fromarray(a).transpose(turn) if turn is not None else a).astype(int)
    for values,white in ((a.astype(np.int16 if kind == 'signed' else np.uint16)*100,25500.), (a,None), (a,4095)):
        tifffile.imwrite(tmp_path/'x.tif', values, extratags=[(274, 'H', 1, how, True)])
        got = np.asarray(read_image(tmp_path/'x.tif', n_in=3 if kind == 'colour' else 1, white=white))
        assert got.shape == want.shape and np.abs(got-want).max() <= 1

@pytest.mark.filterwarnings('ignore')
def test_what_values_mean(tmp_path):
    "White at 0, transparent, of 32 bits, and none at all"
    f = tmp_path/'x.tif'
    def read(a, white=None, **kw):
        tifffile.imwrite(f, a, **kw)
        return np.asarray(read_image(f, n_in=3 if a.ndim == 3 else 1, white=white))
    a = np.full((8, 8), 65535, np.uint16)
    assert read(a, photometric='miniswhite').max() == 0 and read(a, photometric='minisblack').min() == 255
    assert read(np.full((8, 8), 2**32-1, np.uint32), 2.**32-1).min() == 255
    rgba = np.zeros((8, 8, 4), np.uint16); rgba[:4,:,3] = 65535
    assert read(rgba, photometric='rgb', extrasamples=['unassalpha'])[[0,-1]].tolist() == [[[0]*3]*8, [[255]*3]*8]
    none = np.ones((8, 8), np.float32); none[0,0] = np.nan
    with pytest.warns(UserWarning, match='2% of the values.*are NaN'):
        tifffile.imwrite(f, none); ReadImage(8, n_in=1).encodes(f)
    assert read(none)[0,0] == 0 and read(none)[1,1] == 255

@pytest.mark.parametrize('kinds', [(np.uint16,np.int16), (np.float32,np.uint16)])
def test_each_kind_of_values_is_named(kinds, tmp_path):
    for i,k in enumerate(kinds): tifffile.imwrite(tmp_path/f'{i}.tif', (np.arange(400).reshape(20, 20)*50).astype(k))
    reader = ReadImage(16, n_in=1, white=(0.,1000.))
    with pytest.warns(UserWarning) as told: [reader.encodes(o) for o in sorted(tmp_path.iterdir())]
    assert sum('are clipped' in str(o.message) for o in told) == 2

def test_texts_without_words_are_none(tmp_path):
    files = sorted(pictures(tmp_path/'p').iterdir())
    with pytest.warns(UserWarning, match="3 of 12 images have none"):
        found = image_texts(files, tmp_path/'p', lambda f: {'0.png':'???', '1.png':'\N{GRINNING FACE}', '2.png':''}.get(f.name, f'a {f.stem}'))
    assert len(found) == 9
    with pytest.raises(ValueError, match="list of one or more texts, got 'a blob'"): embed_texts(fitted('clip'), 'a blob')

@pytest.mark.parametrize('valid', ['0','1.5','-1','nan'])
def test_shares_that_cannot_be(valid):
    with pytest.raises(ValueError, match='a share must be between 0 and 1'): ssl_pretrain('.', valid=valid, dry_run=True)

def test_a_held_out_image_that_is_broken_in_its_middle(tmp_path):
    "Without a cache it would be found when figures need it: it is left out at once, and a training image when its turn comes"
    for k in ('train','valid'): pictures(tmp_path/'p'/k)
    for k in ('train','valid'):
        f = tmp_path/'p'/k/'3.png'
        raw = bytearray(f.read_bytes()); raw[300:400] = bytes(100); f.write_bytes(raw)
    with pytest.warns(UserWarning, match=r'1 of 12 files cannot be read and are left out: \S*valid/3\.png'):
        dls = folder_dls(tmp_path/'p', 16, labels=lambda f: 'ab'[int(f.stem)%2], valid='valid', bs=4, num_workers=0)
    learn = make('sim_clr', dls, size=16)
    with pytest.warns(UserWarning, match='train/3.png cannot be read and is skipped'): fit(learn)
    assert len(get_features(learn)[0]) == 11 and list(dls.left_out) == [tmp_path/'p'/'valid'/'3.png']
    assert 'cannot be drawn' not in learn.report(tmp_path/'r.html', evaluation=False).read_text()

def test_a_terminal_that_hangs_up():
    "Ends a command as SIGTERM does, unless it was begun with nohup"
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as e:
            with stopping('Again.'): signal.raise_signal(signal.SIGHUP)
        assert e.value.code == 128+signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stopping('Again.'): signal.raise_signal(signal.SIGHUP)
    finally: signal.signal(signal.SIGHUP, old)

def test_a_folder_that_gained_an_image(tmp_path):
    (tmp_path/'encoder.safetensors').touch()
    note_asked(tmp_path/'training.json', dict(images=12), 'fp32')
    with pytest.raises(ValueError, match='images 12, and now it is 13.*another out'): check_asked(tmp_path/'training.json', dict(images=13))
