"""RetentiveKV (reconstruction): what is evicted lives on in two states that queries can still ask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from inducekv.bytes import parse_bytes
from inducekv.compression.budget import tokens_within
from inducekv.compression.clusters import Clusters
from inducekv.compression.layer import CompressedLayer, Seen, kept_from
from inducekv.compression.live import Positions
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import Selection, bytes_per_token
from inducekv.compression.spatial import spatial_decay
from inducekv.encoded import Encoded

Readout = Literal["clusters", "moments", "elu", "none"]
Merge = Literal["denominators", "sum"]


@dataclass(frozen=True)
class RetentiveKV(Selection):
    """Keeps tokens by attention and its entropy, and absorbs the others into a visual and a recall state.
    **Reconstruction** of RetentiveKV (ACL 2026 Findings).

    Of the paper only four formulas on its project page are known: the score R = lambda alpha + (1 - lambda) H, the
    state S <- H S + A k^T v, the two states, and O = O_local + O_S. All else is reconstructed (specs section 2), and
    no result obtained with it reproduces the paper: alpha and H (attention that a token received from the last text
    queries, and the entropy of who gave it), the gates, the decay with distance from the best patch that an image
    kept, the readout and the merge. Only the prompt is absorbed; tokens that follow it are kept whole. CHOICE: image
    patches are taken to lie on the nearest square grid, in raster order.

    States do not count when the budget is in tokens or a fraction; `cache_bytes` counts them. Clusters take as many
    bytes as `clusters` tokens, the float32 states of the other readouts as about `head_dim` tokens in float32. A budget
    in bytes includes them.

    Attributes:
        mix: lambda.
        queries: last queries that are asked.
        sinks, recent: first and last tokens that always stay, as far as half of the budget goes.
        retention: rho_min, what is left of a state when a token of no entropy is absorbed. CHOICE: 0.999; at the 0.9
            of the specs a prompt's state only remembers its last tokens.
        readout: `"clusters"` (ours): the evicted tokens of both kinds grouped by their keys, each group read as one
            token of its weight (`Clusters`); gates and decay play no part.
            `"moments"` (ours): the evicted tokens as a normal cloud, whose softmax mass is n exp(q k + q var q / 2) and
            whose mean value moves linearly with the query: one d x d state, in attention's own units. `"elu"`: linear
            attention with elu + 1 features. `"none"`: plain eviction by the same score, to compare with.
        merge: `"denominators"`: a state is one more block of attention, weighted by its mass. `"sum"`: as the
            page's formula has it, O_local plus the states' outputs.
        relevance: tau: states only speak to queries whose cosine with the mean absorbed key is above, softly; None:
            always (their mass says how much). Not for clusters, whose keys say it.
        clusters: groups for each KV head with `readout="clusters"`; None: as many as a head has channels.
    """

    mix: float = 0.5
    queries: int = 32
    sinks: int = 4
    recent: int = 32
    retention: float = 0.999
    readout: Readout = "clusters"
    merge: Merge = "denominators"
    relevance: float | None = None
    clusters: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mix", "retention"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name, least in (("queries", 2), ("sinks", 0), ("recent", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, allowed in (("readout", Readout), ("merge", Merge)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(map(repr, get_args(allowed)))
                raise ValueError(f"{name} must be one of {choices}; got {getattr(self, name)!r}")
        if self.clusters is not None and self.clusters < 1:
            raise ValueError(f"clusters must be at least 1, or None for a head's channels, got {self.clusters}")
        if self.relevance is not None and self.readout == "clusters":
            raise ValueError(
                f"relevance={self.relevance} must be None with readout='clusters', whose keys say what is relevant"
            )

    # -- score

    def measure(self, prompt: LayerPrompt) -> Float[Tensor, "batch kv_heads stored"]:
        first = max(0, prompt.tokens - self.queries)
        seen = prompt.by_kv_head(prompt.attention(first, prompt.tokens))
        text = prompt.real[:, first:] & ~prompt.images[:, first:]
        asks = torch.where(text.any(-1, keepdim=True), text, prompt.real[:, first:])  # a prompt of images only
        seen = seen * asks[:, None, :, None]
        count = asks.sum(-1)[:, None, None]
        received = seen.sum(2)
        share = seen / received[:, :, None].clamp_min(1e-12)
        entropy = -(share * share.clamp_min(1e-12).log()).sum(2) / count.clamp_min(2).log()
        mean, images = received / count, prompt.stored_images
        alpha = _scaled(mean, images) * images[:, None] + _scaled(mean, prompt.stored & ~images) * ~images[:, None]
        prompt.notes["received"], prompt.notes["entropy"] = mean, entropy.clamp(0, 1)
        scores = self.mix * alpha + (1 - self.mix) * entropy
        prompt.notes["scores"] = scores.clone()
        rank = prompt.stored.long().cumsum(-1)
        half = (self.counts(prompt) // 2).clamp_min(1)[:, None]
        recent = rank > prompt.lengths[:, None] - half.clamp_max(self.recent)
        sinks = prompt.stored & (rank <= (half - 1).clamp(0, self.sinks))
        return scores.masked_fill((recent | sinks)[:, None], torch.inf)

    def counts(self, prompt: LayerPrompt) -> Tensor:
        if not isinstance(self.budget, str) or self.readout == "none":
            return super().counts(prompt)
        heads, width = prompt.keys.shape[1], prompt.keys.shape[3]
        state = 2 * 4 * (width * width + 3 * width + 1)
        if self.readout == "clusters":
            state = (self.clusters or width) * (2 * width * prompt.keys.element_size() + 4)
        left = parse_bytes(self.budget) - prompt.layers * heads * state
        each, lengths = bytes_per_token(prompt), prompt.lengths
        whole = [super(RetentiveKV, self).counts(prompt)[i] == n for i, n in enumerate(lengths)]
        counts = [
            int(n) if all_stay else tokens_within(f"{max(1, left)}", int(n), each)
            for n, all_stay in zip(lengths, whole, strict=True)
        ]
        return torch.tensor(counts, device=lengths.device)

    # -- states

    def store(self, prompt: LayerPrompt, measure: Tensor, chosen: Positions) -> DynamicLayer | None:
        if chosen is None or self.readout == "none":
            return super().store(prompt, measure, chosen)
        keys, values = kept_from(prompt.keys, prompt.values, chosen)
        kept = torch.zeros(*prompt.keys.shape[:2], prompt.keys.shape[2] + 1, dtype=torch.bool, device=keys.device)
        kept = kept.scatter(2, torch.where(chosen < 0, prompt.keys.shape[2], chosen), True)[..., :-1]
        evicted = prompt.stored[:, None] & ~kept
        states: list[_State | Clusters] = []
        if self.readout == "clusters":
            count = min(self.clusters or keys.shape[3], int(evicted.sum(-1).max()))
            states.append(Clusters.of(prompt.keys, prompt.values, evicted, count))
        else:
            images, near = prompt.stored_images[:, None], spatial_decay(prompt, kept)
            states.append(_State.of(prompt, self._weights(prompt, evicted & images) * near, self.readout))
            states.append(_State.of(prompt, self._weights(prompt, evicted & ~images), self.readout))
        places = torch.where(chosen >= 0, chosen + prompt.offset, -1)
        return RetentiveLayer(
            keys, values, places, prompt.tokens, states=states, method=self, sliding_window=prompt.sliding_window
        )

    def _weights(
        self, prompt: LayerPrompt, absorbed: Bool[Tensor, "batch kv_heads stored"]
    ) -> Float[Tensor, "batch kv_heads stored"]:
        """What the recurrence S <- rho S + A k^T v makes of each token in the end: A times the later rho."""
        received = prompt.notes["received"] * absorbed
        count = absorbed.sum(-1, keepdim=True).clamp_min(1)
        absorption = received / (received.sum(-1, keepdim=True) / count).clamp_min(1e-12)
        rho = self.retention + (1 - self.retention) * prompt.notes["entropy"]
        decay = rho.clamp_min(1e-12).log() * absorbed
        later = decay.flip(-1).cumsum(-1).flip(-1) - decay
        return absorption * later.exp()

    def compress(self, encoded: Encoded) -> Encoded:
        raise TypeError("RetentiveKV changes what attention gives out, which a payload cannot; it is for live caches")


@dataclass(frozen=True)
class _State:
    """Sums over absorbed tokens, `[batch, kv_heads, ...]` float32.

    Attributes:
        mass: `[...]`; first: `[..., d]` sum of features of keys; second: `[..., d]` of their squares; values:
            `[..., d]`; outer: `[..., d, d]` features times values. For `moments` features are the keys themselves.
    """

    mass: Tensor
    first: Tensor
    second: Tensor
    values: Tensor
    outer: Tensor

    @classmethod
    def of(cls, prompt: LayerPrompt, weights: Float[Tensor, "batch kv_heads stored"], readout: Readout) -> "_State":
        keys, values = prompt.keys.float(), prompt.values.float()
        features = keys if readout == "moments" else torch.nn.functional.elu(keys) + 1
        weighted = features * weights[..., None]
        second = (weighted * features if readout == "moments" else keys * weights[..., None]).sum(2)
        spread = (values * weights[..., None]).sum(2)
        return cls(weights.sum(-1), weighted.sum(2), second, spread, weighted.transpose(2, 3) @ values)

    def tensors(self) -> list[Tensor]:
        return [self.mass, self.first, self.second, self.values, self.outer]

    def read(
        self, queries: Float[Tensor, "batch kv_heads queries d"], scaling: float, method: RetentiveKV
    ) -> tuple[Float[Tensor, "batch kv_heads queries"], Float[Tensor, "batch kv_heads queries d"]]:
        """Logarithm of the state's mass for each query, and its output."""
        empty = self.mass <= 1e-12
        mass = self.mass.clamp_min(1e-12)[..., None]
        if method.readout == "moments":
            mean, mean_value = self.first / mass, self.values / mass
            variance = (self.second / mass - mean.square()).clamp_min(0)
            joint = self.outer / mass[..., None] - mean[..., None] * mean_value[..., None, :]
            logits = queries @ mean[..., None] * scaling
            spread = (queries.square() @ variance[..., None]).squeeze(-1) * scaling**2 / 2
            log_mass = mass.log() + logits.squeeze(-1) + spread
            output = mean_value[:, :, None] + scaling * (queries @ joint)
            direction = mean
        else:
            features = torch.nn.functional.elu(queries) + 1
            total = (features @ self.first[..., None]).squeeze(-1).clamp_min(1e-12)
            log_mass, output = total.log(), features @ self.outer / total[..., None]
            direction = self.second / mass
        if method.relevance is not None:
            cosine = torch.nn.functional.cosine_similarity(queries, direction[:, :, None], dim=-1)
            gate = torch.sigmoid((cosine - method.relevance) / 0.1)
            log_mass, output = (
                log_mass + gate.log(),
                output if method.merge == "denominators" else output * gate[..., None],
            )
        log_mass = log_mass.masked_fill(empty[..., None], -torch.inf)
        return log_mass, output.masked_fill(empty[..., None, None], 0)


