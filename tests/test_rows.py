"""Rows that ask for pictures have them, missing values are missing, and what is refused is named in short words."""

import base64
import json
import math
import re
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.table import Table

import tiny
from commands import refused, run
from inducekv import InducedModel, InduceKVConfig
from inducekv.cli.common import out
from inducekv.continual.streams.files import json_file, within
from inducekv.continual.streams.rows import llava
from inducekv.error_text import LONGEST_MESSAGE
from inducekv.examples import Example
from inducekv.readers import read_examples

pandas = pytest.importorskip("pandas")
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(min_size=1).filter(lambda text: text.strip() and "<" not in text)
MISSING = [None, math.nan, np.float32("nan"), np.float64("nan"), pandas.NA, pandas.NaT, np.datetime64("NaT")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for number, name in enumerate("abc"):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{name}.png")
    return folder


def uri(path):
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def wrote(folder, *rows, name="rows.jsonl"):
    path = folder / name
    text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    return path


def read(folder, *rows):
    return read_examples(wrote(folder, *rows))


def said(folder, *rows):
    """What the refusal of the last row says."""
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line {len(rows)}: ") as error:
        read(folder, *rows)
    assert len(str(error.value)) <= LONGEST_MESSAGE
    assert str(error.value).replace("\n", "").isprintable()
    return str(error.value)


def as_plain(text, column, parts):
    return {"question": text, "answer": "a", "images": column}


def as_llava(text, column, parts):
    return {"image": column, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "a"}]}


def as_chat(text, column, parts):
    content = [*parts, {"type": "text", "text": text}]
    return {"images": column, "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]}


def as_prompt(text, column, parts):
    chat = as_chat(text, column, parts)
    return {"images": column, "prompt": chat["messages"][:1], "completion": chat["messages"][1:]}


@SETTINGS
@given(
    form=st.sampled_from([as_plain, as_llava, as_chat, as_prompt]),
    marks=st.integers(0, 3),
    column=st.lists(st.sampled_from(["a.png", "b.png", "c.png"]), max_size=3),
    bare=st.integers(0, 2),
    inline=st.lists(st.sampled_from(["a.png", "data"]), max_size=2),
    text=TEXT,
)
def test_a_row_has_the_pictures_it_asks_for_or_is_refused(folder, form, marks, column, bare, inline, text):
    assume(form in (as_chat, as_prompt) or not (bare or inline))
    given_inside = [{"type": "image", "image": uri(folder / "b.png") if each == "data" else each} for each in inline]
    row = form("<image>\n" * marks + text, column, [{"type": "image"}] * bare + given_inside)
    if marks + bare in (0, len(column)):
        (example,) = read(folder, row)
        assert example.question == text.strip()
        names = [*column, *("b.png" if each == "data" else each for each in inline)]
        expected = [Image.open(folder / name).getpixel((0, 0)) for name in names]
        assert [image.getpixel((0, 0)) for image in example.load_images()] == expected
        assert example.origin == f"{folder / 'rows.jsonl'}, line 1"
    else:
        assert f"asks for {marks + bare} pictures" in said(folder, row)


@pytest.mark.parametrize(
    "text, question",
    [
        ("<image>\nwhat?", "what?"),
        ("<image> what?", "what?"),
        ("what?\n<image>", "what?"),
        ("what is this? <image>", "what is this?"),
        ("<image><image>\nwhich?", "which?"),
        ("is <image> larger than <image>?", "is picture 1 larger than picture 2?"),
        ("first: <image>\nsecond: <image>\ncompare", "first: picture 1\nsecond: picture 2\ncompare"),
        ("<image>\nis this like <image>?", "is this like picture 2?"),
    ],
)
def test_marks_are_taken_out_but_not_out_of_a_sentence(folder, text, question):
    row = {"question": text, "answer": "a", "images": ["a.png"] * text.count("<image>")}
    assert [example.question for example in read(folder, row)] == [question]
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "a"}] * 2
    first, second = read(folder, {"image": ["a.png"] * 2 * text.count("<image>"), "conversations": turns})
    marks = text.count("<image>")
    assert first.question == question
    assert second.question == re.sub(r"\d", lambda number: str(int(number.group()) + marks), question)


