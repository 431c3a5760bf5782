"""Which points to measure: a coarse grid on few questions, the better ones on all, then the neighbours of the best."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from inducekv.memory import BudgetError
from inducekv.progress import SILENT, Progress
from inducekv.tuning.measure import Bench, Measured
from inducekv.tuning.space import Point, grid, neighbours

KEPT = 4
"""One of this many points of the grid is measured on all questions (successive halving, in one step). CHOICE."""
COARSE = 0.75
"""Share of the points that the grid may take; the rest is for neighbours. CHOICE."""
PROMISING = 3
"""Neighbours of the best that are measured on all questions, at most, in a round. CHOICE."""


@dataclass
class Search:
    """A search for the point with the best `worth` of a budget.

    Args:
        bench: measures points.
        layers: those that may be stored.
        methods: pairs of method and tokens.
        points: measured at most, in all.
        progress: told about each point.

    Attributes:
        looks: first looks by point; None where not one entry fits.
        measured: full measurements by point, in the order in which they were made.
    """

    bench: Bench
    layers: tuple[int, ...]
    methods: tuple[tuple[str, int], ...]
    points: int
    progress: Progress = SILENT
    looks: dict[Point, Measured | None] = field(default_factory=dict)
    measured: dict[Point, Measured] = field(default_factory=dict)

    def run(self, start: Point) -> Measured:
        """Searches; the best point.

        Raises:
            BudgetError: the budget holds not one entry under any point of the grid.
        """
        coarse = grid(start, self.layers, self.methods)[: math.ceil(COARSE * self.points)]
        self.progress.start("coarse search", len(coarse))
        for point in coarse:
            self._look(point)
            self.progress.advance()
        fitting = [point for point in coarse if self.looks[point] is not None]
        if not fitting:
            raise BudgetError(
                f"a budget of {self.bench.budget:,} bytes for these tasks holds not one entry in any format tried; "
                "raise the budget"
            )
        better = sorted(fitting, key=self._promise, reverse=True)[: math.ceil(len(coarse) / KEPT)]
        references = (start, replace(start, payload_dtype="float16"))  # to compare with, whatever they promise
        better += [point for point in references if point in fitting and point not in better]
        self.progress.start("measuring the better ones", len(better))
        for point in better:
            self._measure(point)
            self.progress.advance()
        best = self.best
        while len(self.looks) < self.points:
            found = self._round(best)
            if found.point == best.point:
                break
            best = found
        self.progress.stop()
        return best

    @property
    def best(self) -> Measured:
        """The point with the highest worth; of equals the one with the smallest entries."""
        return max(self.measured.values(), key=lambda found: (found.worth, -found.entry_nbytes))

    def _round(self, best: Measured) -> Measured:
        """Looks at the neighbours of the best so far, and measures those that look no worse."""
        near = [point for point in neighbours(best.point, self.layers, self.methods) if point not in self.looks]
        near = near[: self.points - len(self.looks)]
        self.progress.start("neighbours of the best", len(near) + PROMISING)
        for point in near:
            self._look(point)
            self.progress.advance()
        level = self._promise(best.point)
        for point in sorted(near, key=self._promise, reverse=True)[:PROMISING]:
            if self._promise(point) >= 0.95 * level:
                self._measure(point)
            self.progress.advance()
        return self.best

    def _look(self, point: Point) -> None:
        if point not in self.looks:
            self.looks[point] = self.bench.first_look(point)

    def _promise(self, point: Point) -> float:
        look = self.looks[point]
        return -math.inf if look is None else look.likelihood

    def _measure(self, point: Point) -> None:
        found = self.bench.full(point, self.looks[point])
        if found is not None:
            self.measured[point] = found
