"The command line, as somebody uses it in their first hour: on their own photographs, with Ctrl-C in the middle, with mistakes, in a log."
import inspect, math, os, pty, re, shlex, shutil, signal, subprocess, sys, warnings
from html import unescape
from pathlib import Path

import numpy as np, pandas as pd, PIL.Image, pytest, timm, torch, warm
from safetensors.torch import load_file
from self_supervised import cli, start
from self_supervised.training import pretraining
from pretended_gpus import on_gpus
from shelf import TIMM, no_network, shelf
from self_supervised.callback import methods
from self_supervised.cli import parse_settings, ssl_pretrain
from self_supervised.training.pretraining import change_settings, pretrain, read_images
from self_supervised.layers import new_encoder
from self_supervised.training.settings import Suggestion, few_images_why
from self_supervised.vision.all import Callback, NormalizeViews, SSLCallback, TensorImageBW, load_encoder, read_image, sample_photos

bin_ = Path(sys.executable).parent
small = '--arch test_resnet --size 32 --bs 16 --precision fp32 --no-report'.split()

def run(*args, code=0):
    "The process of a command that has ended with `code`"
    p = warm.Process(warm.command, *args)
    assert p.wait() == code, p.err[-2000:] + p.out[-2000:]
    return p

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Small photographs, with what such folders hold besides"
    d = sample_photos(tmp_path_factory.mktemp('cli')/'photos', n=6, size=48)
    (d/'train'/'notes.jpg').write_text('not an image')
    (d/'read me.txt').write_text('hello')
    return d

@pytest.fixture(scope='module')
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('cli_out')/'simclr'
    r = run('ssl_pretrain', photos, '--out', out, '--epochs', 3, '--valid', 'valid', *small)
    return out,r

def interrupt(args, sig):
    "Start the command, send the signal when the table has a row, and wait"
    p = warm.Process(warm.command, 'ssl_pretrain', *args)
    p.until(lambda: has_row(p.out))
    p.signal(sig)
    return p.wait(120),p.out,p.err

def has_row(said): return re.search(r'^ *epoch .*\n(.*\n)* +0  ', said, re.M)

def table(out): return pd.read_csv(out/'metrics.csv').drop(columns='time', errors='ignore')

def test_pretrain(trained, photos):
    "What was trained with, why, the table in lines, and the files"
    out,r = trained
    assert re.search(r'simclr on \d+ images', r.out) and 'temp' in r.out and '(paper 2002.05709' in r.out
    assert '\r' not in r.out and re.search(r'^ +epoch +train_loss', r.out, re.M) and len(re.findall(r'^ +[012]  +\d', r.out, re.M)) == 3
    assert r.err.count('\n') <= 3 and 'notes.jpg' in r.err and 'Traceback' not in r.err
    assert len(table(out)) == 3 and table(out).notna().all().all()
    assert {'encoder.safetensors','metrics.csv','training.json','checkpoints'} <= {o.name for o in out.iterdir()}
    again = run('ssl_pretrain', photos, '--out', out, '--epochs', 3, '--valid', 'valid', *small)
    assert 'is finished' in again.out and 'train_loss' not in again.out

def test_plain_timm(trained):
    "The file is one of timm's, without this library"
    enc = timm.create_model('test_resnet', pretrained=False, num_classes=0)
    enc.conv1[0].stride,enc.maxpool = (1,1),torch.nn.Identity()                     # the small stem, which 32 pixels get
    enc.load_state_dict(load_file(trained[0]/'encoder.safetensors'))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(enc.eval()(x), load_encoder(trained[0]/'encoder.safetensors').eval()(x))

@pytest.mark.parametrize('arch,groups', [('test_resnet',None),('xresnet18',2)])
def test_going_on_from_a_file(arch, groups, photos, tmp_path):
    "The layers of an encoder that has learned before get smaller rates, however it names them; --lr is for all of them"
    f = cli.save_encoder(cli.create_encoder(arch, False), tmp_path/'e.safetensors')
    args = dict(epochs=1, size=32, bs=16, precision='fp32', report=False, encoder=f)
    learn = ssl_pretrain(photos, out=tmp_path/'a', **args)
    lrs = [o['lr'] for o in learn.opt.hypers]
    assert len(lrs) == groups if groups else len(lrs) > 4
    assert math.isclose(lrs[-1], 10*lrs[0], rel_tol=1e-6) and sorted(lrs) == lrs
    learn = ssl_pretrain(photos, out=tmp_path/'b', lr=1e-3, **args)
    assert len({o['lr'] for o in learn.opt.hypers}) == 1

