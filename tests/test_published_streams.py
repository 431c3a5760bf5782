"""Readers of published benchmarks and of a user's folders, on small downloads in the real layouts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inducekv.continual.graders import GRADERS
from inducekv.continual.streams import STREAMS, check_stream, stream_named
from inducekv.continual.streams.tables import VQA_TASKS
from inducekv.continual.streams.text import TEXT_STREAMS
from pictures import png_header_only

Made = dict[str, Any]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def learned(number: int, image: str | list[str] | None, answer: str = "red", **more: Any) -> Made:
    """A training row of LLaVA's schema."""
    marks = "<image>\n" * (len(image) if isinstance(image, list) else image is not None)
    turns = [{"from": "human", "value": f"{marks}Which colour is {number}?"}, {"from": "gpt", "value": answer}]
    return {"id": str(number), **({"image": image} if image else {}), "conversations": turns, **more}


def asked(number: int, image: str, answer: str = "red", **more: Any) -> Made:
    """A test row as CoIN, UCIT, MLLM-CL and CL-MoE hand it out."""
    return {"question_id": number, "image": image, "text": f"Which colour is {number}?", "answer": answer, **more}


def llava_task(train: Path, test: Path, images: Path, folder: str, test_images: Path | None = None, **row: Any) -> None:
    for name in ("a", "b", "c"):
        picture(images / folder / f"{name}.png")
        picture((test_images or images) / folder / f"{name}.png")
    write(train, [learned(i, f"{folder}/{name}.png", **row) for i, name in enumerate("abc")])
    write(test, [asked(i, f"./{folder}/{name}.png", **row) for i, name in enumerate("abc")])


def make_coin(root: Path) -> None:
    folders = {
        "ScienceQA": "ScienceQA/images",
        "TextVQA": "TextVQA/train_images",
        "ImageNet": "ImageNet_withlabel/n01440764",
        "GQA": "GQA/images",
        "VizWiz": "VizWiz/train",
        "Grounding": "COCO2014/train2014",
        "VQAv2": "COCO2014/train2014",
        "OCRVQA": "OCR-VQA/images",
    }
    instructions = root / "playground" / "Instructions_Original"
    for task, folder in folders.items():
        test = instructions / task / ("val.json" if task in ("VizWiz", "VQAv2") else "test.json")
        row: Made = {"answer": "A"} if task == "ScienceQA" else {}
        if task == "Grounding":
            row = {"answer": "[0.1,0.2,0.3,0.4]", "answer_bbox": "[0.1,0.2,0.3,0.4]", "size": [640, 480]}
        llava_task(instructions / task / "train.json", test, root / "cl_dataset", folder, **row)
    ten = [
        {"question_id": 30 + i, "image_id": str(i), "question": f"which colour is {i}?", "answers": ["red"] * 10}
        for i in range(3)
    ]
    write(root / "cl_dataset" / "TextVQA" / "TextVQA_0.5.1_val.json", {"data": ten})


def make_ucit(root: Path) -> None:
    for task, train, test in (
        ("ImageNet-R", "train.json", "test_3000.json"),
        ("ArxivQA", "train_4w.json", "test_3000.json"),
        ("VizWiz-caption", "train.json", "test_3000.json"),
        ("IconQA", "train.json", "test.json"),
        ("CLEVR-Math", "train_4w.json", "test_3000.json"),
        ("Flickr30k", "train_brief_4w.json", "test_3000.json"),
    ):
        llava_task(root / task / train, root / task / test, root, f"{task}/images")
    named = {
        "images": [{"id": 10 * i, "file_name": f"{name}.png"} for i, name in enumerate("cab")],
        "annotations": [{"image_id": 10 * i, "caption": f"picture {name}"} for i, name in enumerate("cab")],
    }
    write(root / "VizWiz-caption" / "val_coco_type_3000.json", named)
    ordered = {
        "images": [{"id": i, "file_name": f"other{i}.jpg"} for i in (1, 2, 3)],
        "annotations": [{"image_id": i, "caption": f"{text} {i}"} for i in (1, 2, 3) for text in ("one", "two")],
    }
    write(root / "Flickr30k" / "val_coco_type_3000.json", ordered)


