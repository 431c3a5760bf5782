"""What a named stream offers, whatever it is made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from inducekv.continual.stream import Stream
from inducekv.examples import Example
from inducekv.splits import balanced_order

T = TypeVar("T")


@dataclass(frozen=True)
class StreamKind(ABC):
    """A stream that can be loaded by its name.

    Attributes:
        summary: one line.
        protocol: what else must be said with a number measured on it.
        tasks: names in the order they are learned; empty where the download decides.
        suits: fields of `Settings` that suit the stream, for a command that does not say otherwise.
        needs_root: whether it reads a folder on disk.
    """

    name: str
    summary: str
    tasks: tuple[str, ...]
    protocol: str = ""
    suits: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    needs_root: ClassVar[bool] = True

    @abstractmethod
    def load(self, seed: int = 0, root: Path | None = None, limit: int | None = None) -> Stream:
        """The stream.

        Args:
            seed: of generated tasks and of the choice that `limit` makes.
            root: the folder of the download.
            limit: examples a split at most, chosen at random.

        Raises:
            ValueError: `root` is missing or its files are missing or malformed; `limit` is below 1.
        """

    @abstractmethod
    def check(self, root: Path) -> list[str]:
        """What is missing or malformed under `root`, a line each; empty when all is well."""


def limited(items: Sequence[T], limit: int | None, seed: int, purpose: str) -> list[T]:
    """At most `limit` of the items, chosen at random and in their own order.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is None:
        return list(items)
    if limit < 1:
        raise ValueError(f"limit must be at least 1 example a split, got {limit}")
    if len(items) <= limit:
        return list(items)
    generator = np.random.default_rng([seed, *purpose.encode()])
    return [items[i] for i in sorted(generator.choice(len(items), limit, replace=False))]


def balanced(examples: Sequence[Example], samples: int | None, seed: int, purpose: str) -> list[Example]:
    """At most `samples` of the examples in their own order, chosen at random so that all answers come up alike.

    Raises:
        ValueError: `samples` is below 1.
    """
    if samples is None:
        return list(examples)
    if samples < 1:
        raise ValueError(f"samples must be at least 1 example a split, got {samples}")
    return [examples[i] for i in sorted(balanced_order(examples, seed, purpose)[:samples])]