def test_what_a_paper_does_in_a_fit(photos, tmp_path):
    "Weight decay of DINO rises, from what is asked for"
    learn = ssl_pretrain(photos, out=tmp_path/'a', method='dino', arch='vit_tiny_patch16_224', arch_set=['img_size=32','depth=1'], size=32,
                         epochs=1, bs=16, set=['wd=.1'], precision='fp32', report=False)
    wd = learn.recorder.hps['wd']
    assert wd[0] == .1 and wd[-1] > .3

def test_stopped_and_continued(trained, photos, tmp_path):
    "Ctrl-C, then SIGTERM, then the same command again: the same table and weights as without"
    out = tmp_path/'simclr'
    args = [photos, '--out', out, '--epochs', 3, '--valid', 'valid', *small]
    for sig,code in ((signal.SIGINT,130), (signal.SIGTERM,143)):
        rc,_,err = interrupt(args, sig)
        assert rc == code and 'same again to go on' in err and 'Traceback' not in err and not (out/'encoder.safetensors').exists()
    assert re.search(r'Going on from epoch \d, batch \d', run('ssl_pretrain', *args).out)
    pd.testing.assert_frame_equal(table(out), table(trained[0]))
    a,b = (load_file(o/'encoder.safetensors') for o in (out, trained[0]))
    assert all(torch.equal(a[k], b[k]) for k in b)

class Interrupts(Callback):
    def after_batch(self):
        if self.training and self.iter == 2: signal.raise_signal(signal.SIGINT)

def test_an_interrupted_cell(tmp_path, monkeypatch, capsys):
    "In Python, too, there is a checkpoint first; the same call goes on, and signals mean what they did before"
    args,real = dict(out=tmp_path/'o', arch='test_resnet', epochs=1, bs=256, precision='fp32', report=False),pretraining.pretraining_learner
    with monkeypatch.context() as m:
        m.setattr(pretraining, 'pretraining_learner', lambda *a, **kw: real(*a, **kw).add_cb(Interrupts()))
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt): pretrain('digits', **args)
    assert signal.getsignal(signal.SIGINT) is before and 'Stopping' in capsys.readouterr().err
    pretrain('digits', **args)
    assert 'Going on from epoch 0, batch 3' in capsys.readouterr().out and (tmp_path/'o'/'encoder.safetensors').exists()

def tree(d): return {o.relative_to(d): (o.stat().st_mtime_ns, o.is_file() and o.read_bytes()) for o in d.rglob('*')}

@pytest.fixture
def tiny(tmp_path):
    "Images of 20 × 24 pixels"
    (tmp_path/'tiny').mkdir()
    for i in range(20): PIL.Image.new('RGB', (24,20), (i*9,0,99)).save(tmp_path/'tiny'/f'{i:02}.png')
    return tmp_path/'tiny'

def test_dry_run_writes_nothing(tiny, tmp_path, typed, monkeypatch):
    "Neither decoded images nor folders, and asks no network for weights; it says all the same, what the files hold and that they are few"
    asked = []
    monkeypatch.setattr(pretraining, 'new_encoder', lambda arch, pretrained, *a, **kw: asked.append(pretrained) or new_encoder(arch, False, *a, **kw))
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    said = typed('ssl_pretrain', tiny, '--arch', 'resnet10t', '--dry-run')
    assert 'size 20: the files have 20 pixels' in said and '16 images' in said and 'resnet10t, 20 pixels, 8 images per batch' in said and few_images_why in said
    said = typed('ssl_pretrain', tiny, '--arch', 'resnet10t', '--dry-run', '--pretrained', '--cache', tmp_path/'c')
    assert '16 images' in said and few_images_why not in said and 'stats' in said
    assert tree(tmp_path) == before and not any(asked)

def test_views_as_large_as_the_files(tiny, tmp_path, typed):
    "Multiples of a transformer's patch; what is asked for stays, and is said once; images are read no larger than they are"
    assert 'size 16: the files have 20 pixels on their shorter side (the median), and the encoder patches of 16' in typed(
        'ssl_pretrain', tiny, '--arch', 'vit_tiny_patch16_224', '--arch-set', 'depth=1', '--dry-run')
    with pytest.warns(UserWarning, match='images of 48 × 48 pixels.*shorter side has 20') as told: said = ssl_pretrain(tiny, size=48, arch='resnet10t', dry_run=True)
    assert len(told) == 1
    assert [read_images(tiny, o, 4).one_batch()[0].shape[-1] for o in (16,18)] == [20,20]
    assert 'size 20' in typed('ssl_views', tiny, '--out', tmp_path/'v.png', '--n', 2)

