"""The bench: which runs a stream, methods, budgets and seeds ask for, and one of them from its start to its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inducekv.backbone import Backbone
from inducekv.continual.checkpoint import Checkpoint
from inducekv.continual.digests import clusters_of, digest_of, taught_digest_of
from inducekv.continual.methods import METHODS, make_method
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.trained import TrainedMethod
from inducekv.continual.methods.training import TrainingDiverged
from inducekv.continual.passes import USUAL, Pass, Settings
from inducekv.continual.provenance import forget_peak, peak_memory, versions
from inducekv.continual.results import (
    WORK,
    Result,
    ResultError,
    budget_name,
    read_result,
    result_path,
    safe_path,
    write_result,
)
from inducekv.continual.runner import MethodResult, run
from inducekv.continual.stream import Stream
from inducekv.continual.streams import STREAMS, stream_named
from inducekv.progress import SILENT, Progress
from inducekv.ranks import Ranks

Say = Callable[[str], None]

RENDERED = "256MiB"
"""Of questions as model inputs, kept between the rows of a matrix: after each task all earlier ones are asked again."""
OF_STREAM = ("limit", "tasks", "train_samples", "test_samples", "choices")
"""Fields of `Settings` that say what is read of a stream."""
SMALL = 100_000_000
"""Parameters of a model whose steps take longer for their calls than for their arithmetic, at most. CHOICE."""


def passes(stream: str, methods: Sequence[str], budgets: Sequence[int], seeds: Sequence[int]) -> Iterator[Pass]:
    """Every pass that these ask for, seed by seed, cheapest budget first.

    Raises:
        ValueError: a method is unknown.
    """
    groups = grouped(methods)
    for seed in dict.fromkeys(seeds):
        for budget in sorted(set(budgets)):
            for group in groups:
                yield Pass(stream, group, budget, seed)


def grouped(methods: Sequence[str]) -> list[tuple[str, ...]]:
    """Methods by the memory they share, its owner first (and taken in where it was not asked for).

    Raises:
        ValueError: none, or an unknown one.
    """
    if not methods:
        raise ValueError(f"name at least one method; known: {', '.join(METHODS)}")
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(methods):
        if name not in METHODS:
            raise ValueError(f"no method {name!r}; known: {', '.join(METHODS)}")
        owner = METHODS[name].shares or name
        members = groups.setdefault(owner, [owner])
        if name not in members:
            members.append(name)
    return [tuple(members) for members in groups.values()]


def unfinished(folder: Path, one: Pass) -> Path:
    """Where a pass keeps its state until it is finished, in a folder of results."""
    work = folder / WORK / safe_path(one.stream) / safe_path(one.methods[0])
    return work / f"{'+'.join(one.methods[1:])}{budget_name(one.budget)}-{one.seed}"


def give_up(folder: Path, todo: Sequence[Pass]) -> None:
    """Removes what unfinished runs of these passes left, so that they start anew; finished results stay.

    Raises:
        OSError: a file cannot be removed.
    """
    for one in todo:
        Checkpoint(unfinished(folder, one), {}).drop()


class Bench:
    """Runs passes on one backbone and writes their results; what is written already is not run again.

    A finished result counts as done also where its method is configured otherwise by now; `say` tells. To compare them
    takes the backbone, which is not loaded only for that: where every pass is finished, nothing is compared.

    Args:
        folder: of results.
        load: gives the backbone, called when the first pass needs it.
        settings: of all passes.
        root: folder of the streams' data, for streams that are not generated.
        ranks: this process among several.
        batch_size: questions answered in one forward pass, at most; None: 128 for a small model, else 32.
        say: gets a line about each pass.

    Attributes:
        left_out: a line about each pass that gave no result.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[], Backbone],
        settings: Settings | None = None,
        *,
        root: Path | None = None,
        ranks: Ranks | None = None,
        batch_size: int | None = None,
        say: Say = lambda line: None,
        progress: Progress = SILENT,
    ) -> None:
        self._folder, self._load, self._settings, self._root = folder, load, settings or Settings(), root
        self._ranks, self._say, self._progress = ranks or Ranks(), say, progress
        self._batch_size = batch_size
        self.left_out: list[str] = []
        self._backbone: Backbone | None = None
        self._uncompared: list[Pass] = []
        self._stream: tuple[tuple[str, int], Stream, list[list[int]], str] | None = None

    def run(self, one: Pass) -> list[Path]:
        """The files of a pass, run from where it was left; none where its budget is too small for a method, or its
        training diverges (`say` tells).

        Raises:
            ResultError: a file is damaged, or was made with other settings; so is or was an unfinished run.
            ValueError: no such stream, or its data cannot be read.
        """
        settings = self._settings_of(one)
        stream, clusters, questions = self._stream_of(one)
        if self._ranks.from_first(self._finished(one, questions)):
            self._say(f"{one}: done before")
            if self._backbone is None:
                self._uncompared.append(one)
            else:
                self.compare(one)
            return self.paths(one)
        backbone = self._loaded()
        try:
            methods = _methods(one, backbone, len(stream), settings)
        except ValueError as error:
            return self._leave_out(f"{one}: left out, {error}")
        for method in methods:
            method.ranks = self._ranks
            method.batch_size = self._batch_size or _batch_size_for(backbone)
        identity = {
            **asdict(one),
            **asdict(settings),
            "questions": questions,
            "training": taught_digest_of(stream),
        }
        identity["methods"] = list(one.methods)
        identity["configs"] = json.loads(json.dumps([method.describe() for method in methods]))
        checkpoint = Checkpoint(unfinished(self._folder, one), identity)
        before, peaks = checkpoint.resume(methods)
        self._ranks.wait()  # before rank 0 saves over what another is still to read
        if before:
            self._say(f"{one}: going on after task {len(before[0].learn_of_task)} of {len(stream)}")
        forget_peak()

        def after_task(number: int, results: Sequence[MethodResult]) -> None:
            for name, most in peak_memory().items():
                peaks[name] = max(most, peaks.get(name, 0))
            if self._ranks.first and number + 1 < len(stream):
                checkpoint.save(methods, results, peaks)

        try:
            measured = run(
                stream,
                methods,
                self._progress,
                after_task,
                ahead=settings.ahead,
                evaluate=settings.evaluate or "all",
                ranks=self._ranks,
                resumed=before,
            )
        except TrainingDiverged as error:
            return self._leave_out(f"{one}: no result, {error}")
        results = [
            self._result(one, stream, clusters, questions, method, result, peaks)
            for method, result in zip(methods, measured, strict=True)
        ]
        if self._ranks.first:
            for result in results:
                write_result(self._folder, result)
            checkpoint.drop()
        self._ranks.wait()
        for result in results:
            figures = result.figures()
            lost = figures["forgetting"]
            self._say(
                f"{result.stream}, {result.method}, {budget_name(one.budget)}, seed {one.seed}: "
                f"Last {figures['last']:.1f} %, {'' if lost is None else f'forgetting {lost:.1f}, '}"
                f"{result.deployed_bytes[-1]:,} bytes, learned in {sum(result.learn_seconds):.1f} s"
            )
        return self.paths(one)

    def paths(self, one: Pass) -> list[Path]:
        """Where the results of a pass lie, written or not, in the order of its methods."""
        return [result_path(self._folder, one.stream, name, one.budget, one.seed) for name in one.methods]

    def compare(self, one: Pass) -> None:
        """Says which results of a finished pass were made with another configuration than their methods have now.

        Raises:
            ResultError: a file is missing or damaged.
        """
        backbone = self._loaded()
        if not self._ranks.first:
            return
        paths = self.paths(one)
        results = [read_result(path) for path in paths]
        try:
            methods = _methods(one, backbone, len(results[0].tasks), self._settings_of(one))
        except ValueError as error:
            self._say(f"{one}: done before, but would be left out now, {error}")
            return
        for path, result, method in zip(paths, results, methods, strict=True):
            changes = method.changes_since(result.config)
            if changes:
                self._say(
                    f"{path} was made with another configuration ({'; '.join(changes)}); delete it to run it again"
                )

    def _loaded(self) -> Backbone:
        if self._backbone is None:
            self._backbone = self._load()
            self._backbone.rendered.limit = RENDERED
            for one in self._uncompared:
                self.compare(one)
        return self._backbone

    def _leave_out(self, why: str) -> list[Path]:
        self.left_out.append(why)
        self._say(why)
        return []

    def _settings_of(self, one: Pass) -> Settings:
        """With what suits the stream where the command leaves it open."""
        return self._settings.on(STREAMS[one.stream].suits if one.stream in STREAMS else {})

    def _stream_of(self, one: Pass) -> tuple[Stream, list[list[int]], str]:
        if self._stream is None or self._stream[0] != (one.stream, one.seed):
            stream = stream_named(
                one.stream,
                seed=one.seed,
                root=self._root,
                **{name: value for name in OF_STREAM if (value := getattr(self._settings, name))},
            )
            self._stream = ((one.stream, one.seed), stream, clusters_of(stream), digest_of(stream))
        return self._stream[1:]

    def _finished(self, one: Pass, questions: str) -> bool:
        paths = self.paths(one)
        for path in paths:
            if path.exists():
                made, settings = read_result(path), self._settings_of(one)
                differs = settings.differing(made.settings)
                differs += [] if made.questions == questions else ["on other questions"]
                if differs:
                    raise ResultError(
                        f"result {path} was made {', '.join(differs)}; give another --results folder, or delete it"
                    )
        return all(path.exists() for path in paths)

    def _result(
        self,
        one: Pass,
        stream: Stream,
        clusters: list[list[int]],
        questions: str,
        method: Method,
        result: MethodResult,
        peaks: dict[str, int],
    ) -> Result:
        ledger = method.ledger()
        return Result(
            stream=one.stream,
            method=method.name,
            title=method.title,
            reference=method.reference,
            budget=one.budget,
            seed=one.seed,
            tasks=stream.tasks,
            sizes=[len(experience.test) for experience in stream.experiences],
            graders=[experience.grader.name for experience in stream.experiences],
            questions=questions,
            matrix=result.matrix,
            faithful=result.faithful,
            deployed_bytes=result.deployed_of_task,
            training_bytes=result.training_of_task,
            ledger={"deployed": ledger.deployed, "training": ledger.training},
            learn_seconds=[round(seconds, 3) for seconds in result.learn_of_task],
            answer_seconds=[round(seconds, 3) for seconds in result.answer_of_task],
            peak_memory=peaks,
            final=result.final_answers,
            diagonal=result.diagonal_answers,
            scores=[[round(score, 4) for score in scores] for scores in result.scores],
            clusters=clusters,
            config=method.describe(),
            also=stream.also_graded(result.final_answers),
            settings=asdict(self._settings_of(one)),
            versions=versions() | {"embeddings": self._loaded().embedding_hash[:16]},
        )


def _batch_size_for(backbone: Backbone) -> int:
    return 128 if sum(parameter.numel() for parameter in backbone.model.parameters()) <= SMALL else 32


def _methods(one: Pass, backbone: Backbone, stream_length: int, settings: Settings) -> list[Method]:
    methods: list[Method] = []
    for name in one.methods:
        kind = METHODS[name].method
        options: dict[str, Any] = (
            {"recipe": kind.recipe.scaled(settings.epochs, settings.learning_rate)}
            if issubclass(kind, TrainedMethod)
            else {}
        )
        method = make_method(
            name,
            backbone,
            budget=one.budget,
            seed=one.seed,
            stream_length=stream_length,
            partner=methods[0] if METHODS[name].shares else None,
            max_new_tokens=settings.max_new_tokens or USUAL["max_new_tokens"],
            **options,
        )
        methods.append(method)
    return methods
