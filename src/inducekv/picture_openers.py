"""From what a row gives as a picture to one that may be read: a file of the data's folder, a `data:` URI, an object."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from inducekv.error_text import shown, shown_name
from inducekv.pictures import ImageSource, check_image, from_data_uri, open_image

ImageOpener: TypeAlias = Callable[[Any], ImageSource]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def opener_within(folder: Path) -> ImageOpener:
    """Opens pictures by paths relative to `folder`, refusing any that leaves it (also through a symbolic link)."""
    root = folder.resolve()

    def opener(value: Any) -> ImageSource:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"an image must be the path of a picture file, got {shown(value)}")
        if (data := _not_a_path(value)) is not None:
            return data
        try:
            path = (root / value).resolve()
        except (OSError, RuntimeError) as error:  # too long a name, a loop of links
            why = getattr(error, "strerror", None) or "its links go in a circle"
            raise ValueError(f"image {shown_name(value)}: {why}") from error
        if not path.is_relative_to(root):
            raise ValueError(
                f"image {shown_name(value)}: leaves the folder of the data file; paths must stay inside "
                f"{shown_name(folder)}"
            )
        check_image(path)
        return path

    return opener


def _not_a_path(value: str) -> bytes | None:
    """The picture in a `data:` URI; None for what may be a path.

    Raises:
        ValueError: the address of a picture elsewhere, or a `data:` URI that holds none.
    """
    if value[:5].lower() == "data:":
        return from_data_uri(value)
    if _URL.match(value):
        raise ValueError(f"image {shown_name(value, 60)}: addresses are not fetched; download it and name its file")
    return None


def open_trusted(value: Any) -> ImageSource:
    """Checks a picture of a row that the caller's own code made: an object, a file's bytes, or a path anywhere."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):  # Hugging Face's {"bytes": ..., "path": ...}
        if value.get("bytes") is not None:
            open_image(value["bytes"], str(value.get("path") or "given as bytes"))
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes):
        open_image(value, "given as bytes")
        return value
    if isinstance(value, str) and (data := _not_a_path(value)) is not None:
        return data
    if isinstance(value, (str, Path)) and str(value):
        path = Path(value)
        check_image(path)
        return path
    raise TypeError(f"an image must be a picture, bytes or a path, got {type(value).__name__}")
