"""Which examples fill a memory while tuning, and which are asked: seeded, and balanced over tasks and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inducekv.examples import Example
from inducekv.splits import balanced_order

LEAST = 12
"""Examples that a tuning needs in all. CHOICE: below it, less than a handful is left to ask."""
ASKED = 3
"""One of this many examples of a task is asked and not learned. CHOICE."""


class TooFewExamples(ValueError):
    """There are too few examples to hold any out."""


@dataclass(frozen=True)
class Split:
    """Examples by what they are for.

    Attributes:
        learned: pairs of task and example that fill memories, tasks one after the other.
        asked: examples that are answered; the first n of them are spread over tasks and answers for every n.
    """

    learned: list[tuple[str, Example]]
    asked: list[Example]


def split_of(tasks: Mapping[str, Sequence[Example]], questions: int, most: int | None, seed: int) -> Split:
    """Holds out a part of every task.

    CHOICE: a third of a task is asked, taken from the end of its balanced order, so that an answer given only once is
    learned and not asked.

    Args:
        tasks: examples with answers, by task.
        questions: asked in all, at most.
        most: learned of a task, at most; None: all that are not asked.
        seed: of the draw.

    Raises:
        TooFewExamples: fewer than 12 examples in all, or none to ask.
    """
    count = sum(map(len, tasks.values()))
    if count < LEAST:
        raise TooFewExamples(f"tuning needs at least {LEAST} examples with answers, got {count}; give it more")
    learned, queues = [], []
    for task, examples in tasks.items():
        order = balanced_order(examples, seed, "tuning")
        held = len(order) // ASKED
        learned += [(task, examples[i]) for i in sorted(order[: len(order) - held][:most])]
        queues.append([examples[i] for i in reversed(order[len(order) - held :])])
    asked = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    if not asked:
        raise TooFewExamples(f"tuning needs a task with at least {ASKED} examples; each of {len(tasks)} has fewer")
    return Split(learned, asked[:questions])
