"""What learning a task did, in numbers."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LearnReport:
    """What learning a task did.

    Attributes:
        task: its name.
        examples: examples given, without repetitions.
        candidates: new entries that competed.
        chosen: ids of the new entries that were kept.
        dropped: by earlier task, how many of its entries were given up.
        entries: entries in the memory afterwards.
        nbytes, budget: of the memory, bytes.
        anchors, anchors_nbytes: kept in the training state, apart from the memory.
        before, after: J and its terms (nats; coverage without unit) with the old memory and with the new one; empty
            where learning scores no questions (`InduceKVConfig.scores_questions`).
        tau, mass, lambdas: the calibration.
        seconds: by stage.
        history: what the selector noted at each step.
        warnings: sentences for a person.
    """

    task: str
    examples: int
    candidates: int
    chosen: list[str]
    dropped: dict[str, int]
    entries: int
    nbytes: int
    budget: int
    anchors: int
    anchors_nbytes: int
    before: dict[str, float]
    after: dict[str, float]
    tau: float
    mass: float
    lambdas: list[float]
    seconds: dict[str, float]
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Sentences for a person: what was not looked at, what was given up of earlier tasks, and the warnings."""
        notes = []
        if self.candidates < self.examples:
            notes.append(
                f"{self.examples:,} examples, {self.candidates:,} considered: raise `candidates`, or leave it out to "
                "consider all"
            )
        if self.dropped:
            lost = ", ".join(f"{count:,} of {task!r}" for task, count in self.dropped.items())
            notes.append(f"gave up earlier entries to make room: {lost}; a larger budget keeps more")
        return [*notes, *self.warnings]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, the notes among them."""
        return dataclasses.asdict(self) | {"notes": self.notes}
