"""What a tuning is given on the command line: data files, folders of tasks, or a memory with its anchors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inducekv.config import InduceKVConfig
from inducekv.examples import Example
from inducekv.memory import KVMemory
from inducekv.memory_config import config_of
from inducekv.readers import read_examples
from inducekv.training_state import TrainingState
from inducekv.tuning.split import LEAST, TooFewExamples

NO_TASKS = ("test.jsonl", "validation.jsonl")
"""Files beside tasks that are not for learning."""


@dataclass(frozen=True)
class Source:
    """Tasks to tune on.

    Attributes:
        tasks: examples with answers, by task.
        config: how the memory was learned; None where the source is data.
        memory: the memory, where the source is one.
    """

    tasks: dict[str, list[Example]]
    config: InduceKVConfig | None = None
    memory: KVMemory | None = None


def source_of(path: Path) -> Source:
    """Reads a data file, a folder with `train.jsonl`, a folder of such folders or JSONL files, or a memory.

    Raises:
        ValueError: nothing of the kind, or as `read_examples` and `KVMemory.from_pretrained`.
        TooFewExamples: a memory whose training state has too few anchors.
    """
    if (path / "memory.json").is_file():
        return _of_memory(path)
    if path.is_file() or _has_train(path):
        return Source({path.stem if path.is_file() else path.resolve().name: read_examples(path)})
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    folders = [inner for inner in path.iterdir() if inner.is_dir() and _has_train(inner)]
    files = [inner for inner in path.glob("*.jsonl") if inner.name not in NO_TASKS]
    tasks = {inner.stem if inner.is_file() else inner.name: inner for inner in sorted([*folders, *files])}
    if not tasks:
        raise ValueError(
            f"{path}: neither a memory nor data; expected memory.json, train.jsonl, JSONL files, or a folder for each "
            "task with train.jsonl"
        )
    return Source({name: read_examples(inner) for name, inner in tasks.items()})


def _has_train(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("train.jsonl", "train.json"))


def _of_memory(path: Path) -> Source:
    memory = KVMemory.from_pretrained(path)
    state = TrainingState.load(path)
    tasks: dict[str, list[Example]] = {}
    for anchor in state.anchors:
        tasks.setdefault(anchor.task, []).append(anchor.example())
    if len(state.anchors) < LEAST:
        raise TooFewExamples(
            f"the training state of {path} keeps {len(state.anchors)} examples, tuning needs at least {LEAST}; "
            "give the data that was learned instead"
        )
    return Source(tasks, config_of(memory), memory)