@pytest.mark.parametrize(
    "row, why",
    [
        ({"question": "what is in <image 2>?", "image": "a.png"}, "asks for picture 2 and has 1"),
        ({"question": "what is in <|image_1|>?"}, "asks for picture 1 and has 0"),
        ({"question": "<|image|>what?"}, "asks for a picture"),
        ({"question": "<image>what?", "image": None}, "asks for 1 pictures .* and has 0"),
        ({"question": "q", "image": "a.png", "images": ["b.png"]}, "both `images` and `image`"),
        ({"question": "q", "image": {"url": "a.png"}}, "must be the path"),
        ({"question": "q", "image": "https://example.org/" + "a" * 900 + ".png"}, "not fetched"),
        ({"question": "q", "image": "file:///etc/hostname"}, "not fetched"),
        ({"question": "q", "image": "data:image/png;base64," + "A" * 9000}, "not a readable picture"),
        ({"question": "q", "image": "x" * 900 + ".png"}, "name too long"),
        ({"question": "q", "image": "\x1b[31m.png"}, "no such file"),
        ({"question": "q", "answer": float("inf")}, "answer must be text"),
        ({"question": "q", "answer": {"a": "b" * 9000}}, "answer must be text"),
        ({"question": ["q" * 900] * 900}, "no question"),
        ({"id": ["x"], "question": "q"}, "an id must be"),
        ({"messages": [{"role": "u" * 9000, "content": "x"}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": "x" * 9000}]}]}, "text or an image"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": "x"}}]}]}, "as `image` or"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "base64": "x" * 900}]}]}, "as `image` or"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}]},
            "data: URI",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "image": "a.png"}]}]}, "is not read"),
        ({"messages": [{"role": "user", "content": "q"}], "conversations": [{"from": "human", "value": "r"}]}, "both"),
        ('{"question": "q", "answer": "a", "answer": "b"}', "'answer' is there twice"),
        ('{"question": "q", "answer": ' + "9" * 9000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_short_words(folder, row, why):
    if isinstance(row, dict) and "question" in row:
        row = {"answer": "a"} | row
    assert re.search(why, said(folder, {"question": "q", "answer": "a"}, row))


PICTURES = [
    {"imgs": ["a.png"]},
    {"image_path": "a.png"},
    {"imagePath": "a.png"},
    {"image1": "a.png"},
    {"picture": "somewhere"},
    {"photo_file": "x"},
    {"video": "clip"},
    {"left_image": "a.png"},
    {"scan": "a.JPG"},
    {"extra": ["data:image/png;base64,AAAA"]},
    {"depth": {"bytes": None, "path": "a.png"}},
]


@pytest.mark.parametrize("column", PICTURES)
def test_pictures_in_a_column_that_is_not_read_are_refused(folder, column):
    row = {"question": "q", "answer": "a"}
    key = next(iter(column))
    assert f"column '{key}'" in said(folder, row | column)
    read(folder, row | dict.fromkeys(column))
    if key not in ("scan", "depth"):  # names of some other kind may be kept beside a picture that is read
        assert f"column '{key}'" in said(folder, row | column | {"image": "b.png"})
    with pytest.raises(ValueError, match=f"column '{key}'"):
        read_examples([row | {key: Image.new("RGB", (2, 2))} | {"image": Image.new("RGB", (2, 2))}])
    with pytest.raises(ValueError, match=f"column '{key}'"):
        read_examples([row | {key: [{"bytes": b"x", "path": None}]}])


def test_columns_that_are_about_a_picture_are_kept(folder):
    about = {
        "image_id": 7,
        "image_width": 640,
        "image_size": [4, 4],
        "img_id": "COCO_train2014_000000000009",
        "image_caption": "A red square.",
        "image_path": "elsewhere/a.png",
        "file_name": "000009.jpg",
        "coco_url": "http://example.org/000009.jpg",
        "captions": ["a dog", "a cat"],
        "label": {"red": 1.0},
    }
    (example,) = read(folder, {"image": "a.png", "question": "q", "answer": "a", **about})
    assert dict(example.metadata) == about


@SETTINGS
@given(field=st.sampled_from(["id", "image", "images", "answer", "extra"]), value=st.sampled_from(MISSING))
def test_a_missing_value_is_as_if_the_field_were_not_there(folder, field, value):
    row = {"id": "i", "image": folder / "a.png", "question": "q", "answer": "a", "extra": 1}
    row.pop("image" if field == "images" else field)
    (without,) = read_examples([row], answers="optional")
    (found,) = read_examples([row | {field: value}], answers="optional")
    assert found == without and found.metadata == without.metadata
    if isinstance(value, float):
        path = wrote(folder, {"question": "q", "answer": "a"} | {field: float("nan")})
        if field == "answer":
            with pytest.raises(ValueError, match="line 1: the row has no answer"):
                read_examples(path)
        else:
            assert read_examples(path)[0] == Example("q", "a")


def test_rows_of_pandas_with_holes_are_refused_or_read_without_them():
    frame = pandas.DataFrame({"question": ["one?", "two?"], "answer": pandas.array(["3", None], dtype="string")})
    with pytest.raises(ValueError, match="row 2: the row has no answer"):
        read_examples(frame.to_dict("records"))
    whole = pandas.DataFrame({"question": ["one?"], "answer": np.array([3])})
    assert [e.answer for e in read_examples(whole.to_dict("records"))] == ["3"]
    assert [e.answer for e in read_examples([{"question": "q", "answer": np.int64(4)}])] == ["4"]


@SETTINGS
@given(question=TEXT, answer=TEXT, ends=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_only_a_line_feed_ends_a_line(folder, question, answer, ends):
    rows = [{"question": question, "answer": answer}, {"question": "two\u2028\x85\x1c", "answer": "b\u2029c"}]
    path = wrote(folder, ends.join(json.dumps(row, ensure_ascii=False) for row in rows) + ends)
    assert json_file(path) == rows
    found = [(example.question, example.answer) for example in read_examples(path)]
    assert found == [(row["question"].strip(), row["answer"].strip()) for row in rows]


@SETTINGS
@given(before=TEXT, half=st.characters(categories=["Cs"]), field=st.sampled_from(["question", "answer", "id"]))
def test_half_a_surrogate_pair_is_refused_with_its_line(folder, before, half, field):
    row = {"question": "q", "answer": "a", field: f"{before} {half} x"}
    assert f"{field} holds half a surrogate pair" in said(folder, json.dumps(row))
    with pytest.raises(ValueError, match="half a surrogate pair"):
        Example(**row)


NAMES = (
    "question answer image images messages conversations role from value content type text id prompt completion url "
    "image_url bytes path other"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a.png", "<image>", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=4),
    max_leaves=12,
)


@settings(SETTINGS, max_examples=300)
@given(row=JSON)
def test_any_json_is_read_or_refused_with_its_line(folder, row):
    for rows in ([row], [{"question": "q", "answer": "a"}, row]):
        path = wrote(folder, *map(json.dumps, rows))
        try:
            examples = read_examples(path, answers="optional")
        except ValueError as error:
            assert str(error).startswith(str(path)) and len(str(error)) <= LONGEST_MESSAGE
            assert str(error).replace("\n", "").isprintable()
        else:
            assert all(isinstance(example, Example) for example in examples)


def test_pictures_of_a_datasets_column_of_lists_stay_files(folder):
    datasets = pytest.importorskip("datasets")
    data = (folder / "a.png").read_bytes()
    rows = {"images": [[{"bytes": data, "path": None}] * 2], "question": ["q"], "answer": ["a"]}
    lists = getattr(datasets, "List", datasets.Sequence)
    features = datasets.Features(
        {"images": lists(datasets.Image()), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    (example,) = read_examples(datasets.Dataset.from_dict(rows, features=features))
    assert example.images == (data, data)


def test_a_published_row_reads_its_pictures_in_either_column(tmp_path):
    for row in ({"image": "a.png"}, {"images": ["a.png"]}, {"image": math.nan, "images": ["a.png"]}):
        row = {key: value for key, value in row.items() if value == value}
        assert llava(row, tmp_path)["images"] == [tmp_path / "a.png"]
    assert llava({"image": math.nan}, tmp_path)["images"] == []
    with pytest.raises(ValueError, match="both"):
        llava({"image": "a.png", "images": ["b.png"]}, tmp_path)
    for name in ("\x1b[31m/../../y", "../" + "x" * 900, 3):
        with pytest.raises(ValueError, match=r"leaves|must be text") as error:
            within(tmp_path, name)
        assert len(str(error.value)) <= LONGEST_MESSAGE and "\x1b" not in str(error.value)


def test_a_bad_line_of_a_benchmark_is_named(tmp_path):
    path = wrote(tmp_path, {"a": 1}, "", '{"a": ' + "9" * 9000 + "}")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: not a UTF-8 JSON file") as error:
        json_file(path)
    assert len(str(error.value)) <= LONGEST_MESSAGE


# -- what a model refuses


@pytest.fixture(scope="module")
def model():
    return InducedModel.from_pretrained(tiny.llava(), config=InduceKVConfig(budget="1MiB", outer_steps=1))


def test_a_text_longer_than_the_context_is_refused_before_anything_is_encoded(model, folder, monkeypatch):
    monkeypatch.setattr(type(model.backbone.text_model), "forward", lambda *_, **__: pytest.fail("encoded"))
    context = model.backbone.text_model.config.max_position_embeddings
    for text in ("w1 " * (context + 1), "w1 " * 400_000):
        rows = [{"question": "what?", "answer": "w1"}, {"id": "long", "question": text, "answer": "w2"}]
        examples = read(folder, *rows)
        for call in (lambda e=examples: model.learn(e, task="t"), lambda e=examples: model.answer_all(e)):
            with pytest.raises(
                ValueError, match=r"example 'long' .*rows\.jsonl, line 2\): .*tokens, more than"
            ) as error:
                call()
            assert len(str(error.value)) <= LONGEST_MESSAGE
    assert not len(model.memory)


def test_a_processor_that_refuses_is_told_with_the_example_and_its_file(model, folder, monkeypatch):
    rows = [{"question": "what?", "answer": "w1", "image": f"{name}.png"} for name in "ab"]
    (first, second) = read(folder, *rows)
    call = type(model.backbone.processor).__call__

    def picky(self, *, images=None, **options):
        if images and images[0].getpixel((0, 0)) == (1, 0, 0):
            raise IndexError("height must be larger than factor")
        return call(self, images=images, **options)

    monkeypatch.setattr(type(model.backbone.processor), "__call__", picky)
    with pytest.raises(ValueError, match=r"line 2; b\.png\): height must be larger than factor"):
        model.learn([first, second], task="t")


def test_the_models_own_mark_for_a_picture_is_refused_in_a_text(model):
    for picture in (None, tiny.picture(1)):
        with pytest.raises(ValueError, match=r"example 'what does <image> mean\?': the text holds <image>"):
            model.answer(picture, "what does <image> mean?")


def test_replay_refuses_a_broken_picture_by_its_example(folder):
    from inducekv.training_state import Anchor

    data = BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "JPEG")
    example = Example("q", "a", (data.getvalue()[:400],), id="cut", origin="rows.jsonl, line 7")
    with pytest.raises(ValueError, match=r"^example 'cut' \(rows\.jsonl, line 7\): image given as bytes: broken"):
        Anchor.of(example, "t")


def test_results_show_no_escapes_and_halves_of_characters(capsys):
    table = Table("\x1b[31mred", box=None)
    table.add_row("a\x1b]0;title\x07\ud83d\nb")
    for what in ("memory \x1b[31m/\udcff", table):
        out().print(what)
    printed = capsys.readouterr().out
    assert "memory \ufffd[31m/\ufffd" in printed and "a\ufffd]0;title\ufffd\ufffd" in printed
    assert printed.replace("\n", "").isprintable()


def test_the_command_line_shows_no_escapes(tmp_path):
    for arguments in (
        ("learn", tmp_path / "\x1b[31mred.jsonl", "--memory", tmp_path / "m"),
        ("ask", "q", "--memory", tmp_path, "--image", tmp_path / ("\x1b[31m" + "x" * 200)),
        ("inspect", tmp_path / ("\x1b]0;title\x07" + "x" * 200)),
    ):
        result = run(*arguments)
        refused(result)
        message = result.stderr
        assert "\x1b" not in message and "\x07" not in message and len(message.strip()) <= LONGEST_MESSAGE
