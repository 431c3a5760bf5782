"""Where a model's weights are, and where it takes its inputs: not the same once `device_map` has spread it out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its first parameters are, or are brought to if they are offloaded.

    Raises:
        ValueError: its parameters hold no numbers (the meta device), and nothing brings them.
    """
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    for each in module.modules():
        brought_to = getattr(getattr(each, "_hf_hook", None), "execution_device", None)
        if brought_to is not None:
            return torch.device(brought_to)
    raise ValueError(
        f"the parameters of this {type(module).__name__} are on the meta device, so they hold no numbers; "
        "load the model with from_pretrained"
    )


@contextmanager
def at_hand(module: nn.Module) -> Iterator[nn.Module]:
    """While open, the module's own weights are there to be read, even if they are offloaded."""
    if all(parameter.device.type != "meta" for parameter in module.parameters(recurse=False)):
        yield module
        return
    from accelerate.utils import align_module_device  # who else offloads is not known

    with align_module_device(module):
        yield module


def quantisation(model: Any) -> str | None:
    """How a model's weights are quantised, in words that differ where the weights do; None where they are not."""
    kinds = {
        f"{type(module).__name__} {type(weight.data).__name__} {weight.dtype}"
        for module in model.modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and is_quantised(weight)
    }
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if config is None and not kinds:
        return None
    return "; ".join([*sorted(kinds), *([] if config is None else [str(config)])])


def is_quantised(weight: Tensor) -> bool:
    """Not plain floating numbers of at least 16 bits."""
    plain = type(weight.data) is Tensor and weight.dtype.is_floating_point
    return not plain or weight.dtype.itemsize == 1
