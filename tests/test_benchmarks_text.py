"""Benchmarks of real text: gates from stored results, and ratios of first tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

import bench_fakes
from inducekv.bytes import parse_bytes
from inducekv.continual.results import write_result

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def real_text(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("peft")
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import real_text

    return real_text


def stored(folder: Path, real_text: Any, lasts: dict[tuple[str, str], float], seeds: tuple[int, ...] = (0, 1)) -> None:
    """Results whose every cell is the method's number for that budget, and a point more on each further stream."""
    for (method, budget), last in lasts.items():
        for seed in seeds:
            for more, stream in enumerate(real_text.STREAMS):
                made = bench_fakes.result(method, seed, parse_bytes(budget), stream=stream, skill=(last + more) / 100)
                made.matrix[-1] = last + more
                write_result(folder, made)


def gates(real_text: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[float | None, str]]:
    real_text.main([*arguments, "--json"])
    return {row["gate"]: (row["found"], row[""]) for row in json.loads(capsys.readouterr().out)["gates"]}


def test_gates_are_differences_of_means(real_text: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lasts = {
        ("inducekv", "16MiB"): 80.0,
        ("retrieved_prompt", "16MiB"): 81.5,
        ("nearest_neighbour", "16MiB"): 77.0,
        ("inducekv", "4MiB"): 60.0,
        ("sequential_lora", "4MiB"): 40.0,
        ("replay_lora", "4MiB"): 54.0,
        ("joint_lora", "4MiB"): 90.0,
    }
    stored(tmp_path, real_text, lasts)
    found = gates(real_text, capsys, "--results", str(tmp_path), "--seeds", "0,1")
    assert [round(value, 6) for value, _ in found.values()] == [-1.5, 3, 3, 6, 0]
    assert [verdict for _, verdict in found.values()] == ["missed", "met", "met", "met", "met"]
    assert any("Replay + LoRA" in gate for gate in found), "joint LoRA does not learn task by task"
    missing = gates(real_text, capsys, "--results", str(tmp_path), "--seeds", "0,1,2")
    assert {verdict for _, verdict in missing.values()} == {"not measured"}, "a seed is missing"
    real_text.main(["--results", str(tmp_path), "--seeds", "0,1"])
    shown = capsys.readouterr().out
    assert "nan" not in shown and "banking77, 1" in shown and "-1.5" in shown


def test_what_cannot_be_read_or_run_is_said(real_text: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no folder of results"):
        real_text.main(["--results", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        real_text.main(["--run"])
    assert "--root" in capsys.readouterr().err


def test_first_tokens_of_the_embedded_model(
    real_text: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import text_latency

    common = ["--examples", "4", "--questions", "1", "--repeats", "1", "--entries", "2", "--tokens", "2"]
    text_latency.main(["--model", "embedded", *common, "--json"])
    report = json.loads(capsys.readouterr().out)
    (asked,) = report["questions"]
    assert asked["entries"] == 2 and asked["tokens"][text_latency.PROMPT] > 2 * asked["tokens"][text_latency.PLAIN]
    rows = {(row["what"], row["against"]): row for row in report["rows"]}
    first = asked["first"]
    ratio = first[text_latency.MEMORY] / first[text_latency.PLAIN]
    assert rows["first token, memory", text_latency.PLAIN]["ratio"] == pytest.approx(ratio)
