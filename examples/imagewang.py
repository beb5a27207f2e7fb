"""The protocol of fastai's leaderboard for ImageWang, https://github.com/fastai/imagenette: pretrain on all images but those of `val`,
then fine-tune several times on those with a label: `python examples/imagewang.py --size 128 --epochs 5`.
It needs a GPU and, for the images, a network. After Ctrl-C or a kill the same command goes on: from the last checkpoint, or with the
first run that is missing."""
import sys

from fastcore.script import call_parse

from self_supervised.cli import no_bars_in_logs
from self_supervised.training.precision import fast_cuda
from self_supervised.training.pretraining import read_asked, shown
from self_supervised.vision.all import *

def images(size:int, path:Path|None=None) -> Path:
    "The folder of the images: `path`, or what fastai downloads, whose shorter sides are a quarter longer than the views or more"
    return path or untar_data(URLs.IMAGEWANG_160 if size <= 128 else URLs.IMAGEWANG_320)

def labelled(path:Path, size:int, bs:int, cache:str|Path) -> DataLoaders:
    "Images with a label, cropped and flipped in training; those of `val` are seen once, whole and no larger"
    dls = folder_dls(path, round(size*1.25), labels='parent', valid='val', bs=bs, cache=cache)
    aug = get_batch_augs(size, resize_scale=(.35,1.), rotate=False, jitter=False, bw=False, blur=False)
    return labelled_dls(dls, aug=aug, bs=bs)

def fine_tuned(out:Path, dls:DataLoaders, epochs:int, lr:float) -> float:
    "Accuracy after the last of exactly `epochs` epochs in which the whole network learns"
    learn = shown(classifier_learner(load_encoder(out/'encoder.safetensors'), dls)).to_mode(read_asked(out/'training.json')[1])
    with fast_cuda(dls.device): learn.fit_one_cycle(epochs, slice(lr/10, lr))
    return learn.final_record[-1]

def accuracies(out:Path, dls:DataLoaders, epochs:int, lr:float, runs:int) -> pd.Series:
    "Of `runs` fine-tunings of one encoder, each written when it ends; those that are there are not repeated"
    file = out/f'finetuned-{epochs}-epochs-lr-{lr:g}.csv'
    done = pd.read_csv(file).accuracy.tolist() if file.exists() else []
    for run in range(len(done), runs):
        print(f"\nFine-tuning, run {run+1} of {runs}")
        set_seed(run)
        done.append(fine_tuned(out, dls, epochs, lr))
        pd.DataFrame({'accuracy':done}).to_csv(file, index_label='run')
    return pd.Series(done[:runs])

def summary(size:int, pretraining:str, tuning:str, test:str, acc:pd.Series) -> pd.DataFrame:
    "What was done, beside the rules of the leaderboard"
    spread = f" ± {acc.std():.4f}, {acc.min():.4f} to {acc.max():.4f}" if len(acc) > 1 else ""
    return pd.DataFrame([
        ('size', f'{size} pixels', '128, 192 or 256'),
        ('pretraining', pretraining, 'from random weights; no rule on its length'),
        ('fine-tuning', tuning, '5, 20, 80 or 200 epochs; no labels of unsup'),
        ('tested on', test, 'val, no larger than in training, no TTA'),
        ('runs', str(len(acc)), '5, if you can'),
        ('accuracy', f'{acc.mean():.4f}{spread}', 'the mean')], columns=['','here','leaderboard']).set_index('').rename_axis(None)

@call_parse
def main(
    size:int=128, # Height and width of the images: 128, 192 or 256
    epochs:int=5, # Epochs of a fine-tuning: 5, 20, 80 or 200
    pretrain_epochs:int=None, # Epochs of pretraining; about 10,000 steps if none are given
    runs:int=5, # Fine-tunings, of which the mean counts
    path:Path=None, # A folder with train/, unsup/ and val/ in place of the download
    method:str='supcon', # Learns from labels and from images without; supconmoco for fewer than 256 images per batch
    arch:str='xresnet50', # As in fastai's train_imagenette.py
    bs:int=256, # Images per batch of pretraining
    tune_bs:int=64, # Images per batch of fine-tuning
    lr:float=4e-3, # Of the head in fine-tuning, ten times that of the encoder
    precision:str='auto', # As in ssl_pretrain
    cache:str=None, # Folder for the decoded images, or device for the memory of the GPU
    out:Path=None # Folder of the results
):
    "Pretrain and fine-tune on ImageWang as its leaderboard asks for, and print what was done beside what it asks for"
    no_bars_in_logs()
    path,out = images(size, path),Path(out or f'runs/imagewang/{method}-{size}')
    cache = cache or out.parent/'decoded'
    try:
        pretrain(path, method, out, arch, size=size, epochs=pretrain_epochs, bs=bs, labels='parent', valid='val',
                 precision=precision, cache=cache, report=False)
    except KeyboardInterrupt: sys.exit(130)                            # a checkpoint is written, and said
    dls = labelled(path, size, tune_bs, cache)
    acc = accuracies(out, dls, epochs, lr, runs)
    done = len(pd.read_csv(out/'metrics.csv'))
    print('\n', summary(size, f'{done} epochs of {method}, {arch}', f'{epochs} epochs, {len(dls.train_ds):,} images, {dls.c} classes',
                        f'{len(dls.valid_ds):,} images, {size} pixels', acc).to_string(), sep='')
