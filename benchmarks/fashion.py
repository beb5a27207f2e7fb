"Every method with the same budget on Fashion-MNIST: 10,000 training images without labels, two epochs. See same_budget.py."
from fastcore.script import call_parse
from same_budget import *

from self_supervised.training.pretraining import fashion_views
from self_supervised.data import read_idx

folder = Path('/usr/share/datasets/fashion-mnist')

# lightly's loss for NNCLR has negatives that the paper's has not: both are run
methods['nnclr, paper'] = methods['nnclr']

class Fashion(Task):
    "A ResNet-10-T of a quarter of the usual channels"
    size,views = 28,fashion_views
    widths = {**Task.widths, 'swav': dict(n_protos=256)}
    method_args = {**Task.method_args, 'nnclr': dict(temp=.2, K=2048, within=True), 'nnclr, paper': Task.method_args['nnclr']}
    peer_args = {**Task.peer_args, 'SWAV': dict(hidden=512, n_protos=256)}

    def encoder(self):
        "In the order in memory that processors like"
        return create_encoder('resnet10t', pretrained=False, n_in=1, channels=(16,32,64,128), stem_width=16).to(memory_format=torch.channels_last)

    def images(self):
        def read(name):
            x,y = (read_idx(folder/f'{name}-{o}-ubyte.gz') for o in ('images-idx3','labels-idx1'))
            return torch.from_numpy(x.copy())[:,None].float()/255,torch.from_numpy(y.copy()).long()
        x,y = read('train')
        keep,_ = train_test_split(np.arange(len(y)), train_size=10_000, random_state=0, stratify=y)
        return (x[keep],y[keep]),read('t10k')

    def who(self): return [o for o in super().who() if o != ('nnclr, paper','lightly')]

@call_parse
def main(
    seeds:int=5, # Runs of each with the chosen rate
    epochs:int=2, # Epochs of 78 steps
    search_epochs:int=2, # Epochs of 62 steps, in the search
    only:str='', # Methods, with a semicolon between them
    workers:int=2 # Runs at the same time, each with its share of the cores
):
    "Search, then run; writes fashion_search.csv and fashion.csv"
    run(Fashion(), 'fashion', seeds, epochs, search_epochs, only, workers)
