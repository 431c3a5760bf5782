"""What attention reads beside the prompt: retrieved payloads, placed and weighted for every row of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from inducekv.config import Visibility, Weighting
from inducekv.error_text import shown
from inducekv.payloads import PayloadSource
from inducekv.retrieval import Calibration, Retrieved
from inducekv.rope import shift_keys

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

SMALLEST_SHARE = 1e-6
"""alpha / max alpha is not taken below this, so that roots and logarithms keep finite gradients."""
KEPT = 2**26
"""Bytes of the rows' keys and values kept from one decoding step to the next, at most. CHOICE."""


@dataclass(frozen=True)
class Injection:
    """Memory tokens for each row of a batch; rows may hold different memories and different numbers of tokens.

    Attributes:
        keys, values: for each reading layer `[rows, kv_heads, tokens, head_dim]`, in the model's dtype; keys at
            negative positions, so that the prompt keeps 0..T-1. With `places`, `[pieces, kv_heads, piece_tokens,
            head_dim]` instead: payloads that several rows read are held once.
        mask: `[rows, tokens]` True where the row reads the token.
        bias: `[rows, tokens]` added to the attention logits, or None.
        slots: `[rows, tokens]` the retrieved slot a token belongs to (column of `Retrieved`).
        slot_count: number of slots.
        positions: `[rows, tokens]` where tokens lie before the prompt; given, layers with a sliding window read only
            those within it (`visibility="window"`). None: every layer reads all of them.
        layers: the model's layers that read, in the order of `keys`; None: all.
        places: `[rows, slots]` the piece in each slot, or None.
        span: positions that the longest row's memory takes before the prompt.
        layer_mask: `[rows, layers, tokens]` where layers hold different tokens: True where the row reads the token in
            that layer (in the order of `keys`); None: all layers read what `mask` says.
        guard: `[rows]` queries at positions below it do not read memory: the preamble that all prompts share stays as
            it is without memory, and remains the attention sink. None: every query reads.
    """

    keys: list[Float[Tensor, "pieces kv_heads piece_tokens head_dim"]]
    values: list[Float[Tensor, "pieces kv_heads piece_tokens head_dim"]]
    mask: Bool[Tensor, "rows tokens"]
    bias: Float[Tensor, "rows tokens"] | None
    slots: Int[Tensor, "rows tokens"]
    slot_count: int
    positions: Int[Tensor, "rows tokens"] | None = None
    layers: tuple[int, ...] | None = None
    places: Int[Tensor, "rows slots"] | None = None
    span: int = 0
    layer_mask: Bool[Tensor, "rows layers tokens"] | None = None
    guard: Int[Tensor, "rows"] | None = None
    _of_batch: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def visible(self, layer: int) -> Bool[Tensor, "rows tokens"]:
        """What each row reads in a layer that reads."""
        place = self.place_of(layer)
        return self.mask if self.layer_mask is None or place is None else self.layer_mask[:, place]

    def place_of(self, layer: int) -> int | None:
        """Where a layer's keys and values are in `keys` and `values`; None for a layer that does not read."""
        if self.layers is None:
            return layer
        return self.layers.index(layer) if layer in self.layers else None

    def of_layer(
        self, layer: int, like: Tensor, repeats: int = 1
    ) -> tuple[Float[Tensor, "batch kv_heads tokens head_dim"], Float[Tensor, "batch kv_heads tokens head_dim"]] | None:
        """A layer's keys and values for a batch of rows x `repeats` (beams), on the device and in the dtype of `like`.

        None for a layer that does not read. What is moved to another device stays there for the next call, and what is
        put together for the rows is kept up to `KEPT` bytes: every token that is generated asks for it again.
        """
        place = self.place_of(layer)
        if place is None:
            return None
        for held in (self.keys, self.values):
            held[place] = held[place].to(like)
        if self.places is None and repeats == 1:
            return self.keys[place], self.values[place]
        name, keeps = (place, repeats, like.dtype, like.device), not torch.is_grad_enabled()
        if keeps and name in self._of_batch:
            return self._of_batch[name]
        both = self._of_rows(self.keys[place], repeats), self._of_rows(self.values[place], repeats)
        kept = sum(x.nbytes for pair in list(self._of_batch.values()) for x in pair)
        if keeps and kept + sum(x.nbytes for x in both) <= KEPT:
            self._of_batch[name] = both
        return both

    def _of_rows(self, x: Tensor, repeats: int) -> Tensor:
        if self.places is not None:
            _, heads, tokens, width = x.shape
            rows, slots = self.places.shape
            taken = x.index_select(0, self.places.to(x.device).flatten()).view(rows, slots, heads, tokens, width)
            x = taken.transpose(1, 2).reshape(rows, heads, slots * tokens, width)
        return x if repeats == 1 else x.repeat_interleave(repeats, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def rows(self, chosen: Tensor) -> "Injection":
        """The injection of some of the rows, in the order of `chosen` (indices `[n]`)."""
        shared = self.places is not None or torch.equal(chosen, torch.arange(len(self.mask), device=chosen.device))
        return replace(
            self,
            keys=list(self.keys) if shared else [key[chosen] for key in self.keys],
            values=list(self.values) if shared else [value[chosen] for value in self.values],
            mask=self.mask[chosen],
            bias=None if self.bias is None else self.bias[chosen],
            slots=self.slots[chosen],
            positions=None if self.positions is None else self.positions[chosen],
            places=None if self.places is None else self.places[chosen],
            layer_mask=None if self.layer_mask is None else self.layer_mask[chosen],
            guard=None if self.guard is None else self.guard[chosen],
        )

    def _as_pieces(self) -> "Injection":
        """The same with a piece for each row and slot."""
        if self.places is not None:
            return self
        rows, slots = self.mask.shape[0], self.slot_count

        def cut(x: Tensor) -> Tensor:
            _, heads, tokens, width = x.shape
            pieces = x.view(rows, heads, slots, tokens // slots, width).transpose(1, 2)
            return pieces.reshape(rows * slots, heads, tokens // slots, width)

        places = torch.arange(rows * slots, device=self.mask.device).view(rows, slots)
        return replace(self, keys=list(map(cut, self.keys)), values=list(map(cut, self.values)), places=places)


def build_injection(
    source: PayloadSource,
    retrieved: Retrieved,
    calibration: Calibration,
    weighting: Weighting,
    backbone: "Backbone",
    visibility: Visibility = "all",
    preamble: int = 0,
) -> Injection | None:
    """Gather, place and weight the payloads that each row retrieved.

    Entries lie at successive negative positions, the last slot nearest the prompt: an entry is rotated by minus the
    spans of the valid slots after it (CHOICE: overlapping positions cost 15-25 points in the trial).

    Weighting of a slot with share alpha (InduceKV, specs section 2; variants are CHOICEs):
    `sqrt`: K and V times sqrt(alpha); `sqrt_max`: K and V times sqrt(alpha / max alpha); `log`: log(alpha / max alpha)
    added to the attention logits; `none`. The values of layer l are also scaled by lambda_l, and the mass of the
    calibration is added to the logits of every memory token.

    An entry that several rows read at the same place, equally weighted (`log`, `none`), is held once for all of them.
    Differentiable in `retrieved.alpha` and `calibration`.

    Args:
        source: hands out payloads by index (a `KVMemory`, or `Payloads` of candidates); the layers they are of read.
        retrieved: rows and slots; see `retrieve`.
        calibration: lambda of each layer.
        weighting: one of the four names above.
        backbone: gives rotary embedding, device and dtype.
        visibility: `"all"`: sliding-window layers read all of the memory too; `"window"`: only what lies within their
            window, as if it were prompt tokens. CHOICE: an entry's tokens count as lying at its end, without gaps.
        preamble: positions at the beginning of every prompt that do not read memory.

    Returns:
        None when no row reads anything, so that the model runs exactly as without memory.
    """
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting must be 'sqrt', 'sqrt_max', 'log' or 'none', got {shown(weighting)}")
    if not bool(retrieved.valid.any()):
        return None
    device, dtype = backbone.device, backbone.dtype
    valid = retrieved.valid.to(device)
    unique, place = torch.unique(retrieved.indices.to(device)[valid], return_inverse=True)
    payloads = source.payloads(unique.cpu()).to(device, dtype)
    entry = torch.zeros_like(retrieved.indices, device=device)
    entry[valid] = place

    spans = payloads.spans[entry] * valid
    later = spans.flip(-1).cumsum(-1).flip(-1) - spans
    start = backbone.family.first_position - later  # just after the slot's last position
    factor, bias = _weights(retrieved.alpha.to(device), valid, weighting)
    mass = calibration.mass.to(device)
    if mass.requires_grad or bool(mass != 0):
        bias = mass.expand(valid.shape) if bias is None else bias + mass
    pieces, places = _pieces(entry, start, valid) if factor is None else (None, None)
    of, at = (entry, start) if pieces is None else pieces
    keys = shift_keys(backbone.text_model, payloads.keys[of], at, source.layers)
    values = payloads.values[of] * calibration.lambdas.to(device, dtype)[:, None, None, None]
    if factor is not None:
        factor = factor.to(dtype)[..., None, None, None, None]
        keys, values = keys * factor, values * factor

    rows, slots = entry.shape
    tokens = keys.shape[-2]
    if places is None:
        keys, values = (x.permute(2, 0, 3, 1, 4, 5).flatten(3, 4) for x in (keys, values))
    else:
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    kept = payloads.mask[entry]
    positions = None
    if visibility == "window":
        from_end = (kept.flip(-1).cumsum(-1).flip(-1)).minimum(spans[..., None])
        positions = (start[..., None] - from_end).flatten(1)
    return Injection(
        [key.contiguous() for key in keys],
        [value.contiguous() for value in values],
        (kept & valid[..., None]).flatten(1),
        None if bias is None else bias.to(dtype).repeat_interleave(tokens, dim=-1),
        torch.arange(slots, device=device).repeat_interleave(tokens).expand(rows, -1),
        slots,
        positions,
        source.layers,
        places,
        int(spans.sum(-1).amax()),
        None if payloads.layer_mask is None else _by_layer(payloads.layer_mask[entry] & valid[..., None, None]),
        torch.full((rows,), backbone.family.first_position + preamble, device=device) if preamble else None,
    )


def _by_layer(held: Bool[Tensor, "rows slots layers tokens"]) -> Bool[Tensor, "rows layers all_tokens"]:
    """What each layer reads, slot after slot."""
    return held.transpose(1, 2).flatten(2)


def _weights(
    alpha: Float[Tensor, "rows slots"], valid: Bool[Tensor, "rows slots"], weighting: Weighting
) -> tuple[Float[Tensor, "rows slots"] | None, Float[Tensor, "rows slots"] | None]:
    """What keys and values are multiplied with, and what is added to the logits."""
    if weighting == "none":
        return None, None
    if weighting == "sqrt":
        return torch.where(valid, alpha, 1.0).clamp_min(SMALLEST_SHARE).sqrt(), None
    largest = alpha.amax(-1, keepdim=True).clamp_min(torch.finfo(alpha.dtype).tiny)
    share = torch.where(valid, alpha / largest, 1.0).clamp_min(SMALLEST_SHARE)
    return (share.sqrt(), None) if weighting == "sqrt_max" else (None, share.log())


def _pieces(
    entry: Int[Tensor, "rows slots"], start: Int[Tensor, "rows slots"], valid: Bool[Tensor, "rows slots"]
) -> tuple[tuple[Tensor, Tensor] | None, Int[Tensor, "rows slots"] | None]:
    """Entries and places of what several rows share, and the piece in each slot; None twice where nothing is shared."""
    pairs, place = torch.unique(torch.stack([entry[valid], start[valid]]), dim=1, return_inverse=True)
    if pairs.shape[1] == int(valid.sum()):
        return None, None
    places = torch.zeros_like(entry)
    places[valid] = place
    return (pairs[0], pairs[1]), places


def joined(injections: Sequence[Injection | None], rows: Sequence[Int[Tensor, "_"]], count: int) -> Injection | None:
    """One injection for a batch whose rows read different memories.

    Args:
        injections: of one backbone, over the same layers; None where its rows read nothing.
        rows: the rows of the batch that each is for, in its own order.
        count: rows of the batch; those that no injection is for read nothing.

    Raises:
        ValueError: the injections are over different layers.
    """
    given = [(held, where) for held, where in zip(injections, rows, strict=True) if held is not None]
    if not given:
        return None
    first = given[0][0]
    if any(held.layers != first.layers or len(held.keys) != len(first.keys) for held, _ in given):
        raise ValueError("memories of one batch must be over the same layers of the model")
    slots = max(held.slot_count for held, _ in given)
    parts = [held._as_pieces() for held, _ in given]
    tokens = max(part.keys[0].shape[2] for part in parts)
    device = first.mask.device
    places = torch.zeros(count, slots, dtype=torch.long, device=device)
    blank = torch.zeros(count, slots, tokens, device=device)
    mask, before = blank.bool(), 0
    bias = None if all(part.bias is None for part in parts) else blank.to(first.keys[0].dtype)
    positions = None if all(part.positions is None for part in parts) else blank.long()
    layers = len(first.keys)
    own_of_layers = None
    if any(part.layer_mask is not None for part in parts):
        own_of_layers = blank.bool()[:, :, None].repeat(1, 1, layers, 1)
    for part, (_, where) in zip(parts, given, strict=True):
        where = where.to(device)
        wide = part.keys[0].shape[2]
        assert part.places is not None
        empty = slots - part.slot_count  # slots that are missing come first: the best entry lies last
        places[where, empty:] = part.places + before
        before += part.keys[0].shape[0]
        for whole, own in ((mask, part.mask), (bias, part.bias), (positions, part.positions)):
            if whole is not None and own is not None:
                whole[where, empty:, :wide] = own.view(len(where), part.slot_count, wide).to(whole.dtype)
        if own_of_layers is not None:
            held = part.mask[:, None].expand(-1, layers, -1) if part.layer_mask is None else part.layer_mask
            held = held.reshape(len(where), layers, part.slot_count, wide)
            own_of_layers[where, empty:, :, :wide] = held.transpose(1, 2)

    def together(held: list[list[Tensor]]) -> list[Tensor]:
        """Layer by layer, all parts' pieces, padded to the longest."""
        return [torch.cat([pad(x, (0, 0, 0, tokens - x.shape[2])) for x in layer]) for layer in zip(*held, strict=True)]

    return Injection(
        together([part.keys for part in parts]),
        together([part.values for part in parts]),
        mask.flatten(1),
        None if bias is None else bias.flatten(1),
        torch.arange(slots, device=device).repeat_interleave(tokens).expand(count, -1),
        slots,
        None if positions is None else positions.flatten(1),
        first.layers,
        places,
        max(held.span for held, _ in given),
        None if own_of_layers is None else _by_layer(own_of_layers),
        _guards(given, count, device),
    )


def _guards(given: Sequence[tuple[Injection, Tensor]], count: int, device: torch.device) -> Int[Tensor, "rows"] | None:
    """Each row's guard; rows that read nothing need none."""
    if all(held.guard is None for held, _ in given):
        return None
    guard = torch.zeros(count, dtype=torch.long, device=device)
    for held, where in given:
        if held.guard is not None:
            guard[where.to(device)] = held.guard
    return guard
