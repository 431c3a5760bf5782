"""The decoding benchmark runs, and what it decodes with is what methods leave behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decode

    threads = torch.get_num_threads()
    yield decode
    torch.set_num_threads(threads)


def test_reports_every_method_with_its_bytes(decode: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "--sizes", "tiny", "--prompt", "64", "--repeats", "2", "--layers", "2", "--budgets", "0.25"]
    decode.main(arguments)
    report = json.loads(capsys.readouterr().out)
    shares = {row["method"]: row["share %"] for row in report["table"]}
    budgeted = {f"{name}, 25 %" for name in decode.METHODS}
    assert set(shares) == {decode.FULL, *decode.UNBUDGETED, *budgeted}
    assert 25 < shares["ShiftKV, 25 %"] < 27 and all(shares[name] < 100 for name in budgeted)
    full = report["table"][0]
    assert full["method"] == decode.FULL and full["token"] == full["reading"] == full["with head"] == 1
    assert all(len(row["token"]) == 2 and len(row["read"]) == 1 for row in report["raw"].values())


def test_a_decoded_token_is_forgotten_again(decode: Any) -> None:
    sizes = decode.dataclasses.replace(decode.TINY, layers=2, vision_layers=1)
    backbone = decode.model_of(sizes, "cpu", torch.float32)
    decoding = decode.Decoding(backbone, sizes, 32)
    for method in (None, decode.ShiftKV(0.25), decode.UNBUDGETED["RotateKV, 4 bits"]):
        with torch.no_grad():
            cache = decoding.read(method)
            before = decode.cache_bytes(cache)
            with decode.nullcontext() if method is None else method(decoding.model):
                decoding.decode(cache)
        assert decode.cache_bytes(cache) == before and cache.get_seq_length() == 32
