"""A device that is not there: tensors stay in the CPU's memory and know where they claim to be

Inside `pretend('mps')` whatever is moved to that device, or made on it, says so; operations on tensors of two devices are refused as torch refuses
them on a real one, and so are NumPy's views of tensors that are away, float64 where the device has none, and generators of another device.
What autograd makes in C++ is of unknown place until it meets a tensor whose place is known.
"""
from contextlib import contextmanager
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

HERE, AWAY = 'here', 'away'
_GET_DEVICE, _GET_GRAD = Tensor.device.__get__, Tensor.grad.__get__
_FLAGS = {Tensor.is_cuda.__get__: 'cuda', Tensor.is_mps.__get__: 'mps'}
_FACTORIES = {getattr(torch, n) for n in ('tensor as_tensor asarray empty zeros ones full arange linspace rand randn randint randperm eye tril_indices triu_indices '
                                          'from_numpy frombuffer empty_strided scalar_tensor').split()}
_ACROSS = {Tensor.copy_, Tensor.__setitem__, Tensor.data.__set__, torch._has_compatible_shallow_copy_type}   # may take two places
_INDEXED = {Tensor.__getitem__}                                         # an index may be here, its tensor away
_READS = {Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}

class Elsewhere(RuntimeError): "What a real device would have refused"

class _Pretend(TorchFunctionMode):
    def __init__(self, kind, float64):
        super().__init__()
        self.device, self.float64, self.places, self.moves = torch.device(kind, 0), float64, {}, 0

    def place(self, t):
        try: key = t.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError): return None         # inside a transform of torch.func
        ref, where = self.places.get(key, (None, None))
        return None if ref is None or ref.expired() else where

    def put(self, t, where):
        if where is None or not isinstance(t, Tensor): return t
        try: s = t.untyped_storage()
        except (RuntimeError, NotImplementedError): return t
        self.places[s._cdata] = StorageWeakRef(s), where
        if where==AWAY and t.dtype==torch.float64 and not self.float64:
            raise TypeError(f"Cannot convert a {self.device.type} Tensor to float64 dtype")
        return t

    def put_all(self, out, where): return tree_map(lambda t: self.put(t, where), out) if where else out

    def asked(self, device):
        "Where a device argument leads; None where none was given"
        if device is None: return None
        return AWAY if torch.device(device).type==self.device.type else HERE

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func==torch._C._nn._parse_to: return func(*args, **kwargs)
        if func==_GET_DEVICE: return self.device if self.place(args[0])==AWAY else func(*args)
        if func in _FLAGS: return self.place(args[0])==AWAY and self.device.type==_FLAGS[func]
        if func==Tensor.get_device: return 0 if self.place(args[0])==AWAY else -1
        if func==_GET_GRAD: return self.put(func(*args), self.place(args[0]))
        if func in _READS and self.place(args[0])==AWAY: raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        if func in (Tensor.cpu, Tensor.cuda): return self.moved(args[0], HERE if func==Tensor.cpu else AWAY)
        if func==Tensor.register_hook: return func(args[0], self.told(args[1], self.place(args[0])))
        if func==Tensor.to: return self.to(*args, **kwargs)
        where, given = self.common(func, args, kwargs), self.asked(kwargs.pop('device', None))
        if given==AWAY and kwargs.get('generator') is not None: raise Elsewhere(f"Expected a '{self.device.type}' generator but found 'cpu'")
        if func in (torch.as_tensor, torch.asarray) and isinstance(args[0], Tensor):
            return self.moved(func(*args, **kwargs), given or where)
        out = func(*args, **kwargs)
        return self.put_all(out, given or where or (HERE if func in _FACTORIES else None))

    def told(self, hook, where):
        "A hook that meets its gradient where the tensor is"
        return lambda g: hook(self.put(g, where))

    def common(self, func, args, kwargs):
        "The place of the tensors of a call, which must be one"
        flat = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        places = [(self.place(t), t) for t in flat]
        away = any(p==AWAY for p,_ in places)
        if func in _ACROSS: return places[0][0]
        if func in _INDEXED and away and places[0][0]!=HERE: return AWAY
        if away and any(p==HERE and t.ndim for p,t in places):
            raise Elsewhere(f"Expected all tensors to be on the same device, but found {self.device} and cpu ({getattr(func, '__name__', func)})")
        return AWAY if away else HERE if places and all(p==HERE for p,_ in places) else None

    def moved(self, t, where):
        if where is None or self.place(t)==where: return t
        self.moves += 1
        return self.put(t.clone(), where) if self.place(t) or where==AWAY else self.put(t, where)

    def to(self, t, *args, copy=False, **kwargs):
        if args and isinstance(args[0], Tensor): args = (_device_of(self, args[0]), args[0].dtype, *args[1:])
        if 'other' in kwargs: o = kwargs.pop('other'); kwargs |= dict(device=_device_of(self, o), dtype=o.dtype)
        args = [str(a) if isinstance(a, torch.device) else a for a in args]
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        where = self.asked(device) or self.place(t)
        out = t.to(dtype or t.dtype, copy=copy, **({} if layout is None else dict(memory_format=layout)))
        if self.place(out) is None: self.put(out, self.place(t))       # a copy in another type is where it was
        return self.moved(out, where)

def _device_of(mode, t): return mode.device if mode.place(t)==AWAY else torch.device('cpu')

@contextmanager
def pretend(
    kind='mps',       # 'mps' or 'cuda'
    float64=False,    # Whether it has that type
):                    # The mode; `mode.place(t)` is 'here', 'away' or None
    "A device of this kind is there"
    mode, run = _Pretend(kind, float64), torch.autograd._engine_run_backward
    def backward(*args, **kwargs):
        with mode: return run(*args, **kwargs)          # hooks on the way back meet the mode, too
    torch.autograd._engine_run_backward = backward
    try:
        with mode: yield mode
    finally: torch.autograd._engine_run_backward = run
