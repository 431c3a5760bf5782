"""What a memory keeps of itself when others are merged into it, and sizes to the byte."""

import pytest
import torch

from inducekv.bytes import format_bytes
from inducekv.layout import json_bytes
from inducekv.memory import BudgetError
from inducekv.retrieval import Calibration
from test_memory import LAYOUT, entry, filled, memory


def test_merging_into_a_memory_with_entries_leaves_its_calibration_metadata_and_thresholds() -> None:
    held, other = memory(), filled()
    held.add(entry(50, task="birds"))
    held.thresholds, held.metadata = {"birds": 0.75}, {"reading": "top 2"}
    held.calibration = mine = Calibration(torch.tensor(0.5), torch.zeros(3))
    other.thresholds |= {"ships ü": 0.5}
    assert held.merge(other) == 6
    assert held.calibration is mine and held.metadata == {"reading": "top 2"}
    assert held.thresholds == {"birds": 0.75, "ships ü": 0.5}, "its own where both have one"
    assert list(held.entries[1:]) == list(other.entries)


def test_a_memory_that_was_merged_into_an_empty_one_is_not_shared() -> None:
    held, other = memory(), filled()
    held.merge(other)
    assert held.metadata == other.metadata
    held.metadata["reading"] = "otherwise"
    held.thresholds["birds"] = 0.0
    assert other.metadata == {"reading": "top 8"} and other.thresholds == {"birds": 0.25}


def test_a_merge_that_does_not_fit_changes_nothing() -> None:
    other = filled()
    probe = memory(9999)  # as many digits as the budget that is looked for
    probe.merge(other)
    needed = probe.file_nbytes
    held = memory(needed - 1)
    with pytest.raises(BudgetError):
        held.merge(other)
    assert len(held) == 0 and held.metadata == {} and held.thresholds == {}
    held.resize(needed)
    assert held.merge(other) == 6 and held.file_nbytes == held.budget


def test_a_budget_may_be_spent_to_the_byte() -> None:
    held = filled()
    held.resize(9999)  # as many digits as the budget that is looked for
    held.resize(held.file_nbytes)
    with pytest.raises(BudgetError, match=f"{held.file_nbytes:,} bytes"):
        held.resize(held.file_nbytes - 1)
    with pytest.raises(BudgetError):
        held.add(entry(60))
    assert held.budget == held.file_nbytes and len(held) == 6


def test_bytes_are_told_apart_by_kind() -> None:
    held = filled()
    kinds = held.bytes_by_kind()
    assert kinds["text"] == sum(len(each.text) for each in held.entries)
    assert kinds["calibration"] == 4 * (2 + 3), "temperature, mass, a scale a layer"
    assert kinds["keys"] == sum(each.key.nbytes for each in held.entries)
    tasks = kinds["bookkeeping"] - 16 * 6 - sum(len(json_bytes(task)) for task in held.tasks)
    assert tasks > 0 and tasks % 2 == 0, "the same for each task beside its name"
    assert LAYOUT.base_nbytes(held.tasks) == kinds["calibration"] + kinds["bookkeeping"] - 16 * 6
    assert repr(held) == f"KVMemory(6 entries of 2 tasks, {format_bytes(held.file_nbytes)} of 64 KiB)"


def test_dropping_counts_each_id_once_and_keeps_the_order() -> None:
    held = filled()
    assert held.drop(["entry-1", "entry-4", "entry-1"]) == 2
    assert [each.id for each in held.entries] == ["entry-0", "entry-2", "entry-3", "entry-5"]
    assert held.drop([]) == 0 and len(held) == 4


@pytest.mark.parametrize("limit", [0, 10**9])
def test_payloads_are_the_same_whether_or_not_they_are_kept(limit: int) -> None:
    held, kept = filled(), filled()
    held.payload_cache.limit = limit
    for chosen in ([4, 0], [1], [5, 4, 3, 2, 1, 0]):
        got, expected = held.payloads(torch.tensor(chosen)), kept.payloads(torch.tensor(chosen))
        width = got.mask.shape[1]
        assert torch.equal(got.mask, expected.mask[:, :width]) and not expected.mask[:, width:].any()
        assert torch.equal(got.spans, expected.spans)
        assert torch.equal(got.keys, expected.keys[:, :, :, :width])
