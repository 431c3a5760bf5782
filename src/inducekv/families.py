"""What differs between model families. A family is a row of the tables below, not a subclass.

`DECODERS` says how a text decoder turns positions into keys; `FAMILIES` says where a whole model keeps its decoder and
what else about it differs. To add a family: write its row (and its decoder's, if that is new), add a tiny model of it
to `tests/tiny_families.py`, and the parity suite does the rest.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inducekv.error_text import shown

Rotation = tuple[Float[Tensor, "positions rotary_dim"], Float[Tensor, "positions rotary_dim"]]

# -- text decoders


def plain_rotary(rotary: nn.Module, like: Tensor, positions: Int[Tensor, "positions"], rope: str) -> Rotation:
    """cos and sin of the usual rotary embedding (Llama, Qwen2, Qwen3), or of one of Gemma3's two."""
    cos, sin = rotary(like, positions[None], *([rope] if rope else []))
    return cos[0], sin[0]


def interleaved_rotary(rotary: nn.Module, like: Tensor, positions: Int[Tensor, "positions"], rope: str) -> Rotation:
    """cos and sin where neighbouring dimensions turn together (GLM): each frequency twice in a row."""
    cos, sin = plain_rotary(rotary, like, positions, rope)
    half = cos.shape[-1] // 2
    return cos[:, :half].repeat_interleave(2, -1), sin[:, :half].repeat_interleave(2, -1)


def multimodal_rotary(rotary: nn.Module, like: Tensor, positions: Int[Tensor, "positions"], rope: str) -> Rotation:
    """cos and sin of Qwen-VL's three-axis embedding, all axes at the same position: a uniform shift of the payload."""
    cos, sin = rotary(like, positions[None, None].expand(3, 1, -1))
    cos, sin = (cos[0], sin[0]) if cos.dim() == 4 else (cos, sin)  # older releases keep one copy for each axis
    return cos[0], sin[0]


def one_rope(config: Any, layer: int) -> str | None:
    """All layers share the rotary embedding."""
    return ""


def rope_by_layer_type(config: Any, layer: int) -> str | None:
    """Sliding and full layers have embeddings of their own (Gemma3)."""
    return str(config.layer_types[layer])


def rope_on_some_layers(config: Any, layer: int) -> str | None:
    """Some layers have no rotary embedding at all (SmolLM3)."""
    return "" if config.no_rope_layers[layer] else None


@dataclass(frozen=True)
class Decoder:
    """How a text decoder turns positions into keys.

    Attributes:
        rotary: cos and sin `[positions, rotary_dim]` from `rotary_emb` for integer positions and a rope's name;
            fewer dimensions than the head's where the embedding is partial.
        rope: name of a layer's rotary embedding (`""` where there is only one), None for a layer without.
        interleaved: dimensions 2i and 2i+1 turn together, rather than i and i + rotary_dim / 2.
    """

    rotary: Callable[[nn.Module, Tensor, Tensor, str], Rotation] = plain_rotary
    rope: Callable[[Any, int], str | None] = one_rope
    interleaved: bool = False


DECODERS: dict[str, Decoder] = {
    "gemma": Decoder(),
    "gemma2": Decoder(),
    "gemma3_text": Decoder(rope=rope_by_layer_type),
    "glm": Decoder(rotary=interleaved_rotary, interleaved=True),
    "llama": Decoder(),
    "mistral": Decoder(),
    "phi3": Decoder(),
    "qwen2": Decoder(),
    "qwen2_5_vl_text": Decoder(rotary=multimodal_rotary),
    "qwen2_vl_text": Decoder(rotary=multimodal_rotary),
    "qwen3": Decoder(),
    "qwen3_vl_text": Decoder(rotary=multimodal_rotary),
    "smollm3": Decoder(rope=rope_on_some_layers),
}
"""Text decoders by their configuration's `model_type`."""

UNSUPPORTED_ROPE = {
    "dynamic": "its frequencies change with the length of the sequence",
    "longrope": "its frequencies change when the sequence grows past the original context",
}
"""Rotary types whose stored keys cannot be moved by a rotation, and why. (YaRN, linear, llama3 scale once: fine.)"""

# -- whole models


def counted_positions(inputs: dict[str, Tensor]) -> Int[Tensor, "rows tokens"]:
    """Positions 0, 1, ... of a row's real tokens, whatever its padding."""
    return (inputs["attention_mask"].long().cumsum(-1) - 1).clamp_min(0)


