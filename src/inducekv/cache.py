"""Memory as a prefilled cache, for those who need a `Cache` object rather than an attached model.

The attention function (`attached`) is the way to prefer: it also knows `log` weighting, beams, memory on all sliding
layers and pictures everywhere. What a cache cannot say is refused here with the reason.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

from inducekv.devices import device_of
from inducekv.families import counted_positions
from inducekv.injection import Injection
from inducekv.rope import shift_keys

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

POSITIONS_OF_THE_CACHE = hasattr(GenerationMixin, "_get_initial_cache_position")
"""Releases before 5.3 take the place of the new tokens in the cache as `cache_position`; later ones refuse it."""


def as_cache(
    backbone: "Backbone", injection: Injection | None, inputs: dict[str, Any], *, beams: int = 1
) -> tuple[DynamicCache, dict[str, Any]]:
    """A cache that holds the memory already, and what `generate` takes with it.

    `cache, kwargs = as_cache(...)`, then `model.generate(past_key_values=cache, **kwargs)` (from transformers 5.24 on
    also `cache=cache`). A cache serves one call: `generate` lets it grow. Sequences start with `input_ids` as always;
    the memory is not part of them.

    The memory takes positions before the prompt's first token, which moves up by the row's memory tokens, where
    `generate` expects it. Layers with a sliding window read what lies within the window.

    Args:
        backbone: the model the memory belongs to.
        injection: what each row of the batch reads (`build_injection`); None: nothing.
        inputs: of the whole model, `input_ids` `[rows, tokens]`, padded on the left if at all.
        beams: `num_beams` of the call to come.

    Raises:
        ValueError: the weighting is `log` over several entries (a cache has no place for it), the rows differ from the
            memory's, the mask decides by token types (PaliGemma; Gemma3 with pictures), no `input_ids` are given, or
            the memory holds payloads of some layers only (in-flight retrieval) or layers of different lengths: a cache
            is as long in all layers.
    """
    if inputs.get("input_ids") is None:
        raise ValueError("as_cache needs input_ids: with inputs_embeds, generate expects the memory's embeddings too")
    inputs = {name: x for name, x in inputs.items() if x is not None}
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    cache = DynamicCache()
    if injection is None:
        return cache, inputs
    _check(backbone, injection, inputs)
    mask, order = _together(injection.mask)
    held = mask.sum(-1)
    like = injection.keys[0]
    both = [injection.of_layer(layer, like) or (like, like) for layer in range(backbone.layers)]
    keys = torch.stack([_ordered(key, order, mask) for key, _ in both], 1)
    keys = shift_keys(backbone.text_model, keys, held)
    for layer, (_, value) in enumerate(both):
        value = _ordered(value, order, mask)
        device = device_of(backbone.text_model.layers[layer])
        cache.update(keys[:, layer].to(device, value.dtype), value.to(device), layer)
    if beams > 1:
        cache.batch_repeat_interleave(beams)
    prompt, tokens = inputs["attention_mask"], inputs["input_ids"].shape[1]
    kwargs = {**inputs, "attention_mask": torch.cat([mask.to(prompt), prompt], 1)}
    kwargs["position_ids"] = _positions(backbone, inputs, held)
    if POSITIONS_OF_THE_CACHE:
        kwargs["cache_position"] = torch.arange(mask.shape[1], mask.shape[1] + tokens, device=prompt.device)
    return cache, kwargs


def _check(backbone: "Backbone", injection: Injection, inputs: dict[str, Any]) -> None:
    rows = inputs["input_ids"].shape[0]
    if len(injection.keys) != backbone.layers:
        raise ValueError(
            f"the memory holds payloads of {len(injection.keys)} of {backbone.layers} layers, and a cache has the same "
            "length in all of them; learn with retrieval='two_pass', or use attached() instead of a cache"
        )
    if injection.layer_mask is not None:
        raise ValueError(
            "layers of this memory hold different numbers of tokens (PrefixKV), and a cache has the same length in all "
            "of them; use attached() instead of a cache"
        )
    if injection.mask.shape[0] != rows:
        raise ValueError(f"the memory is for {injection.mask.shape[0]} rows, the inputs have {rows}")
    if injection.bias is not None and bool((injection.bias[injection.mask] != 0).any()):
        raise ValueError(
            "weighting='log' adds to the attention logits, which a cache cannot say, and so does a mass; learn with "
            "weighting='sqrt_max', 'sqrt' or 'none' and mass=0, or use attached() instead of a cache"
        )
    types = backbone.family.token_types
    if types == "prefix" or (types == "images" and "pixel_values" in inputs):
        raise ValueError(
            f"the attention mask of {backbone.model.config.model_type!r} looks up token types by their place in the "
            "cache, and would take the memory for the prompt; use attached() instead of a cache"
        )


def _together(mask: Bool[Tensor, "rows tokens"]) -> tuple[Bool[Tensor, "rows kept"], Int[Tensor, "rows kept"]]:
    """The mask with each row's memory moved to the end, without gaps, and the tokens' old places in the new order."""
    order = mask.long().sort(dim=-1, stable=True).indices
    most = int(mask.sum(-1).amax())
    order = order[:, mask.shape[1] - most :]
    return mask.gather(1, order), order


def _ordered(x: Tensor, order: Tensor, mask: Tensor) -> Tensor:
    """Keys or values `[rows, kv_heads, tokens, head_dim]` in the new order, zeros where nothing is read."""
    index = order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index) * mask[:, None, :, None].to(x.dtype)


def _positions(backbone: "Backbone", inputs: dict[str, Any], held: Tensor) -> Int[Tensor, "*axes rows tokens"]:
    """Position ids of the prompt, moved up by each row's memory tokens; a row of text positions first for Qwen-VL."""
    counted = counted_positions(inputs) + held[:, None]
    own = backbone.family.positions(inputs)
    if own is not None and own.dim() == 2:
        return counted
    own = own if own is not None else backbone.decoder_inputs(inputs)["position_ids"]
    return torch.cat([counted[None], own[-3:] + held[:, None]])
