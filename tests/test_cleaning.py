"Copies, odd images and wrong labels: found where they are planted, as a naive search finds them, and bad input is refused."
import io, itertools, warnings

import numpy as np, pandas as pd, PIL.Image, pytest, torch, torch.nn.functional as F
from fastai.vision.all import DataLoader, Learner, PILImage, nn, set_seed
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from self_supervised.data import digits_dls, digits_views, folder_dls, image_dls
from self_supervised.evaluation import cleaning
from self_supervised.evaluation.cleaning import (concordance, find_duplicates, find_outliers, get_mirrored_features, show_found,
                                                 suspicious_labels)
from self_supervised.evaluation.features import get_features
from self_supervised.layers import create_encoder
from self_supervised.vision.simclr import SimCLR, create_simclr_model, get_simclr_aug_pipelines

def altered(x, what, rng):
    "A digit (16, 16) of bytes: mirrored, cropped by 10 % and resized back, recompressed"
    im = PIL.Image.fromarray(x)
    if 'mirror' in what: im = im.transpose(PIL.Image.FLIP_LEFT_RIGHT)
    if 'crop' in what:
        l,t = rng.uniform(0, 1.6, 2)
        im = im.resize((16,16), PIL.Image.BILINEAR, (l, t, l+14.4, t+14.4))
    if 'jpeg' in what:
        f = io.BytesIO(); im.save(f, 'JPEG', quality=int(rng.integers(75, 96))); im = PIL.Image.open(f)
    return np.array(im)

def dirty(seed, n=1400, m=20):
    rng,d = np.random.default_rng(seed),load_digits()
    idxs = rng.choice(len(d.images), n, replace=False)
    x = F.interpolate(torch.tensor(d.images[idxs])[:,None].float()/16, (16,16), mode='bilinear', align_corners=False)
    x,y = (x*255).round().byte().numpy(),d.target[idxs]
    a,b,wrong = rng.choice(n, 3*m, replace=False).reshape(3, m)
    kinds = [c for k in (1,2,3) for c in itertools.combinations(['mirror','crop','jpeg'], k)]
    for i,j in zip(a, b): x[j,0],y[j] = altered(x[i,0], kinds[rng.integers(7)], rng),y[i]
    y[wrong] = (y[wrong]+rng.integers(1, 10, m)) % 10
    return torch.from_numpy(x).float()/255,y,{(min(o),max(o)) for o in zip(a.tolist(), b.tolist())},wrong

def pairs(df): return set(zip(df.image.tolist(), df.other.tolist()))

@pytest.fixture(scope='module')
def encoder():
    "SimCLR on dirty digits, four epochs"
    x,y,*_ = dirty(10); set_seed(0)
    learn = Learner(image_dls(x, y.tolist(), bs=256, valid_pct=.1), create_simclr_model(create_encoder('resnet10t', False, 1)),
                    cbs=SimCLR(get_simclr_aug_pipelines(16, **digits_views), temp=.5))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 4e-3)
    return learn

@pytest.mark.parametrize('seed', [11, 15])
def test_acceptance(encoder, seed):
    x,y,planted,wrong = dirty(seed)
    z,m = get_features(encoder, DataLoader(x, bs=256))[0],get_mirrored_features(encoder, DataLoader(x, bs=256))
    found = pairs(find_duplicates(z, x, m))
    assert len(found & planted)/20 > .9 and len(found & planted)/len(found) > .9, (len(found), len(found & planted))
    assert suspicious_labels(z, y).head(40).image.isin(wrong).sum()/20 > .7

def test_raw_pixels_report_no_false_pairs_either():
    x,_,planted,_ = dirty(11)
    raw = pairs(find_duplicates(x.flatten(1), x, x.flip(-1).flatten(1)))
    assert len(raw & planted)/len(raw) > .9

def test_concordance():
    g = np.random.default_rng(0)
    for x,y in [(g.random(40), g.random(40)), (g.random(40), np.full(40, .3)), (np.full(40, .3), np.full(40, .7)), (np.zeros(40), np.zeros(40))]:
        e = (2/255)**2
        cov = sum((a-x.mean())*(b-y.mean()) for a,b in zip(x, y))/40
        want = (2*cov+e)/(sum((a-x.mean())**2 for a in x)/40 + sum((b-y.mean())**2 for b in y)/40 + (x.mean()-y.mean())**2 + e)
        x,y = torch.tensor(x).float(),torch.tensor(y).float()
        assert abs(concordance(x, y).item()-want) < 1e-3
        assert concordance(x, y) == concordance(y, x) and concordance(x, x) == 1
    assert concordance(torch.rand(3,1,9), torch.rand(3,5,9)).shape == (3,5)

