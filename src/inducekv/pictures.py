"""One way from a picture, whatever it came as, to the RGB picture that a model sees; limits come before decoding."""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from PIL import ExifTags, Image, UnidentifiedImageError

from inducekv.error_text import message, shown_name
from inducekv.greys import grey_of_8_bits

ImageSource: TypeAlias = Image.Image | Path | bytes

MAX_IMAGE_PIXELS = 64 * 2**20
"""Most pixels (width times height) a picture may have; checked on the header, before anything is decoded. CHOICE."""
MAX_IMAGE_BYTES = 64 * 2**20
"""Most bytes a picture's file may have. CHOICE."""
MAX_IMAGE_SIDE = 65_535
"""Most pixels of a side. CHOICE: what a JPEG can have."""
MAX_IMAGE_ASPECT = 200
"""The longer side at most, in lengths of the shorter. Processors scale the shorter side to a fixed length, so that a
narrow picture grows. CHOICE: Qwen2-VL's own limit."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by Pillow's names. Others are not even tried: EPS alone would start Ghostscript."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by EXIF orientation."""


class _Quiet:
    """How many threads want Pillow to be silent, and the filters of warnings from before the first of them."""

    def __init__(self) -> None:
        self.lock, self.threads, self.filters = threading.Lock(), 0, warnings.catch_warnings()


_quiet = _Quiet()
_DATA_URI = re.compile(r"data:(?:image/[\w.+-]*)?(?:;[^;,]*)*;base64,", re.IGNORECASE)


def check_image(path: Path) -> tuple[int, int]:
    """Reads only the header of a picture file and returns its (width, height) in pixels, as stored.

    Raises:
        ValueError: the file is missing, is no picture of `FORMATS`, or is over `MAX_IMAGE_BYTES`, `MAX_IMAGE_PIXELS`,
            `MAX_IMAGE_SIDE` or `MAX_IMAGE_ASPECT`; it names the file.
    """
    with _opened(path) as image:
        return image.size


def open_image(data: bytes, name: str) -> Image.Image:
    """A picture from the bytes of its file, header read and checked, decoded only when it is used.

    Raises:
        ValueError: as `check_image`; it names the picture as `name`.
    """
    _check_nbytes(name, len(data))
    image = _open(io.BytesIO(data), name)
    _check_size(name, image.size)
    return image


def decode_image(source: ImageSource) -> Image.Image:
    """The picture as a model sees it: RGB, upright, its first frame, transparent parts white.

    The same whether the picture comes as the path of a file, the file's bytes, or the object that Pillow opened:

    - turned as EXIF says;
    - greys of 16 bits scaled from the range of their type, greys of 32 bits and floats from the smallest of 0..1
      (floats), 0..255 and 0..65535 that holds all of the picture's values, else from their own least and greatest
      (CHOICE);
    - every other mode as Pillow converts it.

    An object is left as it is; of an animation, the frame that it is at is taken.

    Raises:
        ValueError: as `check_image`, or the picture is broken or truncated, or a grey is not finite; it names the file.
    """
    if isinstance(source, Path):
        with _opened(source) as image:
            return _decoded(image, source)
    if isinstance(source, bytes):
        return _decoded(open_image(source, "given as bytes"), "given as bytes")
    name = "given as an object"
    if source.format == "EPS":
        raise ValueError(f"image {name}: EPS is not read; give a picture of {', '.join(FORMATS)}")
    _check_size(name, source.size)
    return _decoded(source, name)


def file_bytes(source: Path | bytes) -> bytes:
    """The bytes of a picture file, header checked.

    Raises:
        ValueError: as `check_image`.
    """
    if isinstance(source, bytes):
        return source
    check_image(source)
    try:
        return source.read_bytes()
    except OSError as error:
        raise ValueError(f"image {shown_name(source)}: {error.strerror or error}") from error


