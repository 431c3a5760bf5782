"""Measuring a point: what a memory filled under it makes of questions that were held out. Bytes are exact."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.continual.graders import exact_match
from inducekv.lookup import Lookup, Reading
from inducekv.memory import BudgetError, KVMemory
from inducekv.memory_config import empty_memory, note_config
from inducekv.progress import SILENT, Progress
from inducekv.retrieval import Calibration
from inducekv.selection.herding import herd
from inducekv.tuning.space import Point
from inducekv.tuning.split import Split
from inducekv.tuning.variants import Variants

FIRST = 48
"""Questions of a first look at a point. CHOICE."""


@dataclass(frozen=True)
class Measured:
    """What a point was found to be.

    Attributes:
        point: the way of storing.
        entries: that fit into the budget, or as many as there were examples.
        nbytes: of the filled memory.
        entry_nbytes: bytes an entry, mean.
        nll: negative log-likelihood of each question's answer, nats, mean over its tokens.
        correct: whether each question was answered correctly; None where only likelihood was measured.
    """

    point: Point
    entries: int
    nbytes: int
    entry_nbytes: float
    nll: tuple[float, ...]
    correct: tuple[bool, ...] | None

    @property
    def likelihood(self) -> float:
        """Mean over questions of exp(-nll): the probability of an answer's token, 0 to 1."""
        return statistics.fmean(torch.tensor(self.nll).neg().exp().tolist())

    @property
    def accuracy(self) -> float | None:
        """Percent of the questions answered correctly."""
        return None if self.correct is None else 100 * statistics.fmean(self.correct)

    @property
    def worth(self) -> float:
        """What points are ranked by, 0 to 1: mean of accuracy and likelihood, which has less noise. CHOICE."""
        return self.likelihood if self.accuracy is None else (self.accuracy / 100 + self.likelihood) / 2

    @property
    def worths(self) -> tuple[float, ...]:
        """`worth` of each question; their mean is the point's."""
        likely = torch.tensor(self.nll).neg().exp().tolist()
        if self.correct is None:
            return tuple(likely)
        return tuple((right + chance) / 2 for right, chance in zip(self.correct, likely, strict=True))

    @property
    def mean_nll(self) -> float:
        """Mean over questions, nats."""
        return statistics.fmean(self.nll)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        point = self.point.changes() | {"payload_layers": list(self.point.payload_layers)}
        numbers = ("entries", "nbytes", "entry_nbytes", "accuracy", "likelihood", "mean_nll", "worth")
        return {"point": point, **{name: getattr(self, name) for name in numbers}}


class Bench:
    """What all points share: examples encoded once, questions rendered and looked up once.

    Args:
        backbone: the frozen model.
        split: what is learned and what is asked.
        config: of the reading; the point's fields are replaced.
        budget: bytes of each memory.
        methods: pairs of method and tokens to encode for.
        progress: told about encoding.
    """

    def __init__(
        self,
        backbone: Backbone,
        split: Split,
        config: InduceKVConfig,
        budget: int,
        methods: Sequence[tuple[str, int]],
        progress: Progress = SILENT,
    ) -> None:
        self.backbone, self.split, self.budget = backbone, split, budget
        self.config = config.replace(payload="keep_answer", payload_tokens=0, abstain=False, payload_layers=None)
        self.variants = Variants(backbone, split.learned, self.config, methods, progress)
        self._tasks = [task for task, _ in self.variants.learned]
        asked = split.asked
        self.keys = backbone.query_keys(
            asked,
            key_layer=config.key_layer,
            key_pool=config.key_pool,
            batch_size=config.batch_size,
            progress=progress,
        )
        self.keys = self.keys.float().cpu()
        cuts = [0, *([FIRST] if len(asked) > FIRST else []), len(asked)]
        self._parts = list(pairwise(cuts))
        size = config.batch_size
        self._scored = [backbone.prepare(asked[a:b], True, embed=True, batch_size=size) for a, b in self._parts]
        self._answered = backbone.prepare(asked, False, batch_size=size)
        self._longest = max(batch.answer_lengths.max() for part in self._scored for batch in part.batches)

    def first_look(self, point: Point) -> Measured | None:
        """Likelihood of the first questions; None if not one entry fits."""
        memory = self.fill(point)
        return None if memory is None else self._measured(point, memory, self._nll(memory, 0), None)

    def full(self, point: Point, first: Measured | None = None) -> Measured | None:
        """Likelihood and accuracy on all questions; `first`, of the same point, saves measuring it again."""
        memory = self.fill(point)
        if memory is None:
            return None
        nll = list(first.nll) if first is not None else self._nll(memory, 0)
        for part in range(1, len(self._parts)):
            nll += self._nll(memory, part)
        lookup = self._lookup(memory)
        texts = self.backbone.generate(self._answered, lambda rows: lookup(self.keys[rows.cpu()]), int(self._longest))
        correct = [exact_match(t, e.answer or "") for t, e in zip(texts, self.split.asked, strict=True)]
        return self._measured(point, memory, nll, tuple(map(bool, correct)))

    def fill(self, point: Point) -> KVMemory | None:
        """A memory of the budget under a point, entries herded (no calibration); None if not one entry fits."""
        config = self.config.replace(**point.changes(), budget=self.budget)
        try:
            memory = empty_memory(self.backbone, config)
        except BudgetError:
            return None
        note_config(memory, config)
        layout, data = memory.layout, self.variants
        encoded = data.of(point.method)
        lengths = zip(encoded, data.text_nbytes, strict=True)
        sizes = [layout.entry_nbytes(e.tokens, memory.payload_dtype, text) for e, text in lengths]
        chosen = herd(data.keys, sizes, self.budget - memory.base_nbytes(self._tasks), self._tasks)
        if not chosen:
            return None
        formats = (memory.payload_dtype, layout.layers, layout.key_dtype)
        memory.replace_all([data.entry(i, point.method, *formats) for i in chosen])
        memory.calibration = Calibration.initial(len(layout.layers), config.temperature)
        return memory

    def _lookup(self, memory: KVMemory) -> Lookup:
        return Lookup(self.backbone, self.config, Reading(memory, self.config))

    def _nll(self, memory: KVMemory, part: int) -> list[float]:
        lookup, start = self._lookup(memory), self._parts[part][0]
        with torch.no_grad():
            scores = self.backbone.score(self._scored[part], lambda rows: lookup(self.keys[start + rows.cpu()]))
        return scores.nll.double().cpu().tolist()

    def _measured(
        self, point: Point, memory: KVMemory, nll: Sequence[float], correct: tuple[bool, ...] | None
    ) -> Measured:
        entries = memory.nbytes - memory.layout.base_nbytes(memory.tasks)
        return Measured(point, len(memory), memory.nbytes, entries / len(memory), tuple(nll), correct)