def test_best_part_is_the_part_that_was_cut():
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(6,3,8,8, generator=g), (32,32), mode='bicubic').clamp(0,1).mul(255).round().byte()
    for l,r,t,b in [(0,0,0,0), (.1,0,0,.1), (.03,.06,.07,.01)]:
        box = (32*l, 32*t, 32-32*r, 32-32*b)
        y = torch.stack([torch.tensor(np.array(PIL.Image.fromarray(o.permute(1,2,0).numpy()).resize((32,32), 2, box))).permute(2,0,1) for o in x])
        steps = [.1*o for o in cleaning._steps]
        assert cleaning._best_part(x, y, cleaning._cuts(.1), steps).min() > .998
        s,mirrored = cleaning._alike(y.flip(-1), x, cleaning._cuts(.1), steps, True)     # the other way round, and mirrored
        assert s.min() > .998 and mirrored.all()
        assert cleaning._alike(y.flip(-1), x, cleaning._cuts(.1), steps)[0].max() < .9

@pytest.mark.parametrize('mirrored', [False,True])
def test_candidates_are_all_neighbours(mirrored):
    torch.manual_seed(0); x,m = torch.randn(60,5),torch.randn(60,5)
    want = {}
    for q,flag in [(x,False)] + [(m,True)]*mirrored:
        s = F.cosine_similarity(q[:,None], x[None], dim=-1)
        for i in range(60):
            order = [j for j in s[i].argsort(descending=True).tolist() if flag or j != i][:4]
            for j in order:
                if i != j: want[min(i,j),max(i,j)] = max(want.get((min(i,j),max(i,j)), -1), s[i,j].item())
    df = find_duplicates(x, mirrored=m if mirrored else None, k=4)
    assert pairs(df) == set(want) and len(df) == len(want) and df.similarity.is_monotonic_decreasing
    assert all(abs(want[i,j]-s) < 1e-5 for i,j,s in zip(df.image, df.other, df.similarity))
    assert len(find_duplicates(x[:3], k=50)) == 3                                         # more neighbours than images

def test_blank_alike_and_no_copies():
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (40,3,20,20), dtype=torch.uint8)
    none = find_duplicates(noise.flatten(1).float(), noise)
    assert len(none) == 0 and 0 < none.attrs['threshold'] <= 1
    with pytest.raises(ValueError, match='found: the table is empty'): show_found(none, noise)
    same = noise[:1].expand(9, -1, -1, -1)
    found = find_duplicates(same.flatten(1).float(), same)
    assert len(found) == 36 and (found.similarity > .999).all()
    noise[3] = noise[7] = 200; noise[9] = 20                                              # two equal blank pages, and another
    assert pairs(find_duplicates(noise.flatten(1).float()-100, noise)) == {(3,7)}
    tiny = torch.randint(0, 256, (12,1,2,3), dtype=torch.uint8); tiny[4] = tiny[2]
    assert (2,4) in pairs(find_duplicates(tiny.flatten(1).float(), tiny))

def test_crop_flip_and_recall_say_what_a_copy_is():
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(60,1,6,6, generator=g), (32,32), mode='bicubic').clamp(0,1)
    x[1] = x[0].flip(-1); x[3] = F.interpolate(x[2:3,:,3:,:29], (32,32), mode='bilinear')[0]
    z = F.normalize(torch.randn(60, 8, generator=g), dim=1)
    every = dict(k=59)
    assert pairs(find_duplicates(z, x, **every)) == {(0,1), (2,3)}
    assert pairs(find_duplicates(z, x, flip=False, **every)) == {(2,3)}
    assert pairs(find_duplicates(z, x, crop=0, **every)) == {(0,1)}
    few,all_ = (find_duplicates(z, x, recall=r, **every).attrs['threshold'] for r in (.5, 1.))
    assert few > all_
    a,b = find_duplicates(z, x, **every),find_duplicates(z, x, **every)
    pd.testing.assert_frame_equal(a, b)

