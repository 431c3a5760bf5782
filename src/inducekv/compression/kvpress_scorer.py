"""Scores from kvpress: any object with its `score` method becomes a method here, for every family."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.cache_name import CACHE_NAMES
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import Selection


@dataclass(frozen=True)
class KVPressScorer(Selection):
    """Keeps the tokens that a kvpress scorer scores highest.

    The scorer is called once for each row of the batch, without the row's padding, as `score(module, hidden_states,
    keys, values, attentions, kwargs)`, and gives `[1, kv_heads, tokens]`. Its own `compression_ratio` does not count:
    `budget` does. Scorers that look at attention weights need a model loaded with `attn_implementation="eager"`; those
    that make queries from hidden states must know the family themselves.

    Attributes:
        budget: as `Selection`.
        scorer: the object, usually a `kvpress.ScorerPress`.

    Raises:
        TypeError: `scorer` has no `score` method.
    """

    scorer: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(getattr(self.scorer, "score", None)):
            raise TypeError(
                f"scorer must have a method score(module, hidden_states, keys, values, attentions, kwargs); "
                f"got {self.scorer!r}"
            )

    def measure(self, prompt: LayerPrompt) -> Float[Tensor, "batch kv_heads stored"]:
        assert prompt.hidden is not None
        scores = torch.zeros(prompt.keys.shape[:3], device=prompt.keys.device)
        for row, length in enumerate(prompt.lengths.tolist()):
            one = slice(row, row + 1)
            kwargs = dict(prompt.arguments)
            for name in ("attention_mask", "hidden_states", *CACHE_NAMES):
                kwargs.pop(name, None)
            if "position_embeddings" in kwargs:
                kwargs["position_embeddings"] = tuple(
                    x[..., row % x.shape[-3] :, -length:, :][..., :1, :, :] for x in kwargs["position_embeddings"]
                )
            if isinstance(ids := kwargs.get("position_ids"), Tensor):
                kwargs["position_ids"] = ids[..., row % ids.shape[-2] :, -length:][..., :1, :]
            weights = None if prompt.weights is None else prompt.weights[one, :, -length:, -length:]
            got = self.scorer.score(
                prompt.module,
                prompt.hidden[one, -length:],
                prompt.keys[one, :, -length:],
                prompt.values[one, :, -length:],
                weights,
                kwargs,
            )
            if got.shape != (1, prompt.keys.shape[1], length):
                raise ValueError(
                    f"{type(self.scorer).__name__}.score gave a tensor of shape {tuple(got.shape)}; "
                    f"[1, kv_heads, tokens] = {(1, prompt.keys.shape[1], length)} is needed"
                )
            scores[one, :, -length:] = got.float()
        return scores
