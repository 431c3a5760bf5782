"""How `overhead.py` measures: interleaved repeats timed token by token, and the peak memory of a process of its own."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds that passed, or seconds that this process computed: steadier where a machine is shared, useless on a GPU."""


class Stopwatch(BaseStreamer):  # type: ignore[misc]
    """Notes when each new token is there. Tokens come to the CPU, so a GPU has finished what it was asked for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, [clock()]
        self._seen_prompt = False

    def put(self, value: Tensor) -> None:
        if self._seen_prompt:
            self.times.append(self.clock())
        self._seen_prompt = True

    def end(self) -> None:
        pass


@dataclass
class Timed:
    """What interleaved repeats of one way of running took, in seconds.

    Attributes:
        first: to the first token, one for each repeat.
        token: of a further token, the median of each repeat; empty where only one token was asked for.
    """

    first: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Way:
    """One way of running: what is open while `model.generate(**inputs)` runs (opening it is timed too)."""

    model: Any
    inputs: dict[str, Tensor]
    tokens: int
    opened: Callable[[], AbstractContextManager[Any]] = nullcontext


def short(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last four tokens of a prompt, without its pictures: enough to load and convert what is done once."""
    return {name: x[:, -4:] for name, x in inputs.items() if x.dim() == 2}


def run_once(way: Way, clock: Callable[[], float]) -> list[float]:
    """Seconds from the start to each new token."""
    watch = Stopwatch(clock)
    with torch.no_grad(), way.opened():
        way.model.generate(**way.inputs, max_new_tokens=way.tokens, do_sample=False, streamer=watch)
    return [moment - watch.times[0] for moment in watch.times[1:]]


def interleaved(
    ways: dict[str, Way], repeats: int, clock: Callable[[], float], say: Callable[[str], None]
) -> dict[str, Timed]:
    """All ways, one after the other, `repeats` times; every other time backwards, so that drift cancels."""
    timed = {name: Timed() for name in ways}
    for name, way in ways.items():
        say(f"warming up: {name}")
        run_once(replace(way, inputs=short(way.inputs), tokens=2), clock)
    run_once(replace(next(iter(ways.values())), tokens=2), clock)  # and once in full
    for repeat in range(repeats):
        order = list(ways) if repeat % 2 == 0 else list(ways)[::-1]
        for name in order:
            moments = run_once(ways[name], clock)
            timed[name].first.append(moments[0])
            if len(moments) > 1:
                gaps = [late - early for early, late in pairwise(moments)]
                timed[name].token.append(statistics.median(gaps))
            say(f"repeat {repeat + 1} of {repeats}: {name}: {moments[0]:.3f} s, {moments[-1]:.3f} s in all")
    return timed


def pairs(
    works: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float], device: torch.device
) -> dict[str, list[float]]:
    """Seconds of small pieces of work, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with torch.no_grad():
        for repeat in range(repeats + 1):
            for name, work in works.items():
                start = clock()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat:  # the first one warms up
                    seconds[name].append(clock() - start)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of medians; least and largest ratio of a single repeat."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(above) / statistics.median(below), min(each), max(each)


def peak_bytes(device: torch.device) -> int:
    """Most memory in use at any moment: of the process (CPU), or since the last reset (GPU)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
