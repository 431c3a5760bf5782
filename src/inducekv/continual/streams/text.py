"""Text streams: a folder for each stream, and in it a folder for each task with `train.jsonl` and `test.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inducekv.continual.graders import EXACT, graders_named
from inducekv.continual.stream import Experience, Stream
from inducekv.continual.streams.kinds import StreamKind, limited
from inducekv.examples import Example
from inducekv.readers import read_examples


def without_choices(question: str) -> str:
    """The question without its first line; a question of one line stays as it is."""
    return question.partition("\n")[2] or question


@dataclass(frozen=True)
class TextStream(StreamKind):
    """Tasks without pictures, read from the folder `folder` of the root.

    Attributes:
        folder: name of the stream's folder.
        prefix: of the task folders' names; it is no part of the tasks' own.
        has_choices: the first line of every question lists the possible answers. It is dropped unless `load` is told
            to keep it (CHOICE: prompts become a third as long, and which answers there are is what the task teaches).
        grader: a name for `graders_named`. Where it is not exact match, exact match is reported too.
    """

    folder: str = ""
    prefix: str = ""
    has_choices: bool = False
    grader: str = "exact"

    def load(
        self, seed: int = 0, root: Path | None = None, limit: int | None = None, *, choices: bool = False
    ) -> Stream:
        home = self._home(root)
        return Stream(tuple(self._experience(home, task, seed, limit, choices) for task in self.tasks), self.name)

    def check(self, root: Path) -> list[str]:
        try:
            home = self._home(root)
        except ValueError as error:
            return [str(error)]
        problems = []
        for task in self.tasks:
            try:
                self._experience(home, task, 0, None, False)
            except ValueError as error:
                problems.append(f"{task}: {error}")
        return problems

    def _home(self, root: Path | None) -> Path:
        if root is None or not root.is_dir():
            raise ValueError(f"stream {self.name} needs the folder that holds {self.folder!r} as root, got {root}")
        home = root / self.folder
        if not home.is_dir():
            raise ValueError(
                f"stream {self.name}: no folder {self.folder!r} in {root}; expected "
                f"{self.folder}/{self.prefix}{self.tasks[0]}/train.jsonl and so on in it"
            )
        return home

    def _experience(self, home: Path, task: str, seed: int, limit: int | None, choices: bool) -> Experience:
        parts = {}
        for split in ("train", "test"):
            examples = read_examples(home / f"{self.prefix}{task}", split=split)
            parts[split] = [self._asked(e, choices) for e in limited(examples, limit, seed, f"{task} {split}")]
        grader = graders_named(self.grader)[0]
        also = () if grader is EXACT else (EXACT,)
        return Experience(task, tuple(parts["train"]), tuple(parts["test"]), grader=grader, also=also)

    def _asked(self, example: Example, choices: bool) -> Example:
        drops = self.has_choices and not choices
        return replace(example, question=without_choices(example.question)) if drops else example


SUITS = {"evaluate": "diagonal+last", "epochs": 3, "learning_rate": 1e-3}
"""For every stream of text. CHOICE: tasks have hundreds of examples and models over a hundred million parameters, so
cells between the diagonal and the last row are left out, and LoRA takes 3 passes at the rate that is usual for a model
of this size instead of the embedded model's."""


def _stream(name: str, summary: str, tasks: str, protocol: str, longest: int, **options: Any) -> TextStream:
    options = {"folder": name, "suits": {**SUITS, "max_new_tokens": longest}, **options}
    return TextStream(f"text/{name}", summary, tuple(tasks.split()), protocol, **options)


SAMPLES = "Samples of at most 200 training and 100 test rows a task: compare with numbers of this bench only."
TEXT_STREAMS = (
    _stream(
        "clinc150",
        "CLINC150, the intent of a request: ten domains of 15 intents",
        "auto_and_commute banking credit_cards home kitchen_and_dining meta small_talk travel utility work",
        f"{SAMPLES} Questions do not list the choices, unless `--choices` is given. Domains in alphabetical order.",
        16,
        has_choices=True,
    ),
    _stream(
        "banking77",
        "Banking77, what a bank's customer wants: seven tasks of 11 intents",
        "t1 t2 t3 t4 t5 t6 t7",
        f"{SAMPLES} Questions do not list the choices, unless `--choices` is given.",
        16,
        has_choices=True,
    ),
    _stream(
        "snips-slots",
        "SNIPS, the slots of a request: seven intents",
        "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent",
        f"{SAMPLES} Slot F1, with exact match beside it. The question lists the slots' names.",
        48,
        folder="snips",
        prefix="slots_",
        grader="slot_f1",
    ),
    _stream(
        "olora",
        "the long sequence of 15 classification tasks that O-LoRA reports",
        "MNLI CB WiC COPA QQP BoolQA RTE IMDB yelp amazon SST-2 dbpedia agnews MultiRC yahoo",
        f"{SAMPLES} Order 4 of the literature. Questions list the choices.",
        8,
    ),
    _stream(
        "superni",
        "15 tasks of Super-NaturalInstructions that SAPT reports",
        "task1572 task363 task1290 task181 task002 task1510 task639 task1729 task073 task1590 task748 task511 task591 "
        "task1687 task875",
        f"{SAMPLES} SAPT's first order; ROUGE-L, with exact match beside it.",
        48,
        grader="rouge_l",
    ),
)
"""Streams of real text; none of the data is part of the project."""
