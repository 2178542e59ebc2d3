"How the sets under tests/sets were made; run it for a new schema only, since an old set must stay what an old version wrote"
import sys
import torch
from dataclasses import replace
from pathlib import Path
from infoutil.view_labels import view_labels, ViewKey
from infoutil.basics import seeded
from infoutil.data import candidates, load_data
from infoutil.labels import patch_labels
from infoutil.models import ConvNet
from infoutil.selection import Crops
from infoutil.distilled_set import DistilledSet
from infoutil.mosaics import make_mosaics, provenance
from infoutil.teacher import Teacher

def tiny_teacher(classes, mean, std):
    with seeded(0, 'tiny teacher'): return Teacher(ConvNet(len(classes), depth=1, width=2, size=16).eval(), 'tiny', tuple(classes), 16, mean, std, epoch=1, accuracy=.25)

def main(out):
    digits = load_data('digits')
    images, origin = [], []
    for c in range(10):
        found = candidates(digits, c, 16, n=4)
        images.append(make_mosaics(found.images, factor=2, size=16))
        origin += provenance(Crops(found.files, torch.tensor([[0, 0, 16, 16]]*4), torch.arange(4.), label=c), factor=2, first=c)
    images, t = torch.cat(images), tiny_teacher(digits.classes, (.3091,)*3, (.3489,)*3)
    ds = DistilledSet(images, torch.arange(10), digits.classes, patch_labels(t.model, images, 2, t.mean, t.std), t, dict(method='random', factor=2, data='digits', seconds=1.5), origin)
    ds.save(out/'schema1')
    key = ViewKey(n=10, size=16, epochs=2, batch_size=5, factor=2)
    replace(ds, views=view_labels(t.model, images, key, t.mean, t.std, top_k=3)).save(out/'schema2', keep_teacher=False)

if __name__=='__main__': main(Path(sys.argv[1]))
