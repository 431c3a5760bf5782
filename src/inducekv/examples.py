"""Training and test examples: pictures, a question, and (for training) its answer."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from PIL import Image, UnidentifiedImageError

ImageSource: TypeAlias = Image.Image | Path | bytes

MAX_IMAGE_PIXELS = 64 * 2**20
"""Most pixels (width times height) a picture may have; checked on the header, before anything is decoded. CHOICE."""
MAX_IMAGE_BYTES = 64 * 2**20
"""Most bytes a picture's file may have. CHOICE."""

_BROKEN = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
# Pillow's decoders raise each of these for a damaged file


def check_image(path: Path) -> tuple[int, int]:
    """Reads only the header of a picture file and returns its (width, height) in pixels.

    Raises:
        ValueError: the file is missing, is no picture, or is over `MAX_IMAGE_BYTES` or `MAX_IMAGE_PIXELS`; it names
            the file.
    """
    if not path.is_file():
        raise ValueError(f"image {path}: no such file")
    _check_file_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit below is lower
            with Image.open(path) as image:
                size = image.size
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    _check_pixels(path, size)
    return size


def _unreadable(name: Any, error: Exception) -> ValueError:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit: width and height are not told
        return ValueError(
            f"image {name}: too many pixels, at most {MAX_IMAGE_PIXELS:,} pixels are allowed; make it smaller ({error})"
        )
    # Pillow's own words would show the address of an object
    why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(f"image {name}: not a readable picture ({why})")


def _check_file_size(path: Path) -> None:
    nbytes = path.stat().st_size
    if nbytes > MAX_IMAGE_BYTES:
        raise ValueError(f"image {path}: {nbytes:,} bytes, at most {MAX_IMAGE_BYTES:,} are allowed; make it smaller")


def _check_pixels(name: Any, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"image {name}: {width} x {height} pixels, at most {MAX_IMAGE_PIXELS:,} pixels are allowed; make it smaller"
        )


def open_image(data: bytes, name: str) -> Image.Image:
    """A picture from the bytes of its file, header read and checked, decoded only when it is used.

    Raises:
        ValueError: no picture, or over a limit; names it as `name`.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"image {name}: {len(data):,} bytes, at most {MAX_IMAGE_BYTES:,} are allowed; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except _BROKEN as error:
        raise _unreadable(name, error) from error
    _check_pixels(name, image.size)
    return image


def decode_image(source: ImageSource) -> Image.Image:
    """Decodes one picture as RGB, its header checked before; transparent parts become white.

    Raises:
        ValueError: the picture is missing, broken or over a limit; names the file.
    """
    name = str(source) if isinstance(source, Path) else "given as an object"
    if isinstance(source, Path):
        check_image(source)
    if isinstance(source, bytes):
        name = "given as bytes"
        source = open_image(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Path):
                with Image.open(source) as image:
                    return _flattened(image)
            _check_pixels(name, source.size)
            return _flattened(source)
    except _BROKEN as error:
        if isinstance(error, ValueError) and str(error).startswith("image "):
            raise
        raise ValueError(f"image {name}: broken or truncated ({error})") from error


def _flattened(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts on white as a person would see them on paper."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")


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
    """

    question: str
    answer: str | None = None
    images: tuple[ImageSource, ...] = ()
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    references: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.question, str):
            raise TypeError(f"question must be text, got {type(self.question).__name__}: {self.question!r}")
        if self.answer is not None and not isinstance(self.answer, str):
            raise TypeError(f"answer must be text or None, got {type(self.answer).__name__}: {self.answer!r}")
        if isinstance(self.images, (Image.Image, str, Path, bytes)):
            object.__setattr__(self, "images", (self.images,))
        sources = tuple(Path(image) if isinstance(image, str) else image for image in self.images)
        for source in sources:
            if not isinstance(source, (Image.Image, Path, bytes)):
                raise TypeError(f"images must be PIL images, paths or bytes, got {type(source).__name__}: {source!r}")
        object.__setattr__(self, "images", sources)

    def load_images(self) -> list[Image.Image]:
        """The pictures decoded as RGB, in order.

        Raises:
            ValueError: a picture is missing, broken, over 64 MiB or over 64 Mi pixels (by its header, before decoding).
        """
        return [decode_image(source) for source in self.images]

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
            if isinstance(source, Path):
                check_image(source)
                feed(b"f", source.read_bytes())
            elif isinstance(source, bytes):
                feed(b"f", source)
            else:
                feed(b"p", f"{source.mode} {source.size}".encode() + source.tobytes())
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
            data = b"p" + f"{source.mode} {source.size}".encode() + source.tobytes()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]
