"""WindowKV: whole windows of tokens stay, the same ones in groups of neighbouring layers."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.compression.budget import tokens_within
from inducekv.compression.live import Positions
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import Selection, bytes_per_token, gathered, scores_of
from inducekv.encoded import Encoded

Task = Literal["localisation", "aggregation"]


@dataclass(frozen=True)
class WindowKV(Selection):
    """Windows of successive tokens, scored by the prompt's last queries (WindowKV, arXiv 2503.17922; specs section 4).

    The first layer of a group (the first without a sliding window) scores its windows; all layers of the group keep
    the same ones, whole, and the suffix. First groups keep more than last ones (arithmetic pyramid). Unlike the
    published code the budget counts the suffix too, KV heads are not expanded, and windows stay in the prompt's
    order. CHOICES: a model's layers fall into groups of nearly equal size where `shared` does not divide them; lowest
    windows are dropped until the rest fits; a suffix never takes more than half of the budget.

    Payloads hold the same number of tokens in all layers: there is no pyramid for them, and windows are cut to fit.

    Attributes:
        budget: as `Selection`, mean over the layers.
        task: `"localisation"` (a question about one place: the best half of a window counts) or `"aggregation"` (all of
            it counts). The published classifier's weights are not available: say it yourself.
        window: tokens of a window.
        shared: layers of a group, about.
        beta: how flat the pyramid is, at least `shared`: the last group gets `shared / beta` of the mean.
        suffix: last tokens that ask and stay; None: 32 for localisation, 16 for aggregation.
    """

    task: Task = "localisation"
    window: int = 8
    shared: int = 8
    beta: float = 14.0
    suffix: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in get_args(Task):
            raise ValueError(f"task must be one of {', '.join(map(repr, get_args(Task)))}; got {self.task!r}")
        for name in ("window", "shared"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.beta < self.shared:
            raise ValueError(f"beta must be at least shared = {self.shared}, got {self.beta}")
        if self.suffix is not None and self.suffix < 1:
            raise ValueError(f"suffix must be at least 1 token, or None, got {self.suffix}")

    @property
    def whole_prompt(self) -> bool:
        return True

    def measure(self, prompt: LayerPrompt) -> Float[Tensor, "batch kv_heads stored"]:
        """Each token's score is its window's; tokens of the suffix have infinity."""
        scores = torch.zeros(prompt.stored.shape, device=prompt.keys.device)
        if prompt.layer in leaders(prompt.text_model.config, prompt.layers, self.shared):
            for row in range(len(scores)):
                length = int(prompt.lengths[row])
                suffix = self._suffix(length, self._tokens(prompt, row))
                seen = prompt.attention(prompt.tokens - suffix, prompt.tokens)[row].sum(1)[:, -length:]
                scores[row, -length:] = self._windows(seen, suffix)
        return scores[:, None].expand(-1, prompt.keys.shape[1], -1)

    def _windows(self, seen: Float[Tensor, "heads tokens"], suffix: int) -> Float[Tensor, " tokens"]:
        """Window scores of one row, spread over the windows' tokens."""
        review = seen.shape[-1] - suffix
        scores = torch.full((seen.shape[-1],), torch.inf, device=seen.device)
        for first in range(0, review, self.window):
            part = seen[:, first : min(first + self.window, review)]
            if self.task == "localisation":
                part = part.topk(min(max(1, self.window // 2), part.shape[-1]), -1).values
            scores[first : min(first + self.window, review)] = part.mean()
        return scores

    def _suffix(self, length: int, allowed: int) -> int:
        wanted = self.suffix or (32 if self.task == "localisation" else 16)
        return min(wanted, length, max(1, allowed // 2))

    def _tokens(self, prompt: LayerPrompt, row: int) -> int:
        return tokens_within(self.budget, int(prompt.lengths[row]), bytes_per_token(prompt))

    def choose(self, prompts: list[LayerPrompt], measures: list[Tensor]) -> list[Positions]:
        groups = [group_of(p.layer, p.layers, self.shared) for p in prompts]
        kept: list[Tensor] = []  # for each group, which tokens of the prompt stay, [batch, tokens]
        for group in range(max(groups) + 1):
            first = leaders(prompts[0].text_model.config, len(prompts), self.shared)[group]
            prompt, stays = prompts[first], torch.zeros_like(prompts[first].real)
            for row in range(len(stays)):
                length, allowed = int(prompt.lengths[row]), self._tokens(prompt, row)
                scores = measures[first][row, 0, -length:]
                suffix = self._suffix(length, allowed)
                mean = allowed - suffix
                room = group_budgets(mean, max(groups) + 1, self.shared, self.beta)[group] + suffix
                everything = allowed >= length
                stays[row, -length:] = True if everything else self._kept(scores, suffix, room - suffix)
            kept.append(stays)
        return [self._places(prompt, kept[group]) for prompt, group in zip(prompts, groups, strict=True)]

    def _kept(self, scores: Float[Tensor, " tokens"], suffix: int, room: int) -> Tensor:
        """Which tokens of one row stay: the suffix, and the best windows that fit into `room` tokens."""
        review = len(scores) - suffix
        stays = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        stays[review:] = True
        starts = list(range(0, review, self.window))
        for first in sorted(starts, key=lambda start: -float(scores[start])):
            last = min(first + self.window, review)
            if last - first > room:
                break
            stays[first:last] = True
            room -= last - first
        return stays

    def _places(self, prompt: LayerPrompt, kept: Tensor) -> Positions:
        """The kept tokens among those the layer stores, the same for every KV head."""
        stays = kept[:, prompt.offset :] & prompt.stored
        if bool((stays == prompt.stored).all()):
            return None
        most = max(1, int(stays.sum(-1).max()))
        order = torch.arange(stays.shape[1], device=stays.device).expand_as(stays)
        places = order.masked_fill(~stays, -1).sort(-1).values[:, -most:]
        return places[:, None].expand(-1, prompt.keys.shape[1], -1)

    def compress(self, encoded: Encoded) -> Encoded:
        scores = scores_of(encoded, self)
        layers, heads, tokens, width = encoded.keys.shape
        count = tokens_within(self.budget, tokens, 2 * layers * heads * width * encoded.keys.element_size())
        if count == tokens:
            return encoded
        leading = scores.isinf().any(-1).any(-1).nonzero().flatten().tolist()  # only those layers were scored
        groups = [group_of(layer, layers, self.shared) for layer in range(layers)]
        firsts = torch.tensor([leading[group] for group in groups], device=scores.device)
        order = tokens - 1 - scores[firsts][:, :1].flip(-1).sort(dim=-1, descending=True, stable=True).indices
        chosen = order[..., :count].sort(-1).values.expand(-1, heads, -1)
        return gathered(encoded, chosen)


def group_of(layer: int, layers: int, shared: int) -> int:
    """The group of a layer: about `layers / shared` groups, later ones larger by at most a layer."""
    groups = max(1, round(layers / shared))
    return groups - 1 - (layers - 1 - layer) * groups // layers


def leaders(config: Any, layers: int, shared: int) -> list[int]:
    """The layer of each group that scores: the first, or where some have sliding windows, the first without."""
    types = getattr(config, "layer_types", None) or ["full_attention"] * layers
    groups = [group_of(layer, layers, shared) for layer in range(layers)]
    members = [[i for i in range(layers) if groups[i] == group] for group in range(max(groups) + 1)]
    return [next((i for i in each if types[i] == "full_attention"), each[0]) for each in members]


def group_budgets(mean: int, groups: int, shared: int, beta: float) -> list[int]:
    """Tokens for each group, falling from first to last, whose mean is `mean` (specs section 4, test vectors)."""
    if groups == 1:
        return [mean]
    last = math.floor(mean * shared / beta)
    first = 2 * mean - last
    step = math.floor((first - last) / (groups - 1))
    return [*(first - i * step for i in range(groups - 1)), last]
