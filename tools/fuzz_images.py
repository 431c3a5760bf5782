"""Damages picture files at random and decodes them: each must give an RGB picture within the limits, or a ValueError.

    python tools/fuzz_images.py --mutants 10000 --seed 0

The same seed gives the same mutants; a mutant at fault is named by its seed and number, and written with `--keep`.
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from inducekv.error_text import LONGEST_MESSAGE
from inducekv.pictures import MAX_IMAGE_ASPECT, MAX_IMAGE_PIXELS, decode_image

SIZE = (24, 16)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n%%EndComments\nshowpage\n%%EOF\n"
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


class Fault(AssertionError):
    """A mutant did what no picture may do."""


@dataclass
class Found:
    """What became of the mutants.

    Attributes:
        counts: mutants that were decoded, and refused.
        faults: name of each mutant at fault, and what it did.
        slowest: seconds of the slowest mutant, and its name.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")


def originals() -> dict[str, bytes]:
    """Small pictures of every format and mode, by name; the same at every call."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
    colour, deep = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    clear, grey, turned = Image.fromarray(noise), colour.convert("L"), Image.Exif()
    turned[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [colour.rotate(180)], "duration": 50}
    made = {
        "rgb.png": (colour, {"exif": turned}),
        "rgba.png": (clear, {}),
        "palette.png": (colour.quantize(8), {"transparency": 3}),
        "deep.png": (deep, {"transparency": 257}),
        "moving.png": (colour, frames),
        "rgb.jpg": (colour, {"exif": turned}),
        "progressive.jpg": (colour, {"progressive": True}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "moving.gif": (colour.quantize(8), frames | {"transparency": 1}),
        "lossy.webp": (clear, {"exif": turned}),
        "moving.webp": (clear, frames | {"lossless": True}),
        "rgb.avif": (colour, {"exif": turned}),
        "grey.bmp": (grey, {}),
        "rgb.ppm": (colour, {}),
        "float.pfm": (Image.fromarray(noise[..., 0].astype(np.float32)), {}),
        "rgb.jp2": (colour, {}),
        "deep.jp2": (deep, {}),
        "float.tif": (Image.fromarray(noise[..., 0].astype(np.float32)), {}),
        "deep.tif": (deep, {"exif": turned}),
        "lab.tif": (colour.convert("LAB"), {}),
        "lzw.tif": (colour, {"compression": "tiff_lzw"}),
        "jpeg.tif": (colour, {"compression": "jpeg"}),
    }
    files = {"drawing.eps": EPS}
    for name, (picture, options) in made.items():
        buffer = BytesIO()
        kind = {"jpg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF", "pfm": "PPM"}.get(name[-3:], name.rpartition(".")[2])
        try:
            picture.save(buffer, format=kind, **options)
        except (KeyError, OSError):  # a Pillow without this format
            continue
        files[name] = buffer.getvalue()
    return files


def mutant(data: bytes, random: Generator, others: list[bytes]) -> bytes:
    """A damaged copy: bytes changed, numbers made extreme, parts cut, doubled or taken from another file."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        place, kind = int(random.integers(0, max(1, len(changed)))), int(random.integers(0, 8))
        span = int(random.integers(1, 33))
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            del changed[place : place + span]
        elif kind == 2:
            changed[place:place] = changed[place : place + span]
        elif kind == 3:
            other = others[int(random.integers(0, len(others)))]
            start = int(random.integers(0, len(other)))
            changed[place : place + span] = other[start : start + span]
        elif kind in (4, 5):
            number = int(random.choice(EXTREMES))
            form = ("<H", ">H", "<I", ">I")[int(random.integers(0, 4))]
            packed = struct.pack(form, number & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
            place = int(random.integers(0, max(1, min(64, len(changed))))) if kind == 4 else place
            changed[place : place + len(packed)] = packed
        else:
            for each in random.integers(0, max(1, len(changed)), span // 4 + 1):
                if each < len(changed):
                    changed[each] ^= 1 << int(random.integers(0, 8))
    whole = bytes(changed)
    return _with_checksums(whole) if random.random() < 0.5 else whole


def _with_checksums(data: bytes) -> bytes:
    """A PNG with its checksums put right, so that damage reaches what lies behind them; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        body = data[place + 4 : place + 8 + length]
        if place + 12 + length > len(data):
            break
        parts += [data[place : place + 4], body, struct.pack(">I", zlib.crc32(body))]
        place += 12 + length
    return b"".join([*parts, data[place:]])


def outcome(data: bytes) -> str:
    """What became of a file: "decoded" or "refused".

    Raises:
        Fault: neither was done as it should be.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            picture = decode_image(data)
        except ValueError as error:
            said = str(error)
            if not said.startswith("image ") or len(said) > LONGEST_MESSAGE or not said.isprintable():
                raise Fault(f"message {said!r:.200}") from error
            result = "refused"
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error!r:.200}") from error
        else:
            width, height = picture.size
            if picture.mode != "RGB" or picture.info:
                raise Fault(f"a picture of mode {picture.mode} with {list(picture.info)}")
            narrow = max(width, height) > MAX_IMAGE_ASPECT * min(width, height)
            if width * height > MAX_IMAGE_PIXELS or narrow or len(picture.tobytes()) != width * height * 3:
                raise Fault(f"a picture of {width} x {height} pixels")
            result = "decoded"
    if warned:
        raise Fault(f"warned {warned[0].message!s:.200}")
    return result


def fuzz(mutants: int, seed: int, seconds: float = float("inf"), keep: Path | None = None) -> Found:
    """Tries mutants of every original in turn, until there were so many or the time is over.

    Args:
        mutants: how many at most.
        seed: of all random draws.
        seconds: no mutant is begun after these.
        keep: folder for mutants at fault.
    """
    files, found, begun = originals(), Found(), time.monotonic()
    names, others = sorted(files), [files[name] for name in sorted(files)]
    for number in range(mutants):
        start = time.monotonic()
        if start - begun > seconds:
            break
        original = names[number % len(names)]
        data = mutant(files[original], np.random.default_rng([seed, number]), others)
        name = f"{seed}-{number}-{original}"
        try:
            found.counts[outcome(data)] += 1
        except Fault as fault:
            found.faults[name] = str(fault)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / name).write_bytes(data)
        found.slowest = max(found.slowest, (time.monotonic() - start, name))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--keep", type=Path, help="folder for mutants at fault")
    options = parser.parse_args()
    found = fuzz(options.mutants, options.seed, options.seconds, options.keep)
    for name, what in found.faults.items():
        print(f"FAULT {name}: {what}")
    print(f"{dict(found.counts)}, {len(found.faults)} faults; slowest {found.slowest[0]:.2f} s ({found.slowest[1]})")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
