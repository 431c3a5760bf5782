"""Training examples encoded once, and kept as every method of the search would store them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.backbone import Backbone
from inducekv.compression import compression_named
from inducekv.compression.base import Compression
from inducekv.config import InduceKVConfig, KeyDtype, PayloadDtype
from inducekv.encoded import Encoded
from inducekv.entry import Entry
from inducekv.examples import Example
from inducekv.learner import entry_id
from inducekv.progress import SILENT, Progress

HELD = 2 * 2**30
"""Bytes of encoded examples held at once. CHOICE; further examples are left out of the search."""


class Variants:
    """Encoded examples under each method, in float16 in the machine's memory.

    Whole payloads are never held for all examples: each batch is compressed by every method right away.

    Args:
        backbone: the frozen model.
        learned: pairs of task and example.
        config: key_layer, key_pool and batch_size are used.
        methods: pairs of method and tokens.
        progress: told about batches.

    Attributes:
        learned: as given, without those that `HELD` bytes had no room for.
        keys: `[examples, key_dim]` float32 unit-norm retrieval keys.
        names: ids of their entries.
        text_nbytes: bytes of it in a memory file.
    """

    def __init__(
        self,
        backbone: Backbone,
        learned: Sequence[tuple[str, Example]],
        config: InduceKVConfig,
        methods: Sequence[tuple[str, int]],
        progress: Progress = SILENT,
    ) -> None:
        compressions = {
            (name, n): compression_named(config.replace(payload=name, payload_tokens=n)) for name, n in methods
        }
        scorer = next((x.scorer for x in compressions.values() if x.scorer is not None), None)
        self._variants: dict[tuple[str, int], list[Encoded]] = {method: [] for method in methods}
        keys: list[Tensor] = []
        held, order = 0, _taking_turns([task for task, _ in learned])
        progress.start("encoding examples", len(order))
        for start in range(0, len(order), config.batch_size):
            some = order[start : start + config.batch_size]
            encoded = backbone.encode(
                [learned[i][1] for i in some],
                key_layer=config.key_layer,
                key_pool=config.key_pool,
                batch_size=config.batch_size,
                scorer=scorer,
            )
            for whole in encoded:
                for method, compression in compressions.items():
                    held += self._keep(method, compression, whole)
                keys.append(whole.key.detach().float().cpu())
            progress.advance(len(some))
            if held > HELD:
                break
        progress.stop()
        self.learned = [learned[i] for i in order[: len(keys)]]
        self.keys: Float[Tensor, "examples key_dim"] = torch.stack(keys)
        self.names: list[str] = []
        for task, example in self.learned:
            self.names.append(entry_id(example.identifier, task, set(self.names)))
        method = next(iter(self._variants))
        self.text_nbytes = [
            self.entry(i, method, payload_dtype="float16", layers=None, key_dtype="float16").text_nbytes
            for i in range(len(self.learned))
        ]

    def _keep(self, method: tuple[str, int], compression: Compression, whole: Encoded) -> int:
        small = compression.compress(whole if compression.scorer else dataclasses.replace(whole, scores=None))
        half = [x.detach().cpu().clamp(-65504, 65504).to(torch.float16) for x in (small.keys, small.values)]
        kept = dataclasses.replace(small, key=small.key.cpu(), keys=half[0], values=half[1], scores=None)
        self._variants[method].append(kept)
        return 2 * half[0].nbytes

    def of(self, method: tuple[str, int]) -> list[Encoded]:
        """The examples under a method, in the order of `learned`."""
        return self._variants[method]

    def entry(
        self,
        place: int,
        method: tuple[str, int],
        payload_dtype: PayloadDtype | str,
        layers: tuple[int, ...] | None,
        key_dtype: KeyDtype | str,
    ) -> Entry:
        """An example as it would be stored."""
        task, example = self.learned[place]
        return Entry.of(
            self.of(method)[place],
            id=self.names[place],
            task=task,
            payload_dtype=payload_dtype,
            layers=layers,
            key_dtype=key_dtype,
            question=example.question,
            answer=example.answer or "",
        )


def _taking_turns(tasks: Sequence[str]) -> list[int]:
    """Places in an order in which tasks take turns, so that any first part has all of them."""
    turns: dict[str, int] = {}
    keyed = []
    for place, task in enumerate(tasks):
        turns[task] = turns.get(task, 0) + 1
        keyed.append((turns[task], place))
    return [place for _, place in sorted(keyed)]
