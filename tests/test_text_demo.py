"""The demo on real text: its sample, its pieces on a tiny model, and what it says before it downloads."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from commands import refused, run, run_json
from inducekv import read_examples, sample
from inducekv.backbone import Backbone
from inducekv.continual import text_demo
from inducekv.continual.graders import EXACT, GRADERS
from inducekv.continual.text_demo import cpu_dtype, stream_of_text_demo
from inducekv.lengths import longest_answer

METHODS = ["zero_shot", "nearest_neighbour", "inducekv"]


def test_the_sample_is_small_attributed_and_asks_nothing_that_it_teaches() -> None:
    files = [path for path in sample.path().rglob("*") if path.suffix in (".jsonl", ".md")]
    assert sum(path.stat().st_size for path in files) < 150_000
    told = (sample.path() / sample.ATTRIBUTION).read_text(encoding="utf-8")
    for experience in stream_of_text_demo(1000, 1000).experiences:
        assert experience.task in told
        assert (len(experience.train), len(experience.test)) == (96, 32)
        assert not {example.question for example in experience.train} & {
            example.question for example in experience.test
        }
        assert not any(example.images for example in (*experience.train, *experience.test))
        assert "choose one" not in "".join(example.question for example in experience.train).lower()
        if experience.grader is EXACT:
            assert {e.answer for e in experience.test} <= {e.answer for e in experience.train}
        else:
            right = [example.answer or "" for example in experience.test]
            assert experience.grader.scores(right, experience.test).mean() == 1
    for licence in ("CC BY 3.0", "CC BY 4.0", "CC0 1.0"):
        assert licence in told


def test_the_stream_is_two_tasks_of_intents_and_two_of_slots() -> None:
    stream = stream_of_text_demo(5, 3)
    assert stream.tasks == list(sample.TASKS)
    assert [len(experience.train) for experience in stream.experiences] == [5] * 4
    graders = [experience.grader for experience in stream.experiences]
    assert graders.count(EXACT) == graders.count(GRADERS["slot_f1"]) == 2


def test_the_sample_can_be_written_as_data(tmp_path: Path) -> None:
    written = run_json("demo", "--text", "--write-data", tmp_path / "data")["folders"]
    assert [Path(folder).name for folder in written] == list(sample.TASKS)
    for folder in written:
        assert len(read_examples(folder)) == 96 and len(read_examples(folder, split="test")) == 32
    assert (tmp_path / "data" / sample.ATTRIBUTION).is_file(), "the licences ask that it goes along"
    refused(run("demo", "--text", "--write-data", tmp_path / "data"), "is there already")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A tiny random model in place of the published one, and a few rows a task."""
    backbone = tiny.llama(torch.float32)
    monkeypatch.setattr(text_demo, "stream_of_text_demo", partial(stream_of_text_demo, 4, 2))
    monkeypatch.setattr(Backbone, "from_pretrained", classmethod(lambda cls, name, **options: backbone))
    return backbone


def _fetching(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[str]:
    fetched: list[str] = []
    monkeypatch.setenv("INDUCEKV_CACHE", str(cache))
    monkeypatch.setattr("inducekv.fetching.fetch", lambda model, progress: fetched.append(model.name))
    return fetched


def test_the_demo_shows_methods_sources_and_a_report(
    short: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "gguf"):
        pytest.importorskip(module)
    fetched = _fetching(monkeypatch, tmp_path)
    shown = run("demo", "--text", "--report", tmp_path / "report")
    assert shown.exit_code == 0, shown.output
    assert fetched == ["smollm2"]
    assert "downloads 93.8 MiB" in shown.stdout, "what is downloaded, and how much, is said before"
    assert "16 MiB for each method" in shown.stdout
    assert shown.stdout.count("read from") == 3
    assert "Sequential LoRA is left out" in shown.stdout
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Slots: F1" in page and "pictures" not in page
    assert page.count("<article>") == 8


def test_the_demo_fetches_nothing_that_is_there(
    short: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    fetched = _fetching(monkeypatch, tmp_path)
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    (tmp_path / "models" / "smollm2" / "config.json").write_text("{}")
    figures = run_json("demo", "--text", "--budget", "64KiB", "--report", tmp_path / "report")
    assert fetched == []
    assert (figures["tasks"], list(figures["methods"])) == (list(sample.TASKS), METHODS)
    assert all(0 <= method["deployed_bytes"] <= 65536 for method in figures["methods"].values())


@pytest.mark.parametrize(("float32", "expected"), [(8.0, torch.bfloat16), (1.5, torch.float32), (0.5, torch.float32)])
def test_bfloat16_is_taken_where_it_is_several_times_faster(
    float32: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_demo, "_seconds", lambda dtype: float32 if dtype == torch.float32 else 1.0)
    assert cpu_dtype() == expected


def test_answers_may_be_as_long_as_those_learned() -> None:
    backbone: Any = tiny.llama()
    examples = [tiny.example(1, images=0), tiny.example(2, images=0)]
    tokenizer = backbone.processor.tokenizer
    longest = max(len(tokenizer(e.answer, add_special_tokens=False)["input_ids"]) for e in examples)
    assert longest_answer(examples, tokenizer) == longest + 2
    assert longest_answer([], tokenizer) == 2
