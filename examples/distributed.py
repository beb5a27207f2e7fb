"SimCLR on the digits in several processes: torchrun --nproc_per_node 2 examples/distributed.py"
from fastcore.script import call_parse

from self_supervised.vision.all import *

@call_parse
def main(
    epochs:int=3, # Epochs
    bs:int=32 # Images per batch and process
):
    set_seed(0)                                                   # alike in every process: split and weights
    cpu = default_device().type == 'cpu'
    dls = digits_dls(bs=bs)
    model = create_simclr_model(create_encoder('resnet10t', pretrained=False, n_in=1))
    learn = Learner(dls, model, cbs=SimCLR(get_simclr_aug_pipelines(16, **digits_views), temp=.5), metrics=KNN())
    with learn.distrib_ctx(sync_bn=not cpu, cpu=cpu), learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 4e-3)
    if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
    if rank_distrib(): return
    print(pd.DataFrame(list(learn.recorder.values), columns=list(learn.recorder.metric_names[1:-1])).rename_axis('epoch').to_string())
    print(f"{max(num_distrib(), 1)} processes, kNN {learn.final_record[-1]:.3f}")
