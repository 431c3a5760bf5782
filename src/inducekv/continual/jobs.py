"""Several processes on one machine, each running whole passes, so that no core is idle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from inducekv.continual.bench import Bench, Say
from inducekv.continual.passes import Pass, Settings
from inducekv.named import load_backbone
from inducekv.progress import SILENT, Progress


def run_in_processes(
    folder: Path,
    todo: Sequence[Pass],
    jobs: int,
    settings: Settings | None = None,
    *,
    root: Path | None = None,
    batch_size: int | None = None,
    say: Say = lambda line: None,
    progress: Progress = SILENT,
) -> tuple[list[Path], list[str]]:
    """Runs passes as `Bench` does, `jobs` of them at a time, each process with a backbone and cores of its own.

    The first mistake stops all; so does an interruption. What is written stays, and passes that were stopped go on at
    the task they were at when they are run again. Processes are spawned: a script that calls this needs
    `if __name__ == "__main__":`.

    Args:
        folder: of results.
        todo: passes, in the order in which they are begun.
        jobs: processes, at least 1.
        settings: of all passes.
        root: folder of the streams' data.
        batch_size: as `Bench` takes it.
        say: gets the lines about a pass once it is over.
        progress: told of passes; what happens within them stays unseen.

    Returns:
        The files of all passes, and a line about each pass that gave no result.

    Raises:
        ValueError: as `Bench.run`, or `jobs` is less than 1.
        ChildProcessError: a process was killed, most likely for want of memory.
    """
    if jobs < 1:
        raise ValueError(f"passes run in at least one process, got jobs={jobs}")
    settings = settings or Settings()
    here = Bench(folder, lambda: load_backbone(settings.model, dtype=settings.dtype), settings, root=root, say=say)
    done = [one for one in todo if all(path.exists() for path in here.paths(one))]
    progress.start("passes", len(todo))
    try:
        written = [path for one in done for path in here.run(one)]  # says so, and loads nothing
        progress.advance(len(done))
        left_out: list[str] = []
        left = [one for one in todo if one not in done]
        with closing(_outcomes(left, done, jobs, (folder, settings, root, batch_size))) as outcomes:
            for outcome in outcomes:
                for line in outcome.said:
                    say(line)
                if outcome.mistake is not None:
                    raise ValueError(outcome.mistake)
                written += outcome.written
                left_out += outcome.left_out
                progress.advance()
    finally:
        progress.stop()
    return written, left_out


@dataclass(frozen=True)
class _Outcome:
    """What a pass left behind; `mistake`: why it could not be run, as a user is told."""

    written: list[Path]
    said: list[str]
    left_out: list[str]
    mistake: str | None


def _outcomes(
    todo: Sequence[Pass], done: Sequence[Pass], jobs: int, bench: tuple[Path, Settings, Path | None, int | None]
) -> Generator[_Outcome, None, None]:
    """Of each pass as it ends. Where this is left early, the processes end at once, whatever they are at."""
    if not todo:
        return
    context = get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    jobs = min(jobs, len(todo))
    pool = ProcessPoolExecutor(jobs, context, _start, (*bench, jobs, watched))
    try:
        first = pool.submit(_run, todo[0], done)  # whose process loads the backbone, which comparing takes
        for future in as_completed([first, *(pool.submit(_run, one) for one in todo[1:])]):
            yield future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that ran passes was killed, most likely for want of memory; run again with fewer jobs: what is "
            "written stays, and what is unfinished goes on"
        ) from error
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        watched.close()


# -- in a process of its own

_bench: Bench
_said: list[str] = []


def _start(
    folder: Path, settings: Settings, root: Path | None, batch_size: int | None, jobs: int, watched: Connection
) -> None:
    """Makes this process's bench, which loads the backbone when the first pass needs it."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the first process ends the others
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    torch.set_num_threads(min(torch.get_num_threads(), max(1, _cores() // jobs)))
    _bench = Bench(
        folder,
        lambda: load_backbone(settings.model, dtype=settings.dtype),
        settings,
        root=root,
        batch_size=batch_size,
        say=_said.append,
    )


def _end_with(watched: Connection) -> None:
    """Ends this process when the other end of the pipe closes: the first process lets go of it, or is no more."""
    with suppress(EOFError, OSError):  # which is how Windows says that it closed
        watched.poll(None)
    os._exit(1)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _run(one: Pass, done: Sequence[Pass] = ()) -> _Outcome:
    """Runs a pass; first says what else was finished under another configuration."""
    _said.clear()
    _bench.left_out.clear()
    mistake, written = None, list[Path]()
    try:
        for finished in done:
            _bench.compare(finished)
        written = _bench.run(one)
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("INDUCEKV_DEBUG"):
            raise
        mistake = str(error) or type(error).__name__
    return _Outcome(written, list(_said), list(_bench.left_out), mistake)
