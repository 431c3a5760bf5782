"""RotateKV: two to four bits a number, after a rotation that leaves no channel larger than the others."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from inducekv.compression.base import Compression
from inducekv.compression.bits import Codes, decode, encode
from inducekv.compression.hadamard import hadamard
from inducekv.compression.layer import CodedLayer, kept_from
from inducekv.compression.live import LiveCompression, Positions
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.queries import RotarySource
from inducekv.config import PayloadDtype
from inducekv.encoded import Encoded

GROUP = 128
HEAD_GROUP = 4
PAYLOAD_DTYPES: dict[int, PayloadDtype] = {2: "int2", 3: "int3", 4: "levels4", 8: "int8"}
"""Number format of payloads, by bits."""


@dataclass(frozen=True)
class RotateKV(LiveCompression):
    """Quantises what a method keeps, or everything (RotateKV, IJCAI 2025; specs section 5).

    Keys are taken back to before their rotary embedding, rotated together by four KV heads, and their channels ordered
    by mean, so that each group of 128 has a narrow range; values are rotated by head. Codes are asymmetric, with a
    float16 step and minimum for each token and group. Tokens with the largest entries of the layer's input (sinks)
    stay as they are. Attention reads decoded numbers: this saves memory, and without a fused kernel it costs time.

    CHOICES: channels are ordered by the prompt's own means (published: calibrated on text beforehand); groups are the
    largest divisor of the channels up to 128; where head dimensions are no powers of two they are rotated in blocks;
    nothing is folded into weights; tokens that follow the prompt are kept whole.

    A payload holds what `method` selects, and the memory stores it in so many bits (`payload_dtype`): 3 and 2 bits are
    "int3" and "int2", 4 bits "levels4", levels for a bell curve after a rotation of the head. CHOICES: 4 bits are not
    "int4", whose even steps lose 1.5 to 1.9 times as much (squared) on normal heads of 16 to 256; 8 bits are "int8",
    which has no need of a rotation; clips, sinks and the order of channels are for live caches only.

    Attributes:
        method: selects tokens first; None: all stay. Its budget, if in bytes, counts unquantised numbers.
        bits: 2, 3 or 4 (8: nearly exact, to compare with).
        clip: share of a group's range that is covered; None: 0.8 for 2 bits, else 1.
        sinks: largest entries of the layer's input whose tokens stay whole, at most.
        reorder: order the channels of the keys.
    """

    method: Compression | None = None
    bits: int = 2
    clip: float | None = None
    sinks: int = 20
    reorder: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"bits must be 2, 3, 4 or 8, got {self.bits}")
        if self.clip is not None and not 0 < self.clip <= 1:
            raise ValueError(f"clip must be above 0 and at most 1, got {self.clip}")
        if self.sinks < 0:
            raise ValueError(f"sinks must be at least 0, got {self.sinks}")
        live = isinstance(self.method, LiveCompression)
        if self.method is not None and not isinstance(self.method, Compression):
            raise TypeError(f"method must be a Compression or None, got {self.method!r}")
        if live and type(self.method).store is not LiveCompression.store:  # type: ignore[union-attr]
            raise ValueError(f"RotateKV quantises tokens as they are; {self.method!r} stores them in a form of its own")

    @property
    def whole_prompt(self) -> bool:
        return isinstance(self.method, LiveCompression) and self.method.whole_prompt

    def measure(self, prompt: LayerPrompt) -> Tensor:
        prompt.notes["sinks"] = self._sinks(prompt)
        return prompt.keys.new_zeros(0) if self.method is None else self._live.measure(prompt)

    def choose(self, prompts: list[LayerPrompt], measures: list[Tensor]) -> list[Positions]:
        return [None] * len(prompts) if self.method is None else self._live.choose(prompts, measures)

    @property
    def _live(self) -> LiveCompression:
        if not isinstance(self.method, LiveCompression):
            raise TypeError(f"{self.method!r} is for payloads only")
        return self.method

    def _sinks(self, prompt: LayerPrompt) -> Bool[Tensor, "batch stored"]:
        """Tokens of the layer input's largest entries, at most `sinks` of them in a row."""
        assert prompt.hidden is not None
        size = prompt.hidden[:, prompt.offset :].float().abs() * prompt.stored[..., None]
        width = size.shape[-1]
        largest = size.flatten(1).topk(min(self.sinks, size[0].numel()), -1).indices // width
        return torch.zeros_like(prompt.stored).scatter(1, largest, True) & prompt.stored

    def store(self, prompt: LayerPrompt, measure: Tensor, chosen: Positions) -> DynamicLayer | None:
        _, heads, stored, width = prompt.keys.shape
        if chosen is None:
            places = torch.arange(stored, device=prompt.keys.device)
            chosen = torch.where(prompt.stored, places, -1)[:, None].expand(-1, heads, -1)
        keys, values = kept_from(prompt.keys, prompt.values, chosen)
        in_prompt = torch.where(chosen >= 0, chosen + prompt.offset, -1)
        source = RotarySource.of(prompt.text_model, prompt.layer, prompt.position_ids)
        plain = source.tables(keys).turn(keys, in_prompt, back=True)
        together = next(n for n in range(min(HEAD_GROUP, heads), 0, -1) if heads % n == 0)
        rotated = _by_heads(hadamard(_of_heads(plain, together)), together, heads)
        channels = rotated.transpose(1, 2).flatten(2)
        order = None
        if self.reorder:
            used = (chosen >= 0).transpose(1, 2)[..., None].expand(-1, -1, -1, width).flatten(2)
            mean = (channels * used).sum(1) / used.sum(1).clamp_min(1)
            order = mean.argsort(dim=-1, stable=True).to(torch.int16 if heads * width < 2**15 else torch.int32)
            channels = channels.gather(2, order.long()[:, None].expand_as(channels))
        clip = self.clip or (0.8 if self.bits == 2 else 1.0)
        key_codes = encode(channels, self.bits, group=_group(heads * width), clip=clip)
        value_codes = encode(hadamard(values), self.bits, group=_group(width), clip=clip)
        sinks = prompt.notes["sinks"]
        whole = sinks[:, None].expand(-1, heads, -1).gather(2, chosen.clamp_min(0)) & (chosen >= 0)
        most = int(whole.sum(-1).max())
        slots = torch.arange(whole.shape[-1], device=whole.device).expand_as(whole)
        slots = slots.masked_fill(~whole, -1).sort(-1).values[..., whole.shape[-1] - most :]
        sink_keys, sink_values = kept_from(keys, values, slots)
        prefix = RotatedPrefix(
            key_codes,
            value_codes,
            self.bits,
            width,
            together,
            order,
            in_prompt.to(torch.int32),
            source,
            slots.to(torch.int32),
            sink_keys,
            sink_values,
        )
        empty = prompt.keys[:, :, :0]
        return CodedLayer(prefix, empty, in_prompt, prompt.tokens, sliding_window=prompt.sliding_window)

    @property
    def scorer(self) -> LiveCompression | None:
        return None if self.method is None else self.method.scorer

    @property
    def layer_lengths(self) -> bool:
        return self.method is not None and self.method.layer_lengths

    @property
    def payload_dtype(self) -> PayloadDtype:
        return PAYLOAD_DTYPES[self.bits]

    def compress(self, encoded: Encoded) -> Encoded:
        """What `method` selects. Numbers stay as they are: the memory rounds them when it stores them."""
        return encoded if self.method is None else self.method.compress(encoded)


