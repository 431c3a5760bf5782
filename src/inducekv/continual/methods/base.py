"""What every compared method offers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from inducekv.continual.ledger import Ledger
from inducekv.continual.methods.storage import State, read_state, write_state
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT, Progress
from inducekv.ranks import ALONE, Ranks


class Method(ABC):
    """A way to learn a stream. The runner calls `learn` once a task, then `answer` on the tasks so far.

    Attributes:
        name, title: of the row in the table of methods; an ablation carries its own.
        ranks: this process among several that run the method together, set by the bench before the first task. A method
            may share out the work of `learn`, and must end in every process as it would in one alone.
        batch_size: questions answered in one forward pass, at most; set by the bench.
    """

    name: str
    title: str
    ranks: Ranks = ALONE
    batch_size: int = 32
    settles: ClassVar[bool] = False
    """True when what is learned later never changes a task's answers: they are then asked for once."""
    reference: ClassVar[bool] = False
    """A row to compare with, not a contender: it may see task labels, keep all examples, or exceed the budget."""
    sees_task_labels: ClassVar[bool] = False
    """An oracle: `learn` gets experiences with their labels, and `answer` gets `task`."""
    shares: ClassVar[str | None] = None
    """Name of the method whose memory it reads (given as `partner`); that one learns first."""

    decided_by_learning: ClassVar[tuple[str, ...]] = ()
    """Keys of `describe` that are no matter of configuration."""

    @abstractmethod
    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        """Learns one task from its training examples; never looks at its test examples."""

    @abstractmethod
    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        """One answer for each example; the examples' own answers are not used.

        Args:
            task: which task they belong to; only methods with `sees_task_labels` look at it.
        """

    @property
    @abstractmethod
    def deployed_bytes(self) -> int:
        """Bytes that must be kept beside the frozen backbone to answer, counted on what is really kept."""

    @property
    def training_bytes(self) -> int:
        """Bytes carried between tasks only to learn more, counted on what is really kept."""
        return 0

    def ledger(self) -> Ledger:
        """The same two figures from formulas of the model's dimensions and the chosen size."""
        return Ledger(0, 0)

    def describe(self) -> dict[str, Any]:
        """How it learns, as JSON values, for the results file."""
        return {}

    def changes_since(self, config: Mapping[str, Any]) -> list[str]:
        """Where an earlier `describe`, as a file has it, is not this one: `["temperature 0.07, now 0.035"]`.

        Only what both name is compared, and not what learning decides.
        """
        now = json.loads(json.dumps(self.describe()))
        both = [name for name in now if name in config and name not in self.decided_by_learning]
        return [f"{name} {config[name]}, now {now[name]}" for name in both if config[name] != now[name]]

    def save(self, directory: Path) -> None:
        """Writes the whole state after a task into a directory that is new or empty (the caller moves it into place).

        A new object of the same arguments that loads it learns and answers on as this one would.
        """
        write_state(directory, self.name, State())

    def load(self, directory: Path) -> None:
        """Takes up what `save` wrote.

        Raises:
            ValueError: the files are missing, damaged, or another method's.
        """
        read_state(directory, self.name)


@dataclass(frozen=True)
class MethodKind:
    """One row of the table of methods.

    Attributes:
        name: as it is asked for on the command line.
        title: as it stands in a report.
        summary: what it is, in one line.
        method: its class.
        needs: package beyond the library's own that it needs, or None.
        make: makes one; called with the arguments of `make_method`.
        only_named: it is no part of `--methods all`.
    """

    name: str
    title: str
    summary: str
    method: type[Method]
    needs: str | None
    make: Callable[..., Method]
    only_named: bool = False

    @property
    def reference(self) -> bool:
        return self.method.reference

    @property
    def shares(self) -> str | None:
        return self.method.shares

    @property
    def sees_task_labels(self) -> bool:
        return self.method.sees_task_labels
