"""Streams by name: generated ones for the embedded model, a user's own folders, text, and readers of published data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inducekv.continual.stream import Stream
from inducekv.continual.streams.embedded import EMBEDDED_STREAMS
from inducekv.continual.streams.folder import FOLDER_STREAM
from inducekv.continual.streams.kinds import StreamKind, balanced
from inducekv.continual.streams.tables import PUBLISHED_STREAMS
from inducekv.continual.streams.text import TEXT_STREAMS, TextStream
from inducekv.error_text import shown

STREAMS: dict[str, StreamKind] = {
    kind.name: kind for kind in (*EMBEDDED_STREAMS, FOLDER_STREAM, *TEXT_STREAMS, *PUBLISHED_STREAMS)
}
"""Every stream that `stream_named` knows."""

__all__ = ["STREAMS", "StreamKind", "check_stream", "stream_kind", "stream_named"]


def stream_kind(name: str) -> StreamKind:
    """The stream of that name.

    Raises:
        ValueError: there is none; lists the names.
    """
    if name not in STREAMS:
        raise ValueError(f"unknown stream {shown(name)}; choose one of {', '.join(STREAMS)}")
    return STREAMS[name]


def stream_named(
    name: str,
    *,
    seed: int = 0,
    root: Path | None = None,
    limit: int | None = None,
    tasks: int | None = None,
    train_samples: int | None = None,
    test_samples: int | None = None,
    choices: bool = False,
) -> Stream:
    """Loads a stream.

    Args:
        name: one of `STREAMS`.
        seed: of generated tasks, and of the choice that `limit` and samples make.
        root: the folder of the download; every stream but `embedded/*` needs it.
        limit: examples a split at most, chosen at random.
        tasks: only so many of its first tasks; None: all.
        train_samples, test_samples: examples to learn from and to ask a task at most, chosen at random and balanced
            over answers.
        choices: keep the list of choices in the questions.

    Raises:
        ValueError: an unknown name, a missing `root`, missing or malformed files, a negative seed, a limit or number
            of tasks or samples below 1, `choices` of a stream whose questions have no such list.
    """
    kind = stream_kind(name)
    if kind.needs_root and root is None:
        raise ValueError(f"stream {name} reads files; give the folder of its download as root")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    options = {}
    if choices:
        if not (isinstance(kind, TextStream) and kind.has_choices):
            listing = [each.name for each in TEXT_STREAMS if each.has_choices]
            raise ValueError(f"choices can be kept in the questions of {' and '.join(listing)}, not of {name}")
        options["choices"] = True
    stream = kind.load(seed=seed, root=None if root is None else Path(root), limit=limit, **options)
    if tasks is not None and tasks < 1:
        raise ValueError(f"tasks must be at least 1, got {tasks}")
    if tasks is None and train_samples is None and test_samples is None:
        return stream
    experiences = tuple(
        replace(
            experience,
            train=tuple(balanced(experience.train, train_samples, seed, f"{experience.task} train")),
            test=tuple(balanced(experience.test, test_samples, seed, f"{experience.task} test")),
        )
        for experience in stream.experiences[:tasks]
    )
    return replace(stream, experiences=experiences)


def check_stream(name: str, root: Path) -> list[str]:
    """What is missing or malformed in a download of the stream, a line each; empty when it is complete.

    Raises:
        ValueError: an unknown name.
    """
    return stream_kind(name).check(Path(root))
