"""A second device that torch's own "meta" stands for: real numbers on the processor, refused beside the first one's.

Inside `SecondDevice()` whatever is made on, or moved to, "meta" is an `Elsewhere`: it computes on the processor, so
results are the processor's, and raises where an operation would mix it with a tensor that is not one, as a GPU would.
"""
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

NAME = "meta"
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=NAME)

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Elsewhere({self.held!r})"

    def tolist(self):  # torch gives subclasses neither this
        return self.held.tolist()

    def numpy(self, *, force=False):  # nor this
        if not force:
            raise TypeError("a tensor of the second device is no numpy array: force=True copies it")
        return self.held.numpy(force=True).copy()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [a for a in tree_iter((args, kwargs)) if isinstance(a, torch.Tensor)]
    there = any(isinstance(a, Elsewhere) for a in tensors)
    here = [a for a in tensors if not isinstance(a, Elsewhere) and a.ndim]  # single numbers may come from either
    if there and here and func not in MOVES:
        raise RuntimeError(f"{func}: a tensor of shape {list(here[0].shape)} is on the first device, others are not")
    asked, held = kwargs.get("device"), tree_map(_held, kwargs)
    out = func(*tree_map(_held, args), **held | ({} if asked is None else {"device": torch.device("cpu")}))
    if "out" in kwargs:
        return kwargs["out"]
    if func._schema.name.endswith("_"):
        return args[0]
    lands = there if asked is None else str(asked) == NAME
    return tree_map(lambda a: Elsewhere(a) if isinstance(a, torch.Tensor) else a, out) if lands else out


def _held(a):
    return a.held if isinstance(a, Elsewhere) else a