@dataclass(frozen=True)
class RotatedPrefix:
    """A prompt's quantised keys and values in one layer (`layer.Prefix`).

    Attributes:
        keys: codes `[batch, kept, kv_heads * head_dim]`, before rotary embedding, rotated, in the channels' order.
        values: codes `[batch, kv_heads, kept, head_dim]`, rotated.
        order: `[batch, kv_heads * head_dim]` which channel each one was, or None.
        positions: `[batch, kv_heads, kept]` places in the prompt.
        source: rotary embedding of the prompt.
        slots: `[batch, kv_heads, sinks]` slots that are kept whole, -1: none.
        sink_keys, sink_values: `[batch, kv_heads, sinks, head_dim]`.
    """

    keys: Codes
    values: Codes
    bits: int
    width: int
    together: int
    order: Int[Tensor, "batch channels"] | None
    positions: Int[Tensor, "batch kv_heads kept"]
    source: RotarySource
    slots: Int[Tensor, "batch kv_heads sinks"]
    sink_keys: Float[Tensor, "batch kv_heads sinks head_dim"]
    sink_values: Float[Tensor, "batch kv_heads sinks head_dim"]

    def dense(self) -> tuple[Tensor, Tensor]:
        heads, like = self.positions.shape[1], self.sink_keys
        channels = decode(self.keys, self.bits, heads * self.width)
        if self.order is not None:
            index = self.order.long()[:, None].expand_as(channels)
            channels = torch.zeros_like(channels).scatter(2, index, channels)
        rotated = channels.unflatten(2, (heads, -1)).transpose(1, 2)
        plain = _by_heads(hadamard(_of_heads(rotated, self.together)), self.together, heads).to(like.dtype)
        keys = self.source.tables(like).turn(plain, self.positions)
        values = hadamard(decode(self.values, self.bits, self.width)).to(like.dtype)
        return _put(keys, self.slots, self.sink_keys), _put(values, self.slots, self.sink_values)

    def tensors(self) -> list[Tensor]:
        own = [*self.keys, *self.values, self.slots, self.sink_keys, self.sink_values, self.source.position_ids]
        return own if self.order is None else [*own, self.order]

    def rows(self, change: Callable[[Tensor], Tensor]) -> "RotatedPrefix":
        return dataclasses.replace(
            self,
            keys=Codes(*map(change, self.keys)),
            values=Codes(*map(change, self.values)),
            order=None if self.order is None else change(self.order),
            positions=change(self.positions),
            source=dataclasses.replace(self.source, position_ids=change(self.source.position_ids)),
            slots=change(self.slots),
            sink_keys=change(self.sink_keys),
            sink_values=change(self.sink_values),
        )


def _group(channels: int) -> int:
    """Channels that share a scale: the largest divisor up to 128."""
    return next(n for n in range(min(GROUP, channels), 0, -1) if channels % n == 0)


def _of_heads(x: Float[Tensor, "batch heads tokens width"], together: int) -> Float[Tensor, "batch groups tokens wide"]:
    """Neighbouring heads side by side."""
    return x.unflatten(1, (-1, together)).transpose(2, 3).flatten(3)


def _by_heads(x: Float[Tensor, "batch groups tokens wide"], together: int, heads: int) -> Tensor:
    """The inverse of `_of_heads`."""
    return x.unflatten(3, (together, -1)).transpose(2, 3).reshape(x.shape[0], heads, x.shape[2], -1)


def _put(x: Tensor, slots: Tensor, whole: Tensor) -> Tensor:
    """`x` with the tokens in `slots` replaced."""
    if not slots.shape[-1]:
        return x
    padded = torch.cat([x, x[:, :, :1]], 2)  # unused slots write to a place that is cut off again
    index = torch.where(slots < 0, x.shape[2], slots).long()[..., None].expand_as(whole)
    return padded.scatter(2, index, whole.to(x.dtype))[:, :, : x.shape[2]]