class RetentiveLayer(CompressedLayer):
    """Kept tokens beside the states of those that were evicted."""

    def __init__(self, *args: Any, states: list[_State | Clusters], method: RetentiveKV, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.states, self.method = states, method

    def merged(
        self, output: Float[Tensor, "batch heads queries head_dim"], queries: Callable[[], Tensor], seen: Seen
    ) -> Float[Tensor, "batch heads queries head_dim"] | None:
        assert self.keys is not None
        kv_heads = self.keys.shape[1]
        asked = queries().float()
        groups, count = asked.shape[1] // kv_heads, asked.shape[2]
        asked = asked.unflatten(1, (-1, groups)).flatten(2, 3)
        read = [state.read(asked, seen.scaling, self.method) for state in self.states]
        masses = torch.stack([mass for mass, _ in read])
        outputs = torch.stack([out for _, out in read])
        local = output.float().unflatten(1, (-1, groups)).flatten(2, 3)
        if self.method.merge == "sum":
            mixed = local + outputs.sum(0)
        else:
            logits = asked @ self.keys.float().transpose(2, 3) * seen.scaling
            if seen.mask is not None:
                mask = seen.mask.expand(-1, kv_heads * groups, -1, -1).unflatten(1, (-1, groups)).flatten(2, 3)
                hidden = ~mask if mask.dtype == torch.bool else mask < torch.finfo(mask.dtype).min / 2
                logits = logits.masked_fill(hidden, -torch.inf)
            masses = torch.cat([logits.logsumexp(-1)[None], masses])
            weights = masses.softmax(0)[..., None]
            mixed = (weights * torch.cat([local[None], outputs])).sum(0)
        return mixed.unflatten(2, (groups, count)).flatten(1, 2)

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *(x for state in self.states for x in state.tensors())]

    def _rows(self, change: Any) -> None:
        super()._rows(change)
        self.states = [type(state)(*map(change, state.tensors())) for state in self.states]


def _scaled(x: Float[Tensor, "batch kv_heads stored"], among: Bool[Tensor, "batch stored"]) -> Tensor:
    """Scaled to [0, 1] over some of the tokens, for each KV head."""
    among = among[:, None]
    low = x.masked_fill(~among, torch.inf).amin(-1, keepdim=True)
    high = x.masked_fill(~among, -torch.inf).amax(-1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return torch.where(among, (x - torch.where(low.isfinite(), low, 0.0)) / span, 0.0)
