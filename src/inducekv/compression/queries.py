"""Queries of an attention module, made once more from its input: what a scorer needs and no cache keeps."""

from dataclasses import dataclass, replace
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
    projection = module.qkv_proj if hasattr(module, "qkv_proj") else module.q_proj
    return as_queries(module, projection(hidden), head_dim)  # type: ignore[operator]


def as_queries(
    module: nn.Module, projected: Float[Tensor, "*batch channels"], head_dim: int
) -> Float[Tensor, "*batch heads head_dim"]:
    """Queries before rotary embedding, from what the module's own projection gave."""
    if hasattr(module, "qkv_proj"):
        projected = projected[..., : int(module.config.num_attention_heads) * head_dim]  # type: ignore[union-attr, arg-type]
    queries = projected.unflatten(-1, (-1, head_dim))
    return module.q_norm(queries) if hasattr(module, "q_norm") else queries  # type: ignore[operator]


@dataclass(frozen=True)
class RotaryTables:
    """The rotary embedding of some tokens in one layer, as the decoder hands it to its layers.

    Attributes:
        cos, sin: `[batch, tokens, rotary_dim]`, or `[3, batch, tokens, rotary_dim]` as older releases pass the three
            axes of Qwen-VL's embedding; None for a layer without rotary embedding. The attention scaling is in them.
        sections: dimensions of each axis, where there are three tables.
        interleaved: dimensions 2i and 2i+1 turn together.
    """

    cos: Tensor | None
    sin: Tensor | None
    sections: tuple[int, ...] = ()
    interleaved: bool = False

    @classmethod
    def of(cls, text_model: Any, layer: int, tables: tuple[Tensor, Tensor] | None) -> "RotaryTables":
        """Of the tokens that `tables` were made for."""
        decoder = DECODERS[text_model.config.model_type]
        if tables is None or decoder.rope(text_model.config, layer) is None:
            return cls(None, None)
        sections = text_model.config.rope_parameters["mrope_section"] * 2 if tables[0].dim() == 4 else ()
        return cls(*tables, tuple(sections), decoder.interleaved)

    @classmethod
    def anywhere(
        cls, text_model: Any, layer: int, positions: Int[Tensor, "batch tokens"], like: Tensor
    ) -> "RotaryTables":
        """Of any positions, all axes alike."""
        source = RotarySource.of(text_model, layer, positions[None])
        return source.tables(like)

    def at(self, first: int, stop: int | None) -> "RotaryTables":
        """The tables of some successive tokens."""
        if self.cos is None or self.sin is None:
            return self
        return replace(self, cos=self.cos[..., first:stop, :], sin=self.sin[..., first:stop, :])

    def turn(
        self,
        x: Float[Tensor, "batch heads tokens head_dim"],
        places: Int[Tensor, "batch heads tokens"] | None = None,
        *,
        back: bool = False,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Queries or keys with the embedding put on, or taken off again (`back`), attention scaling included.

        Args:
            places: which of the tables' tokens each one is; None: they are the same, in order.
        """
        if self.cos is None or self.sin is None:
            return x
        cos, sin = self._merged(self.cos), self._merged(self.sin)
        cos, sin = cos[:, None], sin[:, None]
        if places is not None:
            index = places.clamp_min(0).long()[..., None].expand(*places.shape, cos.shape[-1])
            cos, sin = (t.expand(*places.shape[:2], -1, -1).gather(2, index) for t in (cos, sin))
        if back:
            size = cos.float().square() + sin.float().square()
            cos, sin = cos / size, -sin / size
        return rotate_keys(x, cos, sin, interleaved=self.interleaved)

    def _merged(self, table: Tensor) -> Tensor:
        """One table, whose dimensions are in the order in which `rotate_keys` takes them."""
        if table.dim() == 4:  # each section of dimensions follows its axis
            table = torch.cat([part[i % 3] for i, part in enumerate(table.split(self.sections, -1))], -1)
        if self.interleaved:
            table = table[..., : table.shape[-1] // 2].repeat_interleave(2, -1)
        return table


@dataclass(frozen=True)
class RotarySource:
    """What it takes to make the tables of some tokens again later.

    Attributes:
        rotary: the decoder's rotary embedding; None for a layer without.
        rope: its name, where a decoder has several.
        position_ids: `[batch, axes, tokens]` int32.
    """

    rotary: Any
    rope: str
    position_ids: Int[Tensor, "batch axes tokens"]
    sections: tuple[int, ...] = ()
    interleaved: bool = False

    @classmethod
    def of(cls, text_model: Any, layer: int, position_ids: Int[Tensor, "axes batch tokens"]) -> "RotarySource":
        decoder, config = DECODERS[text_model.config.model_type], text_model.config
        rope = decoder.rope(config, layer)
        position_ids = position_ids.to(torch.int32).transpose(0, 1)
        if rope is None:
            return cls(None, "", position_ids[:, :1])
        if not config.model_type.endswith("_vl_text"):
            return cls(text_model.rotary_emb, rope, position_ids[:, :1], (), decoder.interleaved)
        sections = tuple(config.rope_parameters["mrope_section"]) * 2
        return cls(text_model.rotary_emb, rope, position_ids.expand(-1, 3, -1), sections, decoder.interleaved)

    def tables(self, like: Tensor) -> RotaryTables:
        """cos and sin of every token, in the dtype of `like`."""
        if self.rotary is None:
            return RotaryTables(None, None)
        ids = self.position_ids.transpose(0, 1).long()
        ids = ids if self.sections else ids[0]
        cos, sin = self.rotary(like, ids, *([self.rope] if self.rope else []))
        return RotaryTables(cos, sin, self.sections, self.interleaved)
