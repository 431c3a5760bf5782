"""What attention reads beside the prompt: retrieved payloads, placed and weighted for every row of a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from inducekv.config import Visibility, Weighting
from inducekv.payloads import PayloadSource
from inducekv.retrieval import Calibration, Retrieved
from inducekv.rope import shift_keys

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

SMALLEST_SHARE = 1e-6
"""alpha / max alpha is not taken below this, so that roots and logarithms keep finite gradients."""


@dataclass(frozen=True)
class Injection:
    """Memory tokens for each row of a batch; rows may hold different memories and different numbers of tokens.

    Attributes:
        keys, values: for each layer `[rows, kv_heads, tokens, head_dim]`, in the model's dtype; keys at negative
            positions, so that the prompt keeps 0..T-1 (layers may differ in tokens only where `mask` allows).
        mask: `[rows, tokens]` True where the row reads the token.
        bias: `[rows, tokens]` added to the attention logits, or None.
        slots: `[rows, tokens]` the retrieved slot a token belongs to (column of `Retrieved`).
        slot_count: number of slots.
        positions: `[rows, tokens]` where tokens lie before the prompt; given, layers with a sliding window read only
            those within it (`visibility="window"`). None: every layer reads all of them.
    """

    keys: list[Float[Tensor, "rows kv_heads tokens head_dim"]]
    values: list[Float[Tensor, "rows kv_heads tokens head_dim"]]
    mask: Bool[Tensor, "rows tokens"]
    bias: Float[Tensor, "rows tokens"] | None
    slots: Int[Tensor, "rows tokens"]
    slot_count: int
    positions: Int[Tensor, "rows tokens"] | None = None

    def rows(self, chosen: Tensor) -> "Injection":
        """The injection of some of the rows, in the order of `chosen` (indices `[n]`)."""
        return Injection(
            [key[chosen] for key in self.keys],
            [value[chosen] for value in self.values],
            self.mask[chosen],
            None if self.bias is None else self.bias[chosen],
            self.slots[chosen],
            self.slot_count,
            None if self.positions is None else self.positions[chosen],
        )


def build_injection(
    source: PayloadSource,
    retrieved: Retrieved,
    calibration: Calibration,
    weighting: Weighting,
    backbone: "Backbone",
    visibility: Visibility = "all",
) -> Injection | None:
    """Gather, place and weight the payloads that each row retrieved.

    Entries lie at successive negative positions, the last slot nearest the prompt: an entry is rotated by minus the
    spans of the valid slots after it (CHOICE: overlapping positions cost 15-25 points in the trial).

    Weighting of a slot with share alpha (InduceKV, specs section 2; variants are CHOICEs):
    `sqrt`: K and V times sqrt(alpha); `sqrt_max`: K and V times sqrt(alpha / max alpha); `log`: log(alpha / max alpha)
    added to the attention logits; `none`. The values of layer l are also scaled by lambda_l.

    Differentiable in `retrieved.alpha` and `calibration`.

    Args:
        source: hands out payloads by index (a `KVMemory`, or `Payloads` of candidates).
        retrieved: rows and slots; see `retrieve`.
        calibration: lambda of each layer.
        weighting: one of the four names above.
        backbone: gives rotary embedding, device and dtype.
        visibility: `"all"`: sliding-window layers read all of the memory too; `"window"`: only what lies within their
            window, as if it were prompt tokens. CHOICE: an entry's tokens count as lying at its end, without gaps.

    Returns:
        None when no row reads anything, so that the model runs exactly as without memory.
    """
    if not bool(retrieved.valid.any()):
        return None
    device, dtype = backbone.device, backbone.dtype
    valid = retrieved.valid.to(device)
    unique, place = torch.unique(retrieved.indices.to(device)[valid], return_inverse=True)
    payloads = source.payloads(unique.cpu()).to(device, dtype)
    inverse = torch.zeros_like(retrieved.indices, device=device)
    inverse[valid] = place

    spans = payloads.spans[inverse] * valid
    later = spans.flip(-1).cumsum(-1).flip(-1) - spans
    start = backbone.family.first_position - later  # just after the slot's last position
    keys = shift_keys(backbone.text_model, payloads.keys[inverse], start)
    values = payloads.values[inverse]

    alpha = retrieved.alpha.to(device)
    largest = alpha.amax(-1, keepdim=True)
    share = torch.where(valid, alpha / largest.clamp_min(torch.finfo(alpha.dtype).tiny), 1.0).clamp_min(SMALLEST_SHARE)
    bias = None
    if weighting in ("sqrt", "sqrt_max"):
        factor = (
            share.sqrt() if weighting == "sqrt_max" else torch.where(valid, alpha, 1.0).clamp_min(SMALLEST_SHARE).sqrt()
        )
        factor = factor.to(dtype)[..., None, None, None, None]
        keys, values = keys * factor, values * factor
    elif weighting == "log":
        bias = share.log()
    elif weighting != "none":
        raise ValueError(f"weighting must be 'sqrt', 'sqrt_max', 'log' or 'none', got {weighting!r}")
    values = values * calibration.lambdas.to(device, dtype)[:, None, None, None]

    rows, slots, layers, heads, tokens, width = keys.shape
    mask = (payloads.mask[inverse] & valid[..., None]).flatten(1)
    keys, values = (
        x.permute(2, 0, 3, 1, 4, 5).reshape(layers, rows, heads, slots * tokens, width) for x in (keys, values)
    )
    slot_of = torch.arange(slots, device=device).repeat_interleave(tokens).expand(rows, -1)
    spread = None if bias is None else bias.to(dtype).repeat_interleave(tokens, dim=-1)
    positions = None
    if visibility == "window":
        kept = payloads.mask[inverse]
        from_end = (kept.flip(-1).cumsum(-1).flip(-1)).minimum(spans[..., None])
        positions = (start[..., None] - from_end).flatten(1)
    return Injection(list(keys.unbind(0)), list(values.unbind(0)), mask, spread, slot_of, slots, positions)
