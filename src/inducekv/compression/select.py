"""Selection: a score for every token of every KV head, and a budget that the highest-scored tokens share."""

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.compression.budget import Budget, check_budget, tokens_within
from inducekv.compression.layer import highest
from inducekv.compression.live import LiveCompression, Positions
from inducekv.compression.prompt import LayerPrompt
from inducekv.encoded import Encoded


@dataclass(frozen=True)
class Selection(LiveCompression):
    """Keeps the tokens with the highest scores, each KV head its own; the same number in every layer and head.

    Rows of a batch keep what their own length allows, so that padding changes nothing. A payload needs the scores that
    were taken while it was encoded (`Encoded.scores`, from `Backbone.encode(..., scorer=method)`).

    Attributes:
        budget: what may stay (`Budget`): tokens for each KV head, a fraction of the tokens, or bytes of a row.

    Raises:
        ValueError, TypeError: naming the argument, the value it got and what is allowed.
    """

    budget: Budget = 0.5

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def choose(self, prompts: list[LayerPrompt], measures: list[Tensor]) -> list[Positions]:
        return [self._chosen(prompt, measure) for prompt, measure in zip(prompts, measures, strict=True)]

    def _chosen(self, prompt: LayerPrompt, scores: Float[Tensor, "batch kv_heads stored"]) -> Positions:
        counts = self.counts(prompt)
        if bool((counts == prompt.lengths).all()):
            return None
        return highest(scores, prompt.stored, counts)

    def counts(self, prompt: LayerPrompt) -> Tensor:
        """Tokens that each row keeps in this layer, `[batch]`."""
        each = bytes_per_token(prompt)
        lengths = prompt.lengths
        return torch.tensor([tokens_within(self.budget, int(n), each) for n in lengths], device=lengths.device)

    def compress(self, encoded: Encoded) -> Encoded:
        """The highest-scored tokens of every layer and KV head; `kinds` are those of the tokens most heads keep.

        Raises:
            ValueError: the example was encoded without scores.
        """
        scores = scores_of(encoded, self)
        layers, heads, tokens, width = encoded.keys.shape
        each = 2 * layers * heads * width * encoded.keys.element_size()
        count = tokens_within(self.budget, tokens, each)
        if count == tokens:
            return encoded
        real = torch.ones(layers, tokens, dtype=torch.bool, device=scores.device)
        chosen = highest(scores, real, torch.full((layers,), count))
        return gathered(encoded, chosen)


def bytes_per_token(prompt: LayerPrompt) -> float:
    """Bytes that one token takes in the cache of all layers, its place (int32) included."""
    _, heads, _, width = prompt.keys.shape
    return float(prompt.layers * heads * (2 * width * prompt.keys.element_size() + 4))


def scores_of(encoded: Encoded, method: object) -> Float[Tensor, "layers kv_heads tokens"]:
    """The scores an example was encoded with.

    Raises:
        ValueError: there are none.
    """
    if encoded.scores is None:
        name = type(method).__name__
        raise ValueError(f"{name} needs examples encoded with scores: backbone.encode(examples, scorer={name}(...))")
    return encoded.scores.to(encoded.keys.device)


def gathered(encoded: Encoded, chosen: Tensor) -> Encoded:
    """The example with the chosen tokens `[layers, kv_heads, kept]` of every layer and head.

    Its `kinds` and their order come from the tokens that most layers and heads keep.
    """
    index = chosen[..., None].expand(-1, -1, -1, encoded.keys.shape[-1])
    votes = torch.bincount(chosen.flatten().cpu(), minlength=encoded.tokens)
    common = votes.sort(descending=True, stable=True).indices[: chosen.shape[-1]].sort().values
    assert encoded.scores is not None
    return dataclasses.replace(
        encoded,
        keys=encoded.keys.gather(2, index),
        values=encoded.values.gather(2, index),
        kinds=encoded.kinds[common.to(encoded.kinds.device)],
        scores=encoded.scores.gather(2, chosen),
    )
