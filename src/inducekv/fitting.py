"""Does a memory fit the model that is to read it? Asked before attention runs into it."""

from typing import TYPE_CHECKING

import torch

from inducekv.injection import Injection

if TYPE_CHECKING:
    from inducekv.backbone import Backbone


def check_fits(injection: Injection, backbone: "Backbone") -> None:
    """
    Raises:
        ValueError: layers, KV heads, head dimension or tokens are not the model's or do not agree with each other, or
            a key or value is not a finite number.
    """
    layers = tuple(range(backbone.layers)) if injection.layers is None else injection.layers
    counts = len(injection.keys), len(injection.values)
    if counts != (len(layers), len(layers)) or not set(layers) <= set(range(backbone.layers)):
        raise ValueError(
            f"the memory has keys of {counts[0]} and values of {counts[1]} layers, for layers {list(layers)} of a "
            f"model that has {backbone.layers}; attach it to the model it was made for"
        )
    rows, tokens = injection.mask.shape
    if injection.places is not None:
        tokens //= injection.places.shape[1]
    wanted = (backbone.kv_heads, tokens, backbone.head_dim)
    for layer, key, value in zip(layers, injection.keys, injection.values, strict=True):
        for name, x in (("keys", key), ("values", value)):
            if tuple(x.shape[1:]) != wanted or (injection.places is None and x.shape[0] != rows):
                raise ValueError(
                    f"{name} of layer {layer} in the memory have the shape {list(x.shape)}; this model and the "
                    f"memory's mask ask for {rows if injection.places is None else 'pieces'} x kv_heads, tokens, "
                    f"head_dim = {list(wanted)}; attach it to the model it was made for"
                )
    if not _finite(injection, backbone):
        dtype = injection.keys[0].dtype
        raise ValueError(
            f"the memory holds keys or values that are not finite numbers in {dtype}; learn it again, or, if the model "
            "is in float16, load it in bfloat16 or float32, which hold larger numbers"
        )


def _finite(injection: Injection, backbone: "Backbone") -> bool:
    """Whether all keys and values are finite numbers. Sums say so 25 times as fast, unless they overflow themselves."""
    tensors = [*injection.keys, *injection.values]
    if not tensors:
        return True
    sums = [x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)).to(backbone.device) for x in tensors]
    if bool(torch.stack(sums).isfinite().all()):
        return True
    return all(bool(x.isfinite().all()) for x in tensors)
