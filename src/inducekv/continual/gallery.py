"""Answered questions with the entries they were read from, to show to a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from inducekv.continual.graders import exact_match
from inducekv.continual.stream import Stream
from inducekv.examples import Example

if TYPE_CHECKING:
    from inducekv.model import InducedModel, Source


@dataclass(frozen=True)
class ShownSource:
    """One entry that an answer was read from, with its pictures where the stream still has them."""

    id: str
    task: str
    alpha: float
    mass: float
    question: str
    answer: str
    images: tuple[Image.Image, ...]

    def to_dict(self) -> dict[str, Any]:
        fields = ("id", "task", "alpha", "mass", "question", "answer")
        return {name: getattr(self, name) for name in fields}


@dataclass(frozen=True)
class AnsweredQuestion:
    """A test question, what was said, and why."""

    task: str
    question: str
    expected: str
    said: str
    images: tuple[Image.Image, ...]
    sources: tuple[ShownSource, ...]

    @property
    def right(self) -> bool:
        return exact_match(self.said, self.expected)

    def to_dict(self) -> dict[str, Any]:
        shown = {"task": self.task, "question": self.question, "expected": self.expected, "said": self.said}
        return shown | {"right": self.right, "sources": [source.to_dict() for source in self.sources]}


def gallery(
    stream: Stream, model: InducedModel, final_answers: Sequence[Sequence[str]], each: int = 3, sources: int = 4
) -> list[AnsweredQuestion]:
    """A few test questions of each task, answered again with their sources.

    Of each task, questions spread evenly over the test are shown, except that where some are answered wrongly one of
    those takes the last place: a gallery of successes only would mislead.

    Args:
        final_answers: answers of `model` to each task's test questions after the whole stream.
        each: questions shown of a task.
        sources: entries shown of a question, those with the most attention mass first.
    """
    learned = {example.identifier: example for experience in stream.experiences for example in experience.train}
    shown = []
    for experience, answers in zip(stream.experiences, final_answers, strict=True):
        picked = picked_questions(experience.test, answers, each)
        for example, answer in zip(picked, model.answer_all(picked), strict=True):
            read = sorted(answer.sources, key=lambda source: -source.mass)[:sources]
            shown.append(
                AnsweredQuestion(
                    experience.task,
                    example.question,
                    example.answer or "",
                    answer.text,
                    tuple(example.load_images()),
                    tuple(_shown(source, learned) for source in read),
                )
            )
    return shown


def picked_questions(test: Sequence[Example], answers: Sequence[str], each: int) -> list[Example]:
    """At most `each` of the test questions, a wrongly answered one among them if there is any."""
    wrong = [
        index
        for index, (example, answer) in enumerate(zip(test, answers, strict=True))
        if not exact_match(answer, example.answer or "")
    ]
    right = [index for index in range(len(test)) if index not in wrong]
    picked = _spread(right, each - bool(wrong))
    return [test[index] for index in [*picked, *_spread(wrong, each - len(picked))]]


def _spread(indices: list[int], count: int) -> list[int]:
    count = min(count, len(indices))
    return [indices[place * len(indices) // count] for place in range(count)]


def _shown(source: Source, learned: dict[str, Example]) -> ShownSource:
    example = learned.get(source.id)
    images = tuple(example.load_images()) if example else ()
    return ShownSource(
        source.id, source.task, source.alpha, source.mass, source.question or "", source.answer or "", images
    )