def make_dcl(root: Path) -> None:
    for domain in ("RS", "Med", "AD", "Sci", "Fin"):
        folder = root / "Domain_data" / domain
        llava_task(folder / "train.json", folder / "test.json", folder, "images")


def make_acl(root: Path) -> None:
    for ability in ("OCR", "Math", "VP", "APP"):
        train, test = root / ability, root / f"{ability}_test"
        llava_task(train / "train.json", test / "test.json", train, "images", test_images=test)


def make_vqacl(root: Path) -> None:
    for task in VQA_TASKS:
        for split in ("train", "val", "test"):
            name = f"COCO_{'val' if split == 'test' else 'train'}2014_000000000009"
            picture(root / "datasets" / "COCO" / name.split("_")[1] / f"{name}.jpg")
            rows = [
                {
                    "question_id": 9000 + i,
                    "img_id": name,
                    "sent": f"what {task}?",
                    "label": {"net": 0.6, "yes": 1.0} if i else {},
                    "answers": [{"answer": "net", "answer_confidence": "yes", "answer_id": n} for n in range(10)],
                    "question_type": "what",
                }
                for i in range(2)
            ]
            write(root / "datasets" / "vqa" / "Partition_Q" / f"karpathy_{split}_q_{task}.json", rows)


def make_clmoe(root: Path) -> None:
    for task in VQA_TASKS:
        train, test = (root / "CL4VQA" / split / f"{split}_q_{task}.json" for split in ("train", "test"))
        llava_task(train, test, root / "data", "COCO2014/train2014")


def make_medical(root: Path) -> None:
    picture(root / "data_RAD" / "images" / "synpic1.jpg")
    picture(root / "data_Slake" / "imgs" / "xmlab1" / "source.jpg")
    picture(root / "data_PathVQA" / "images" / "train" / "train_0001.jpg")
    for split in ("train", "val", "test"):
        rows = [{"image": "train/train_0001", "question": "is it there?", "answer": "yes", "answer_type": "yes/no"}]
        write(root / "data_PathVQA" / f"pathvqa_{split}.json", rows)
    for split in ("train", "validate", "test"):
        slake: Made = {"img_name": "xmlab1/source.jpg", "question": "where?", "answer": "Liver", "answer_type": "OPEN"}
        rows = [{**slake, "qid": 1, "q_lang": "en"}, {**slake, "qid": 2, "q_lang": "zh", "question": "哪里?"}]
        write(root / "data_Slake" / f"{split}.json", rows)
    for split in ("trainset", "testset"):
        rows = [{"image_name": "synpic1.jpg", "question": "how many?", "answer": 3, "answer_type": "CLOSED"}]
        write(root / "data_RAD" / f"{split}.json", rows)


def make_liit(root: Path) -> None:
    for folder in ("llava", "m3it", "minigpt4", "mantis", "lamm", "visionflan"):
        picture(root / folder / "1.png")
        picture(root / folder / "2.png")
        rows = [
            learned(1, "1.png", task="captioning"),
            learned(2, ["1.png", "2.png"], task="vqa"),
            learned(3, None, task="reasoning"),
        ]
        for split in ("train", "test"):
            write(root / folder / f"{split}.json", rows)


MAKERS: dict[str, Callable[[Path], None]] = {
    "coin/p1": make_coin,
    "coin/p2": make_coin,
    "ucit": make_ucit,
    "mllm-dcl": make_dcl,
    "mllm-acl": make_acl,
    "vqav2/vqacl": make_vqacl,
    "vqav2/cl-moe": make_clmoe,
    "medical": make_medical,
    "liit": make_liit,
}


def test_every_published_stream_has_a_fixture() -> None:
    elsewhere = {"folder", *(kind.name for kind in TEXT_STREAMS)}
    assert set(MAKERS) == {name for name, kind in STREAMS.items() if kind.needs_root} - elsewhere
    assert all(kind.summary and kind.protocol for kind in STREAMS.values())


