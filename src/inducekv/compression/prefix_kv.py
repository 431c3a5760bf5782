"""PrefixKV: how many tokens each layer deserves, from one threshold on how much of its attention they cover."""

import dataclasses
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from inducekv.compression.attention_sum import AttentionSum
from inducekv.compression.budget import Budget, check_budget, tokens_within
from inducekv.compression.layer import CompressedLayer, highest
from inducekv.compression.live import LiveCompression, Positions
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import Selection, bytes_per_token, gathered, scores_of
from inducekv.encoded import Encoded


@dataclass(frozen=True)
class PrefixKV(LiveCompression):
    """Layers keep different numbers of tokens, with the same total (PrefixKV, NeurIPS 2025; specs section 3).

    Each layer keeps its highest-scored tokens until they cover a share p of its scores; one p for all layers is found
    by bisection so that the layers together keep what the budget allows. CHOICE: what rounding leaves over goes to the
    layers that cover least, so that the total is exact. Scores that are infinite (tokens a method protects) count as
    the layer's largest finite one. The full cache of all layers stays until the prompt is read to its end.

    Positions go on from the prompt's true end (the published code lets them go on from layer 0's shorter cache), and
    tokens that follow the prompt are kept whole (the published code evicts one at a fixed place for each).

    A payload keeps the same total: layers hold different numbers of tokens, which the memory file notes (4 bytes a
    layer and entry), and attention of a layer reads its own. There the scores are those that the example was encoded
    with.

    Attributes:
        method: whose scores are used; its budget, too, unless `budget` is given. PrefixKV's own: `AttentionSum`.
        budget: mean over the layers, or None.
        drop_ratios: share of the prompt that each layer drops, measured beforehand (`drop_ratios_of`, then
            `mean_profile`); then no search is done, the budget does not count, and layers are compressed one by one.
    """

    method: Selection = field(default_factory=AttentionSum)
    budget: Budget | None = None
    drop_ratios: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Selection):
            raise TypeError(f"PrefixKV shares out the tokens of a method that selects them; got {self.method!r}")
        if self.budget is not None:
            check_budget(self.budget)
        if self.drop_ratios is not None and not all(0 <= r < 1 for r in self.drop_ratios):
            raise ValueError(f"drop_ratios must be at least 0 and below 1, got {self.drop_ratios}")

    @property
    def whole_prompt(self) -> bool:
        return self.drop_ratios is None

    def measure(self, prompt: LayerPrompt) -> Tensor:
        return self.method.measure(prompt)

    def choose(self, prompts: list[LayerPrompt], measures: list[Tensor]) -> list[Positions]:
        counts = self.layer_counts(prompts, measures)
        chosen: list[Positions] = []
        for prompt, measure, count in zip(prompts, measures, counts.unbind(1), strict=True):
            everything = bool((count == prompt.lengths.to(count.device)).all())
            chosen.append(None if everything else highest(measure, prompt.stored, count))
        return chosen

    def layer_counts(self, prompts: list[LayerPrompt], measures: list[Tensor]) -> Tensor:
        """Tokens that each row keeps in each layer, `[batch, layers]`."""
        lengths = torch.stack([p.lengths for p in prompts], 1).cpu()
        if self.drop_ratios is not None:
            ratios = self._ratios(prompts[0].layers)[[p.layer for p in prompts]]
            return _kept(ratios, lengths)
        budget, each = self.method.budget if self.budget is None else self.budget, bytes_per_token(prompts[0])
        counts = torch.empty_like(lengths)
        for row in range(len(lengths)):
            whole = int(lengths[row].max())
            shares = [_covered(m[row], p.stored[row]) for m, p in zip(measures, prompts, strict=True)]
            total = sum(min(tokens_within(budget, whole, each), int(n)) for n in lengths[row])
            counts[row] = torch.tensor(shared_out(shares, total))
        return counts

    def _ratios(self, layers: int) -> Float[Tensor, " layers"]:
        assert self.drop_ratios is not None
        if len(self.drop_ratios) != layers:
            raise ValueError(f"drop_ratios are for {len(self.drop_ratios)} layers, the model has {layers}")
        return torch.tensor(self.drop_ratios, dtype=torch.float64)

    @property
    def scorer(self) -> LiveCompression | None:
        return self.method.scorer

    @property
    def layer_lengths(self) -> bool:
        return True

    def compress(self, encoded: Encoded) -> Encoded:
        """The highest-scored tokens of every layer and KV head, as many in each layer as `layer_counts` would say.

        Raises:
            ValueError: the example was encoded without scores, or `drop_ratios` are for another number of layers.
        """
        scores = scores_of(encoded, self.method)
        layers, heads, tokens, width = encoded.keys.shape
        real = torch.ones(layers, tokens, dtype=torch.bool, device=scores.device)
        if self.drop_ratios is not None:
            counts = _kept(self._ratios(layers), torch.full((layers,), tokens))
        else:
            budget = self.method.budget if self.budget is None else self.budget
            each = 2 * layers * heads * width * encoded.keys.element_size()
            shares = [_covered(of_layer, here) for of_layer, here in zip(scores, real, strict=True)]
            counts = torch.tensor(shared_out(shares, layers * tokens_within(budget, tokens, each)))
        chosen = highest(scores, real, counts)
        held = (chosen >= 0).all(1)
        first = (~held).long().sort(dim=-1, stable=True).indices  # a layer's own tokens before its padding
        chosen = chosen.gather(2, first[:, None].expand_as(chosen))
        small = gathered(encoded, torch.where(chosen < 0, chosen[..., :1], chosen))  # padding: any token that is kept
        return dataclasses.replace(small, layer_mask=held.gather(1, first))


