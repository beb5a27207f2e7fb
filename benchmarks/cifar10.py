"""Every method with the same budget on CIFAR-10, photographs in colour: 10,000 training images (1,000 per class) without labels, and 10 labels per class; see same_budget.py.
The folder is that of fastai's `untar_data(URLs.CIFAR)`: train/<class>/ and test/<class>/. `benchmarks/gpu.py --cifar` runs the setting of the papers, which needs a GPU."""
from fastcore.script import call_parse, store_true
from PIL import Image
from same_budget import *

def histogram(x:Tensor) -> Tensor:
    "The share of 16 ranges of values for each colour"
    return torch.stack([torch.cat([torch.histc(c, 16, 0, 1) for c in o]) for o in x])/x[0,0].numel()

class Cifar10(Task):
    "A ResNet-10-T of half the usual channels"
    views = dict(resize_scale=(.2,1.), jitter_s=.5, blur=False, rotate=False, stats=([.4914,.4822,.4465],[.247,.243,.262]))
    beside = 'SimCLR','MOCO','BYOL','VICReg'                                          # of lightly's
    few_Cs = .001,.01,.1
    draws,tuned,kept = 1,{'supcon': 1e-2, 'simclr': 1e-2},Path('runs/cifar10')

    def __init__(self, path): self.path = Path(path)

    def images(self):
        "Every fifth training image, and all test images, decoded"
        def read(part, step):
            classes = sorted(o.name for o in (self.path/part).iterdir())
            files = [(f,i) for i,o in enumerate(classes) for f in get_image_files(self.path/part/o).sorted()[::step]]
            x = torch.stack([torch.from_numpy(np.array(Image.open(f).convert('RGB'))) for f,_ in files])
            return x.permute(0, 3, 1, 2).float()/255,tensor([i for _,i in files])
        return read('train', 5),read('test', 1)

    def encoder(self): return create_encoder('resnet10t', pretrained=False, channels=(32,64,128,256), stem_width=32)
    def baselines(self): return {**super().baselines(), 'histogram of colours': histogram}
    def who(self): return [o for o in super().who() if o[1] == 'ours' or methods[o[0]].__name__ in self.beside]

def framed(ax, x, colour=None):
    "An image, in a frame of `colour`"
    ax.imshow(x.permute(1, 2, 0))
    ax.set(xticks=[], yticks=[])
    for o in ax.spines.values(): o.set(color=colour or 'white', linewidth=4)

def picture(task, epochs, lr, seed=0, rows=6, k=5, to=Path('nbs/images/neighbours.png')):
    "Test images, drawn at random, and the nearest of the others before and after SupCon; a green frame where the class is the same"
    train,(x,y) = task.images()
    set_seed(seed)
    before,after = task.encoder(),task.pretrained('supcon', 'ours', *train, lr, epochs, seed)
    query = np.random.default_rng(seed).permutation(len(x))[:rows].tolist()
    near = [nearest(task.features(o, x), query, k)[1] for o in (before,after)]
    width = 2*k+2
    fig,axs = plt.subplots(rows, width, figsize=(1.1*width, 1.1*rows+.5), gridspec_kw=dict(wspace=.08, hspace=.08))
    for i,q in enumerate(query):
        framed(axs[i,0], x[q])
        axs[i,k+1].axis('off')
        for at,idxs in zip((1,k+2), near):
            for j,o in enumerate(idxs[i].tolist()): framed(axs[i,at+j], x[o], '#2a9d3f' if y[o] == y[q] else '#d0d0d0')
    said = [f'nearest {when}: {(y[n] == y[query][:,None]).sum()} of {rows*k} alike' for when,n in zip(('before training','after training'), near)]
    for at,title in ((0,'query'),(1+k//2,said[0]),(k+2+k//2,said[1])): axs[0,at].set_title(title, fontsize=13, pad=8)
    fig.savefig(to, dpi=75, bbox_inches='tight')
    Image.open(to).convert('RGB').convert('P', palette=Image.Palette.ADAPTIVE).save(to, optimize=True)

@call_parse
def main(
    path:str='', # The folder with train and test; without one it is fetched
    seeds:int=3, # Runs of each with the chosen rate
    epochs:int=24, # Epochs of 78 steps
    search_epochs:int=8, # Epochs of 62 steps, in the search
    only:str='', # Methods, with a semicolon between them
    workers:int=2, # Runs at the same time, each with its share of the cores
    draw:store_true=False # README's picture, of the encoder that SupCon trained with the first seed
):
    "Search, then run; writes cifar10_search.csv and cifar10.csv"
    task = Cifar10(path or untar_data(URLs.CIFAR))
    task.mode = fastest_mode(task.encoder(), torch.rand(2*task.bs, 3, 32, 32))[0]
    best = run(task, 'cifar10', seeds, epochs, search_epochs, only, workers)
    if draw: picture(task, epochs, best['supcon','ours'])
