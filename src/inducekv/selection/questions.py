"""Questions that selection scores: examples with their retrieval keys, from the new task and from anchors."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.examples import Example


@dataclass(frozen=True)
class Question:
    """An example to score.

    Attributes:
        example: with its answer; its id is that of the entry made from it, which it never reads (leave-one-out).
        key: `[key_dim]` unit norm.
        task: the task it belongs to.
    """

    example: Example
    key: Float[Tensor, " key_dim"]
    task: str

    @property
    def entry(self) -> str:
        """Id of its own entry, whether or not there is one."""
        return self.example.identifier


def questions_of(
    backbone: Backbone,
    examples: Sequence[Example],
    tasks: Sequence[str],
    config: InduceKVConfig,
    known: dict[str, Float[Tensor, " key_dim"]] | None = None,
) -> list[Question]:
    """Examples with their keys.

    Args:
        backbone: gives the keys that are not known.
        examples: with answers.
        tasks: of each example.
        config: key_layer, key_pool and batch_size are used.
        known: keys by example id, from encoding.
    """
    keys = dict(known or {})
    missing = [example for example in examples if example.identifier not in keys]
    if missing:
        rows = backbone.query_keys(
            missing, key_layer=config.key_layer, key_pool=config.key_pool, batch_size=config.batch_size
        )
        keys |= {e.identifier: row for e, row in zip(missing, rows.detach().float().cpu(), strict=True)}
    return [Question(e, keys[e.identifier], task) for e, task in zip(examples, tasks, strict=True)]
