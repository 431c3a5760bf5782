"""A picture is the same RGB picture whatever it comes as; what is damaged, foreign or out of bounds is refused."""

import base64
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from inducekv.error_text import LONGEST_MESSAGE, message, shown, shown_name
from inducekv.examples import Example, check_image, decode_image
from inducekv.pictures import FORMATS, MAX_IMAGE_ASPECT, MAX_IMAGE_SIDE, from_data_uri, image_file
from inducekv.training_state import Anchor
from pictures import png_header_only

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import fuzz_images

Image.init()  # so that `Image.SAVE` names all formats

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHOWN = {  # by EXIF orientation, what a viewer makes of stored rows and columns
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


def saved(image, form, **options):
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(source):
    return np.asarray(decode_image(source)).astype(int)


def every_way(data, path):
    """The same file as a path, as bytes, as the object Pillow opens, and as replay keeps each of these."""
    path.write_bytes(data)
    ways = [lambda: path, lambda: data, lambda: Image.open(BytesIO(data))]
    kept = [Anchor.of(Example("q", "a", (way(),)), "t").example().images[0] for way in ways]
    return [pixels(source) for source in (*(way() for way in ways), *kept)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_a_picture_stands_upright_however_it_is_stored(tmp_path, form, orientation):
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    corners = np.array(
        [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 250, 250], [90, 90, 90]]], np.uint8
    )
    stored = corners.repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(stored), form, exif=exif, **({} if form == "TIFF" else {"quality": 95}))
    for seen in every_way(data, tmp_path / "photo"):
        assert seen.shape == SHOWN[orientation](stored).shape
        assert np.abs(seen - SHOWN[orientation](stored)).mean() < 12


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_leaves_the_picture_as_it_lies(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.new("RGB", (8, 4), "red"), "JPEG", exif=exif)
    assert decode_image(data).size == (8, 4)
    damaged = data.replace(b"Exif\0\0II", b"Exif\0\0\xff\xff").replace(b"Exif\0\0MM", b"Exif\0\0\xff\xff")
    assert damaged != data and decode_image(damaged).size == (8, 4)


MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I;16",
    "I",
    "F",
]


def of_mode(mode, colour):
    rgba = Image.fromarray(colour)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(np.asarray(rgba.convert("L")).astype(kind) * kind(257 if mode == "I;16" else 1))
    if mode in ("La", "RGBa", "PA"):
        return rgba.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode]).convert(mode)
    return rgba.convert("RGB").convert(mode) if mode in ("LAB", "HSV", "YCbCr", "CMYK", "RGBX") else rgba.convert(mode)


COLOURS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.uint8, (*size, 4)))


@pytest.mark.parametrize("mode", MODES)
@SETTINGS
@given(colour=COLOURS)
def test_an_object_of_every_mode_becomes_rgb_and_stays_as_it_was(mode, colour):
    source = of_mode(mode, colour)
    before = (source.mode, source.size, source.tobytes(), dict(source.info))
    picture = decode_image(source)
    assert (picture.mode, picture.size, picture.info) == ("RGB", source.size, {})
    assert (source.mode, source.size, source.tobytes(), dict(source.info)) == before
    assert decode_image(picture).tobytes() == picture.tobytes(), "decoding again changes nothing"
    assert decode_image(image_file(source)).tobytes() == picture.tobytes(), "replay keeps the same picture"
    kept = Anchor.of(Example("q", "a", (source,)), "t").example().load_images()[0]
    assert kept.tobytes() == picture.tobytes()
    if mode in ("L", "I;16", "I", "F"):
        values = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
        if mode != "F" or values.max() > 1:  # floats up to 1 are shares of white
            assert np.array_equal(pixels(source), values[..., None].repeat(3, 2))


@SETTINGS
@given(colour=COLOURS)
@example(colour=np.array([[[9, 9, 9, 0], [0, 0, 0, 255]]], np.uint8))
def test_transparency_is_seen_on_white(colour):
    alpha = colour[..., 3:].astype(int)
    expected = (colour[..., :3] * alpha + 255 * (255 - alpha)) / 255
    for form in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        assert np.abs(pixels(saved(Image.fromarray(colour), form, **options)) - expected).max() <= 1


