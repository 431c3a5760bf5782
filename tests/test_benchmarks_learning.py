"""The benchmark of learning times runs every way to learn and sets each beside one epoch of LoRA."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def learning_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("peft")
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning_time

    threads = torch.get_num_threads()
    yield learning_time
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_reports_every_way_to_learn(learning_time: Any, capsys: pytest.CaptureFixture[str]) -> None:
    learning_time.main(["--json", "--tasks", "3", "--limit", "2"])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"settings", "rows", "seconds"}
    assert report["settings"]["examples_a_task"] == 2 and report["settings"]["clock"] == "cpu"
    rows = {row["method"]: row for row in report["rows"]}
    epoch, steps = learning_time.EPOCH, learning_time.STEPS
    ours = {"InduceKV, fast", "InduceKV", "InduceKV, a quarter of the bytes", "InduceKV, calibrated"}
    assert len(rows) == len(report["rows"]) and set(rows) == {*ours, epoch, steps, "LoRA, twenty epochs"}
    assert set(report["seconds"]) == set(rows)
    for name, seconds in report["seconds"].items():
        assert len(seconds) == 2, f"{name}: the first task is left out"
        assert rows[name]["seconds"] == pytest.approx(sum(seconds) / 2), "the median of two"
        assert rows[name]["of one epoch"] == pytest.approx(rows[name]["seconds"] / rows[epoch]["seconds"])
        assert rows[name]["of its steps"] == pytest.approx(rows[name]["seconds"] / rows[steps]["seconds"])
    order = [row["seconds"] for row in report["rows"]]
    assert order == sorted(order)


def test_one_task_leaves_nothing_to_time(learning_time: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        learning_time.main(["--json", "--tasks", "1"])
    assert "at least two tasks are needed" in capsys.readouterr().err
