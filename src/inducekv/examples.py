"""Training and test examples: pictures, a question, and (for training) its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from inducekv.error_text import LONGEST_MESSAGE, message, shown, shown_name
from inducekv.pictures import MAX_IMAGE_BYTES as MAX_IMAGE_BYTES
from inducekv.pictures import MAX_IMAGE_PIXELS as MAX_IMAGE_PIXELS
from inducekv.pictures import ImageSource as ImageSource
from inducekv.pictures import check_image as check_image
from inducekv.pictures import decode_image as decode_image
from inducekv.pictures import file_bytes
from inducekv.pictures import open_image as open_image


@dataclass(frozen=True)
class Example:
    """One example: any number of pictures, a question about them, and its answer when it is known.

    Attributes:
        question: what is asked; pictures come before it.
        answer: what the model should say; None for a question that is only to be answered.
        images: pictures as PIL images, paths of picture files or such files' bytes; files are decoded only by
            `load_images`, which keeps nothing of what it decoded.
        id: a name for the example; by default `identifier` derives one from the content.
        metadata: anything else a caller wants to keep beside it (class name, source line); never shown to the model.
        references: further right answers, for graders that compare with several; never shown to the model.
        origin: where it was read, such as "rows.jsonl, line 2"; error messages name it.

    Raises:
        TypeError: a field is of another type.
        ValueError: a text holds half a surrogate pair, which no file and no tokenizer can hold.
    """

    question: str
    answer: str | None = None
    images: tuple[ImageSource, ...] = ()
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    references: tuple[str, ...] = field(default=(), compare=False)
    origin: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.question, str):
            raise TypeError(f"question must be text, got {type(self.question).__name__}: {shown(self.question)}")
        if self.answer is not None and not isinstance(self.answer, str):
            raise TypeError(f"answer must be text or None, got {type(self.answer).__name__}: {shown(self.answer)}")
        if isinstance(self.images, (Image.Image, str, Path, bytes)):
            object.__setattr__(self, "images", (self.images,))
        sources = tuple(Path(image) if isinstance(image, str) else image for image in self.images)
        for source in sources:
            if not isinstance(source, (Image.Image, Path, bytes)):
                raise TypeError(
                    f"images must be PIL images, paths or bytes, got {type(source).__name__}: {shown(source)}"
                )
        object.__setattr__(self, "images", sources)
        texts = {"question": self.question, "answer": self.answer or "", "id": str(self.id or "")}
        for name, text in (*texts.items(), *(("a reference", str(each)) for each in self.references)):
            _check_text(name, text)

    def load_images(self) -> list[Image.Image]:
        """The pictures decoded as RGB, in order; see `decode_image`.

        Raises:
            ValueError: a picture is missing, broken or over a limit (by its header, before decoding); names the
                example and the picture.
        """
        with named_errors(self):
            return [decode_image(source) for source in self.images]

    @property
    def label(self) -> str:
        """What error messages call it: its id or the beginning of its question, where it was read, its pictures."""
        files = [source.name for source in self.images if isinstance(source, Path)]
        more = f" and {len(files) - 2} more" if len(files) > 2 else ""
        notes = [shown_name(each) for each in (self.origin, ", ".join(files[:2]) + more) if each]
        return f"example {shown(self.id or self.question, 60)}" + (f" ({'; '.join(notes)})" if notes else "")

    @property
    def identifier(self) -> str:
        """`id`, or 16 hex digits of the SHA-256 over question, answer and pictures: the same content, the same name."""
        return self.id if self.id is not None else self._content_hash()

    def _content_hash(self) -> str:
        digest = hashlib.sha256()

        def feed(kind: bytes, data: bytes) -> None:
            digest.update(kind + len(data).to_bytes(8, "big"))
            digest.update(data)

        feed(b"q", self.question.encode())
        if self.answer is not None:
            feed(b"a", self.answer.encode())
        for source in self.images:
            if isinstance(source, Path | bytes):
                feed(b"f", file_bytes(source))
            else:
                feed(b"p", _pixels(source))
        return digest.hexdigest()[:16]


def image_key(example: Example) -> str:
    """A stable name for what the example shows, the same for two questions about one picture: to cluster errors by.

    16 hex digits of the SHA-256 over the pictures' resolved paths, bytes or, where they are objects, pixels; an
    example without pictures is a cluster of its own.
    """
    if not example.images:
        return example.identifier
    digest = hashlib.sha256()
    for source in example.images:
        if isinstance(source, Path):
            data = b"f" + str(source.resolve()).encode()
        elif isinstance(source, bytes):
            data = b"b" + source
        else:
            data = b"p" + _pixels(source)
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def _pixels(source: Image.Image) -> bytes:
    """What tells pictures that came as objects apart: what a model sees of them."""
    picture = decode_image(source)
    return f"{picture.mode} {picture.size}".encode() + picture.tobytes()


@contextmanager
def named_errors(example: Example) -> Iterator[None]:
    """Makes what goes wrong with an example a ValueError that begins with its `label`, unless it does already.

    Raises:
        ValueError: in place of any error that a processor, a picture or an answer can cause.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        words = str(error) or type(error).__name__
        named = words.startswith("example ")
        if named and isinstance(error, ValueError) and len(words) <= LONGEST_MESSAGE:
            raise
        raise ValueError(message(words if named else f"{example.label}: {words}")) from error


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half a surrogate pair at character {error.start + 1} "
            f"({shown(text[max(0, error.start - 20) : error.start + 20])}); write the whole character"
        ) from error