def _kept(ratios: Float[Tensor, " layers"], lengths: Int[Tensor, "*batch layers"]) -> Int[Tensor, "*batch layers"]:
    """Tokens that stay in each layer, at least one."""
    return (lengths - (ratios * lengths).round().long()).clamp_min(1)


def _covered(scores: Float[Tensor, "kv_heads stored"], real: Tensor) -> Float[Tensor, " tokens"]:
    """Share of a layer's scores that its 1, 2, ... highest tokens cover."""
    finite = torch.where(scores.isfinite(), scores, 0)
    importance = torch.where(scores == torch.inf, finite.amax(-1, keepdim=True), finite)[:, real].mean(0).clamp_min(0)
    ordered = importance.double().sort(descending=True).values + 1e-12
    return (ordered.cumsum(0) / ordered.sum()).cpu()


def shared_out(shares: list[Float[Tensor, " tokens"]], total: int) -> list[int]:
    """How many tokens each layer keeps, `total` of them together, each at least one.

    Args:
        shares: for each layer the share of its scores that its 1, 2, ... highest tokens cover, rising to 1.
        total: at least as many as there are layers, at most all tokens.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if sum(_reached(share, middle) for share in shares) <= total:
            low = middle
        else:
            high = middle
    counts = [_reached(share, low) for share in shares]
    while sum(counts) > total:
        counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
    while sum(counts) < total:
        open_layers = [i for i, share in enumerate(shares) if counts[i] < len(share)]
        counts[min(open_layers, key=lambda i: float(shares[i][counts[i] - 1]))] += 1
    return counts


def _reached(share: Tensor, threshold: float) -> int:
    """Fewest tokens that cover `threshold`, at least one."""
    return min(int((share < threshold).sum()) + 1, len(share))


def drop_ratios_of(cache: Cache) -> tuple[float, ...]:
    """Share of the prompt that each layer of a compressed cache dropped: one sample for `mean_profile`."""
    return tuple(
        1 - float((layer.positions >= 0).float().sum(-1).mean()) / layer.prompt
        if isinstance(layer, CompressedLayer)
        else 0.0
        for layer in cache.layers
    )


def mean_profile(samples: list[tuple[float, ...]], drop: float) -> tuple[float, ...]:
    """The mean over prompts of the layers' drop ratios, scaled so that its mean is `drop` (10 to 50 prompts will do).

    Raises:
        ValueError: no samples, samples of different models, or `drop` outside [0, 1).
    """
    if not samples or len({len(s) for s in samples}) != 1:
        raise ValueError("mean_profile needs at least one sample, all of the same number of layers")
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be at least 0 and below 1, got {drop}")
    mean = torch.tensor(samples, dtype=torch.float64).mean(0)
    return tuple((mean * (drop / mean.mean().clamp_min(1e-12))).clamp(0, 0.999).tolist())
