"Windows: where they lie, what they cut, what they leave of the answer"
import pytest, torch, torch.nn.functional as F
from torch import nn
from infoutil.basics import *
from infoutil.fixtures.toys import toy_batch, toy_model
from infoutil.crop import draw_fractions, informativeness, noisy_maps, pool_map, random_windows, windows
from infoutil.mosaics import tile_edges
from infoutil.pixels import crop_windows, cut_patches, edges, patch_edges, resize_pixels

def test_pooling_by_hand():
    phi = torch.arange(16.).view(1, 4, 4)
    assert pool_map(phi).tolist()==[[[2.5, 3.5, 4.5], [6.5, 7.5, 8.5], [10.5, 11.5, 12.5]]]
    with pytest.raises(InfoUtilError, match='grid of 2'): pool_map(torch.zeros(1, 1, 1))
    with pytest.raises(InfoUtilError, match='image axis'): pool_map(torch.zeros(4, 4))

def test_noise_has_the_scale_and_the_keys_it_should():
    p = torch.randn(400, 3, 3, generator=rng(0))*torch.logspace(-2, 2, 400).view(-1, 1, 1)
    m = noisy_maps(p, crops=5, alpha=2., seeds=range(400))
    z = ((m[:, :4]-p[:, None])/(2*p.flatten(1).std(1, correction=0)).view(-1, 1, 1, 1)).flatten()
    assert abs(float(z.mean()))<4/len(z)**.5 and abs(float(z.std())-1)<4/(2*len(z))**.5      # four standard errors
    assert torch.equal(m[:, 4], p)
    assert torch.equal(noisy_maps(p.flip(0), seeds=range(399, -1, -1)).flip(0), m)           # order does not matter
    assert torch.equal(noisy_maps(p[7:8], seeds=[7]), m[7:8])
    assert torch.equal(noisy_maps(p, crops=1, seeds=range(400)), p[:, None])
    assert torch.equal(noisy_maps(p, alpha=0., seeds=range(400)), p[:, None].expand(-1, 5, -1, -1))

