"""Several processes that work together (`accelerate launch`): each takes its share, all get the whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run.

    Attributes:
        rank: from 0; only 0 writes files and talks.
        count: processes in all.
        device: of this process; what processes exchange passes through it.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @classmethod
    def of_environment(cls) -> Ranks:
        """As `accelerate launch` (or torchrun) set this process up; one alone when neither did.

        Raises:
            ModuleNotFoundError: started with several processes, and accelerate is not installed (extra `bench`).
        """
        if cls.started() <= 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes, str(state.device))

    @staticmethod
    def started() -> int:
        """How many processes were started together, this one among them."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, in the order of their ranks; every process gets them all."""
        if self.count == 1:
            return [value]
        return [json.loads(data) for data in self.gather_bytes(json.dumps(value).encode())]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of all processes, in the order of their ranks; every process gets them all."""
        if self.count == 1:
            return [data]
        length = torch.tensor([len(data)], device=self.device)
        lengths = [torch.zeros_like(length) for _ in range(self.count)]
        torch.distributed.all_gather(lengths, length)
        sizes = [int(each) for each in lengths]
        padded = torch.zeros(max(1, *sizes), dtype=torch.uint8, device=self.device)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.zeros_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return [part[:size].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def from_first(self, value: Any) -> Any:
        """The value that rank 0 gave."""
        return self.gather(value if self.first else None)[0]

    def wait(self) -> None:
        """Returns once every process is here."""
        self.gather(None)

    def shared_out(self, examples: Sequence[Item], answer: Callable[[Sequence[Item]], list[str]]) -> list[str]:
        """Answers to all examples, in order, each process having answered every `count`-th."""
        mine = examples[self.rank :: self.count]
        parts = self.gather(answer(mine) if len(mine) else [])
        answers = [""] * len(examples)
        for rank, part in enumerate(parts):
            answers[rank :: self.count] = part
        return answers


ALONE = Ranks()
"""One process by itself."""
