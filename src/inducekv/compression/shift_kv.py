"""MM-ShiftKV: what would queries of the answer read? Asks synthetic ones, with the variance they will have."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import Selection


@dataclass(frozen=True)
class ShiftKV(Selection):
    """Variance-expanded query proxies vote for the keys they read (MM-ShiftKV, ACL 2026 Findings; specs section 1).

    The mean and deviation (scalars) of the attention module's input, the deviation times `gamma`, give normal hidden
    states; the module's own weights make queries of them, at future positions; each group of them votes for the
    smallest set of keys with `nucleus` of its attention, and the prompt's last query breaks ties. The prompt's last
    token always stays. Training-free, once, after the prompt. Where a decoder norms its queries (Qwen3, Gemma3),
    `gamma` does nearly nothing: the norm takes the scale away again.

    Attributes:
        budget: as `Selection`, the last token included.
        gamma: factor on the deviation.
        proxies: N, queries drawn.
        groups: G, which divides N; one vote each. (Qwen2.5-VL: 32; LLaVA: 16.)
        nucleus: share of a group's attention that its votes cover.
        minimal: also vote for the key that crosses the share, as the paper's text has it; its code does not, and a
            group whose first key alone exceeds the share then votes for nothing.
        recent: tokens that mean and deviation are taken of, None: all. (LLaVA: the last 512.)
        plain_layers: first layers whose proxies are the last hidden state, without noise. (LLaVA: 2.)
        seed: of the draws; the same for every row of a batch.
        unlike: how much it counts that a key is unlike the others, between 0 (the paper's method) and 1 (alone): mean
            of the votes' rank and of the rank by the cosine with the mean direction of all keys, lowest first (what
            kvpress calls KeyDiff). CHOICE: ranks, since votes and cosines have no common unit. For questions that come
            late: votes foresee how queries are spread, not what they will be about.
    """

    gamma: float = 10.0
    proxies: int = 512
    groups: int = 32
    nucleus: float = 0.95
    minimal: bool = False
    recent: int | None = None
    plain_layers: int = 0
    seed: int = 0
    unlike: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.nucleus <= 1:
            raise ValueError(f"nucleus must be above 0 and at most 1, got {self.nucleus}")
        if not self.gamma > 0:
            raise ValueError(f"gamma must be above 0, got {self.gamma}")
        if self.groups < 1 or self.proxies < self.groups or self.proxies % self.groups:
            raise ValueError(f"groups must divide proxies, got {self.groups} groups of {self.proxies} proxies")
        if self.recent is not None and self.recent < 1:
            raise ValueError(f"recent must be at least 1 token, or None for all, got {self.recent}")
        if self.plain_layers < 0:
            raise ValueError(f"plain_layers must be at least 0, got {self.plain_layers}")
        if not 0 <= self.unlike <= 1:
            raise ValueError(f"unlike must be between 0 and 1, got {self.unlike}")

    def measure(self, prompt: LayerPrompt) -> Float[Tensor, "batch kv_heads stored"]:
        if prompt.layer < self.plain_layers:
            groups, attention = 1, self._attention(prompt, *self._plain(prompt))
        else:
            groups, attention = self.groups, self._attention(prompt, *self._expanded(prompt))
        last = prompt.by_kv_head(prompt.attention(prompt.tokens - 1, prompt.tokens))[..., 0, :].clone()
        last[..., -1] = 0  # the last token stays anyway, and its share is not spread over the others
        attention[..., -1] = 0
        size = attention.shape[2] // groups
        mass = (attention.unflatten(2, (groups, size)).sum(3) + last[:, :, None]) / (size + 1)
        scores = self._votes(mass).sum(2).float() + last
        if self.unlike:
            difference = _difference(prompt.keys, prompt.stored)
            scores = (1 - self.unlike) * _ranks(scores, prompt.stored) + self.unlike * _ranks(difference, prompt.stored)
        scores[..., -1] = torch.inf
        return scores

    def _plain(self, prompt: LayerPrompt) -> tuple[Tensor, Tensor]:
        assert prompt.hidden is not None
        steps = torch.arange(1, 17, device=prompt.hidden.device)
        return prompt.hidden[:, -1:].expand(-1, 16, -1), prompt.positions[:, None] + steps

    def _expanded(self, prompt: LayerPrompt) -> tuple[Tensor, Tensor]:
        """Proxies `[batch, N, hidden]` and their positions `[batch, N]`: every group spans the same N future ones."""
        assert prompt.hidden is not None
        hidden, real = prompt.hidden.float(), prompt.real
        if self.recent is not None:
            hidden, real = hidden[:, -self.recent :], real[:, -self.recent :]
        real = real[..., None]
        count = (real.sum((1, 2)) * hidden.shape[-1]).view(-1, 1, 1)
        mean = (hidden * real).sum((1, 2), keepdim=True) / count
        deviation = (((hidden - mean) * real).square().sum((1, 2), keepdim=True) / (count - 1)).sqrt()
        generator = torch.Generator().manual_seed(self.seed * 1000 + prompt.layer)
        noise = torch.randn(self.proxies, hidden.shape[-1], generator=generator).to(hidden.device)
        step = torch.arange(self.proxies, device=hidden.device) % (self.proxies // self.groups)
        return mean + self.gamma * deviation * noise, prompt.positions[:, None] + self.groups * (step + 1)

    def _attention(self, prompt: LayerPrompt, hidden: Tensor, positions: Tensor) -> Tensor:
        """Attention of proxies `[batch, kv_heads, N, stored]` float32, mean over the heads that share a KV head."""
        logits = prompt.logits(prompt.queries_at(hidden, positions))
        logits = logits.masked_fill(~prompt.stored[:, None, None], -torch.inf)
        return prompt.by_kv_head(logits.softmax(-1))

    def _votes(
        self, mass: Float[Tensor, "batch kv_heads groups stored"]
    ) -> Bool[Tensor, "batch kv_heads groups stored"]:
        """The keys that each group votes for: the largest, as long as their sum stays within the nucleus."""
        ordered, order = mass.sort(dim=-1, descending=True, stable=True)
        total = ordered.cumsum(-1)
        before = total - ordered if self.minimal else total
        limit = self.nucleus * total[..., -1:]
        chosen = before < limit if self.minimal else before <= limit
        return torch.zeros_like(chosen).scatter(-1, order, chosen)


def _difference(
    keys: Float[Tensor, "batch kv_heads stored d"], real: Bool[Tensor, "batch stored"]
) -> Float[Tensor, "batch kv_heads stored"]:
    """Minus the cosine of each key with the mean direction of all of them."""
    directions = normalize(keys.float(), dim=-1)
    mean = normalize((directions * real[:, None, :, None]).sum(2, keepdim=True), dim=-1)
    return -(directions * mean).sum(-1)


def _ranks(scores: Float[Tensor, "batch kv_heads stored"], real: Bool[Tensor, "batch stored"]) -> Tensor:
    """Places in ascending order, of equal scores the later token higher; padding comes first."""
    order = scores.masked_fill(~real[:, None], -torch.inf).sort(dim=-1, stable=True).indices
    return torch.empty_like(scores).scatter(
        -1, order, torch.arange(scores.shape[-1], device=scores.device).expand_as(order).float()
    )
