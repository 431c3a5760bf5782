"""Tuning: the payload that answers best within a budget, from measurements on held-out examples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.examples import Example
from inducekv.memory_config import payload_layers, storable_layers
from inducekv.progress import SILENT, Progress
from inducekv.tuning.choice import choose
from inducekv.tuning.measure import Bench, Measured
from inducekv.tuning.search import Search
from inducekv.tuning.space import LADDERS, start_of
from inducekv.tuning.split import split_of

POINTS = 80
"""Points that are looked at, at most. CHOICE: about two minutes on the embedded model."""
QUESTIONS = 128
"""Questions asked of a point, at most. CHOICE."""
LEARNED = 256
"""Examples of a task that fill memories, at most, where the configuration's `candidates` are all. CHOICE."""
METHODS = tuple((name, count) for name, ladder in LADDERS.items() for count in ladder)


@dataclass(frozen=True)
class TuneReport:
    """What a tuning found.

    Attributes:
        config: the configuration to learn with.
        fields: those of it that `inducekv learn --config` needs.
        chosen: its point, measured.
        start: the configuration's point before, measured; None if not one entry of it fits.
        measured: all points that were measured on all questions, in the order in which they were.
        looked_at: points that were at least looked at, on a part of the questions.
        tasks, learned, questions: how many there were.
        budget: bytes that each point was given.
        seconds: of it all.
        notes: sentences for a person: how sure the choice is.
    """

    config: InduceKVConfig
    fields: dict[str, Any]
    chosen: Measured
    start: Measured | None
    measured: list[Measured]
    looked_at: int
    tasks: int
    learned: int
    questions: int
    budget: int
    seconds: float
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        rest = {
            name: getattr(self, name) for name in ("looked_at", "tasks", "learned", "questions", "budget", "seconds")
        }
        return {
            "config": self.fields,
            "chosen": self.chosen.to_dict(),
            "start": None if self.start is None else self.start.to_dict(),
            "measured": [found.to_dict() for found in self.measured],
            **rest,
            "notes": self.notes,
        }


def tune(
    backbone: Backbone,
    tasks: Mapping[str, Sequence[Example]],
    config: InduceKVConfig | None = None,
    *,
    tasks_in_all: int | None = None,
    points: int = POINTS,
    questions: int = QUESTIONS,
    progress: Progress = SILENT,
) -> TuneReport:
    """Chooses entries x tokens x bits x layers for `config.budget` (rate and distortion, measured; CHOICE throughout).

    A third of each task's examples is held out. For each point a memory of the budget is filled with the rest, herded,
    and the questions held out are answered with it. A coarse grid is looked at on a part of the questions, the better
    points are measured on all, and so are the neighbours of the best until none is better. What is chosen is better
    than `config`'s own point by two standard errors over the same questions (`choice.choose`), or it is that point.

    Args:
        backbone: the frozen model.
        tasks: examples with answers, by task; `config.candidates` of a task are used at most, 256 if it says all.
        config: where to start, and the budget, retrieval and seed to tune for.
        tasks_in_all: how many tasks the memory is to hold in the end, if more than are given: these then have to do
            with their share of the budget.
        points: looked at, at most.
        questions: asked, at most.
        progress: told about each stage.

    Raises:
        TooFewExamples: fewer than 12 examples, or no task with three.
        BudgetError: not one entry fits in any format.
        ValueError: as `empty_memory`, or fewer tasks in all than are given.
    """
    began = time.perf_counter()
    config = config or backbone.config()
    if tasks_in_all is not None and tasks_in_all < len(tasks):
        raise ValueError(f"the data has {len(tasks)} tasks; the memory cannot hold only {tasks_in_all} in all")
    if points < 1 or questions < 1:
        raise ValueError(f"points and questions must be at least 1, got {points} and {questions}")
    split = split_of(tasks, questions, config.candidates or LEARNED, config.seed)
    budget = config.budget_bytes * len(tasks) // (tasks_in_all or len(tasks))
    layers = storable_layers(backbone, config)
    start = start_of(config, payload_layers(backbone, config))
    bench = Bench(backbone, split, config, budget, METHODS, progress)
    search = Search(bench, layers, METHODS, points, progress)
    search.run(start)
    best, notes = choose(list(search.measured.values()), search.measured.get(start))
    changes = best.point.changes()
    if best.point.payload_layers == layers:
        changes["payload_layers"] = None
    found = config.replace(**changes)
    return TuneReport(
        config=found,
        fields=fields_of(found, backbone.own_config),
        chosen=best,
        start=search.measured.get(start),
        measured=list(search.measured.values()),
        looked_at=len(search.looks),
        tasks=len(tasks),
        learned=len(bench.variants.learned),
        questions=len(split.asked),
        budget=budget,
        seconds=time.perf_counter() - began,
        notes=notes,
    )


def fields_of(config: InduceKVConfig, own: Collection[str] = ()) -> dict[str, Any]:
    """What `inducekv learn --config` needs of a tuned configuration.

    Budget, payload, whatever is no default, and what the model would else decide (`own`: fields that it names).
    """
    plain = {f.name: f.default for f in dataclasses.fields(InduceKVConfig)}
    told = {"budget", "payload", "payload_tokens", "payload_dtype", "key_dtype", *own}
    return {name: value for name, value in config.to_dict().items() if name in told or value != plain[name]}
