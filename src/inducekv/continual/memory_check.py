"""How much of a prompt's accuracy does memory keep on someone's own examples?

The same entries are read in four ways: as memory, as one prompt, as a prompt in which no example sees another, and not
at all but for the nearest one's answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inducekv.backbone import Backbone
from inducekv.check import Parity, check_parity
from inducekv.config import InduceKVConfig
from inducekv.continual.graders import EXACT, GRADERS
from inducekv.continual.graders.slots import slots_in
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.methods.masked_prompt import MaskedPrompt
from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
from inducekv.continual.methods.retrieved_prompt import RetrievedPrompt
from inducekv.continual.methods.zero_shot import ZeroShot
from inducekv.continual.runner import MethodResult, run
from inducekv.continual.stream import Experience, Stream
from inducekv.continual.streams.kinds import balanced
from inducekv.examples import Example
from inducekv.lengths import longest_answer
from inducekv.model import InducedModel
from inducekv.progress import SILENT, Progress
from inducekv.readers import read_examples
from inducekv.splits import balanced_order

ORDER = ("zero_shot", "nearest_neighbour", "inducekv", "retrieved_prompt", "masked_prompt")
LEARNED, ASKED = 256, 64
"""Examples to learn from and questions, at most, unless said otherwise. CHOICE: minutes with a small model."""
LEAST = 12
"""Examples that a single file needs. CHOICE."""
HELD_OUT = 3
"""One of so many examples of a single file is asked and not learned. CHOICE."""
EVERYTHING = 2**40
"""A budget that leaves nothing out, in bytes."""
FAR = 10.0
"""Points from which one way of reading is told to be behind another. CHOICE: with 64 questions the standard error of an
accuracy is 4 to 6 points."""


@dataclass(frozen=True)
class CheckedMethod:
    """One way to answer the questions.

    Attributes:
        name, title: as in the bench.
        accuracy: percent of exact match.
        slot_f1: percent of F1 over slots, where the answers are slots; else None.
        seconds: to answer all questions.
        nbytes: kept to answer, beside the model.
    """

    name: str
    title: str
    accuracy: float
    slot_f1: float | None
    seconds: float
    nbytes: int

    @property
    def score(self) -> float:
        """Slot F1 where the answers are slots, else accuracy; percent."""
        return self.accuracy if self.slot_f1 is None else self.slot_f1


@dataclass(frozen=True)
class MemoryCheck:
    """What `check_memory` measured.

    Attributes:
        parity: memory against prompt tokens on this model.
        methods: by name, in the order of `ORDER`.
        learned, entries, asked: examples to learn from, those of them that the memory holds, questions.
        learn_seconds: to learn them.
        neighbours: other examples that each entry was encoded behind.
    """

    parity: Parity
    methods: dict[str, CheckedMethod]
    learned: int
    entries: int
    asked: int
    learn_seconds: float
    neighbours: int

    @property
    def kept(self) -> float | None:
        """Percent of what the same entries gain over zero-shot as one prompt; None where the prompt gains nothing."""
        plain, prompt, memory = (self._score(name) for name in ("zero_shot", "retrieved_prompt", "inducekv"))
        return 100 * max(0.0, memory - plain) / (prompt - plain) if prompt > plain else None

    @property
    def meaning(self) -> str:
        """The result in one sentence."""
        plain, copied, memory, prompt, masked = map(self._score, ORDER)
        if self.kept is None:
            return (
                f"The same examples as one prompt do not help this model ({prompt:.1f} %, without them {plain:.1f} %), "
                f"so there is nothing for memory to keep ({memory:.1f} %): try another model or clearer examples."
            )
        said = (
            f"Memory keeps {self.kept:.0f} % of what the same examples gain as one prompt ({memory:.1f} % against "
            f"{prompt:.1f} %, without them {plain:.1f} %)"
        )
        if masked - memory >= FAR:
            said += (
                f"; uncompressed (masked prompt) the entries have {masked:.1f} %: store more bits (payload_dtype), "
                "tokens (payload_tokens) or layers (payload_layers)"
            )
        elif prompt - max(masked, memory) >= FAR:
            more = "more neighbours" if self.neighbours else "neighbours (neighbours=2)"
            said += (
                f"; examples encoded alone have {masked:.1f} % even in full precision: encode each behind {more}, "
                "or read more of them (top_k)"
            )
        elif copied - memory >= FAR:
            said += f"; the nearest entry's answer copied has {copied:.1f} %: here a look-up does better than reading"
        return said + "."

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        rows = {name: {k: v for k, v in asdict(method).items() if k != "name"} for name, method in self.methods.items()}
        figures = {name: getattr(self, name) for name in ("learned", "entries", "asked", "learn_seconds", "kept")}
        parity = {"error": self.parity.error, "effect": self.parity.effect, "tolerance": self.parity.tolerance}
        return {"parity": parity, **figures, "methods": rows, "meaning": self.meaning}

    def _score(self, name: str) -> float:
        return self.methods[name].score


def check_memory(
    backbone: Backbone,
    train: Sequence[Example],
    test: Sequence[Example],
    config: InduceKVConfig | None = None,
    *,
    progress: Progress = SILENT,
) -> MemoryCheck:
    """Compare memory with the same entries as a prompt, on someone's own examples.

    `train` is learned into a memory that is thrown away afterwards; the model does not change. First memory is compared
    with prompt tokens (`inducekv.check.check_parity`).

    Args:
        train, test: with answers.
        config: how to learn and to read; None: as the model says, with a budget that holds everything.

    Raises:
        ParityError: memory does not read as prompt tokens on this model.
        ValueError: there are no examples or questions, one has no answer, or the budget holds none.
    """
    slots = all(map(_is_slots, (*train, *test)))
    experience = Experience(
        "checked",
        tuple(train),
        tuple(test),
        grader=GRADERS["slot_f1"] if slots else EXACT,
    )
    parity = check_parity(backbone)
    model = InducedModel.from_pretrained(backbone, config=config or backbone.config({"budget": EVERYTHING}))
    longest = longest_answer(train, backbone.processor.tokenizer)
    methods: list[Method] = [
        ZeroShot(backbone, longest),
        InduceKV(model, longest),
        NearestNeighbour(model),
        RetrievedPrompt(model, longest),
        MaskedPrompt(model, longest),
    ]
    for method in methods:
        method.batch_size = model.config.batch_size
    results = {result.name: result for result in run(Stream((experience,)), methods, progress)}
    return MemoryCheck(
        parity,
        {name: _checked(results[name], test, slots) for name in ORDER},
        learned=len(train),
        entries=len(model.memory),
        asked=len(test),
        learn_seconds=results["inducekv"].learn_seconds,
        neighbours=model.config.neighbours,
    )


def _is_slots(example: Example) -> bool:
    slots = slots_in(example.answer or "")
    return bool(slots) and all(slot and words for slot, words in slots)


def _checked(result: MethodResult, test: Sequence[Example], slots: bool) -> CheckedMethod:
    (answers,) = result.final_answers
    return CheckedMethod(
        result.name,
        result.title,
        100 * float(EXACT.scores(answers, test).mean()),
        float(result.matrix[0, 0]) if slots else None,
        result.answer_seconds,
        result.deployed_bytes,
    )


def examples_to_check(
    data: Path, seed: int = 0, *, learned: int = LEARNED, asked: int = ASKED
) -> tuple[list[Example], list[Example]]:
    """Examples to learn and questions, of a file or a folder; balanced over the answers.

    A folder's `train` and `test` are taken as they are; of one that has no `test`, and of a file, a third is held out.

    Raises:
        ValueError: as `read_examples`; fewer than 12 examples to split.
    """
    train = read_examples(data)
    if data.is_dir() and any((data / f"test.{ending}").is_file() for ending in ("jsonl", "json")):
        test = read_examples(data, split="test")
    else:
        if len(train) < LEAST:
            raise ValueError(
                f"{data}: {len(train)} examples, at least {LEAST} are needed to learn some and ask others; give more, "
                "or a folder with train.jsonl and test.jsonl"
            )
        order = balanced_order(train, seed, "check")
        held = len(order) // HELD_OUT  # from the end: an answer given once is learned and not asked
        test = [train[place] for place in order[len(order) - held :]]
        train = [train[place] for place in sorted(order[: len(order) - held])]
    return balanced(train, learned, seed, "learned"), balanced(test, asked, seed, "asked")
