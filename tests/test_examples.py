"""Example: pictures, limits, identifiers."""

import pytest
from PIL import Image

from inducekv.examples import MAX_IMAGE_PIXELS, Example, check_image, decode_image, image_key
from pictures import png_header_only


def test_a_huge_picture_is_refused_by_its_header(tmp_path, monkeypatch):
    path = png_header_only(tmp_path / "huge.png", 30_000, 30_000)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for refuse in (check_image, decode_image):
        with pytest.raises(ValueError, match=r"huge\.png: .*at most 67,108,864 pixels"):
            refuse(path)
    with pytest.raises(ValueError, match="pixels"):
        Example("what?", images=(path,)).load_images()


def test_the_limit_itself_is_allowed(tmp_path):
    side = int(MAX_IMAGE_PIXELS**0.5)
    assert check_image(png_header_only(tmp_path / "big.png", side, side)) == (side, side)


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "folder"])
def test_a_missing_or_broken_picture_is_named(tmp_path, damage):
    path = tmp_path / "picture.png"
    if damage == "text":
        path.write_text("no picture")
    elif damage == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:600])
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=r"picture\.png"):
        Example("what?", images=(path,)).load_images()


def test_the_bytes_of_a_picture_file_are_that_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    data = path.read_bytes()
    from_file, from_bytes = Example("q", "a", (path,)), Example("q", "a", data)
    assert from_bytes.images == (data,) and from_bytes.identifier == from_file.identifier
    assert from_bytes.load_images()[0].tobytes() == from_file.load_images()[0].tobytes()
    assert image_key(from_bytes) == image_key(Example("r", None, data)) != image_key(Example("q", "a", data + b"\0"))
    for damaged, why in ((data[:600], "broken"), (b"no picture", r"not a readable picture \(of no known format\)")):
        with pytest.raises(ValueError, match=f"given as bytes: {why}"):
            Example("q", "a", damaged).load_images()


def test_pictures_come_as_rgb_and_transparency_becomes_white(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(path)
    grey = Image.new("L", (1, 1), 7)
    clear, converted = Example("what?", images=(path, grey)).load_images()
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    assert converted.mode == "RGB"
    assert converted.getpixel((0, 0)) == (7, 7, 7)


def test_identifier_follows_the_content(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2), "red").save(path)
    same, again = Example("q", "a", (path,)), Example("q", "a", (path,), metadata={"line": 1})
    assert same.identifier == again.identifier
    others = [Example("q", "b", (path,)), Example("qa", "", (path,)), Example("q", "a"), Example("q", None, (path,))]
    assert len({same.identifier, *(other.identifier for other in others)}) == 5
    Image.new("RGB", (2, 2), "blue").save(path)
    assert same.identifier != Example("q", "a").identifier
    assert Example("q", id="mine").identifier == "mine"


def test_identifier_tells_pixels_apart():
    red, blue = (Example("q", images=(Image.new("RGB", (2, 2), colour),)) for colour in ("red", "blue"))
    assert red.identifier != blue.identifier
    assert len(red.identifier) == 16


@pytest.mark.parametrize("fields", [{"question": 3}, {"question": "q", "answer": 3}, {"question": "q", "images": (3,)}])
def test_wrong_types_are_named(fields):
    with pytest.raises(TypeError, match="3"):
        Example(**fields)
