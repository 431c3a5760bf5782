"""What a stream asks and teaches, as digests to compare runs by; and which questions share a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from inducekv.continual.stream import Stream
from inducekv.examples import Example, image_key


def digest_of(stream: Stream) -> str:
    """16 hex digits over all test questions, in order: names, texts, and pictures where an example has no id."""
    return _digest(example for experience in stream.experiences for example in experience.test)


def taught_digest_of(stream: Stream) -> str:
    """The same over all training examples."""
    return _digest(example for experience in stream.experiences for example in experience.train)


def _digest(examples: Iterator[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        for text in (example.identifier, example.question, example.answer or ""):
            data = text.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def clusters_of(stream: Stream) -> list[list[int]]:
    """Of each test question the number of its picture, the same number wherever the same picture is asked about."""
    numbers: dict[Any, int] = {}
    return [
        [numbers.setdefault(image_key(example), len(numbers)) for example in experience.test]
        for experience in stream.experiences
    ]