def test_files_pictures_and_data_sets(tmp_path):
    rng = np.random.default_rng(0)
    def picture(): return PIL.Image.fromarray(rng.integers(0, 256, (6,8,3), dtype=np.uint8)).resize((80,60), PIL.Image.BICUBIC)
    for i in range(12): picture().save(tmp_path/f'{i:02}.png')
    im = PIL.Image.open(tmp_path/'04.png')
    im.transpose(PIL.Image.FLIP_LEFT_RIGHT).crop((4,2,76,58)).resize((200,150)).save(tmp_path/'20.jpg', quality=80)
    PIL.Image.open(tmp_path/'05.png').convert('L').save(tmp_path/'21.png')               # without colour it is another image
    files = sorted(tmp_path.glob('*.*g'))
    z,how = torch.randn(len(files), 4, generator=torch.Generator().manual_seed(0)),dict(k=20)
    want = find_duplicates(z, files, **how)
    assert pairs(want) == {(4,12)} and want.mirrored.item() is True
    assert pairs(find_duplicates(z, pd.Series(map(str, files)), **how)) == {(4,12)}
    assert pairs(find_duplicates(z, [PILImage.create(f) for f in files], **how)) == {(4,12)}
    dls = folder_dls(tmp_path, size=32, bs=4, method='squish')
    ds = dls.train_ds
    names = [f.name for f in ds.items]
    found = {frozenset(names[i] for i in o) for o in pairs(find_duplicates(z[:len(ds)], ds, **how))}
    assert found == ({frozenset({'04.png','20.jpg'})} if {'04.png','20.jpg'} <= set(names) else set())
    ds = digits_dls().valid_ds
    assert not len(find_duplicates(get_features(nn.Flatten(), digits_dls().valid, stats=([0.],[1.]))[0][:30], [ds[i] for i in range(30)]))

def test_mirrored_features_leave_no_hook():
    x = torch.rand(5,1,4,6); f = nn.Flatten(); how = dict(stats=([0.],[1.]))
    torch.testing.assert_close(get_mirrored_features(f, DataLoader(x, bs=2), **how), x.flip(-1).flatten(1))
    class Broken(nn.Flatten):
        def forward(self, x): raise RuntimeError('broken')
    b = Broken()
    with pytest.raises(RuntimeError, match='broken'): get_mirrored_features(b, DataLoader(x, bs=2), **how)
    assert not f._forward_pre_hooks and not b._forward_pre_hooks

def test_outliers_are_those_of_a_naive_search():
    torch.manual_seed(0); x = torch.randn(50,6); x[7] = 0
    s = F.cosine_similarity(x[:,None], x[None], dim=-1).fill_diagonal_(-9)
    df = find_outliers(x, k=3)
    assert sorted(df.image) == list(range(50)) and df.distance.is_monotonic_decreasing
    for i,d,o in zip(df.image, df.distance, df.other):
        top = s[i].sort(descending=True)
        assert abs(1-top.values[2].item()-d) < 1e-5 and (i == 7 or o == top.indices[0])
    x = torch.cat([torch.randn(40,6)*.1+1, -torch.ones(3,6)])                              # three odd images, each other's copies
    assert set(find_outliers(x, k=5).image[:3]) == {40,41,42} and set(find_outliers(x, k=1).image[:3]) != {40,41,42}

def clusters(n=40, c=3, d=8, seed=0):
    g = torch.Generator().manual_seed(seed); y = torch.arange(n*c) % c
    return torch.randn(n*c, d, generator=g)+3*torch.eye(c, d)[y]*2,y

def test_labels_as_fold_by_fold():
    x,y = clusters(); y[[3,50]] = (y[[3,50]]+1) % 3
    df = suspicious_labels(x, y, seed=4)
    p = np.zeros((120,3))
    for trn,out in StratifiedKFold(5, shuffle=True, random_state=4).split(x, y):
        s = StandardScaler().fit(x[trn].numpy())
        p[out] = LogisticRegression(C=.1, max_iter=1000).fit(s.transform(x[trn].numpy()), y[trn].numpy()).predict_proba(s.transform(x[out].numpy()))
    usual = [p[y == c,c].mean() for c in range(3)]
    want = sorted([i for i in range(120) if p[i].argmax() != y[i]], key=lambda i: p[i,y[i]])
    assert df.image.tolist() == want and set(df.image[:2]) == {3,50}
    for i,l,q,s,sure in df.itertuples(index=False):
        assert l == y[i] and q == p[i].argmax() and abs(s-(1-p[i,l])) < 1e-4 and sure == (p[i].max() >= usual[q])

