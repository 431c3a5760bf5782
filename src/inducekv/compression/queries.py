"""Queries of an attention module, made once more from its input: what a scorer needs and no cache keeps."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inducekv.families import DECODERS
from inducekv.rope import rotate_keys


def project_queries(
    module: nn.Module, hidden: Float[Tensor, "*batch hidden"], head_dim: int
) -> Float[Tensor, "*batch heads head_dim"]:
    """Queries before rotary embedding, through the module's own weights, biases and query norm."""
    if hasattr(module, "qkv_proj"):
        heads = int(module.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
        projected = module.qkv_proj(hidden)[..., : heads * head_dim]  # type: ignore[operator]
    else:
        projected = module.q_proj(hidden)  # type: ignore[operator]
    queries = projected.unflatten(-1, (-1, head_dim))
    return module.q_norm(queries) if hasattr(module, "q_norm") else queries  # type: ignore[operator]


def rotate_queries(
    text_model: Any, layer: int, queries: Float[Tensor, "batch heads tokens head_dim"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Queries after rotary embedding with the cos and sin that the decoder hands to its layers.

    Args:
        cos, sin: `[batch, tokens, rotary_dim]`, or `[3, batch, tokens, rotary_dim]` as older releases pass the three
            axes of Qwen-VL's embedding.
    """
    decoder = DECODERS[text_model.config.model_type]
    if decoder.rope(text_model.config, layer) is None:
        return queries
    cos, sin = (_merged(text_model, x) for x in (cos, sin))
    if decoder.interleaved:
        cos, sin = (x[..., : x.shape[-1] // 2].repeat_interleave(2, -1) for x in (cos, sin))
    return rotate_keys(queries, cos[:, None], sin[:, None], interleaved=decoder.interleaved)


def rotary_at(
    text_model: Any, layer: int, positions: Int[Tensor, "batch tokens"], like: Tensor
) -> tuple[Tensor, Tensor] | None:
    """cos and sin for `rotate_queries` at plain positions (all axes alike); None for a layer without rotary embedding."""
    rope = DECODERS[text_model.config.model_type].rope(text_model.config, layer)
    if rope is None:
        return None
    if text_model.config.model_type.endswith("_vl_text"):
        positions = positions[None].expand(3, -1, -1)
    cos, sin = text_model.rotary_emb(like, positions, *([rope] if rope else []))
    return cos, sin


def _merged(text_model: Any, table: Tensor) -> Tensor:
    """One table from the three axes of Qwen-VL's rotary embedding: each section of dimensions follows its axis."""
    if table.dim() == 3:
        return table
    sections = text_model.config.rope_parameters["mrope_section"] * 2
    return torch.cat([part[i % 3] for i, part in enumerate(table.split(sections, -1))], -1)
