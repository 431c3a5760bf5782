"""Which other examples of a task each one is encoded behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.examples import Example
from inducekv.key_space import KeySpace
from inducekv.progress import SILENT, Progress

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

AT_ONCE = 256
"""Examples whose similarities to all others are held at a time."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest other examples of each example.

    Attributes:
        places: for each example the places of its neighbours, the nearest last, as they are read.
        retrieval_keys: `[examples, key_dim]` float32, of every example read alone.
    """

    places: list[list[int]]
    retrieval_keys: Float32[Tensor, "examples key_dim"]


def nearest_others(
    backbone: "Backbone", examples: Sequence[Example], config: InduceKVConfig, progress: Progress = SILENT
) -> Neighbours:
    """Find the `config.neighbours` nearest others of every example, by retrieval keys of the questions alone.

    CHOICE: published models read entries better that were each encoded behind its own nearest examples than the same
    examples in one prompt; the stored bytes stay the same. Keys are whitened, whatever the
    memory's are: what all questions of a task share says nothing.
    """
    keys = backbone.query_keys(
        [Example(e.question, None, e.images, e.identifier) for e in examples],
        key_layer=config.key_layer,
        key_pool=config.key_pool,
        batch_size=config.batch_size,
        progress=progress,
    )
    keys = keys.float().cpu()
    count = min(config.neighbours, len(examples) - 1)
    space = KeySpace.of(keys, "whitened")
    places: list[list[int]] = []
    for start in range(0, len(examples), AT_ONCE):
        near = space.similarities(keys[start : start + AT_ONCE], keys)
        rows = torch.arange(len(near))
        near[rows, rows + start] = -torch.inf
        places += near.topk(count, dim=-1).indices.flip(-1).tolist()
    return Neighbours(places, keys)
