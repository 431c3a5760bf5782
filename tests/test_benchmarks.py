"""The benchmark scripts run, and count what they say they count."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import overhead

    threads = torch.get_num_threads()
    yield overhead
    torch.set_num_threads(threads)


COMMON = ["--sizes", "tiny", "--repeats", "2", "--threads", "1"]


def test_overhead_reports_every_row_of_the_table(overhead: Any, capsys: pytest.CaptureFixture[str]) -> None:
    overhead.main([*COMMON, "--json"])
    report = json.loads(capsys.readouterr().out)
    rows = {(row["what"], row["against"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"])
    first, token = "time to first token, in flight, top-k", "decode time a token, in flight, top-k"
    targets = {what: row["target"] for what, row in rows.items()}
    assert (targets[first, "plain"], targets[token, "plain"]) == (1.08, 1.05)
    assert targets[first, "examples as a prompt"] == 0.25
    assert targets["retrieval among 50 keys", "one decoder layer"] == 1.0
    assert targets["peak memory, 2 rows, less payloads", "without"] == 1.05
    assert 1.15 < targets["time to first token, in flight, all", "plain"] < 2.3
    assert sum("PEFT" in what for what, _ in rows) == 8
    assert all(row["least"] > 0 and row["ratio"] > 0 and row["most"] >= row["least"] for row in rows.values())
    sizes = overhead.TINY
    for name, way in report["timed"].items():
        assert len(way["first"]) == 2 and len(way["token"]) == (0 if name == overhead.PROMPT else 2), name
    width = 2 * sizes.kv_heads * sizes.head_dim * 4
    expected = sizes.batch * sizes.top_k * sizes.entry_tokens * (sizes.layers // 2) * width
    assert (report["peaks"]["memory"]["payload"], report["peaks"]["plain"]["payload"]) == (expected, 0)


def test_overhead_prints_a_table_of_the_parts_asked_for(overhead: Any, capsys: pytest.CaptureFixture[str]) -> None:
    overhead.main([*COMMON, "--parts", "first,retrieval"])
    shown = capsys.readouterr().out
    assert "time to first token, in flight, top-k" in shown and "retrieval among 50 keys" in shown
    assert "PEFT" not in shown and "peak memory" not in shown
    assert "times plain" in shown
    with pytest.raises(SystemExit):
        overhead.main([*COMMON, "--parts", "everything"])
    assert "'everything'" in capsys.readouterr().err


@pytest.mark.parametrize("all_of_it", [False, True])
def test_ways_with_memory_read_it_and_leave_the_plain_model_alone(overhead: Any, all_of_it: bool) -> None:
    """What is timed must be a model that reads: as many memory tokens as the table says, in as many layers."""
    sizes = overhead.TINY
    backbone = overhead.model_of(sizes, "cpu", torch.float32)
    ways = overhead.ways_of(sizes, backbone, ["first"])
    plain = backbone.model(**ways[overhead.PLAIN].inputs).logits
    name = overhead.ALL_IN_FLIGHT if all_of_it else overhead.IN_FLIGHT
    with ways[name].opened() as attachment:
        read = backbone.model(**ways[name].inputs).logits
        injection = attachment.injection
    tokens = sizes.all_tokens if all_of_it else sizes.top_k * sizes.entry_tokens
    assert int(injection.mask.sum()) == tokens
    assert injection.layers == tuple(range(sizes.layers // 2, sizes.layers))
    assert (read - plain).abs().max() > 1e-4
    assert torch.equal(backbone.model(**ways[overhead.PLAIN].inputs).logits, plain)


def test_the_arithmetic_bound_counts_what_torch_counts(overhead: Any) -> None:
    """Torch counts causal attention as the whole square; everything else must agree exactly."""
    sizes = overhead.TINY
    backbone = overhead.model_of(sizes, "cpu", torch.float32)
    backbone.model.set_attn_implementation("eager")  # whose products torch counts on every device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.model(**overhead.inputs_of(sizes, backbone), logits_to_keep=1)
    flops = overhead.Flops.of_prefill(sizes)
    assert counter.get_total_flops() == flops.total + flops.parts["decoder, attention"]


def test_ratios_are_of_medians_and_spreads_of_single_repeats(overhead: Any) -> None:
    assert overhead.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (4 / 3, 1.0, 3.0)


def test_payload_formats_are_compared_on_one_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import payload_formats

    shown = ["--tasks", "1", "--budgets", "24KiB", "--formats", "int8,int3,polar3", "--json"]
    payload_formats.main(shown)
    rows = {row["format"]: row for row in json.loads(capsys.readouterr().out)}
    entries = {name: row["entries, 24KiB"] for name, row in rows.items()}
    assert entries["int3"] == entries["polar3"] > entries["int8"] > 0, "the same bytes, and fewer than 8 bits take"
    assert all(0 < row["Last, 24KiB"] <= 100 for row in rows.values())
