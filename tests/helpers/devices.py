"""A device that this machine does not have, "mps" or "cuda", emulated on the CPU.

Its tensors compute on the CPU but report the device. As on the real one, an operation can't mix the tensors of two
devices, and on "mps" no tensor is float64. PyTorch itself takes them for tensors on "meta", which every build supports.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

MIXING = ("aten::_to_copy", "aten::copy_", "aten::index", "aten::_local_scalar_dense")
"""Operations that may take tensors of two devices."""


class OnDevice(torch.Tensor):
    """A tensor on the emulated device; `held` is its content."""

    kind = "mps"

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        if cls.kind == "mps" and held.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device="meta", requires_grad=held.requires_grad
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def computed(function, args, kwargs):
    """The result of an operation that has a tensor of the emulated device, or that makes one."""
    name, leaves = function.name(), tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, OnDevice)]
    others = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) and x.ndim]
    if there and others and not name.startswith(MIXING):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {OnDevice.kind} and cpu")
    wanted = kwargs.get("device")
    leaves_it = str(wanted) == "cpu" or (name == "aten::copy_" and not isinstance(args[0], OnDevice))
    args, kwargs = tree_map_only(OnDevice, lambda x: x.held, (args, kwargs | ({"device": "cpu"} if wanted else {})))
    result = function(*args, **kwargs)
    if leaves_it:
        return result
    same = {id(x.held): x for x in there}  # an operation in place returns its input
    return tree_map_only(torch.Tensor, lambda x: same.get(id(x)) if id(x) in same else OnDevice(x), result)


class Emulation(TorchDispatchMode):
    """Computes what moves to the emulated device, or is made on it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        moves = wanted == OnDevice.kind
        if wanted == "meta":  # of `x.to(y)` and `where(x, y, 0)`, where y is on the device; else it is meant
            copied = function.name() == "aten::_to_copy" and not args[0].is_meta
            moves = copied or function.name() == "aten::scalar_tensor"
        inside = any(isinstance(x, OnDevice) for x in tree_leaves((args, kwargs)))
        return computed(function, args, kwargs) if moves or inside else function(*args, **kwargs)


class WithIndex(TorchFunctionMode):
    """Names the emulated device "mps:0" instead of "mps": PyTorch would ask the driver for the index."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(
            torch.device, lambda d: torch.device(d.type, 0) if d.type == OnDevice.kind else d, (args, kwargs or {})
        )
        return function(*args, **kwargs)


@contextmanager
def emulated(kind: str) -> Iterator[torch.device]:
    """In the context, tensors and modules can be moved to a device of this kind, "mps" or "cuda"."""
    with patch.object(OnDevice, "kind", kind), patch("torch.cuda._lazy_init"), Emulation(), WithIndex():
        yield torch.device(kind, 0)
