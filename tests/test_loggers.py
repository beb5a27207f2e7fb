"fastai's loggers and trackers with a pretraining learner, with the real libraries: what they write is read back."
import json
import struct
import warnings
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import pytest, torch, wandb, warm
from PIL import Image
from fastai.callback.tensorboard import TensorBoardCallback
from fastai.callback.wandb import WandbCallback
from fastai.vision.all import (Callback, CSVLogger, EarlyStoppingCallback, Learner, ReduceLROnPlateau, SaveModelCallback, accuracy, first,
                               ifnone, load_learner, noop, rank_distrib, set_seed, to_cpu)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record
from self_supervised.callback import SSLCallback
from self_supervised.training.checkpoint import Resumed
from self_supervised.training.loggers import LogViews, wandb_args
from self_supervised.vision.all import (KNN, SimCLR, SupCon, create_encoder, create_model, create_simclr_model, digits_dls, digits_views,
                                        get_features, get_simclr_aug_pipelines, image_dls, knn_accuracy, model_splitter)
from kit import make as make_method, make_dls, same, state
from pretended_gpus import on_gpus

def dls():
    "300 digits, three batches of 64 for training and two for validation"
    items = digits_dls().train_ds[:300]
    return image_dls(torch.stack([torch.Tensor(o[0]) for o in items]), [int(o[1]) for o in items], bs=64)

def make(*cbs, path, method=SimCLR, metrics=None):
    set_seed(0)
    augs = get_simclr_aug_pipelines(16, **digits_views)
    model = create_simclr_model(create_encoder('test_resnet', False, n_in=1), hidden_size=32)
    return Learner(dls(), model, cbs=[method(augs), *cbs], metrics=ifnone(metrics, [KNN()]), path=path)

def classifier(*cbs, path):
    set_seed(0)
    model = create_model('test_resnet', 10, n_in=1, pretrained=False, lin_ftrs=[], ps=0.)
    return Learner(dls(), model, splitter=model_splitter, cbs=list(cbs), metrics=accuracy, path=path)

def fit(learn, n=1, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3, **kw)
    return learn

def refused(learn, msg, **kw):
    "Raises before anything is trained, and leaves the learner as it was"
    before,lf,cbs = state(learn),learn.loss_func,{type(o) for o in learn.cbs}
    with pytest.raises(ValueError, match=msg): fit(learn, **kw)
    assert same(before, state(learn)) and learn.loss_func is lf and {type(o) for o in learn.cbs} == cbs and not getattr(learn.recorder, 'values', None)

def events(folder):
    log = EventAccumulator(str(folder), size_guidance={'images':0})
    log.Reload()
    return log
def curve(log, tag): return {o.step:o.value for o in log.Scalars(tag)}

@pytest.fixture(autouse=True)
def no_figures():
    "None of other tests'"
    plt.close('all')

@pytest.fixture
def run(tmp_path, monkeypatch):
    for k,v in dict(MODE='offline', DIR=str(tmp_path), SILENT='true', CONSOLE='off').items(): monkeypatch.setenv(f'WANDB_{k}', v)
    yield wandb.init(project='tests')
    wandb.teardown()

def records(run):
    "What the run wrote: records in LevelDB's log format, blocks of 32 kB, after 7 bytes"
    wandb.finish()
    wandb.teardown()                                                       # before which not all is on the disk
    raw,pos,part,res = first(Path(run.dir).parent.glob('*.wandb')).read_bytes(),7,b'',[]
    while pos+7 <= len(raw):
        if 2**15 - pos%2**15 < 7: pos += 2**15 - pos%2**15; continue
        n,kind = struct.unpack('<HB', raw[pos+4:pos+7])
        part,pos = part+raw[pos+7:pos+7+n],pos+7+n
        if kind in (1,4):
            res.append(Record.FromString(part)); part = b''
    assert res[-1].HasField('exit')
    return res
def history(run): return [{o.key or '/'.join(o.nested_key):json.loads(o.value_json) for o in r.history.item} for r in records(run) if r.HasField('history')]
def column(rows, key): return [o[key] for o in rows if key in o]

# Weights & Biases

