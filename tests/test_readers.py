"""Every form of example file, and what is said of a bad one."""

import json

import pytest
from PIL import Image

from inducekv.examples import Example
from inducekv.readers import read_examples
from pictures import png_header_only


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    return tmp_path


def write(path, rows, *, lines=True):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


def told(examples):
    return [(e.question, e.answer, [image.getpixel((0, 0)) for image in e.load_images()]) for e in examples]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_jsonl(folder):
    rows = [
        {"image": "a.png", "question": "Which?", "answer": "Red. It is plain.", "kind": "fine"},
        {"images": ["a.png", "b.png"], "question": "Both?", "answer": "yes", "id": 7},
        {"question": "No picture?", "answer": "none"},
    ]
    examples = read_examples(write(folder / "data.jsonl", rows))
    assert told(examples) == [
        ("Which?", "Red. It is plain.", [RED]),
        ("Both?", "yes", [RED, BLUE]),
        ("No picture?", "none", []),
    ]
    assert dict(examples[0].metadata) == {"kind": "fine"}
    assert examples[1].id == "7"


def test_a_folder_gives_the_split_asked_for(folder):
    write(folder / "train.jsonl", [{"question": "q", "answer": "train"}])
    write(folder / "test.json", [{"question": "q", "answer": "test"}], lines=False)
    assert read_examples(folder)[0].answer == "train"
    assert read_examples(str(folder), split="test")[0].answer == "test"


LLAVA = {
    "id": "x",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhich colour?"},
        {"from": "gpt", "value": "Red."},
        {"from": "human", "value": "And the shape?"},
        {"from": "gpt", "value": "Square."},
    ],
}
CHAT = {
    "images": ["a.png"],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ],
}
INLINE = {
    "prompt": [{"role": "user", "content": [{"type": "image", "image": "b.png"}, {"type": "text", "text": "Colour?"}]}],
    "completion": [{"role": "assistant", "content": "Blue."}],
}


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(
    "row, expected",
    [
        (LLAVA, [("Which colour?", "Red.", [RED]), ("And the shape?", "Square.", [RED])]),
        (CHAT, [("Be brief.\nWhich colour?", "Red.", [RED])]),
        (INLINE, [("Colour?", "Blue.", [BLUE])]),
    ],
    ids=["llava", "messages", "prompt-completion"],
)
def test_conversations(folder, row, expected, lines):
    assert told(read_examples(write(folder / "data.json", [row], lines=lines))) == expected


def test_turns_of_one_conversation_have_names_of_their_own(folder):
    twice = [LLAVA, LLAVA]
    ids = [example.id for example in read_examples(write(folder / "data.json", twice, lines=False))]
    assert ids == ["x#1", "x#2", "x#1:2", "x#2:2"]


def test_datasets_object(folder):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [str(folder / "a.png")], "question": ["Which?"], "answer": ["red"]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    assert told(read_examples(dataset)) == [("Which?", "red", [RED])]
    with pytest.raises(TypeError, match="choose one of them: train"):
        read_examples(datasets.DatasetDict(train=dataset))


def test_a_datasets_picture_stays_a_file_until_it_is_used(folder):
    datasets = pytest.importorskip("datasets")
    file = (folder / "a.png").read_bytes()
    rows = {"image": [{"bytes": file, "path": None}], "question": ["Which?"], "answer": ["red"]}
    examples = read_examples(datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()))
    assert told(examples) == [("Which?", "red", [RED])]
    assert examples[0].images == (file,), "decoded pictures of a whole dataset take much room"


def test_a_datasets_picture_is_checked_before_it_is_decoded(folder):
    datasets = pytest.importorskip("datasets")
    huge = png_header_only(folder / "huge.png", 30_000, 30_000)
    rows = {"image": [str(huge)], "question": ["Which?"], "answer": ["red"]}
    with pytest.raises(ValueError, match="at most 67,108,864 pixels"):
        read_examples(datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()))


def test_rows_in_memory(folder):
    picture = Image.open(folder / "b.png")
    rows = [{"image": picture, "question": "Which?", "answer": "blue"}, Example("q", "a")]
    assert told(read_examples(rows)) == [("Which?", "blue", [BLUE]), ("q", "a", [])]


def test_answers_may_be_optional(folder):
    path = write(folder / "data.jsonl", [{"question": "Which?"}])
    assert read_examples(path, answers="optional")[0].answer is None
    with pytest.raises((ValueError, TypeError), match="maybe"):
        read_examples(path, answers="maybe")


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    "row, said",
    [
        ({"question": "q"}, "no answer"),
        ({"question": "q", "answer": "  "}, "no answer"),
        ({"question": "q", "answer": None}, "no answer"),
        ({"question": "q", "answer": ["a"]}, "answer must be text"),
        ({"answer": "a"}, "no question"),
        ({"caption": "c"}, "no question.*'caption'"),
        ([1, 2], "must be an object"),
        ({**GOOD, "image": "gone.png"}, r"gone\.png: no such file"),
        ({**GOOD, "image": "../out.png"}, "leaves the folder"),
        ({**GOOD, "image": "/etc/hostname"}, "leaves the folder"),
        ({**GOOD, "image": "link.png"}, "leaves the folder"),
        ({**GOOD, "image": 3}, "path of a picture"),
        ({**GOOD, "image": "text.png"}, "not a readable picture"),
        ({**GOOD, "image": "huge.png"}, "at most 67,108,864 pixels"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "without a question"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "no answer"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "text or an image"),
        ({"messages": "hello"}, "list of turns"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(folder, row, said):
    outside = folder.parent / f"{folder.name}-outside.png"
    Image.new("RGB", (4, 4)).save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "text.png").write_text("no picture")
    png_header_only(folder / "huge.png", 30_000, 30_000)
    with pytest.raises(ValueError, match=rf"(?s)data\.jsonl, line 2: .*{said}"):
        read_examples(write(folder / "data.jsonl", [GOOD, row]))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "no examples"),
        (b"[]", "no examples"),
        (b"\n\n", "no examples"),
        (b'{"question": "q", "answer": "a"}\n{"question"', "line 2: not JSON"),
        (b"[1, ", "not JSON"),
        (b"\xff\xfe\x00", "not a UTF-8"),
        (b"[" * 100_000, "not a UTF-8 JSON|not JSON"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, said):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"data\.json.*({said})"):
        read_examples(path)


def test_missing_files_and_other_things(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_examples(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match=r"train\.jsonl"):
        read_examples(tmp_path)
    with pytest.raises(TypeError, match="int"):
        read_examples(3)
    with pytest.raises(TypeError, match="put it in a list"):
        read_examples(GOOD)