@pytest.mark.parametrize("name", MAKERS)
def test_a_complete_download_is_read_and_graded(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    assert check_stream(name, tmp_path) == []
    stream = stream_named(name, root=tmp_path)
    assert (stream.name, tuple(stream.tasks)) == (name, STREAMS[name].tasks)
    for experience in stream.experiences:
        assert all(image.is_file() for x in experience.train for image in x.images)
        assert "<image>" not in experience.train[0].question
        for grader in (experience.grader, experience.faithful_grader):
            if grader is not None and grader.name != "coco_caption":
                answers = [example.answer or "" for example in experience.test]
                expected = 0 if grader.name == "iou/faithful" else 1  # its parser cuts the box's last digit
                assert grader.scores(answers, experience.test).max() >= expected
    assert all(len(e.train) == 1 == len(e.test) for e in stream_named(name, root=tmp_path, limit=1).experiences)


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_folder_lacks_every_file(name: str, tmp_path: Path) -> None:
    problems = check_stream(name, tmp_path)
    for task in STREAMS[name].tasks:
        assert any(line.startswith(f"{task}, train: none of ") for line in problems)
        assert any(line.startswith(f"{task}, test: none of ") for line in problems)
    with pytest.raises(ValueError, match=f"task {STREAMS[name].tasks[0]}: none of "):
        stream_named(name, root=tmp_path)
    with pytest.raises(ValueError, match="give the folder of its download"):
        stream_named(name)
    assert check_stream(name, tmp_path / "gone") == [f"{tmp_path / 'gone'}: no such folder"]


def test_coin_knows_its_references_and_boxes(tmp_path: Path) -> None:
    make_coin(tmp_path)
    stream = {e.task: e for e in stream_named("coin/p1", root=tmp_path).experiences}
    assert stream["TextVQA"].test[0].references == ("red",) * 10
    assert stream["Grounding"].test[0].metadata["answer_bbox"] == "[0.1,0.2,0.3,0.4]"
    assert [stream[task].grader.name for task in stream] == [
        "scienceqa_letter/fixed",
        "vqa_soft",
        "imagenet_containment/fixed",
        "gqa",
        "upper",
        "iou/fixed",
        "upper",
        "ocr_vqa",
    ]
    assert stream["Grounding"].faithful_grader is GRADERS["iou/faithful"] and stream["GQA"].faithful_grader is None


def test_captions_go_with_their_picture_or_their_place(tmp_path: Path) -> None:
    make_ucit(tmp_path)
    stream = {e.task: e for e in stream_named("ucit", root=tmp_path).experiences}
    assert [x.references for x in stream["VizWiz-Caption"].test] == [("picture a",), ("picture b",), ("picture c",)]
    assert [x.references for x in stream["Flickr30k"].test] == [(f"one {i}", f"two {i}") for i in (1, 2, 3)]
    some = stream_named("ucit", root=tmp_path, limit=2, seed=3).experiences[5].test
    assert all(x.references[0] == f"one {int(x.identifier) + 1}" for x in some), "a sample keeps the places"


def test_vqacl_takes_the_best_label_and_its_soft_score(tmp_path: Path) -> None:
    make_vqacl(tmp_path)
    experience = stream_named("vqav2/vqacl", root=tmp_path).experiences[0]
    unlabelled, labelled = experience.test
    assert (unlabelled.answer, labelled.answer) == ("net", "yes")
    assert experience.grader.scores(["net", "net"], [unlabelled, labelled]).tolist() == [0, 0.6]
    assert len(experience.validation) == 2 and labelled.question.startswith("what recognition?\nAnswer the question")


def test_medical_reads_english_alone(tmp_path: Path) -> None:
    make_medical(tmp_path)
    slake = stream_named("medical", root=tmp_path).experiences[1]
    assert [x.identifier for x in slake.train] == ["1"] and slake.train[0].metadata["answer_type"] == "OPEN"


@pytest.mark.parametrize(
    "row, said",
    [
        (asked(1, "../../../out.png"), "leaves .*images; paths must stay inside|leaves .*; paths must stay inside"),
        (asked(1, "/etc/hostname"), "paths must stay inside"),
        (asked(1, "images/link.png"), "paths must stay inside"),
        (asked(1, "images/gone.png"), r"gone\.png: no such file"),
        (asked(1, "images/text.png"), "not a readable picture"),
        (asked(1, "images/huge.png"), "at most 67,108,864 pixels"),
        ({"question_id": 1, "image": "images/a.png", "text": "q"}, "no answer"),
        ({"question_id": 1, "image": "images/a.png", "answer": "a"}, "no question"),
        ({"question_id": 1, "image": 3, "text": "q", "answer": "a"}, "must be text, got 3"),
    ],
)
def test_a_bad_row_is_named_by_file_and_row(tmp_path: Path, row: Made, said: str) -> None:
    make_dcl(tmp_path)
    folder = tmp_path / "Domain_data" / "RS"
    picture(tmp_path.parent / f"{tmp_path.name}-out.png")
    (folder / "images" / "link.png").symlink_to(tmp_path.parent / f"{tmp_path.name}-out.png")
    (folder / "images" / "text.png").write_text("no picture")
    png_header_only(folder / "images" / "huge.png", 30_000, 30_000)
    write(folder / "test.json", [asked(0, "images/a.png"), *[row] * 5])
    with pytest.raises(ValueError, match=rf"(?s)test\.json, row 2: .*({said})"):
        stream_named("mllm-dcl", root=tmp_path)
    problems = check_stream("mllm-dcl", tmp_path)
    assert [line.split(": ")[0] for line in problems] == ["RS, test"] * 4
    assert "2 more such rows of 6" in problems[-1], "three are shown, the others counted"


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", "[[", "\udcff"])
def test_a_bad_file_is_named(tmp_path: Path, content: str) -> None:
    make_dcl(tmp_path)
    path = tmp_path / "Domain_data" / "AD" / "train.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"AD/train\.json: (not a UTF-8 JSON|expected a list)"):
        stream_named("mllm-dcl", root=tmp_path)
    assert len(check_stream("mllm-dcl", tmp_path)) == 1


def test_a_task_folder_that_leaves_the_root_is_refused(tmp_path: Path) -> None:
    make_dcl(tmp_path / "inside")
    (tmp_path / "inside" / "Domain_data" / "Fin").rename(tmp_path / "Fin")
    (tmp_path / "inside" / "Domain_data" / "Fin").symlink_to(tmp_path / "Fin")
    with pytest.raises(ValueError, match="paths must stay inside"):
        stream_named("mllm-dcl", root=tmp_path / "inside")
    assert any("paths must stay inside" in line for line in check_stream("mllm-dcl", tmp_path / "inside"))


def make_folders(root: Path) -> None:
    for task in ("2 shapes", "1 colours"):
        picture(root / task / "images" / "a.png")
        for split, number in (("train", 4), ("test", 3), ("validation", 2)):
            rows = [{"image": "images/a.png", "question": "q?", "answer": f"{split} {i}"} for i in range(number)]
            (root / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "notes").mkdir()


def test_a_users_folders_are_a_stream(tmp_path: Path) -> None:
    make_folders(tmp_path)
    assert check_stream("folder", tmp_path) == []
    stream = stream_named("folder", root=tmp_path)
    assert stream.tasks == ["1 colours", "2 shapes"]
    assert [len(part) for part in (stream.experiences[0].train, stream.experiences[0].test)] == [4, 3]
    assert len(stream.experiences[0].validation) == 2
    assert len(stream_named("folder", root=tmp_path, limit=1).experiences[0].train) == 1


def test_what_a_users_folder_lacks_is_named(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "1 colours" / "test.jsonl").unlink()
    (tmp_path / "2 shapes" / "images" / "a.png").unlink()
    problems = check_stream("folder", tmp_path)
    assert len(problems) == 2
    assert problems[0].startswith("1 colours: ") and "without test.jsonl" in problems[0]
    assert problems[1].startswith("2 shapes: ") and "no such file" in problems[1]
    (tmp_path / "empty").mkdir()
    for root, said in ((tmp_path / "empty", "no task folders"), (tmp_path / "gone", "needs a folder of task folders")):
        with pytest.raises(ValueError, match=said):
            stream_named("folder", root=root)
        assert len(check_stream("folder", root)) == 1


def test_a_users_task_folder_may_not_leave_the_root(tmp_path: Path) -> None:
    make_folders(tmp_path / "inside")
    (tmp_path / "inside" / "1 colours").rename(tmp_path / "outside")
    (tmp_path / "inside" / "1 colours").symlink_to(tmp_path / "outside")
    assert "must lie inside" in check_stream("folder", tmp_path / "inside")[0]
