"""Stands for a processor whose kernels round elsewhere: every linear layer is off by a digit at the end, by another one for every number of rows.

`INFOUTIL_OTHER_PROCESSOR=1 python -m pytest` runs the tests on it (see conftest.py), in processes that tests start as well (see sitecustomize.py)."""
import functools
import torch
from torch.overrides import has_torch_function

ORDER = 1e-7      # of a float32, as a part of the number; other types get as much of their own last digit

@functools.lru_cache(256)
def noise(shape, dtype, device):
    "1 and the last digit, the same for the same shape"
    n = torch.Size(shape).numel()
    waves = torch.cos(1.7*torch.arange(n, dtype=torch.float64)+shape[0]).view(shape)
    order = ORDER*torch.finfo(dtype).eps/torch.finfo(torch.float32).eps if dtype==torch.float64 else ORDER
    return (1+order*waves).to(device, torch.promote_types(dtype, torch.float32))

def wrap(linear):
    "`linear` as that processor computes it; graphs and scripts are left as they are"
    def other(input, weight, bias=None):
        y = linear(input, weight, bias)
        if torch.jit.is_tracing(): return y
        if type(y) not in (torch.Tensor, torch.nn.Parameter) or has_torch_function((y,)) or not y.is_floating_point() or not y.numel() or y.ndim<2: return y
        with torch.inference_mode(False), torch.no_grad(): by = noise(tuple(y.shape), y.dtype, y.device)
        return (y*by).to(y.dtype)
    other.inner = linear
    return other

def install():
    F = torch.nn.functional
    if hasattr(F.linear, 'inner'): return
    known = torch.jit._builtins._find_builtin(F.linear)
    F.linear = wrap(F.linear)
    if known: torch.jit._builtins._register_builtin(F.linear, known)