def test_transparent_palettes_and_colour_keys_are_white_and_never_black():
    picture = Image.new("RGB", (4, 2), "red")
    picture.paste("black", (2, 0, 4, 2))
    palette = picture.quantize(4)
    key = palette.getpixel((3, 0))
    deep = Image.fromarray(np.array([[65535, 65535, 256, 256]], np.uint16))
    own = Image.new("P", (2, 1))
    own.putpalette(bytes([255, 0, 0, 255, 0, 0, 0, 0]), "RGBA")
    own.putpixel((1, 0), 1)
    for source in (
        saved(palette, "PNG", transparency=key),
        saved(palette, "GIF", transparency=key),
        saved(palette, "PNG", transparency=bytes(0 if i == key else 255 for i in range(4))),
        saved(picture, "PNG", transparency=(0, 0, 0)),
        saved(picture.convert("L"), "PNG", transparency=0),
        saved(deep, "PNG", transparency=256),
        own,
    ):
        seen = decode_image(source)
        assert seen.getpixel((seen.width - 1, 0)) == (255, 255, 255)
        assert seen.getpixel((0, 0)) != (0, 0, 0)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
@SETTINGS
@given(values=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@example(values=RAMP)
def test_a_grey_of_16_bits_is_its_twin_of_8_bits(tmp_path, form, values):
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    data = saved(Image.fromarray(values.astype(np.uint16) * 257), form)
    for seen in every_way(data, tmp_path / "grey"):
        assert np.array_equal(seen, values[..., None].repeat(3, 2))


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.float32) / 255,
        RAMP.astype(np.float32),
        RAMP.astype(np.float32) * 257,
        RAMP.astype(np.float32) * 1e30 - 1e31,
        RAMP.astype(np.int32),
        RAMP.astype(np.int32) * 257,
        RAMP.astype(np.int32) * 5_000_000 - 600_000_000,
        RAMP.astype(np.int32) - 2_000_000_000,
    ],
)
def test_greys_without_a_range_of_their_own_keep_their_ramp(tmp_path, values):
    for seen in every_way(saved(Image.fromarray(values), "TIFF"), tmp_path / "grey.tif"):
        assert np.abs(seen[..., 0] - RAMP.astype(int)).max() <= 1


def test_tiffs_of_12_bits_and_with_white_as_zero_are_read_as_they_say():
    grey = Image.fromarray(RAMP.astype(np.uint16) * 257)
    data = saved(grey, "TIFF")
    black_is_zero = b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00"
    assert data.count(black_is_zero) == 1
    turned = data.replace(black_is_zero, black_is_zero[:-2] + b"\x00\x00")
    assert np.array_equal(pixels(turned)[..., 0], 255 - RAMP.astype(int))
    bits = b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00"
    packed = np.unpackbits((RAMP.astype(np.uint16) << 4).astype(">u2").view(np.uint8)).reshape(16, 16, 16)[..., 4:]
    narrow = data.replace(bits, bits[:-2] + b"\x0c\x00").replace(
        grey.tobytes(), np.packbits(packed).tobytes().ljust(512, b"\0")
    )
    assert np.array_equal(pixels(narrow)[..., 0], RAMP.astype(int))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_grey_that_is_not_finite_is_refused(bad):
    values = RAMP.astype(np.float32)
    values[3, 3] = bad
    with pytest.raises(ValueError, match=r"image given as an object: .*not finite"):
        decode_image(Image.fromarray(values))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_seen(tmp_path, form):
    if form not in Image.SAVE_ALL:
        pytest.skip(f"this Pillow has no {form}")
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    data = saved(first, form, save_all=True, append_images=[second])
    for seen in every_way(data, tmp_path / "moving"):
        assert np.abs(seen - [255, 0, 0]).max() < 8


def test_pictures_that_differ_only_in_their_palette_have_names_of_their_own():
    made = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        picture = Image.new("P", (4, 4))
        picture.putpalette(bytes(colour))
        made.append(Example("q", "a", (picture,)).identifier)
    assert made[0] != made[1]


def test_many_threads_decode_the_same_and_leave_warnings_as_they_were():
    data = saved(Image.effect_noise((64, 64), 50), "JPEG")
    expected, before = decode_image(data).tobytes(), list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: decode_image(data).tobytes(), range(400))) == {expected}
    assert list(warnings.filters) == before


