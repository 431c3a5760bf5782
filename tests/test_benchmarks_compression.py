"""The compression benchmark runs, asks what it says it asks, and counts bytes."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from inducekv.backbone import Backbone
from inducekv.compression import cache_bytes
from inducekv.embedded import path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def compression(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compression

    threads = torch.get_num_threads()
    yield compression
    torch.set_num_threads(threads)


def test_reports_every_method_with_its_bytes(compression: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["ShiftKV", "RotateKV, 4 bits", "RetentiveKV", "RetentiveKV's score, plain", compression.SAME_BYTES]
    arguments = ["--json", "--quiet", "--no-peers", "--tasks", "naming", "--seeds", "0", "--limit", "1"]
    compression.main([*arguments, "--budgets", "0.2", "--methods", *names])
    report = json.loads(capsys.readouterr().out)
    shares = {row["method"]: row["share"] for row in report["table"]}
    assert set(shares) == {compression.FULL, *names} and not report["peers"]
    assert 15 < shares["ShiftKV"] <= 20.5
    assert shares["RetentiveKV's score, plain"] < shares[compression.SAME_BYTES] <= shares["RetentiveKV"]
    accuracy = {row["method"]: row["accuracy"] for row in report["table"]}
    assert accuracy[compression.FULL] >= 60 and all(0 <= x <= 100 for x in accuracy.values())


def test_asking_afterwards_is_asking_in_one_prompt(compression: Any) -> None:
    import _compression_task as task

    backbone = Backbone.from_pretrained(path())
    turns, questions = task.episode("naming", 1, 0)
    prompt = task.prompt_of(backbone.processor, turns, questions[:2])
    got = task.read(backbone.model, backbone.processor.tokenizer, prompt, nullcontext, cache_bytes)
    whole = {
        name: torch.cat([prompt.context[name], prompt.questions[name][:1]], 1) for name in prompt.context
    }  # tokens and pictures alike: both have them on the second axis
    tokens = backbone.model.generate(**whole, max_new_tokens=12, do_sample=False)[0, whole["input_ids"].shape[1] :]
    assert got.texts[0] == backbone.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert got.bytes == prompt.tokens * backbone.layers * 2 * 2 * 32 * 4
    assert prompt.digest() == task.prompt_of(backbone.processor, turns, questions[:2]).digest()


def test_a_small_budget_is_printed_as_it_is(compression: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quiet", "--no-peers", "--tasks", "naming", "--seeds", "0", "--limit", "1"]
    compression.main([*arguments, "--budgets", "0.05", "--methods", "ShiftKV"])
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()][-1] == ["5", "%", "ShiftKV"]