@pytest.mark.parametrize('seed', range(40))
def test_windows_lie_inside_and_around_their_corner(seed):
    r = rng('case', seed)
    g, h, w = [int(torch.randint(lo, hi, (1,), generator=r)) for lo,hi in ((1, 7), (8, 71), (8, 71))]
    f = float(torch.rand(1, generator=r)*.98+.02)
    maps = torch.randn(3, 2, g, g, generator=rng(seed))
    b = windows(maps, (h, w), f)
    assert b.dtype==torch.int64 and (b[..., 2:]>=1).all() and (b[..., :2]>=0).all()
    assert ((b[..., 0]+b[..., 2])<=h).all() and ((b[..., 1]+b[..., 3])<=w).all()
    assert (b[..., 2]==max(1, round(f*h))).all() or abs(f*h%1-.5)<1e-6
    best = maps.flatten(2).argmax(2)
    for side,lead,i in ((h, b[..., ::2], best//g), (w, b[..., 1::2], best%g)):
        corner = (i+1)*side/(g+1)
        want = (corner-lead[..., 1]/2).clamp(min=0).minimum((side-lead[..., 1]).double())
        assert ((lead[..., 0]-want).abs()<=.5001).all()
    r = random_windows(range(3), 4, (h, w), f)
    assert (r>=0).all() and ((r[..., 0]+r[..., 2])<=h).all() and ((r[..., 1]+r[..., 3])<=w).all()

def test_whole_image_ties_and_bad_maps():
    maps = torch.zeros(1, 1, 3, 3)
    assert windows(maps, 32, 1.)[0, 0].tolist()==[0, 0, 32, 32]
    assert windows(maps, 32, .5)[0, 0].tolist()==[0, 0, 16, 16]                              # all equal: the first cell
    with pytest.raises(InfoUtilError, match='NaN'): windows(maps*float('nan'), 32)
    for f in (0., 1.1, -1., float('nan')):
        with pytest.raises(InfoUtilError, match='up to 1'): windows(maps, 32, f)
    with pytest.raises(InfoUtilError, match='smallest <= largest'): draw_fractions([0], 2, .8, .3)
    with pytest.raises(InfoUtilError, match='seeds'): noisy_maps(maps[0], seeds=[1, 2])

def test_drawn_areas_are_uniform():
    a = draw_fractions(range(2000), 2, .2, .8).square()
    assert a.min()>=.2 and a.max()<=.8 and abs(float(a.mean())-.5)<4*.6/12**.5/4000**.5
    assert torch.equal(draw_fractions([5], 2, .2, .8).square(), a[5:6])

def test_cut_windows_are_the_resized_slices():
    im = torch.randint(0, 256, (2, 3, 30, 40), generator=rng(1), dtype=torch.uint8)
    b = torch.tensor([[[0, 0, 30, 40], [3, 5, 16, 16]], [[10, 20, 7, 9], [1, 1, 20, 20]]])
    got, gotf = crop_windows(im, b, 16), crop_windows(im.float(), b, 16)
    assert got.dtype==torch.uint8 and got.shape==(2, 2, 3, 16, 16)
    for i in range(2):
        for j,(t,l,h,w) in enumerate(b[i].tolist()):
            want = F.interpolate(im[i:i+1, :, t:t+h, l:l+w].float(), (16, 16), mode='bilinear', antialias=True)[0]
            torch.testing.assert_close(gotf[i, j], want)
            assert torch.equal(got[i, j], want.round().clamp(0, 255).byte())
    assert torch.equal(got[0, 1], im[0, :, 3:19, 5:21])                            # same size: the pixels themselves
    assert crop_windows(im[:0], b[:0], 16).shape==(0, 2, 3, 16, 16)

def test_informativeness_is_definition_one():
    (x, _), net = toy_batch(4, 16), toy_model()
    b = random_windows(range(4), 3, 16, .6)
    got = informativeness(net, x, b)
    for i in range(4):
        for j,(t,l,h,w) in enumerate(b[i].tolist()):
            s = torch.zeros(16, 16)
            s[t:t+h, l:l+w] = 1
            want = -(net((s*x[i])[None])-net(x[i:i+1])).norm().detach()
            torch.testing.assert_close(got[i, j], want, rtol=1e-4, atol=1e-5)
    for chunk in (1, 4, 999):
        torch.testing.assert_close(informativeness(net, x, b, chunk=chunk), got, rtol=1e-4, atol=1e-5)
    whole = torch.tensor([0, 0, 16, 16]).expand(4, 1, 4)
    assert informativeness(net, x, whole).abs().max()<1e-5 and not got.is_inference()
    red = torch.tensor([1., 0, 0]).view(3, 1, 1)
    assert not torch.allclose(informativeness(net, x, b, baseline=red), got)
    with pytest.raises(InfoUtilError, match='see windows'): informativeness(net, x, b[:2])

@pytest.mark.parametrize('seed', range(6))
def test_all_ways_to_cut_give_the_same_bytes(seed):
    r = rng('cuts', seed)
    h, w, side = [int(torch.randint(lo, hi, (1,), generator=r)) for lo,hi in ((5, 70), (5, 70), (3, 60))]
    im = torch.randint(0, 256, (3, 3, h, w), generator=r, dtype=torch.uint8)
    hw = torch.stack([torch.randint(1, s+1, (3, 9), generator=r) for s in (h, w)], 2)
    hw[:, :3] = hw[:, :1]                                                    # several of one size
    lead = (torch.rand(3, 9, 2, generator=r)*(torch.tensor([h, w])-hw+1)).long()
    b, of = torch.cat([lead, hw], 2), torch.arange(3).repeat_interleave(9)
    many, few = cut_patches(im, of, b.flatten(0, 1), side), crop_windows(im, b, side).flatten(0, 1)
    mix = torch.randperm(27, generator=r)
    assert torch.equal(many, few) and torch.equal(cut_patches(im, of[mix], b.flatten(0, 1)[mix], side), many[mix])
    for q,i,(t,l,bh,bw) in zip(many, of, b.flatten(0, 1).tolist()):
        part = im[i:i+1, :, t:t+bh, l:l+bw]
        want = F.interpolate(part.float(), (side, side), mode='bilinear', antialias=True).round().clamp(0, 255).byte()
        assert torch.equal(q, resize_pixels(part, side, side)[0]) and torch.equal(q, want[0])

def test_borders_are_said_once():
    for s in range(1, 40):
        for n in range(1, s+1):
            want = [round(i*s/n) for i in range(n+1)]
            assert list(edges(s, n))==list(tile_edges(s, n))==patch_edges(s, n)==want
    with pytest.raises(InfoUtilError, match='fewer'): edges(3, 4)

def test_boxes_outside_the_image_are_refused():
    im = torch.zeros(1, 3, 8, 9, dtype=torch.uint8)
    for bad in ([0, 0, 9, 9], [0, 1, 8, 9], [-1, 0, 4, 4], [0, 0, 0, 4], [0, 0, 4, -1]):
        with pytest.raises(InfoUtilError, match='check their order'): crop_windows(im, torch.tensor([[bad]]), 4)
    assert crop_windows(im, torch.tensor([[[0, 0, 8, 9]]]), 4).shape==(1, 1, 3, 4, 4)