def positions_from_one(inputs: dict[str, Tensor]) -> Int[Tensor, "rows tokens"]:
    """Positions 1, 2, ... of a row's real tokens (PaliGemma)."""
    return counted_positions(inputs) + 1


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
        image_token: attribute of the configuration that holds the image token's id; `None` for text-only models.
        positions: position ids to pass with a left-padded batch, or `None` to let the model find them.
        first_position: position of a prompt's first token.
        images_per_row: pictures come as `[rows, images, ...]`, filled up with zeros where a row has fewer, rather than
            all pictures of a batch in one list.
        token_types: what `token_type_ids` decide in the attention mask: `"images"`: a picture's tokens see each other
            in both directions (Gemma3); `"prefix"`: the whole prompt does, 1 marks the answer (PaliGemma); or nothing.
        processor_needs: package without which the family's own processor cannot be built.
        state: attribute paths of what the model remembers between calls; our own passes put it back.
    """

    text_model: str = "model.language_model"
    image_token: str | None = "image_token_id"
    positions: Callable[[dict[str, Tensor]], Tensor | None] = counted_positions
    first_position: int = 0
    images_per_row: bool = False
    token_types: str | None = None
    processor_needs: str | None = None
    state: tuple[str, ...] = ()

    def text(self, model: nn.Module) -> Any:
        """The text decoder of `model`."""
        return attrgetter(self.text_model)(model)


TEXT_ONLY = Family("model", image_token=None)
QWEN_VL = Family(positions=qwen_vl_positions, processor_needs="torchvision", state=("model.rope_deltas",))

FAMILIES: dict[str, Family] = {
    "gemma3": Family(token_types="images"),
    "gemma3_text": TEXT_ONLY,
    "glm": TEXT_ONLY,
    "idefics3": Family("model.text_model", images_per_row=True),
    "internvl": Family(processor_needs="torchvision"),
    "llama": TEXT_ONLY,
    "llava": Family(),
    "llava_next": Family(),
    "llava_onevision": Family(processor_needs="torchvision"),
    "mistral": TEXT_ONLY,
    "mistral3": Family(processor_needs="torchvision"),
    "paligemma": Family(positions=positions_from_one, first_position=1, token_types="prefix"),
    "phi3": TEXT_ONLY,
    "qwen2": TEXT_ONLY,
    "qwen2_5_vl": QWEN_VL,
    "qwen2_vl": QWEN_VL,
    "qwen3": TEXT_ONLY,
    "qwen3_vl": QWEN_VL,
    "smollm3": TEXT_ONLY,
    "smolvlm": Family("model.text_model", images_per_row=True, processor_needs="num2words"),
}
"""Families by `config.model_type`."""


def refusals(config: Any) -> list[str]:
    """Why memory cannot be attached to models of this configuration; empty where it can. Needs no weights."""
    kind = getattr(config, "model_type", None)
    if getattr(config, "is_encoder_decoder", False):
        return [
            f"model family {shown(kind)} is an encoder-decoder: memory joins the self-attention of a decoder-only model"
        ]
    if kind not in FAMILIES:
        return [
            f"model family {shown(kind)} is not supported; supported: {', '.join(sorted(FAMILIES))}. To add one, write "
            "a row in FAMILIES of src/inducekv/families.py: where its text decoder is, its image token, its positions"
        ]
    text = config.get_text_config()
    reasons = []
    if text.model_type not in DECODERS:
        reasons.append(
            f"text decoder {shown(text.model_type)} of this {kind!r} model is not supported; supported: "
            f"{', '.join(sorted(DECODERS))}. To add one, write a row in DECODERS of src/inducekv/families.py: how its "
            "rotary embedding is called, which layers have it, which dimensions turn together"
        )
    return reasons + [rope_refusal(name) for name in rope_types(text) if name in UNSUPPORTED_ROPE]


def unknown_family(kind: Any, brings_code: bool) -> str:
    """Why a family that the installed transformers does not know cannot be used."""
    reason = f"model family {shown(kind)} is not one that the installed transformers knows"
    if brings_code:
        reason += ": it brings its own code, whose attention does not go through the attention interface"
    return reason


def asks_the_interface(kind: type) -> bool:
    """Whether the forward pass of an attention class looks its function up where memory can join it."""
    for each in kind.__mro__:
        forward = each.__dict__.get("forward")
        code = getattr(inspect.unwrap(forward), "__code__", None) if forward is not None else None
        if code is not None:
            if "ALL_ATTENTION_FUNCTIONS" in code.co_names:
                return True
            if "super" not in code.co_names:
                return False
    return False


def rope_types(text_config: Any) -> list[str]:
    """Types of a text decoder's rotary embeddings, one for each kind of layer where they differ."""
    parameters = getattr(text_config, "rope_parameters", None) or {}
    each = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    return list(dict.fromkeys(str(p.get("rope_type", "default")) for p in each))


def rope_refusal(name: str) -> str:
    return f"rotary embedding type {name!r} is not supported: {UNSUPPORTED_ROPE[name]}, so stored keys cannot be moved"


def family_of(model: nn.Module) -> Family:
    """The table row of a model.

    Raises:
        ValueError: the family or its text decoder is not in the tables, its rotary embedding cannot be shifted, or its
            attention is not that of transformers.
    """
    config = getattr(model, "config", None)
    reasons = refusals(config)
    if reasons:
        raise ValueError("; ".join(reasons))
    kind = config.model_type  # type: ignore[union-attr]
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
    foreign = next((type(module) for module in modules if not asks_the_interface(type(module))), None)
    if foreign is not None:
        raise ValueError(
            f"the attention of this {kind!r} model ({foreign.__module__}.{foreign.__qualname__}) does not go through "
            "the attention interface of transformers, so memory cannot join it; load the model without its own code "
            "(trust_remote_code=False) and without packages that replace its attention"
        )
    types = getattr(rotary, "rope_type", "default")
    for name in types.values() if isinstance(types, dict) else [types]:
        if name in UNSUPPORTED_ROPE:
            raise ValueError(rope_refusal(name))
    return family


def rotation(text_model: Any, positions: Int[Tensor, "*shape"], layer: int = 0) -> tuple[Tensor, Tensor]:
    """cos and sin `[*shape, rotary_dim]` float32 that move a layer's keys by `positions` (may be negative).

    A layer without rotary embedding gets cos = 1 and sin = 0: its keys do not know where they are.
    """
    decoder, rotary = DECODERS[text_model.config.model_type], text_model.rotary_emb
    rope = decoder.rope(text_model.config, layer)
    like = torch.zeros((), dtype=torch.float32, device=positions.device)
    if rope is None:
        return like.new_ones(*positions.shape, 2), like.new_zeros(*positions.shape, 2)
    cos, sin = decoder.rotary(rotary, like, positions.flatten(), rope)
    scaling = float(getattr(rotary, f"{rope}_attention_scaling" if rope else "attention_scaling", 1.0))
    shape = (*positions.shape, cos.shape[-1])
    return (cos / scaling).view(shape), (sin / scaling).view(shape)  # the scaling is in the stored keys already