@pytest.mark.parametrize('method', [SimCLR, partial(SupCon, unsup_class_id=None)])
def test_wandb_as_it_comes(run, tmp_path, method):
    "Settings, a point for each batch, the columns of each epoch; one warning about predictions, which come back after the fit"
    learn = make(WandbCallback(), path=tmp_path, method=method)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always'); fit(learn, 2)
    told = [str(o.message) for o in w if 'Wandb' in str(o.message)]
    assert len(told) == 1 and 'log_preds=False' in told[0]
    assert learn.wandb.log_preds and 'fetch_preds' not in [o.name for o in learn.cbs]
    config,values,cb = dict(run.config),learn.recorder.values,first(learn._grab_cbs(SSLCallback))
    assert config[type(cb).__name__]['temp'] == cb.temp and config['batch size'] == 64 and config['Learner']['lr'] == .001
    assert len(json.dumps(config)) < 5000                                  # a single list of the images takes more
    rows = history(run)
    assert len(column(rows, 'raw_loss')) == 2*len(learn.dls.train)
    assert column(rows, 'knn') == pytest.approx([o[-1] for o in values]) and column(rows, 'valid_loss') == pytest.approx([o[1] for o in values])

def test_wandb_of_a_classifier(run, tmp_path):
    "A learner without our callbacks has its settings and predictions"
    learn = fit(classifier(WandbCallback(n_preds=4), path=tmp_path), 1)
    assert run.config['Learner']['opt_func'] == 'fastai.optimizer.Adam' and 'dls' not in run.config['Learner']
    rows = history(run)
    assert column(rows, 'Prediction_Samples/nrows') == [4] and column(rows, 'accuracy') == pytest.approx([learn.final_record[-1]])

def test_settings():
    assert wandb_args([1]) == wandb_args('a') == wandb_args(None) == {}
    assert wandb_args(dls().train) == {}
    assert 'state' not in wandb_args(Resumed(dict(model={'w':torch.zeros(9)}), 'a.ckpt'))
    assert wandb_args(SaveModelCallback('knn', fname='best'))['fname'] == 'best'

def test_wandb_uploads_the_best_model(run, tmp_path):
    "log_model and log='all', together with a best model by kNN; the learner can still be exported"
    learn = fit(make(SaveModelCallback(monitor='knn', fname='best'), WandbCallback(log='all', log_preds=False, log_model=True), path=tmp_path), 2)
    learn.export()
    assert [r.artifact.name for r in records(run) if r.HasField('artifact')] == ['best']

def test_wandb_refused(run, tmp_path):
    refused(make(path=tmp_path), 'log_model=True', cbs=WandbCallback(log_preds=False, log_model=True))
    wandb.finish()
    refused(make(WandbCallback(log_preds=False), path=tmp_path), r'wandb.init\(\)')

# TensorBoard

def test_tensorboard(tmp_path):
    learn = fit(make(TensorBoardCallback(tmp_path/'runs', log_preds=False, trace_model=False), path=tmp_path), 2)
    log,n,values = events(tmp_path/'runs'),len(learn.dls.train),learn.recorder.values
    assert list(curve(log, 'train_loss').values()) == pytest.approx([float(o) for o in learn.recorder.losses])
    assert list(curve(log, 'lr_0').values()) == pytest.approx(learn.recorder.lrs)
    for i,k in enumerate(learn.recorder.metric_names[2:-1], 1): assert curve(log, k) == pytest.approx({n:values[0][i], 2*n:values[1][i]})
    assert 'knn' in log.Tags()['scalars'] and not log.Tags()['graph'] and not log.Tags()['images']

@pytest.mark.parametrize('name', ['sim_clr','byol','swav','vic_reg'])
def test_tensorboard_as_it_comes(tmp_path, name):
    "fastai would stop in the first epoch, or log nonsense; terms of the loss are curves, too"
    learn = make_method(name, cbs=[TensorBoardCallback(tmp_path/'runs')], path=tmp_path)
    with pytest.warns(UserWarning, match='log_preds=False, trace_model=False'): fit(learn)
    assert learn.tensor_board.log_preds and learn.tensor_board.trace_model
    assert {'train_loss','valid_loss',*getattr(getattr(learn, name), 'term_names', ())} <= set(events(tmp_path/'runs').Tags()['scalars'])

def test_tensorboard_of_bytes_in_bfloat16(tmp_path):
    "Images whose graph torch cannot trace, in a precision that fastai refuses"
    data = make_dls(labels=False)
    for o in (data.train,data.valid): o.dataset = [((x*255).byte(),) for x, in o.dataset]
    learn = make_method('sim_clr', data, loss_func=noop, cbs=[TensorBoardCallback(tmp_path/'runs')], path=tmp_path, size=24).to_bf16()
    with pytest.warns(UserWarning, match='trace_model'): fit(learn)
    assert len(curve(events(tmp_path/'runs'), 'valid_loss')) == 1

