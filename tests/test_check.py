"""The check on the user's own model passes where memory is right, and says so where it is not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tiny
import tiny_families
from inducekv import check
from inducekv.attention import attached
from inducekv.check import ParityError, check_parity
from inducekv.model import InducedModel


@pytest.fixture(autouse=True)
def _nothing_checked_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(check, "_CHECKED", {})
    yield


@pytest.mark.parametrize("family", tiny_families.MODELS)
def test_every_family_passes(family: str) -> None:
    outcome = check_parity(tiny_families.model(family))
    assert outcome.passed and outcome.error < 1e-6 * outcome.effect


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarse_dtypes_pass_and_a_shift_of_one_position_does_not(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, shift = tiny.llava(dtype), check.shift_keys
    assert check_parity(backbone).passed
    monkeypatch.setattr(check, "_CHECKED", {})
    monkeypatch.setattr(check, "shift_keys", lambda text, keys, by: shift(text, keys, by + 1))
    with pytest.raises(ParityError, match=r"'llava' model memory does not read as prompt tokens: .*families\.py"):
        check_parity(backbone)


def test_small_windows_do_not_fail_the_check() -> None:
    assert check_parity(tiny_families.gemma3(6)).passed


def test_attaching_checks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, compared = tiny.llama(), []
    compare = check._compare

    def counted(backbone: Any) -> check.Parity:
        compared.append(backbone)
        return compare(backbone)

    monkeypatch.setattr(check, "_compare", counted)
    for _ in range(2):
        with attached(backbone, None, check=True), InducedModel.from_pretrained(backbone).attached(check=True):
            assert len(compared) == 1


def test_a_failed_check_attaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.llama()
    monkeypatch.setattr(check, "_compare", lambda backbone: check.Parity(float("nan"), 1.0, 0.1))
    before = backbone.text_model.config._attn_implementation
    for _ in range(2):
        with pytest.raises(ParityError, match="differ by nan"), attached(backbone, lambda inputs: None, check=True):
            raise AssertionError("attached all the same")
    assert backbone.text_model.config._attn_implementation == before