def test_labels_that_are_none_and_names():
    x,y = clusters(); names = np.array(['cat','dog','eel'], dtype=object)[y]
    names[5] = 'cat' if names[5] != 'cat' else 'dog'
    labels = [*names]; labels[0],labels[1],labels[2],labels[9] = 'unsup',-1,None,float('nan')
    df = suspicious_labels(x, labels)
    assert df.image[0] == 5 and df.label[0] == names[5] and df.proposed[0] == ['cat','dog','eel'][5%3] and not df.image.isin([0,1,2,9]).any()
    kept = [i for i in range(120) if i not in (0,1,2,9)]
    part = suspicious_labels(x[kept], [labels[i] for i in kept])
    assert [kept[i] for i in part.image] == df.image.tolist() and np.allclose(part.score, df.score)
    three = torch.where(torch.arange(120) < 60, y, 3)
    assert suspicious_labels(x, three, unsup=3).image.lt(60).all() and suspicious_labels(x, pd.Series(three.tolist()), unsup=[3]).image.lt(60).all()

def test_rare_classes():
    x,y = clusters(); labels = [str(o) for o in y.tolist()]
    labels[0] = 'alone'; labels[1] = labels[2] = 'two'
    with pytest.warns(UserWarning, match="1 classes with a single image cannot be judged.*'alone'"): df = suspicious_labels(x, labels)
    assert 0 not in df.image.tolist() and {1,2} <= set(df.image)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert suspicious_labels(x, ['two']*2+['rest']*118).score.between(0, 1).all()

@pytest.mark.parametrize('f,args,match', [
    (find_duplicates, dict(features=[1,2]), 'features must be a tensor'), (find_duplicates, dict(features=torch.randn(1,3)), 'at least 2'),
    (find_duplicates, dict(features=torch.tensor([[1.,float('nan')],[1.,2.]])), 'not finite, e.g. of image 0'),
    (find_duplicates, dict(mirrored=torch.randn(4,3)), 'mirrored must be'), (find_duplicates, dict(k=0), 'k must be'),
    (find_duplicates, dict(crop=.5), 'crop must be'), (find_duplicates, dict(recall=0), 'recall must be'),
    (find_duplicates, dict(quality=100), 'quality must be'), (find_duplicates, dict(size=1), 'size must be'),
    (find_duplicates, dict(images=torch.rand(4,1,8,8)), 'there are 4 images'),
    (find_duplicates, dict(images=torch.randn(9,1,8,8)*9), 'not in \\[0,1\\]'), (find_duplicates, dict(images=torch.rand(9,8,8)), 'images: image'),
    (find_outliers, dict(k=9), 'k must be between 1 and 8'), (find_outliers, dict(features=torch.randn(9)), 'features must be'),
    (suspicious_labels, dict(labels=[0]*9), 'two classes or more'), (suspicious_labels, dict(labels=[0,1]), 'as many as features'),
    (suspicious_labels, dict(labels=[0]*4+[1]*5, folds=1), 'folds must be'), (suspicious_labels, dict(labels=[-1]*9), 'two classes or more'),
])
def test_bad_input(f, args, match):
    with pytest.raises((ValueError,TypeError), match=match): f(**{'features':torch.randn(9,3, generator=torch.Generator().manual_seed(0)), **args})

def test_pictures():
    import matplotlib.pyplot as plt
    torch.manual_seed(0); x,y = clusters(20); im = torch.rand(60,3,8,8); y[4] = (y[4]+1) % 3
    axs = show_found(find_duplicates(x, k=3), im, n=5)
    assert axs.shape == (2,5)
    top = find_outliers(x).iloc[0]
    axs = show_found(find_outliers(x), im, n=4)
    assert axs.shape == (2,4) and axs[0,0].get_title().startswith(f'image {int(top.image)}\n') and axs[1,0].get_title() == f'image {int(top.other)}'
    axs = show_found(suspicious_labels(x, y), im, n=1)
    assert axs.shape == (1,1) and axs[0,0].get_title() == f'image 4\n{y[4]} → 1'
    shown = axs[0,0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(shown)/255, im[4].permute(1,2,0), atol=.5/255+1e-6)
    axs = show_found(find_outliers(x), torch.ones(60,1,8,8), n=1)                            # white is white, not the least of all greys
    assert axs[0,0].images[0].get_clim() == (0,255)
    plt.close('all')