def test_tensorboard_projector_refused(tmp_path):
    (tmp_path/'history.csv').write_text('old')
    learn = make(TensorBoardCallback(tmp_path/'runs', projector=True), CSVLogger(), path=tmp_path)
    refused(learn, 'projector=False')
    assert not (tmp_path/'runs').exists() and (tmp_path/'history.csv').read_text() == 'old'
    learn.tensor_board.projector = False
    fit(learn)

def test_classifiers_keep_what_fastai_does(tmp_path):
    learn = classifier(TensorBoardCallback(tmp_path/'runs', n_preds=4), CSVLogger(), path=tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*log_preds'); fit(learn)
    log = events(tmp_path/'runs')
    assert log.Tags()['graph'] and log.Tags()['images'] == ['Sample results']

# the file and the best model

class Ruin(Callback):
    "The same features for all images, from the second epoch on"
    def after_train(self):
        if self.epoch: torch.nn.init.zeros_(self.learn.model.encoder.conv1[0].weight)

class Falling(KNN):
    "kNN accuracy, less .2 an epoch from the second on"
    @property
    def value(self): return super().value - .2*self.learn.epoch

def knn_now(learn):
    (bank,y),(x,t) = get_features(learn, 0),get_features(learn, 1)
    return knn_accuracy(bank, y, x, t)

def test_csv(tmp_path):
    "The table; validate and lr_find leave it alone; the learner can be exported"
    learn = fit(make(CSVLogger(), path=tmp_path), 2)
    text,df = (tmp_path/'history.csv').read_text(),learn.csv_logger.read_log()
    assert list(df.columns) == ['epoch','train_loss','valid_loss','knn','time']
    assert df.iloc[:,1:4].values.tolist() == [pytest.approx(list(o)) for o in learn.recorder.values]
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.lr_find(num_it=3, show_plot=False)
    assert (tmp_path/'history.csv').read_text() == text
    learn.export()
    fit(load_learner(tmp_path/'export.pkl').add_cb(ReduceLROnPlateau()), 0)
    fit(learn)
    assert len(learn.csv_logger.read_log()) == 1                           # a fit is logged again

def test_best_model_by_knn(tmp_path):
    "The weights of the best epoch are on the disk and in the learner, and a validation of other weights leaves the file"
    learn = fit(make(Ruin(), SaveModelCallback(monitor='knn'), path=tmp_path), 2)
    knn = [o[-1] for o in learn.recorder.values]
    assert knn[0] > knn[1]+.05 and knn_now(learn) == pytest.approx(knn[0])
    file = (tmp_path/'models'/'model.pth').read_bytes()
    torch.nn.init.zeros_(learn.model.encoder.conv1[0].weight)
    with learn.no_bar(), learn.no_logging(): learn.validate()
    assert (tmp_path/'models'/'model.pth').read_bytes() == file and learn.model.encoder.conv1[0].weight.abs().sum() == 0
    learn.load('model')
    assert knn_now(learn) == pytest.approx(knn[0])

def test_early_stopping_by_knn(tmp_path):
    "Stopped after `patience` epochs; the log has all that were trained, and the map of the last one"
    tb,csv = TensorBoardCallback(tmp_path/'runs', log_preds=False, trace_model=False),CSVLogger()
    learn = fit(make(EarlyStoppingCallback(monitor='knn', patience=2), tb, csv, LogViews(), path=tmp_path, metrics=[Falling()]), 9)
    assert len(csv.read_log()) == 3
    log = events(tmp_path/'runs')
    assert len(curve(log, 'knn')) == 3 and [o.step for o in log.Images('embedding')] == [3*len(learn.dls.train)]

@pytest.mark.parametrize('cb', [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau])
def test_monitor_without_a_column(tmp_path, cb):
    refused(make(cb(monitor='accuracy'), path=tmp_path), "monitor='accuracy' is no column.* valid_loss, knn")

# pictures

def size(png): return Image.open(BytesIO(png)).size

def test_views_in_tensorboard(tmp_path):
    learn = fit(make(TensorBoardCallback(tmp_path/'runs', log_preds=False, trace_model=False), LogViews(n=3, every=2), path=tmp_path), 3)
    log,n = events(tmp_path/'runs'),len(learn.dls.train)
    assert [o.step for o in log.Images('views')] == [0] and [o.step for o in log.Images('embedding')] == [2*n, 3*n]
    w,h = size(log.Images('views')[0].encoded_image_string)
    assert h/w == pytest.approx(3/2, abs=.01)                              # three images, two views
    colours = Image.open(BytesIO(log.Images('embedding')[0].encoded_image_string)).convert('RGB').getcolors(2**20)
    assert len(colours) > 10                                               # a colour for each digit
    with learn.no_bar(), learn.no_logging(): learn.validate(); learn.lr_find(num_it=3, show_plot=False)
    assert [len(events(tmp_path/'runs').Images(k)) for k in ('views','embedding')] == [1,2] and not plt.get_fignums()

def test_views_in_both(run, tmp_path):
    "Two fits in one run: the views stand beside the first loss of each, the map beside the last"
    cbs = WandbCallback(log_preds=False),TensorBoardCallback(tmp_path/'runs', log_preds=False, trace_model=False)
    learn = make(*cbs, LogViews(n=2), path=tmp_path)
    fit(fit(learn)); n = len(learn.dls.train)
    rows = history(run)
    files = [(o['_step'],k,o[f'{k}/path']) for o in rows for k in ('views','embedding') if f'{k}/path' in o]
    steps = [o['_step'] for o in rows if 'raw_loss' in o]
    assert [o[:2] for o in files] == [(steps[0],'views'), (steps[n-1],'embedding'), (steps[n],'views'), (steps[-1],'embedding')]
    assert len(steps) == 2*n
    views = size((Path(run.dir)/files[0][2]).read_bytes())
    assert views == size(events(tmp_path/'runs').Images('views')[0].encoded_image_string) and views[0] == pytest.approx(views[1], abs=2)

@pytest.mark.parametrize('name', ['moco','dino'])
def test_pictures_change_nothing(tmp_path, name):
    "Weights, queue and table are the same to the last bit"
    def one(i, *cbs):
        learn = make_method(name, cbs=[TensorBoardCallback(tmp_path/i, log_preds=False, trace_model=False), *cbs], path=tmp_path)
        fit(learn, 2)
        return state(learn),[list(o) for o in learn.recorder.values],torch.rand(3)
    a,b = one('a'),one('b', LogViews(every=1))
    assert same(a[0], b[0]) and a[1] == b[1] and torch.equal(a[2], b[2])
    assert len(events(tmp_path/'b').Images('embedding')) == 2

def test_views_are_refused(tmp_path):
    for kw,msg in ((dict(n=0),'n must'), (dict(every=0),'every must'), (dict(every=1.5),'every must')):
        with pytest.raises(ValueError, match=msg): LogViews(**kw)
    learn = make(LogViews(), path=tmp_path)
    refused(learn, 'no logger for images: add WandbCallback or TensorBoardCallback')
    with learn.no_bar(), learn.no_logging(): learn.validate(); learn.lr_find(num_it=3, show_plot=False)
    fit(learn, cbs=TensorBoardCallback(tmp_path/'runs', log_preds=False, trace_model=False))
    assert set(events(tmp_path/'runs').Tags()['images']) == {'views','embedding'}
    refused(classifier(LogViews(), TensorBoardCallback(tmp_path/'runs'), path=tmp_path), 'no method')

class Diverge(Callback):
    def after_step(self): self.learn.model.encoder.conv1[0].weight.data.fill_(float('nan'))

def test_a_failed_picture_costs_a_warning(tmp_path):
    cbs = TensorBoardCallback(tmp_path/'runs', log_preds=False, trace_model=False),LogViews(every=1),Diverge()
    with pytest.warns(UserWarning, match='embedding could not be logged.*NaN'): learn = fit(make(*cbs, path=tmp_path, metrics=[]), 2)
    assert len(learn.recorder.values) == 2 and events(tmp_path/'runs').Tags()['images'] == ['views'] and not plt.get_fignums()

def log_views(path):
    set_seed(0)
    warnings.filterwarnings('error', message='LogViews')
    model = create_simclr_model(create_encoder('test_resnet', False, n_in=1))
    cbs = SimCLR(get_simclr_aug_pipelines(16, **digits_views)),TensorBoardCallback(path/f'runs{rank_distrib()}'),LogViews(every=1)
    learn = Learner(digits_dls(bs=256), model, path=path, metrics=KNN(), cbs=cbs)
    with learn.distrib_ctx(): fit(learn)
    torch.save(to_cpu(learn.model.state_dict()), path/f'{rank_distrib()}.pth')

def test_two_processes(tmp_path):
    "The first one logs, both train the same model"
    warm.group(on_gpus, log_views, tmp_path, timeout=120)
    log = events(tmp_path/'runs0')
    assert len(curve(log, 'knn')) == 1 and [len(log.Images(k)) for k in ('views','embedding')] == [1,1]
    assert not (tmp_path/'runs1').exists()
    a,b = (torch.load(tmp_path/f'{i}.pth') for i in range(2))
    assert same(a, b)
