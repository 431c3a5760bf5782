"""Grey pictures of more than 8 bits, as 8 bits show them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

ROWS = 64
"""Rows of a picture that are scaled at once."""


def grey_of_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits as one of 8 (`L`, or `LA` where one of its values is transparent).

    Raises:
        ValueError: a value is not finite.
    """
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode.startswith("I;16"):
        bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
        grey = (values >> (bits - 8)).astype(np.uint8)
    else:
        grey = _scaled(values, *_range(values, image))
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero; Pillow turns 8 bits round alone
        grey = 255 - grey
    clear = image.info.get("transparency")
    picture = Image.fromarray(grey)
    if isinstance(clear, int):
        picture.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return picture


def _range(values: NDArray[Any], image: Image.Image) -> tuple[float, float]:
    """The values that become black and white."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds values that are not finite")
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow's mode for their 16 bits
        ranges = [65535.0]
    else:
        ranges = [255.0, 65535.0] if image.mode == "I" else [1.0, 255.0, 65535.0]
    whole = next((top for top in ranges if high <= top), None)
    return (low, high) if low < 0 or whole is None else (0.0, whole)


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    grey = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), ROWS):  # a large picture in float64 would take eight times its own room
        some = (values[top : top + ROWS].astype(np.float64) - low) * (255 / ((high - low) or 1))
        grey[top : top + ROWS] = np.clip(np.rint(some), 0, 255)
    return grey
