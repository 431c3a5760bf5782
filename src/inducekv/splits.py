"""Which examples become candidates, questions to score, and anchors: seeded, and balanced over answers."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from inducekv.examples import Example

T = TypeVar("T")

QUESTIONS = 128
"""Questions of the current task on both levels together, at most. CHOICE: a task's learning time is bounded."""


def balanced_order(examples: Sequence[Example], seed: int, purpose: str = "") -> list[int]:
    """A random order of the examples in which every answer comes up once before any comes up twice, and so on.

    CHOICE: where no answer is given twice (free text), it is just a random order. The order depends on the examples'
    ids and the seed, not on their order in the file, and a part of the examples keeps its relative order within an
    answer.

    Args:
        examples: with answers.
        seed: of the draw.
        purpose: a name that makes two draws from the same seed independent.
    """

    def draw(example: Example) -> bytes:
        return hashlib.sha256(f"{seed}\0{purpose}\0{example.identifier}".encode()).digest()

    drawn = sorted((draw(example), index) for index, example in enumerate(examples))
    rounds: Counter[str | None] = Counter()
    keyed = []
    for luck, index in drawn:
        answer = examples[index].answer
        keyed.append((rounds[answer], luck, index))
        rounds[answer] += 1
    return [index for _, _, index in sorted(keyed)]


@dataclass(frozen=True)
class Roles:
    """Indices of a task's examples by what they are used for.

    Attributes:
        candidates: may become entries.
        calibration: questions of the inner level.
        current: questions of the outer level; none is in `calibration`.
    """

    candidates: list[int]
    calibration: list[int]
    current: list[int]


def assign_roles(examples: Sequence[Example], candidates: int | None, seed: int) -> Roles:
    """Gives each of a task's examples its role (specs/inducekv.md, section 3: the two levels' questions are disjoint).

    CHOICE: questions are taken from examples that are not candidates as far as there are any, and then from candidates,
    which never read their own entry; few-shot tasks have no example to give away.

    Args:
        examples: all of the task's, without duplicates.
        candidates: how many may become entries; None: all.
        seed: of the draw.
    """
    order = balanced_order(examples, seed, "candidates")
    count = len(order) if candidates is None else candidates
    chosen, spare = order[:count], order[count:]
    doubled = [chosen[i] for i in balanced_order([examples[i] for i in chosen], seed, "questions")]
    return Roles(sorted(chosen), *two_levels((spare + doubled)[:QUESTIONS]))


def two_levels(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """A quarter for the inner level, which fits a few scalars; the rest for the outer, of many weights. CHOICE."""
    return list(items[3::4]), [item for place, item in enumerate(items) if place % 4 != 3]