def test_no_picture_starts_another_program(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    path = tmp_path / "evil.png"
    path.write_bytes(fuzz_images.EPS)
    sources = [path, path.read_bytes(), Image.open(path, formats=["EPS"])]
    for source in sources:
        with pytest.raises(ValueError, match=r"known are|EPS is not read"):
            decode_image(source)
    with pytest.raises(ValueError, match=r"evil\.png: not a readable picture"):
        check_image(path)
    assert "EPS" not in FORMATS


@pytest.mark.parametrize(
    "size, said",
    [
        ((1, 2**26), f"at most {MAX_IMAGE_SIDE:,} pixels a side"),
        ((MAX_IMAGE_SIDE + 1, 1000), f"at most {MAX_IMAGE_SIDE:,} pixels a side"),
        ((MAX_IMAGE_ASPECT + 1, 1), f"at most {MAX_IMAGE_ASPECT} times the other"),
        ((8, 3000), f"at most {MAX_IMAGE_ASPECT} times the other"),
        ((2**20, 2**20), "at most 67,108,864 pixels"),
    ],
)
def test_a_picture_out_of_bounds_is_refused_by_its_header(tmp_path, monkeypatch, size, said):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    path = png_header_only(tmp_path / "long.png", *size)
    for refuse in (check_image, decode_image):
        with pytest.raises(ValueError, match=rf"long\.png: .*{said}"):
            refuse(path)
    with pytest.raises(ValueError, match=said):
        decode_image(path.read_bytes())


def test_the_bounds_themselves_are_allowed(tmp_path):
    for size in ((MAX_IMAGE_ASPECT, 1), (MAX_IMAGE_SIDE, 1000)):
        assert check_image(png_header_only(tmp_path / "edge.png", *size)) == size
    assert decode_image(Image.new("RGB", (MAX_IMAGE_ASPECT, 1))).size == (MAX_IMAGE_ASPECT, 1)
    with pytest.raises(ValueError, match="times the other"):
        decode_image(Image.new("RGB", (MAX_IMAGE_ASPECT + 1, 1)))


def test_a_data_uri_is_its_picture_within_the_limits(monkeypatch):
    data = saved(Image.new("RGB", (4, 4), "red"), "PNG")
    text = base64.b64encode(data).decode()
    for head in ("data:image/png;base64,", "DATA:image/svg+xml;name=a.png;base64,", "data:;base64,"):
        assert from_data_uri(head + text) == data
    assert from_data_uri(f"data:image/png;base64,{text[:9]}\n{text[9:]}") == data
    for bad, said in (
        (f"data:image/png,{text}", "must be data:image"),
        (f"data:text/html;base64,{text}", "must be data:image"),
        ("data:image/png;base64,@@@@", "not base64"),
        ("data:image/png;base64,AAAA", "not a readable picture"),
        ("data:image/png;base64," + "A" * 100, "not a readable picture"),
    ):
        with pytest.raises(ValueError, match=said):
            from_data_uri(bad)
    monkeypatch.setattr("inducekv.pictures.MAX_IMAGE_BYTES", 50)
    with pytest.raises(ValueError, match="at most 50 are allowed"):
        from_data_uri("data:image/png;base64," + "A" * 100)


@pytest.mark.parametrize("name", ["\x1b[31mred.png", "x" * 300 + ".png", "a\nb.png", "\udcff.png", "a" * 3000])
def test_a_name_cannot_steer_a_terminal_or_fill_it(tmp_path, name):
    with pytest.raises(ValueError, match=r"^image ") as said:
        check_image(tmp_path / name)
    assert len(str(said.value)) <= LONGEST_MESSAGE and "\x1b" not in str(said.value)
    str(said.value).encode()


@SETTINGS
@given(value=st.recursive(st.text() | st.binary() | st.floats() | st.none(), st.lists, max_leaves=5), text=st.text())
@example(value=b"x" * 10**7, text="x" * 10**6)
def test_what_messages_show_is_short_and_printable(value, text):
    assert len(shown(value)) <= 80 and shown(value).isprintable()
    assert len(message(text)) <= LONGEST_MESSAGE and message(text).replace("\n", "").isprintable()
    assert len(shown_name(text)) <= 150
    if len(text) <= 150 and text.isprintable():
        assert shown_name(text) == message(text) == text


def test_damaged_files_are_refused_or_decoded_and_nothing_else():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fuzz_images.fuzz(600, seed=1, seconds=60)
    assert not found.faults, found.faults
    assert found.counts["decoded"] > 20 and found.counts["refused"] > 100


def test_the_fuzzer_sees_faults_and_repeats_itself(monkeypatch):
    names, files = [], fuzz_images.originals()
    for _ in range(2):
        seen = []
        monkeypatch.setattr(fuzz_images, "outcome", lambda data, seen=seen: seen.append(data) or "decoded")
        fuzz_images.fuzz(30, seed=3)
        names.append(seen)
    assert names[0] == names[1] and len(set(names[0]) - set(files.values())) > 20
    monkeypatch.undo()
    for wrong in (lambda data: Image.new("L", (1, 1)), lambda data: 1 / 0):
        monkeypatch.setattr(fuzz_images, "decode_image", wrong)
        assert len(fuzz_images.fuzz(3, seed=0).faults) == 3