def image_file(source: ImageSource) -> bytes:
    """The bytes of a file that `decode_image` makes the same picture of: the file as it is, or PNG for an object.

    Raises:
        ValueError: as `decode_image`.
    """
    if isinstance(source, Path):
        source = file_bytes(source)
    image = decode_image(source)
    if isinstance(source, bytes):
        return source
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def from_data_uri(text: str) -> bytes:
    """The bytes of the picture in a `data:` URI, header checked.

    Raises:
        ValueError: as `check_image`, or it is not in base64.
    """
    name = shown_name(text, 40)
    begins = _DATA_URI.match(text)
    if begins is None:
        raise ValueError(f"image {name}: a data URI must be data:image/...;base64,...")
    start = begins.end()
    _check_nbytes(name, (len(text) - start) * 3 // 4)
    try:
        data = base64.b64decode(re.sub(r"\s", "", text[start:]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image {name}: not base64 ({error})") from error
    open_image(data, name)
    return data


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    name = shown_name(path)
    try:
        exists, nbytes = path.is_file(), path.stat().st_size
    except FileNotFoundError:
        exists = False
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be entered
        raise ValueError(f"image {name}: {getattr(error, 'strerror', None) or error}") from error
    if not exists:
        raise ValueError(f"image {name}: no such file")
    _check_nbytes(name, nbytes)
    with _open(path, name) as image:
        _check_size(name, image.size)
        yield image


def _open(file: Path | io.BytesIO, name: Any) -> Image.Image:
    Image.init()  # so that it is known which formats this Pillow has
    try:
        with _silent():
            return Image.open(file, formats=[each for each in FORMATS if each in Image.OPEN])
    except Image.DecompressionBombError as error:  # Pillow's own limit: width and height are not told
        raise ValueError(
            f"image {name}: too many pixels, at most {MAX_IMAGE_PIXELS:,} pixels are allowed; make it smaller ({error})"
        ) from error
    except UnidentifiedImageError as error:  # its words would show the address of an object
        raise ValueError(
            f"image {name}: not a readable picture (of no known format); known are {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # Pillow's readers raise nearly anything for a damaged file
        raise ValueError(message(f"image {name}: not a readable picture ({_words(error)})")) from error


def _check_nbytes(name: Any, nbytes: int) -> None:
    if nbytes > MAX_IMAGE_BYTES:
        raise ValueError(f"image {name}: {nbytes:,} bytes, at most {MAX_IMAGE_BYTES:,} are allowed; make it smaller")


def _check_size(name: Any, size: tuple[int, int]) -> None:
    width, height = size
    longer, shorter = max(size), min(size)
    if width * height > MAX_IMAGE_PIXELS:
        limit = f"at most {MAX_IMAGE_PIXELS:,} pixels are allowed; make it smaller"
    elif longer > MAX_IMAGE_SIDE:
        limit = f"at most {MAX_IMAGE_SIDE:,} pixels a side are allowed; make it smaller"
    elif not shorter:
        limit = "which holds nothing"
    elif longer > MAX_IMAGE_ASPECT * shorter:
        limit = f"a side may be at most {MAX_IMAGE_ASPECT} times the other; cut it into parts, or pad it"
    else:
        return
    raise ValueError(f"image {name}: {width} x {height} pixels, {limit}")


def _decoded(image: Image.Image, name: Any) -> Image.Image:
    try:
        with _silent():
            image.load()
            _check_size(name, image.size)
            orientation = _orientation(image)
            picture = _flattened(grey_of_8_bits(image) if image.mode[0] in "IF" else image)
            turn = _TURNS.get(orientation)
            picture = picture if turn is None else picture.transpose(turn)
    except Exception as error:  # Pillow's decoders raise nearly anything for a damaged file
        if isinstance(error, ValueError) and str(error).startswith("image "):
            raise
        name = shown_name(name)
        raise ValueError(message(f"image {name}: broken or truncated ({_words(error)})")) from error
    picture.info.clear()  # its orientation, a transparent colour: all of that is done
    return picture


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where the picture does not say, or where what it says is damaged."""
    try:
        said = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF is damaged in many good photographs; viewers then show them as they lie
        return 1
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def _flattened(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts on white as a person would see them on paper."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _silent() -> Iterator[None]:
    """Without Pillow's warnings: its limit on pixels is above ours, and damage that matters raises.

    Filters are the process's. The first thread that enters keeps them and the last that leaves puts them back.
    """
    with _quiet.lock:
        if not _quiet.threads:
            _quiet.filters = warnings.catch_warnings()
            _quiet.filters.__enter__()
            warnings.simplefilter("ignore")
        _quiet.threads += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.threads -= 1
            if not _quiet.threads:
                _quiet.filters.__exit__(None, None, None)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