def test_a_training_stays_with_its_size(tiny, tmp_path, typed):
    "Also when its files have become larger, or the size is given now"
    args = ['ssl_pretrain', tiny, '--out', tmp_path/'o', '--arch', 'resnet10t', '--epochs', 1, '--precision', 'fp32', '--no-report', '--no-cache']
    typed(*args)
    (tmp_path/'o'/'encoder.safetensors').unlink()                                 # as if it had been stopped
    for f in tiny.iterdir(): PIL.Image.open(f).resize((300,300)).save(f)
    said = typed(*args)
    assert 'Going on' in said and 'resnet10t, 20 pixels, 8 images per batch' in said
    assert 'is finished' in typed(*args) and 'is finished' in typed(*args, '--size', 20)
    with pytest.raises(ValueError, match='with size 20, and now it is 32'): ssl_pretrain(tiny, out=tmp_path/'o', size=32, arch='resnet10t', epochs=1, precision='fp32', report=False)

def test_another_training_is_not_overwritten(trained, photos):
    out,_ = trained
    before = (out/'encoder.safetensors').read_bytes()
    r = run('ssl_pretrain', photos, '--out', out, '--epochs', 4, '--valid', 'valid', *small, code=1)
    assert r.err.count('\n') == 1 and 'epochs 3' in r.err and 'another out' in r.err
    assert (out/'encoder.safetensors').read_bytes() == before

def test_on_a_terminal(photos, tmp_path):
    "A bar that is drawn over, by the script that is installed"
    parent,child = pty.openpty()
    args = ['digits', '--epochs', 1, '--bs', 256, '--out', tmp_path/'o', '--precision', 'fp32', '--no-report', '--arch', 'test_resnet', '--stem', 'usual']
    p = subprocess.Popen([bin_/'ssl_pretrain', *map(str, args)], stdout=child, stderr=subprocess.PIPE)
    os.close(child)
    text = b''
    while True:
        try: o = os.read(parent, 10000)
        except OSError: break
        if not o: break
        text += o
    assert p.wait(60) == 0 and b'\r' in text and b'%' in text and b'train_loss' in text

@pytest.fixture
def typed(monkeypatch, capsys):
    "As on the command line, in this process; what was printed"
    def f(name, *args):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        for o in ('NO_BAR','print'): monkeypatch.setattr(cli.fastprogress, o, getattr(cli.fastprogress, o, print), raising=False)
        with warnings.catch_warnings():
            monkeypatch.setattr(warnings, 'formatwarning', warnings.formatwarning)
            start.run(name)
        return capsys.readouterr().out
    return f

def test_evaluate_embed_finetune_views(trained, photos, tmp_path, typed, no_network):
    "The rest of the first hour"
    enc = trained[0]/'encoder.safetensors'
    labelled = photos/'train'
    said = typed('ssl_evaluate', labelled, '--encoder', enc, '--beside', TIMM, '--out', tmp_path/'e', '--cache', tmp_path/'c')
    assert f'{TIMM}, as it is 160 × 160, enlarged from 48 × 48' in said and (tmp_path/'e'/'evaluation.html').exists()
    df = pd.read_csv(tmp_path/'e'/'evaluation.csv')
    assert df['mean'].between(0, 1).all() and df.features.unique().tolist() == ['raw pixels','untrained encoder',f'{TIMM}, as it is','simclr']
    assert df['mean'].between(0, 1).all() and len(df) > 5
    assert re.search(r'%.* of \d+ held-out images .* by the features of simclr \(95 %.*guessing the commonest class 6.2 %.', said.splitlines()[-1])
    said = typed('ssl_embed', photos, '--encoder', enc, '--out', tmp_path/'f.parquet')
    df = pd.read_parquet(tmp_path/'f.parquet')
    assert len(df) == 16*7 and df.shape[1] == 97 and f'{len(df)} images' in said
    said = typed('ssl_finetune', photos, '--encoder', enc, '--out', tmp_path/'clf', '--epochs', 4, '--bs', 32, '--valid', 'valid', '--labels', 'parent', '--cache', tmp_path/'c')
    assert 'from scratch' in said and (tmp_path/'clf'/'classifier.pkl').exists()
    df = pd.read_csv(tmp_path/'clf'/'results.csv', index_col=0).accuracy
    assert list(df.index) == ['this encoder','from scratch'] and df.between(0, 1).all()
    last = said.splitlines()[-1]
    assert last.startswith(f"{100*df['this encoder']:.1f} % of 16 held-out images") and 'learned from 96 labelled ones of 16 classes' in last
    assert f"the same from scratch {100*df['from scratch']:.1f} %, guessing the commonest class 6.2 %." in last
    assert ('no better than' if df['this encoder'] <= max(df['from scratch'], 1/16) else 'cannot tell it from' if df['this encoder'] < .5 else '') in last
    typed('ssl_views', photos, '--method', 'swav', '--size', 48, '--set', 'n_small=2', '--out', tmp_path/'v.png', '--n', 2)
    assert (tmp_path/'v.png').read_bytes()[:4] == b'\x89PNG'

