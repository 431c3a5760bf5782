"""Spherical KV (reconstruction): each token and head gets nothing, few bits or many, from one budget of bytes."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from inducekv.bytes import parse_bytes
from inducekv.compression.bits import Codes, decode, encode, packed_bytes
from inducekv.compression.budget import Budget, check_budget, tokens_within
from inducekv.compression.hadamard import hadamard
from inducekv.compression.layer import CodedLayer, kept_from
from inducekv.compression.live import LiveCompression, Positions
from inducekv.compression.polar import Bits, PolarCodes, key_bytes, polar_decode, polar_encode
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import bytes_per_token, gathered, scores_of
from inducekv.encoded import Encoded


@dataclass(frozen=True)
class Tier:
    """A precision: bits of a key's angles, bits of a value, and the errors they make.

    Attributes:
        logit_error: squared error of logits, relative (specs section 6, normal keys).
        value_error: of values, relative to their norm.
    """

    angles: Bits
    value_bits: int
    logit_error: float
    value_error: float

    def token_bytes(self, head_dim: int) -> int:
        """Bytes of one token in one KV head, its place included."""
        return key_bytes(head_dim, self.angles) + packed_bytes(head_dim, self.value_bits) + 4 + 4


TIERS = (
    Tier((6, 5, 5, 4, 4), 4, 0.0017, 0.01),
    Tier((4, 3, 3, 3, 2), 4, 0.0199, 0.01),
    Tier((3, 2, 2, 2, 2), 2, 0.085, 0.2),
)
"""From fine to coarse: about 5.5, 3.5 and 2.6 bits a number of the key. Below them, tokens are dropped."""


@dataclass(frozen=True)
class SphericalKV(LiveCompression):
    """Keys as radius and angles; keep, precision or drop chosen jointly. **Reconstruction** of Spherical KV.

    Of the paper (arXiv 2605.18856) only the abstract is known: a radius and angle codes for each key, logits from
    codes, and for each token and head a joint choice of keep and precision under one budget, by estimated utility.
    All else is reconstructed (specs section 6), and no result obtained with it reproduces the paper: the recursive
    polar codes are those of PolarQuant; utility is the attention of the last queries, smoothed over neighbours;
    distortions are estimated from the tiers' errors on normal keys, and one price of a byte, found by bisection,
    chooses the tiers. CHOICES for a plain cache: all KV heads of a layer hold the same number of tokens in each tier
    (which tokens, each decides itself), and values are rotated and quantised like RotateKV's. Keys and queries are
    spread by random signs and a Walsh-Hadamard rotation first, which leaves logits as they are.

    Attention reads decoded keys here: this saves memory, and only a fused kernel (`polar.polar_logits` is what it would
    compute) could save time. A payload is rounded to the codes' precision; the memory file still stores it in
    `payload_dtype`, so that it saves bytes by dropping tokens only.

    Attributes:
        budget: bytes of a row; a fraction or a number of tokens stands for the bytes these take uncompressed.
        sinks, recent: first and last tokens that stay exact, as far as half of the budget goes.
        queries: last queries whose attention is the utility.
        smooth: neighbours that share their utility (max-pool), odd.
        seed: of the signs.
    """

    budget: Budget = 0.2
    sinks: int = 4
    recent: int = 32
    queries: int = 32
    smooth: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_budget(self.budget)
        for name, least in (("sinks", 0), ("recent", 1), ("queries", 1), ("smooth", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.smooth % 2 == 0:
            raise ValueError(f"smooth must be odd, got {self.smooth}")

    @property
    def whole_prompt(self) -> bool:
        return True

    # -- utility

    def measure(self, prompt: LayerPrompt) -> Float[Tensor, "batch kv_heads stored"]:
        first = max(0, prompt.tokens - self.queries)
        seen = prompt.by_kv_head(prompt.attention(first, prompt.tokens))
        utility = seen.sum(2) / prompt.real[:, first:].sum(-1)[:, None, None]
        utility = torch.nn.functional.max_pool1d(utility, self.smooth, 1, self.smooth // 2)
        utility = utility * prompt.stored[:, None]
        queries = prompt.queries(first, prompt.tokens).float() * prompt.real[:, None, first:, None]
        prompt.notes["query_size"] = queries.square().sum((1, 2, 3)) / prompt.real[:, first:].sum(-1) / queries.shape[1]
        return utility / utility.sum(-1, keepdim=True).clamp_min(1e-12)

    # -- which tier each token gets

    def choose(self, prompts: list[LayerPrompt], measures: list[Tensor]) -> list[Positions]:
        batch = prompts[0].keys.shape[0]
        plans = [[self._empty(p) for _ in range(batch)] for p in prompts]
        for row in range(batch):
            each = bytes_per_token(prompts[0]) / len(prompts)
            whole = sum(int(p.lengths[row]) for p in prompts) * each
            tokens = int(max(int(p.lengths[row]) for p in prompts))
            if isinstance(self.budget, str):
                allowed = float(parse_bytes(self.budget))
            else:
                allowed = tokens_within(self.budget, tokens, 1) / tokens * whole
            everything = allowed >= whole
            rows = [_Row.of(p, m, row) for p, m in zip(prompts, measures, strict=True)]
            exact = [self._exact(r.length, allowed / whole, everything) for r in rows]
            room = allowed - sum(len(e) for e in exact) * each
            for plan, tiers in zip(plans, _shared(rows, exact, room), strict=True):
                plan[row] = tiers
        return [self._laid_out(prompt, plan) for prompt, plan in zip(prompts, plans, strict=True)]

    def _empty(self, prompt: LayerPrompt) -> list[Tensor]:
        none = torch.zeros(prompt.keys.shape[1], 0, dtype=torch.long)
        return [none] * (len(TIERS) + 1)

    def _exact(self, length: int, share: float, everything: bool) -> Int[Tensor, " exact"]:
        """Tokens of a row that stay exact: at most half of what the budget allows, but always the last one."""
        if everything:
            return torch.arange(length)
        most = min(length, max(1, int(length * share / 2)))
        recent = min(self.recent, max(1, most - self.sinks))
        sinks = min(self.sinks, most - recent)
        return torch.cat([torch.arange(sinks), torch.arange(length - recent, length)])

    def _laid_out(self, prompt: LayerPrompt, plan: list[list[Tensor]]) -> Positions:
        """All tiers behind one another, filled up with -1 where a row has fewer tokens in one; None: all are exact."""
        if all(row[0].shape[1] == int(n) for row, n in zip(plan, prompt.lengths, strict=True)):
            return None
        parts, counts = [], []
        for tier in range(len(TIERS) + 1):
            most = max(row[tier].shape[1] for row in plan)
            starts = prompt.keys.shape[2] - prompt.lengths
            rows = [
                torch.nn.functional.pad(row[tier].to(starts.device) + start, (most - row[tier].shape[1], 0), value=-1)
                for row, start in zip(plan, starts, strict=True)
            ]
            parts.append(torch.stack(rows))
            counts.append(most)
        prompt.notes["tiers"] = counts
        return torch.cat(parts, 2)

    # -- codes

    def store(self, prompt: LayerPrompt, measure: Tensor, chosen: Positions) -> DynamicLayer | None:
        if chosen is None:
            return None
        width = prompt.keys.shape[-1]
        signs = self._signs(width, prompt.keys.device)
        exact, *tiers = chosen.split(prompt.notes["tiers"], 2)
        coded = []
        for tier, places in zip(TIERS, tiers, strict=True):
            if places.shape[2]:
                keys, values = kept_from(prompt.keys, prompt.values, places)
                coded.append(_coded(tier, keys, values, signs))
        prefix = SphericalPrefix(*kept_from(prompt.keys, prompt.values, exact), tuple(coded), signs)
        in_prompt = torch.where(chosen >= 0, chosen + prompt.offset, -1)
        empty = prompt.keys[:, :, :0]
        return CodedLayer(prefix, empty, in_prompt, prompt.tokens, sliding_window=prompt.sliding_window)

    def _signs(self, width: int, device: torch.device) -> Float[Tensor, " head_dim"]:
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.randint(2, (width,), generator=generator) * 2.0 - 1).to(device)

    def compress(self, encoded: Encoded) -> Encoded:
        """The highest-scored tokens within the budget, in the precision of the middle tier.

        Raises:
            ValueError: the example was encoded without scores.
        """
        scores = scores_of(encoded, self)
        layers, heads, tokens, width = encoded.keys.shape
        tier = TIERS[1]
        each = layers * heads * tier.token_bytes(width)
        full = 2 * layers * heads * width * encoded.keys.element_size()
        if isinstance(self.budget, str):
            allowed = float(parse_bytes(self.budget))
        else:
            allowed = float(tokens_within(self.budget, tokens, full) * full)
        if allowed >= tokens * full:
            return encoded
        count = min(tokens, max(1, math.floor(allowed / each)))
        encoded = gathered(encoded, scores.topk(count, -1).indices.sort(-1).values)
        coded = _coded(tier, encoded.keys, encoded.values, self._signs(width, encoded.keys.device))
        keys, values = coded.dense(self._signs(width, encoded.keys.device))
        return dataclasses.replace(encoded, keys=keys.to(encoded.keys), values=values.to(encoded.values))


@dataclass(frozen=True)
class _Row:
    """One row of one layer: distortions of its tokens when dropped or in each tier, `[kv_heads, 1 + tiers, tokens]`."""

    length: int
    distortion: Float[Tensor, "kv_heads choices tokens"]
    costs: tuple[int, ...]

    @classmethod
    def of(cls, prompt: LayerPrompt, utility: Tensor, row: int) -> "_Row":
        length, width = int(prompt.lengths[row]), prompt.keys.shape[-1]
        utility = utility[row, :, -length:].cpu()
        size = prompt.values[row, :, -length:].float().norm(dim=-1).cpu()
        radius = prompt.keys[row, :, -length:].float().square().sum(-1).cpu()
        spread = radius * float(prompt.notes["query_size"][row]) / width**2
        each = [utility * size]
        each += [utility * size * (spread * tier.logit_error + tier.value_error).clamp_max(1) for tier in TIERS]
        heads = prompt.keys.shape[1]
        return cls(length, torch.stack(each, 1), (0, *(heads * tier.token_bytes(width) for tier in TIERS)))


def _shared(rows: list[_Row], exact: list[Tensor], room: float) -> list[list[Tensor]]:
    """For each layer the tokens `[kv_heads, n]` that stay exact and those of each tier, within `room` bytes.

    Heads rank their tokens by what dropping them costs; the tier of a rank is the one whose mean distortion over heads
    plus bytes at the going price is lowest.
    """
    orders, curves = [], []
    for row, kept in zip(rows, exact, strict=True):
        free = torch.ones(row.length, dtype=torch.bool)
        free[kept] = False
        places = free.nonzero().flatten()
        distortion = row.distortion[:, :, places]
        order = distortion[:, 0].argsort(dim=-1, descending=True, stable=True)
        curves.append(distortion.gather(2, order[:, None].expand_as(distortion)).mean(0))
        orders.append(places[order])
    costs = torch.tensor(rows[0].costs, dtype=torch.float64)

    def counts_at(price: float) -> list[Tensor]:
        tiers = [(curve.double() + price * costs[:, None]).argmin(0) for curve in curves]
        return [torch.bincount(t, minlength=len(costs)) for t in tiers]

    low, high = -40.0, 10.0  # logarithm of the price of a byte
    for _ in range(50):
        middle = (low + high) / 2
        if sum(float((n * costs).sum()) for n in counts_at(math.exp(middle))) <= room:
            high = middle
        else:
            low = middle
    plans = []
    for row, kept, order, counts in zip(rows, exact, orders, counts_at(math.exp(high)), strict=True):
        ends = torch.cat([torch.zeros(1, dtype=torch.long), counts[1:].cumsum(0)])
        tiers = [order[:, ends[i] : ends[i + 1]] for i in range(len(TIERS))]
        plans.append([kept.expand(row.distortion.shape[0], -1), *tiers])
    return plans


@dataclass(frozen=True)
class _Coded:
    """The tokens of one tier: polar codes of the keys, codes of the values."""

    tier: Tier
    keys: PolarCodes
    values: Codes

    def dense(self, signs: Tensor) -> tuple[Tensor, Tensor]:
        width = signs.shape[0]
        values = hadamard(decode(self.values, self.tier.value_bits, width))
        return hadamard(polar_decode(self.keys, width, self.tier.angles)) * signs, values


def _coded(tier: Tier, keys: Tensor, values: Tensor, signs: Tensor) -> _Coded:
    width = keys.shape[-1]
    return _Coded(
        tier,
        polar_encode(hadamard(keys.float() * signs), tier.angles),
        encode(hadamard(values.float()), tier.value_bits, group=width),
    )


@dataclass(frozen=True)
class SphericalPrefix:
    """A prompt's exact tokens and those of each tier, in this order, in one layer (`layer.Prefix`).

    Attributes:
        keys, values: of the exact tokens, `[batch, kv_heads, exact, head_dim]`.
    """

    keys: Float[Tensor, "batch kv_heads exact head_dim"]
    values: Float[Tensor, "batch kv_heads exact head_dim"]
    coded: tuple[_Coded, ...]
    signs: Float[Tensor, " head_dim"]

    def dense(self) -> tuple[Tensor, Tensor]:
        parts = [(self.keys, self.values), *(c.dense(self.signs) for c in self.coded)]
        keys, values = (torch.cat([x.to(self.keys) for x in each], 2) for each in zip(*parts, strict=True))
        return keys, values

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values, *(x for c in self.coded for x in (*c.keys, *c.values))]

    def rows(self, change: Callable[[Tensor], Tensor]) -> "SphericalPrefix":
        coded = tuple(
            _Coded(c.tier, PolarCodes(*map(change, c.keys)), Codes(*map(change, c.values))) for c in self.coded
        )
        return dataclasses.replace(self, keys=change(self.keys), values=change(self.values), coded=coded)
