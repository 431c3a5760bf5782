"""Which picture a question is about, for standard errors clustered by it."""

from __future__ import annotations

from pathlib import Path

from inducekv.examples import Example


def image_key(example: Example) -> str:
    """The same text for questions about the same pictures: their paths, or a digest of their pixels.

    A question without a picture is a cluster of its own.
    """
    if not example.images:
        return f"none {example.identifier}"
    if all(isinstance(source, Path) for source in example.images):
        return "\n".join(str(source) for source in example.images)
    return Example("", None, example.images).identifier