def test_few_images_of_12_bits(tmp_path, typed):
    "A microscope's files in 16 bits, fewer than a batch: dark until `--white` says what is white, which the encoder file remembers"
    rng = np.random.default_rng(0)
    (tmp_path/'slides').mkdir()
    for i in range(30): PIL.Image.fromarray(rng.integers(0, 4096, (40,40), dtype=np.uint16)).save(tmp_path/'slides'/f'{i}.png')
    args = [tmp_path/'slides', '--epochs', 1, '--arch', 'resnet10t', '--stem', 'usual', '--size', 32, '--precision', 'fp32', '--no-report', '--no-cache', '--n-in', 1]
    said = typed('ssl_pretrain', *args, '--out', tmp_path/'dark')
    assert 'dark images' in said and '--white 4095' in said and '24 images' in said
    said = typed('ssl_pretrain', *args, '--white', 4095, '--out', tmp_path/'a')
    assert 'dark images' not in said
    enc = load_encoder(tmp_path/'a'/'encoder.safetensors')
    assert enc.info['reading'] == dict(method='crop', white=4095)
    typed('ssl_embed', tmp_path/'slides', '--encoder', tmp_path/'a'/'encoder.safetensors', '--out', tmp_path/'f.parquet')
    df = pd.read_parquet(tmp_path/'f.parquet').set_index('file')
    f = tmp_path/'slides'/'0.png'
    im = TensorImageBW(torch.from_numpy(np.array(read_image(f, 32, n_in=1, white=4095)))[None,None])
    x = NormalizeViews.from_stats(*enc.info['stats'], cuda=False)(im.float()/255)
    torch.testing.assert_close(torch.tensor(df.loc[f.name].to_numpy()), enc.eval()(x.as_subclass(torch.Tensor))[0], atol=1e-5, rtol=1e-4, check_dtype=False)
    typed('ssl_views', tmp_path/'slides', '--white', 4095, '--n-in', 1, '--size', 32, '--out', tmp_path/'v.png')

