"Exact gradient norms against one backward pass an image, for the networks that people use"
import pytest, torch
from infoutil.core import seeded
from infoutil.models import get_model
from infoutil.score import grad_norms, el2n_scores, loss_scores

def batch(size, n=3):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=g), torch.tensor([0, 1, 2])

def loop(model, x, y):
    "The definition, by autograd"
    out = []
    for xi, yi in zip(x, y):
        loss = torch.nn.functional.cross_entropy(model(xi[None]), yi[None])
        gs = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        out.append(sum((g.double()**2).sum() for g in gs if g is not None).sqrt())
    return torch.stack(out)

@pytest.mark.parametrize('arch,size', [('convnet3', 32), ('convnet4', 32), ('resnet18', 32), ('resnet18', 80), ('resnet50', 32), ('mobilenet_v2', 32), ('vgg11', 32), ('swin_v2_t', 32),
                                       ('vit_b_32', 32), ('convnext_tiny', 32), ('efficientnet_b0', 32), ('densenet121', 32), ('shufflenet_v2_x0_5', 32), ('regnet_y_400mf', 32), ('squeezenet1_1', 32)])
def test_equals_autograd(arch, size):
    with seeded(1): m = get_model(arch, 4, size)
    for p in m.modules():
        if isinstance(p, torch.nn.BatchNorm2d): torch.nn.init.uniform_(p.running_var, .5, 2); torch.nn.init.normal_(p.running_mean, 0, .1)
    m = m.double().eval()
    x, y = batch(size)
    x = x.double()
    before = {k:v.clone() for k,v in m.state_dict().items()}
    want = loop(m, x, y)
    torch.testing.assert_close(grad_norms(m, x, y).double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_norms(m, x, y, chunk=1).double(), want, rtol=1e-6, atol=0)
    assert all(torch.equal(v, before[k]) for k,v in m.state_dict().items()) and all(p.requires_grad and p.grad is None for p in m.parameters())

def test_cheap_scores():
    with seeded(1): m = get_model('convnet3', 4, 32).eval()
    x, y = batch(32)
    z = m(x).detach()
    torch.testing.assert_close(loss_scores(m, x, y, chunk=1), torch.nn.functional.cross_entropy(z, y, reduction='none'))
    torch.testing.assert_close(el2n_scores(m, x, y), (z.softmax(1)-torch.eye(4)[y]).norm(dim=1))
