"""Spherical KV (reconstruction): each token and head gets nothing, few bits or many, from one budget of bytes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from inducekv.bytes import parse_bytes
from inducekv.compression.budget import Budget, check_budget, tokens_within
from inducekv.compression.layer import CodedLayer, kept_from
from inducekv.compression.live import LiveCompression, Positions
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import bytes_per_token, gathered, scores_of
from inducekv.compression.spherical_plan import TIERS, Row, shared
from inducekv.compression.spherical_prefix import SphericalPrefix, coded_in
from inducekv.compression.storage import check_format, stored_width
from inducekv.config import PayloadDtype
from inducekv.encoded import Encoded

PAYLOAD_DTYPES: dict[int, PayloadDtype] = {4: "polar4", 3: "polar3"}
"""Number format of payloads, by bits."""
SCALE_BYTES = 2
"""Bytes of a payload's radius, float16."""


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
    compute) could save time.

    A payload has one precision for all its tokens: the memory stores keys and values alike as a radius and angles of
    4 or 3 bits a number ("polar4", "polar3"), and as many of the highest-scored tokens as the budget then holds. The
    tiers of single tokens are for live caches only. Head dimensions must be powers of two.

    Attributes:
        budget: bytes of a row; a fraction or a number of tokens stands for the bytes these take uncompressed.
        sinks, recent: first and last tokens that stay exact, as far as half of the budget goes.
        queries: last queries whose attention is the utility.
        smooth: neighbours that share their utility (max-pool), odd.
        seed: of the signs, in live caches.
        bits: of a payload's numbers, 4 or 3.
    """

    budget: Budget = 0.2
    sinks: int = 4
    recent: int = 32
    queries: int = 32
    smooth: int = 5
    seed: int = 0
    bits: int = 4

    def __post_init__(self) -> None:
        check_budget(self.budget)
        for name, least in (("sinks", 0), ("recent", 1), ("queries", 1), ("smooth", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.smooth % 2 == 0:
            raise ValueError(f"smooth must be odd, got {self.smooth}")
        if self.bits not in PAYLOAD_DTYPES:
            raise ValueError(f"bits must be 4 or 3, got {self.bits}")

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
            rows = [Row.of(p, m, row) for p, m in zip(prompts, measures, strict=True)]
            exact = [self._exact(r.length, allowed / whole, everything) for r in rows]
            room = allowed - sum(len(e) for e in exact) * each
            for plan, tiers in zip(plans, shared(rows, exact, room), strict=True):
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
                coded.append(coded_in(tier, keys, values, signs))
        prefix = SphericalPrefix(*kept_from(prompt.keys, prompt.values, exact), tuple(coded), signs)
        in_prompt = torch.where(chosen >= 0, chosen + prompt.offset, -1)
        empty = prompt.keys[:, :, :0]
        return CodedLayer(prefix, empty, in_prompt, prompt.tokens, sliding_window=prompt.sliding_window)

    def _signs(self, width: int, device: torch.device) -> Float[Tensor, " head_dim"]:
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.randint(2, (width,), generator=generator) * 2.0 - 1).to(device)

    # -- payloads

    @property
    def payload_dtype(self) -> PayloadDtype:
        return PAYLOAD_DTYPES[self.bits]

    def compress(self, encoded: Encoded) -> Encoded:
        """The highest-scored tokens that the budget holds as they are stored (`payload_dtype`); numbers stay exact.

        Raises:
            ValueError: the example was encoded without scores, or `head_dim` is no power of two.
        """
        layers, heads, tokens, width = encoded.keys.shape
        check_format(self.payload_dtype, width)
        scores = scores_of(encoded, self)
        each = 2 * layers * heads * (stored_width(width, self.payload_dtype) + SCALE_BYTES)
        full = 2 * layers * heads * width * encoded.keys.element_size()
        if isinstance(self.budget, str):
            allowed = parse_bytes(self.budget)
        else:
            allowed = tokens_within(self.budget, tokens, full) * full
        count = min(tokens, max(1, allowed // each))
        return gathered(encoded, scores.topk(count, -1).indices.sort(-1).values)
