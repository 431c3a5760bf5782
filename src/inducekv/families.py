"""What differs between model families. A family is a row of the table below, not a subclass.

To add one: write its row, add a tiny model of it to `tests/tiny.py`, and the parity suite does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Rotation = tuple[Float[Tensor, "positions rotary_dim"], Float[Tensor, "positions rotary_dim"]]


def plain_rotary(rotary: nn.Module, like: Tensor, positions: Int[Tensor, "positions"]) -> Rotation:
    """cos and sin of the usual rotary embedding (Llama, Qwen2, Qwen3)."""
    cos, sin = rotary(like, positions[None])
    return cos[0], sin[0]


def multimodal_rotary(rotary: nn.Module, like: Tensor, positions: Int[Tensor, "positions"]) -> Rotation:
    """cos and sin of Qwen-VL's three-axis embedding, all axes at the same position: a uniform shift of the payload."""
    cos, sin = rotary(like, positions[None, None].expand(3, 1, -1))
    cos, sin = (cos[0], sin[0]) if cos.dim() == 4 else (cos, sin)  # older releases keep one copy for each axis
    return cos[0], sin[0]


def counted_positions(inputs: dict[str, Tensor]) -> Int[Tensor, "rows tokens"]:
    """Positions 0, 1, ... of a row's real tokens, whatever its padding."""
    return (inputs["attention_mask"].long().cumsum(-1) - 1).clamp_min(0)


def qwen_vl_positions(inputs: dict[str, Tensor]) -> Int[Tensor, "3 rows tokens"] | None:
    """`None` where the model finds its own three-axis positions (it has pictures); counted ones otherwise."""
    if "image_grid_thw" in inputs or "video_grid_thw" in inputs:
        return None
    return counted_positions(inputs)[None].expand(3, -1, -1)


@dataclass(frozen=True)
class Family:
    """How to reach into one family of models.

    Attributes:
        text_model: attribute path of the text decoder (it has `layers`, each with `self_attn`, and `rotary_emb`).
        rotary: cos and sin `[positions, rotary_dim]` from `text_model.rotary_emb` for integer positions.
        positions: position ids to pass with a left-padded batch, or `None` to let the model find them.
        image_token: attribute of the configuration that holds the image token's id; `None` for text-only models.
        images_per_row: pictures come as `[rows, images, ...]`, filled up with zeros where a row has fewer, rather than
            all pictures of a batch in one list.
        state: attribute paths of what the model remembers between calls; our own passes put it back.
    """

    text_model: str
    rotary: Callable[[nn.Module, Tensor, Tensor], Rotation] = plain_rotary
    positions: Callable[[dict[str, Tensor]], Tensor | None] = counted_positions
    image_token: str | None = None
    images_per_row: bool = False
    state: tuple[str, ...] = ()

    def text(self, model: nn.Module) -> Any:
        """The text decoder of `model`."""
        return attrgetter(self.text_model)(model)


FAMILIES: dict[str, Family] = {
    "idefics3": Family("model.text_model", image_token="image_token_id", images_per_row=True),
    "llama": Family("model"),
    "llava": Family("model.language_model", image_token="image_token_id"),
    "qwen2": Family("model"),
    "qwen2_5_vl": Family(
        "model.language_model",
        rotary=multimodal_rotary,
        positions=qwen_vl_positions,
        image_token="image_token_id",
        state=("model.rope_deltas",),
    ),
    "qwen3": Family("model"),
}
"""Families by `config.model_type`."""

UNSUPPORTED_ROPE = ("dynamic", "longrope")
"""Rotary types whose frequencies depend on the sequence's length: stored keys cannot be moved by a rotation."""


def family_of(model: nn.Module) -> Family:
    """The table row of a model.

    Raises:
        ValueError: the family is not in the table, its text decoder is not of a supported family, or its rotary
            embedding cannot be shifted.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise ValueError(
            f"model family {kind!r} is not supported; supported: {', '.join(sorted(FAMILIES))}. "
            "To add one, write a row in the table of src/inducekv/families.py"
        )
    family = FAMILIES[kind]
    try:
        text = family.text(model)
        layers, rotary = text.layers, text.rotary_emb
        modules = [layer.self_attn for layer in layers]
    except AttributeError as error:
        raise ValueError(
            f"the text model of this {kind!r} model has no rotary decoder layers ({error}); "
            "its text family needs a row of its own in src/inducekv/families.py"
        ) from error
    if not all(hasattr(module, "layer_idx") for module in modules):
        raise ValueError(
            f"the attention layers of this {kind!r} model carry no layer_idx; memory cannot find its layer"
        )
    if getattr(rotary, "rope_type", "default") in UNSUPPORTED_ROPE:
        raise ValueError(f"rotary embedding type {rotary.rope_type!r} is not supported: its keys cannot be moved")
    return family


def rotation(family: Family, text_model: Any, positions: Int[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
    """cos and sin `[*shape, rotary_dim]` float32 that move a key by `positions` (may be negative)."""
    rotary = text_model.rotary_emb
    like = torch.zeros((), dtype=torch.float32, device=positions.device)
    cos, sin = family.rotary(rotary, like, positions.flatten())
    scaling = float(getattr(rotary, "attention_scaling", 1.0))  # already in the stored keys
    shape = (*positions.shape, cos.shape[-1])
    return (cos / scaling).view(shape), (sin / scaling).view(shape)
