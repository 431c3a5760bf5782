"""A stream: tasks that arrive one after another. The words are Avalanche's (stream, experience, accuracy matrix)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inducekv.examples import Example


@dataclass(frozen=True)
class Experience:
    """One task of a stream: what is learned from and what is asked afterwards.

    Raises:
        ValueError: no training or no test examples, or one of them has no answer.
    """

    task: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", tuple(self.train))
        object.__setattr__(self, "test", tuple(self.test))
        for part, examples in (("training", self.train), ("test", self.test)):
            if not examples:
                raise ValueError(f"task {self.task!r} has no {part} examples; give at least one")
            if any(not example.answer for example in examples):
                raise ValueError(
                    f"task {self.task!r} has a {part} example without an answer; every one needs an answer"
                )


@dataclass(frozen=True)
class Stream:
    """Experiences in the order they are learned; task names are unique.

    Raises:
        ValueError: no experiences, or two of one name.
    """

    experiences: tuple[Experience, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "experiences", tuple(self.experiences))
        if not self.experiences:
            raise ValueError("a stream needs at least one task, got none")
        names = self.tasks
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"task names must be unique in a stream, got twice: {', '.join(repeated)}")

    @classmethod
    def from_tasks(cls, tasks: Iterable[tuple[str, Iterable[Example], Iterable[Example]]]) -> Stream:
        """From (task name, training examples, test examples) in order."""
        return cls(tuple(Experience(name, tuple(train), tuple(test)) for name, train, test in tasks))

    @property
    def tasks(self) -> list[str]:
        return [experience.task for experience in self.experiences]

    def __len__(self) -> int:
        return len(self.experiences)
