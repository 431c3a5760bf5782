"""A stream: tasks that arrive one after another. The words are Avalanche's (stream, experience, accuracy matrix)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from inducekv.continual.graders import EXACT, Grader
from inducekv.examples import Example

TaskLabels = Literal["train", "hidden"]


class TaskLabelHidden(ValueError):
    """Somebody asked a masked experience for its task's name."""


@dataclass(frozen=True)
class Experience:
    """One task of a stream: what is learned from and what is asked afterwards.

    Attributes:
        task: its name; reading it on a masked experience raises `TaskLabelHidden`.
        train, test, validation: its examples; only `validation` may be empty.
        grader: how answers to its test examples are scored.
        faithful_grader: the published grader where `grader` mends a fault of it; None where they are the same.
        position: its place in the stream from 0, always readable.
        also: further graders to report the final answers under.

    Raises:
        ValueError: no training or no test examples, or one of them has no answer.
    """

    task: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    grader: Grader = EXACT
    faithful_grader: Grader | None = None
    position: int = 0
    also: tuple[Grader, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "test", "validation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for part, examples in (("training", self.train), ("test", self.test), ("validation", self.validation)):
            if not examples and part != "validation":
                raise ValueError(f"task {self.task!r} has no {part} examples; give at least one")
            if any(not example.answer for example in examples):
                raise ValueError(
                    f"task {self.task!r} has a {part} example without an answer; every one needs an answer"
                )

    def masked(self) -> Experience:
        """The same experience for a method that may not know which task it is: the name is not in it."""
        masked = object.__new__(_MaskedExperience)
        masked.__dict__.update({name: value for name, value in self.__dict__.items() if name != "task"})
        return masked


class _MaskedExperience(Experience):
    """Holds everything but the name, so that there is nothing to leak."""

    def __getattr__(self, name: str) -> Any:
        if name == "task":
            raise TaskLabelHidden(
                f"the task label of experience {self.__dict__.get('position')} is hidden in this stream; "
                "a method that needs it must say so (sees_task_labels)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<experience {self.position}, masked: {len(self.train)} training and {len(self.test)} test examples>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _MaskedExperience) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((self.position, self.train, self.test))

    def masked(self) -> Experience:
        return self


@dataclass(frozen=True)
class Stream:
    """Experiences in the order they are learned; task names are unique, positions are set from the order.

    Attributes:
        name: such as `"embedded/vqa"`; empty for a stream made by hand.
        task_labels: `"train"`: methods see the name of the task they learn; `"hidden"`: they never do.

    Raises:
        ValueError: no experiences, two of one name, or unknown `task_labels`.
    """

    experiences: tuple[Experience, ...]
    name: str = ""
    task_labels: TaskLabels = "train"

    def __post_init__(self) -> None:
        if self.task_labels not in get_args(TaskLabels):
            raise ValueError(f'task_labels must be "train" or "hidden", got {self.task_labels!r}')
        ordered = tuple(replace(experience, position=place) for place, experience in enumerate(self.experiences))
        object.__setattr__(self, "experiences", ordered)
        if not self.experiences:
            raise ValueError("a stream needs at least one task, got none")
        names = self.tasks
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"task names must be unique in a stream, got twice: {', '.join(repeated)}")

    @classmethod
    def from_tasks(
        cls,
        tasks: Iterable[tuple[str, Iterable[Example], Iterable[Example]]],
        name: str = "",
        task_labels: TaskLabels = "train",
    ) -> Stream:
        """From (task name, training examples, test examples) in order, graded by `EXACT`."""
        experiences = tuple(Experience(task, tuple(train), tuple(test)) for task, train, test in tasks)
        return cls(experiences, name, task_labels)

    def for_learning(self) -> tuple[Experience, ...]:
        """The experiences as a method without special rights sees them: masked where labels are hidden."""
        if self.task_labels == "train":
            return self.experiences
        return tuple(experience.masked() for experience in self.experiences)

    def also_graded(self, answers: Sequence[Sequence[str]]) -> dict[str, list[float | None]]:
        """Each task's percent under the further graders, by their names; None for a task without one.

        Args:
            answers: to each task's test questions.
        """
        graders = {grader.name: grader for experience in self.experiences for grader in experience.also}
        return {
            name: [
                100 * float(grader.scores(said, experience.test).mean()) if grader in experience.also else None
                for experience, said in zip(self.experiences, answers, strict=True)
            ]
            for name, grader in graders.items()
        }

    @property
    def tasks(self) -> list[str]:
        return [experience.task for experience in self.experiences]

    def __len__(self) -> int:
        return len(self.experiences)
