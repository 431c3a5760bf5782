"""A second device to test on where there is none: real numbers that say they are elsewhere, and refuse to be mixed.

Torch knows the `meta` device everywhere; tensors there hold no numbers. Those made here do, on the side. Every
operation that mixes them with tensors of the CPU fails, as it would between two accelerators.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = "meta"
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations that take indices from the CPU, wherever the rest is."""


class Far(Tensor):
    """A tensor on the second device; its numbers are in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "Far":
        return Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=FAR, requires_grad=requires_grad
        )

    def __init__(self, held: Tensor, requires_grad: bool = False) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """While open, `FAR` is a device like any other."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    args, kwargs = tree_map(_with_numbers, (args, kwargs))
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    name, asked = func._schema.name, kwargs.get("device")
    near = [x for x in tensors if not isinstance(x, Far) and x.dim()]
    indexed = name in INDEXING and isinstance(args[0], Far)
    if indexed:
        near = [x for x in near if x.dtype not in (torch.long, torch.bool)]
    if far and near and name not in COPIES:
        raise RuntimeError(f"{name}: tensors on different devices")
    to_far = bool(far) if asked is None else torch.device(asked).type == FAR
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    given = {id(_held(x)): x for x in tensors}
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return given.get(id(x)) if id(x) in given else Far(x) if to_far else x

    return tree_map(wrapped, out)


def _with_numbers(x: Any) -> Any:
    """`torch.tensor([], device=...)`, as empty caches begin, comes without any; there are none."""
    if not isinstance(x, Tensor) or isinstance(x, Far) or x.device.type != FAR:
        return x
    if x.numel():
        raise RuntimeError("a tensor was made on the second device in a way that its numbers were lost")
    return Far(torch.empty(x.shape, dtype=x.dtype))


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Far) else x


def moved(module: nn.Module, device: str) -> None:
    """Put a module on a device, its inputs brought there by a hook (as accelerate does)."""

    def bring(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, (args, kwargs))

    if device == FAR:
        for each in module.modules():
            each._hf_hook = SimpleNamespace(execution_device=FAR)  # as accelerate notes it
            for name, parameter in each._parameters.items():
                if parameter is not None:
                    each._parameters[name] = nn.Parameter(Far(parameter.data), requires_grad=False)
            for name, buffer in each._buffers.items():
                if buffer is not None:
                    each._buffers[name] = Far(buffer)
    module.register_forward_pre_hook(bring, with_kwargs=True)
