"""Test questions with what each method answered, for a report: their pictures come from the stream, loaded anew."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from inducekv.continual.report.demo import picture_tags
from inducekv.continual.report.pictures import by_last
from inducekv.continual.report.tables import main_budget
from inducekv.continual.results import Result
from inducekv.continual.stream import Stream

EACH = 2
MOST_TASKS = 6


@dataclass(frozen=True)
class Said:
    """What one method answered, and its score from 0 to 1."""

    title: str
    answer: str
    score: float


@dataclass(frozen=True)
class ShownQuestion:
    """A test question and what the methods said to it after the whole stream."""

    task: str
    question: str
    expected: str
    images: tuple[Image.Image, ...]
    said: tuple[Said, ...]


def shown_questions(results: Sequence[Result], root: Path | None = None) -> list[ShownQuestion]:
    """A few questions of each task (of at most `MOST_TASKS` tasks), at the main budget and the first seed.

    Of each task the question that methods disagree about most, and the one that most got wrong. None where the stream
    cannot be loaded, or is not the one that the results are of.
    """
    budget = main_budget(results)
    seed = min(result.seed for result in results if result.budget == budget)
    chosen = [
        result
        for found in by_last([r for r in results if (r.budget, r.seed) == (budget, seed)]).values()
        for result in found
        if "/" not in result.method
    ]
    stream = _stream(chosen, seed, root)
    if stream is None:
        return []
    shown = []
    step = -(-len(stream) // MOST_TASKS)
    for task in range(0, len(stream), step):
        experience = stream.experiences[task]
        for place in _picked([result.scores[task] for result in chosen]):
            example = experience.test[place]
            said = tuple(Said(r.title, r.final[task][place], r.scores[task][place]) for r in chosen)
            shown.append(
                ShownQuestion(
                    experience.task, example.question, example.answer or "", tuple(example.load_images()), said
                )
            )
    return shown


def _stream(chosen: Sequence[Result], seed: int, root: Path | None) -> Stream | None:
    from inducekv.continual.digests import digest_of
    from inducekv.continual.streams import stream_named

    if not chosen or len({result.questions for result in chosen}) != 1:
        return None
    limit = chosen[0].settings.get("limit")
    try:
        stream = stream_named(chosen[0].stream, seed=seed, root=root, limit=limit if isinstance(limit, int) else None)
        return stream if digest_of(stream) == chosen[0].questions else None
    except (ValueError, OSError, ImportError):
        return None


def _picked(scores: Sequence[Sequence[float]]) -> list[int]:
    """The question with the most even split between right and wrong, and the hardest of the others."""
    means = [sum(each) / len(each) for each in zip(*scores, strict=True)]
    split = min(range(len(means)), key=lambda place: (abs(means[place] - 0.5), place))
    hardest = sorted((place for place in range(len(means)) if place != split), key=lambda place: (means[place], place))
    return [split, *hardest[: EACH - 1]]


def questions_html(shown: Sequence[ShownQuestion]) -> str:
    """Cards with picture, question and a line a method."""
    cards = []
    for item in shown:
        about = (
            f'<p class="task">{html.escape(item.task)}</p>'
            f'<p class="question">{html.escape(_cut(item.question, 400))}</p>'
            f'<p class="said">{html.escape(_cut(item.expected))}</p>'
        )
        lines = "".join(map(_line, item.said))
        cards.append(
            f'<article><div class="asked">{picture_tags(item.images, 104)}<div>{about}</div></div>'
            f'<table class="answers-of">{lines}</table></article>'
        )
    return f'<div class="answers">{"".join(cards)}</div>'


def _line(said: Said) -> str:
    kind, mark = ("right", "✓") if said.score >= 0.5 else ("wrong", "✗")
    answer = html.escape(_cut(said.answer)) or "(empty)"
    return f'<tr class="{kind}"><td>{html.escape(said.title)}</td><td><span>{mark}</span> {answer}</td></tr>'


def _cut(text: str, longest: int = 120) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