def test_a_table_of_few_labels(trained, photos, tmp_path, typed):
    "SupCon mixes labelled and unlabelled images by itself; the report has an evaluation, with the encoder that it began with, and the command that repeats all"
    files = sorted((photos/'train').rglob('[0-9]*.jpg'))
    rows = [(f.relative_to(photos).as_posix(), f.parent.name) for f in files if int(f.stem) < 3] + \
           [(f.relative_to(photos).as_posix(), f.parent.name) for f in sorted((photos/'valid').rglob('*.jpg'))]
    pd.DataFrame(rows, columns=['file','what']).to_csv(tmp_path/'l.csv', index=False)
    said = typed('ssl_pretrain', photos, '--method', 'supcon', '--labels', tmp_path/'l.csv', '--cols', 'file,what', '--valid', 'valid', '--epochs', 2,
            '--encoder', trained[0]/'encoder.safetensors', '--size', 32, '--bs', 16, '--out', tmp_path/'o', '--set', 'temp=.3', 'reg_lambda=2')
    assert re.search(r'temp +0.3 +as asked', said) and 'raw pixels' in said
    page = (tmp_path/'o'/'report.html').read_text()
    assert 'SupCon' in page and 'raw pixels' in page and 'simclr, as it is' in page and 'knn' in table(tmp_path/'o')
    code = unescape(re.search('<pre[^>]*><code>(.*?)</code>', page, re.S)[1]).replace('\\\n', '')
    assert all(o in code for o in ('--seed 0','--method supcon','--encoder','temp=0.3','hidden_size'))
    name,*args = shlex.split(code)
    typed(name, *args, '--no-report', '--out', tmp_path/'again')
    a,b = (load_file(tmp_path/o/'encoder.safetensors') for o in ('o','again'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def test_processes(tmp_path):
    "Two of them, stopped by Ctrl-C and continued, write one table and one encoder"
    def start(out):
        args = ['digits', '--epochs', 2, '--bs', 256, '--out', out, '--arch', 'test_resnet', '--stem', 'usual', '--no-report', '--precision', 'fp32']
        return warm.start_group(on_gpus, warm.command, 'ssl_pretrain', *args)
    a,b = start(tmp_path/'b')
    a.until(lambda: has_row(a.out))
    for p in (a, b): p.signal(signal.SIGINT)
    assert a.wait(120) and b.wait(120) and 'same again to go on' in a.err and not (tmp_path/'b'/'encoder.safetensors').exists()
    assert ''.join(p.done() for p in start(tmp_path/'b')).count('train_loss') == 1
    assert len(table(tmp_path/'b')) == 2 and (tmp_path/'b'/'encoder.safetensors').exists()

@pytest.mark.parametrize('args,said', [
    (dict(path='nowhere'), "no folder 'nowhere'"),
    (dict(set=['tmp=.1']), "simclr has no such setting (did you mean temp?)"),
    (dict(set=['temp']), "NAME=VALUE"),
    (dict(labels='parent'), 'labels'),
    (dict(bs=1000), 'bs'),
    (dict(arch='resnet99'), 'resnet99'),
    (dict(path='PHOTOS', method='supcon'), "'parent' or a table"),
    (dict(path='PHOTOS', labels='nowhere.csv'), 'nowhere.csv'),
    (dict(path='PHOTOS', n_labels=5), 'n_labels'),
    (dict(path='PHOTOS', bs=16, encoder='PHOTOS/read me.txt'), 'safetensors'),
    (dict(share=.5), 'no unlabelled images'),
    (dict(n_labels=5, share=1.5), 'between 0 and 1'),
    (dict(path='PHOTOS', cols='file,what'), 'labels, a table'),
    (dict(encoder='ENCODER'), 'n_in=3'),
    (dict(path='PHOTOS', encoder='ENCODER', pretrained=True), 'leave out pretrained'),
    (dict(set=['temp=-1']), 'temp')])
def test_mistakes(photos, trained, tmp_path, args, said):
    "They say what to change, and nothing is left that would be in the way of the right command"
    here = dict(PHOTOS=photos, ENCODER=trained[0]/'encoder.safetensors')
    for o in here: args = {k:v.replace(o, str(here[o])) if isinstance(v, str) else v for k,v in args.items()}
    with pytest.raises((ValueError,TypeError), match=re.escape(said)): ssl_pretrain(**{'path':'digits', **args}, out=tmp_path/'o', no_cache=True)
    assert not (tmp_path/'o').exists()

def test_right_after_wrong(tmp_path, typed):
    "A command that failed after all had been made ready does not stand in the way; settings may be given one by one"
    args = ['digits', '--out', tmp_path/'o', '--arch', 'resnet10t', '--stem', 'usual', '--epochs', 1, '--bs', 256, '--no-report', '--precision', 'fp32']
    with pytest.raises(ValueError, match='every'): ssl_pretrain('digits', out=tmp_path/'o', arch='resnet10t', epochs=1, bs=256, every=0, precision='fp32')
    said = typed('ssl_pretrain', *args, '--set', 'temp=.3', '--set', 'hidden_size=64')
    assert all(re.search(o, said) for o in (r'temp +0.3 +as asked', r'hidden_size +64 +as asked'))

def test_held_out_as_in_training(trained, photos, tmp_path, typed):
    "Encoders are tested on what their training held out; those that are called alike keep their names apart"
    f = trained[0]/'encoder.safetensors'
    assert cli._split(str(photos), [f], None, 7) == ('valid',0) and cli._split('digits', [f], None, 7) == (None,7)
    for o in 'ab': shutil.copy(f, tmp_path/f'{o}.safetensors')
    said = typed('ssl_evaluate', photos, '--encoder', tmp_path/'a.safetensors', tmp_path/'b.safetensors', '--valid', 'valid', '--cache', tmp_path/'c')
    assert 'a.safetensors' in said and 'b.safetensors' in said and 'raw pixels' in said
    assert all(f'by the features of {tmp_path/o}.safetensors' in line for o,line in zip('ab', said.splitlines()[-2:]))

def test_folders_named_by_numbers(photos, tmp_path):
    shutil.copytree(photos/'train', tmp_path/'p'/'2018'); shutil.copytree(photos/'valid', tmp_path/'p'/'2019')
    dls = read_images(tmp_path/'p', 32, 8, valid='2019')
    assert len(dls.valid_ds) == 16 and len(dls.train_ds) == 96

def test_from_scratch(photos):
    "All layers at the full rate, for as many epochs as head and fine-tuning take together"
    dls = read_images(photos, 32, 32, 'parent', valid='valid')
    learn = cli.train_classifier(cli.create_encoder('test_resnet', False), dls, 4, 3e-3, scratch=True)
    assert learn.n_epoch == 5 and abs(max(learn.recorder.lrs)-3e-3) < 2e-4 and {h['lr'] for h in learn.opt.hypers} == {learn.opt.hypers[0]['lr']}

def test_errors_are_a_line(tmp_path):
    line = run('ssl_pretrain', tmp_path/'nowhere', code=1).err
    assert line.count('\n') == 1 and line.startswith('ssl_pretrain: path: there is no folder')
    assert 'Traceback' in run('ssl_pretrain', tmp_path/'nowhere', '--debug', code=1).err

def test_off_the_shelf(photos, tmp_path, typed, no_network, capsys):
    "A name of timm is an encoder like others; without its weights there is one line, and nothing is written"
    said = typed('ssl_evaluate', photos, '--encoder', TIMM, '--valid', 'valid', '--cache', tmp_path/'c')
    assert re.search(rf'^{TIMM} ', said, re.M) and 'enlarged from 48 × 48' in said
    with pytest.raises(SystemExit) as e: typed('ssl_evaluate', photos, '--encoder', TIMM, '--beside', 'resnet18.a1_in1k', '--out', tmp_path/'o')
    err = capsys.readouterr().err
    assert e.value.code == 1 and err.count('\n') == 1 and err.startswith("ssl_evaluate: the weights of 'resnet18.a1_in1k' cannot be fetched")
    assert not (tmp_path/'o').exists()

def test_unknown_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['ssl_pretrain', 'digits', '--method', 'simclear'])
    with pytest.raises(SystemExit) as e: start.ssl_pretrain()
    assert e.value.code == 2 and 'simclr' in capsys.readouterr().err

@pytest.mark.parametrize('name', ['ssl_views','ssl_pretrain','ssl_distill','ssl_evaluate','ssl_embed','ssl_finetune'])
def test_help(name, monkeypatch, capsys):
    "An example, and a word on every option"
    monkeypatch.setattr(sys, 'argv', [name, '--help'])
    with pytest.raises(SystemExit) as e: getattr(start, name)()
    text = capsys.readouterr().out
    assert e.value.code == 0 and re.search(rf'^{name} \S+ .*', text, re.M) and '--debug' in text
    options = text[text.index('options:'):].split('\n  --')[1:]
    assert len(options) > 3 and not [o for o in options if len(re.findall(r'\w+', o)) < 3]

def test_every_method():
    for k,cb in methods.items():
        model = cb.create_model
        assert k == cb.__name__.lower() and issubclass(cb, SSLCallback)
        width = 'hidden_size' if 'hidden_size' in inspect.signature(model).parameters else 'projection_size'
        s = change_settings(Suggestion(), k, {width:7, 'lr_max':.1, 'resize_scale':(.5,1)})
        assert (s.model[width],s.fit.lr_max,s.views.resize_scale) == (7,.1,(.5,1))

def test_arguments_are_passed_on(monkeypatch):
    "What is typed arrives, and each argument is part of what a training is known by unless it may change"
    asked = []
    monkeypatch.setattr(pretraining, '_prepare', asked.append)
    typed = start.parser('ssl_pretrain', cli.described['ssl_pretrain']).parse_args('photos --method byol --bs 8 --white -1,2.5 --no-report --valid .3 --set m=.9 --arch-set depth=2'.split())
    cli.commands['ssl_pretrain'](**{k:v for k,v in vars(typed).items() if k != 'debug'})
    a,known = asked[0],inspect.signature(pretrain).parameters
    assert (a.path,a.method,a.bs,a.white,a.report,a.valid,a.settings,a.arch_set,a.epochs) == ('photos','byol',8,(-1,2.5),False,'.3',dict(m=.9),dict(depth=2),None)
    assert set(a) == {*known,'asked'} and set(a.asked) == set(known)-set(pretraining._free)|{'processes'}

def test_values(): assert parse_settings(['a=1','b=(.1,2)','c=None','d=all','e=x=y']) == dict(a=1, b=(.1,2), c=None, d='all', e='x=y')
