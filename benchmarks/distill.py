"""Students of an encoder that SupCon trained with all labels, on the digits, beside SimCLR: how near do they come to their teacher with 5 labels per class, and
after how many epochs?"""
from common import record
from fastcore.script import call_parse
from methods import data, encoder, knn, train, two, unsup

from self_supervised.vision.all import *

class Curve(Callback):
    "Accuracy after every epoch"
    def before_fit(self): self.values = []
    def after_epoch(self): self.values.append(learner_knn(self.learn, unsup_class_id=unsup))

def row(learn, method, seed, bs, epochs):
    train(learn, epochs)
    values = learn.curve.values
    res = dict(method=method, seed=seed, bs=bs, epochs=epochs, accuracy=values[-1], best=max(values), best_epoch=1+int(np.argmax(values)))
    print(res, flush=True)
    return res

@call_parse
def main(
    seeds:int=5, # Runs, each with its own split, initialisation and labels
    epochs:int=12, # Epochs of the teacher and of SimCLR
    short:int=6, # Epochs of the students, and of SimCLR beside them
    bs:int=64 # Images per batch
):
    "Write benchmarks/results/distill.csv"
    for seed in range(seeds):
        few = data(seed, bs)
        def learner(model, cb, dls=few): return Learner(dls, model, cbs=[cb, Curve()])
        set_seed(seed)
        teacher = Learner(digits_dls(bs=bs, seed=seed), create_supcon_model(encoder()), cbs=SupCon(two(), temp=.5))
        train(teacher, epochs)
        rows = [dict(method='teacher', seed=seed, bs=bs, epochs=epochs, accuracy=knn(get_model(teacher.model).encoder, few)),
                dict(method='raw pixels', seed=seed, bs=bs, epochs=0, accuracy=knn(nn.Flatten(), few))]
        for n in (epochs,short):
            set_seed(seed)
            rows.append(row(learner(create_simclr_model(encoder()), SimCLR(two(), temp=.5)), 'SimCLR', seed, bs, n))
        for loss in ('seed','cosine'):
            set_seed(seed)
            model = create_distill_model(encoder(), get_model(teacher.model).encoder.nf, 256)
            rows.append(row(learner(model, Distill(two(), teacher, loss, K=512)), loss, seed, bs, short))
        record('distill', rows, ['method','seed','bs','epochs'])
