"""From the retrieval keys of a batch to what its rows read: one memory for all of them, or one for each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.answers import Source
from inducekv.attention import Found, InFlight, Provider
from inducekv.attention_masks import real_tokens
from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig, Weighting
from inducekv.decoder import chosen_key_layer
from inducekv.injection import Injection, build_injection, joined
from inducekv.memory import KVMemory
from inducekv.preamble import guarded
from inducekv.retrieval import Retrieved, retrieve
from inducekv.retrieval_key import retrieval_key

SHARED = ("key_layer", "key_pool", "retrieval", "weighting", "visibility", "shared_preamble")
"""What the memories of one batch must agree on."""


@dataclass(frozen=True)
class Reading:
    """A memory and how it is read.

    Raises:
        ValueError: it is to be read in flight, but its payloads are of layers below the key layer.
    """

    memory: KVMemory
    config: InduceKVConfig

    def __post_init__(self) -> None:
        layers = self.memory.layout.layers
        key_layer = self.memory.fingerprint.get("key_layer")
        if self.config.retrieval == "in_flight" and (not isinstance(key_layer, int) or layers[0] < key_layer):
            raise ValueError(
                f"the memory holds payloads of layers from {layers[0]}, but in-flight retrieval takes the key at layer "
                f"{key_layer}, and only layers from there can read; use retrieval='two_pass' for this memory"
            )

    def retrieved(self, keys: Float[Tensor, "rows key_dim"]) -> Retrieved | None:
        """The entries that each row reads; None where the memory has none."""
        if not len(self.memory):
            return None
        return retrieve(
            keys.float().cpu(),
            self.memory.keys(),
            self.memory.calibration.tau,
            top_k=self.config.top_k,
            thresholds=self.memory.threshold_of_entries() if self.config.abstain else None,
            space=self.memory.key_space(self.config.key_space),
        )

    def injection(
        self, retrieved: Retrieved | None, backbone: Backbone, weighting: Weighting | None = None
    ) -> Injection | None:
        """What attention reads of them."""
        if retrieved is None:
            return None
        return build_injection(
            self.memory,
            retrieved,
            self.memory.calibration,
            weighting or self.config.weighting,
            backbone,
            self.config.visibility,
            len(backbone.preamble) if self.config.shared_preamble else 0,
        )


@dataclass(frozen=True)
class Sources:
    """What each row of a batch reads, and from which memory.

    Attributes:
        rows: for each row (times its beams) its reading, what was retrieved with it, and the row's place therein; None:
            the row reads nothing.
    """

    rows: list[tuple[Reading, Retrieved, int] | None]

    def of(self, masses: Float[Tensor, "batch slots"], row: int, count: int) -> list[Source]:
        """Where a row's answer came from, the best entry first.

        Args:
            masses: attention mass of each slot.
            row: of the batch, without its beams.
            count: rows that the batch had, without their beams.
        """
        row *= len(self.rows) // count
        found = self.rows[row]
        if found is None:
            return []
        reading, retrieved, place = found
        slots, sources = retrieved.indices.shape[1], []
        for slot in reversed(range(slots)):  # the best entry lies last
            if bool(retrieved.valid[place, slot]):
                entry = reading.memory.entries[int(retrieved.indices[place, slot])]
                sources.append(
                    Source(
                        entry.id,
                        entry.task,
                        float(retrieved.alpha[place, slot]),
                        float(masses[row, slot - slots]),
                        entry.question,
                        entry.answer,
                        float(retrieved.similarity[place, slot]),
                    )
                )
        return sources


class Lookup:
    """Finds what the rows of a batch read, in the memories as they are when it is called.

    Args:
        backbone: the model that reads.
        config: of the model: where keys are taken, and whether in flight.
        readings: one for all rows, or one for each row (None: the row reads nothing).

    Raises:
        ValueError: the readings disagree about keys, weighting, layers or payload shapes.
    """

    def __init__(
        self, backbone: Backbone, config: InduceKVConfig, readings: Reading | Sequence[Reading | None] | None
    ) -> None:
        self._backbone, self._config = backbone, config
        self._each = isinstance(readings, Sequence)
        self._readings: list[Reading | None] = list(readings) if isinstance(readings, Sequence) else [readings]
        _agree(config, [r for r in self._readings if r is not None])

    def __call__(self, keys: Float[Tensor, "batch key_dim"]) -> Injection | None:
        """The injection for a batch of rows, or of rows times beams.

        Raises:
            ValueError: as `found`.
        """
        return self.found(keys).injection

    def found(self, keys: Float[Tensor, "batch key_dim"]) -> Found:
        """The injection for a batch of rows, or of rows times beams, and its `Sources` as details.

        Raises:
            ValueError: the batch has another number of rows than there are memories.
        """
        batch, keys = len(keys), keys.float().cpu()
        if self._each and batch % len(self._readings):
            raise ValueError(
                f"{len(self._readings)} memories were attached, one for each row, but the batch has {batch} rows; "
                "give a memory (or None) for every row"
            )
        each = batch // len(self._readings)  # one reading: all rows; else the beams of a row
        readings = [self._readings[row // each] for row in range(batch)]
        rows_of: dict[int, list[int]] = {}
        for row, reading in enumerate(readings):
            if reading is not None:
                rows_of.setdefault(id(reading.memory), []).append(row)
        sources = Sources([None] * batch)
        injections, rows = [], []
        for some in rows_of.values():
            reading = readings[some[0]]
            assert reading is not None
            reading = replace(reading, memory=reading.memory.snapshot())
            retrieved = reading.retrieved(keys[some])
            injections.append(reading.injection(retrieved, self._backbone))
            rows.append(torch.tensor(some))
            if retrieved is not None:
                for place, row in enumerate(some):
                    sources.rows[row] = (reading, retrieved, place)
        if len(injections) == 1 and len(rows[0]) == batch:
            return Found(injections[0], sources)
        return Found(joined(injections, rows, batch), sources)

    @property
    def memory(self) -> Provider | InFlight | None:
        """What `attention.attached` takes; None where there is nothing to read."""
        if all(reading is None or not len(reading.memory) for reading in self._readings):
            return None
        pool = self._config.key_pool
        if self._config.retrieval == "in_flight":
            layer = chosen_key_layer(self._config.key_layer, self._backbone.layers)
            return InFlight(
                layer,
                lambda hidden, real, ids: self._guarded(
                    self.found(retrieval_key(self._backbone, hidden, pool, real, ids)), ids, real
                ),
            )

        def provide(inputs: dict[str, Any]) -> Found:
            keys = self._backbone.query_keys_from_inputs(key_layer=self._config.key_layer, key_pool=pool, **inputs)
            ids = inputs.get("input_ids")
            real = real_tokens(inputs.get("attention_mask"), inputs["inputs_embeds"][..., 0] if ids is None else ids)
            return self._guarded(self.found(keys), ids, real)

        return provide

    def _guarded(self, found: Found, ids: Tensor | None, real: Tensor) -> Found:
        if found.injection is None or found.injection.guard is None:
            return found
        family = self._backbone.family
        return replace(
            found,
            injection=guarded(found.injection, ids, real, self._backbone.preamble, family.first_position),
        )


def _agree(config: InduceKVConfig, readings: Sequence[Reading]) -> None:
    for reading in readings:
        for name in SHARED:
            own, wanted = getattr(reading.config, name), getattr(config, name)
            if own != wanted:
                raise ValueError(
                    f"memories attached together must be read alike: one has {name} {own!r}, the model's configuration "
                    f"says {wanted!r}"
                )
    layouts = {reading.memory.layout.layers for reading in readings}
    if len(layouts) > 1:
        raise ValueError(
            "memories attached together must hold payloads of the same layers; "
            f"got {' and '.join(str(list(x)) for x in sorted(layouts))}"
        )
