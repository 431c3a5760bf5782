"""Memory and training state are one: whatever fails, both are old or both are new, and what was forgotten is gone."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from commands import refused, run, run_json
from failing_disk import Crash, failing
from inducekv import memory_file
from inducekv.memory import KVMemory
from inducekv.memory_file import StaleMemoryError
from inducekv.training_state import Anchor, TrainingState
from test_memory import entry, filled

HOW = ("crash before", "crash after", "full")
MARK = b"birds"


@dataclass
class Both:
    """A memory and its training state."""

    memory: KVMemory
    state: TrainingState

    def save(self, folder: Path) -> None:
        memory_file.save(self.memory, folder, self.state)

    @property
    def said(self) -> tuple[list[str], list[str]]:
        return [entry.id for entry in self.memory.entries], [anchor.id for anchor in self.state.anchors]


def anchors(*tasks: str) -> list[Anchor]:
    return [Anchor(task, f"{task} {i}", f"which {task}?", "zorb", (bytes([i]) * 9,)) for task in tasks for i in (1, 2)]


def old() -> Both:
    memory = filled()
    return Both(memory, TrainingState(anchors(*memory.tasks)))


def loaded(folder: Path) -> Both:
    memory = KVMemory.from_pretrained(folder)
    return Both(memory, memory_file.stored_state(memory, folder))


def learned(both: Both) -> None:
    both.memory.add(entry(50, task="fish"))
    both.state.anchors += anchors("fish")


def forgot(both: Both) -> None:
    both.memory.forget("birds")
    both.state.forget("birds")


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def names(folder: Path) -> list[str]:
    """Kinds of files."""
    return sorted(p.name.partition("-")[0] for p in folder.iterdir() if p.name != memory_file.LOCK)


def states() -> dict[str, tuple[list[str], list[str]]]:
    both, after = old(), {}
    after["old"] = both.said
    for name, change in (("learn", learned), ("forget", forgot)):
        both = old()
        change(both)
        after[name] = both.said
    return after


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("what", ["learn", "forget"])
def test_at_every_point_of_failure_both_are_old_or_both_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, how: str
) -> None:
    change, expected, seen = {"learn": learned, "forget": forgot}[what], states(), []
    old().save(tmp_path / "start")
    for survive in range(100):
        folder = tmp_path / str(survive)
        shutil.copytree(tmp_path / "start", folder)
        both = loaded(folder)
        change(both)
        finished = False
        with failing(monkeypatch, survive, how) as calls:
            try:
                both.save(folder)
                finished = True
            except (Crash, OSError):
                pass
        found = loaded(folder).said
        assert found in (expected["old"], expected[what]), (calls, found)
        seen.append((calls[survive] if len(calls) > survive else "", found == expected[what]))
        if what == "forget":
            again = run("forget", folder, "--task", "birds")
            assert again.exit_code == (0 if found == expected["old"] else 2), again.output
            assert MARK not in on_disk(folder), (calls, names(folder))
        elif how == "full" and not finished and found == expected["old"]:
            both.save(folder)  # there is room again, and nothing is lost
            assert loaded(folder).said == expected[what]
        else:
            rest = loaded(folder)
            rest.memory.add(entry(60))
            rest.save(folder)
        assert names(folder) == ["memory", "memory.json", "training_state"]
        if finished:
            break
    assert finished and len(calls) >= 12
    assert [after for _, after in seen] == sorted(after for _, after in seen), "one moment of change"
    assert not seen[0][1] and {name for name, _ in seen} >= {"fsync", "replace", "create", "write"}, seen


@pytest.mark.parametrize("how", HOW)
def test_the_command_forgets_at_every_point_of_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    old().save(tmp_path / "start")
    expected = states()
    for survive in range(100):
        folder = tmp_path / str(survive)
        shutil.copytree(tmp_path / "start", folder)
        with failing(monkeypatch, survive, how), suppress(Crash):
            if run("forget", folder, "--task", "birds").exit_code == 0:
                break
        assert loaded(folder).said in (expected["old"], expected["forget"])
        run("forget", folder, "--task", "birds")
        assert MARK not in on_disk(folder)
    assert 10 < survive < 99


def test_a_stale_process_does_not_bring_back_what_was_forgotten(tmp_path: Path) -> None:
    old().save(tmp_path)
    stale = loaded(tmp_path)
    run_json("forget", tmp_path, "--task", "birds")
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for change in (lambda: None, lambda: stale.memory.add(entry(70))):
        change()
        for save in (lambda: stale.save(tmp_path), lambda: stale.memory.save_pretrained(tmp_path)):
            with pytest.raises(StaleMemoryError, match=r"generation 2, this one is of 1.*load it again"):
                save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    stale.memory.save_pretrained(tmp_path / "elsewhere")
    again = loaded(tmp_path)
    again.memory.add(entry(70))
    again.save(tmp_path)
    again.save(tmp_path)


def test_training_state_of_a_stale_memory_is_not_that_of_another(tmp_path: Path) -> None:
    old().save(tmp_path)
    stale = KVMemory.from_pretrained(tmp_path)
    both = loaded(tmp_path)
    learned(both)
    both.save(tmp_path)
    with pytest.raises(StaleMemoryError, match="load it again"):
        memory_file.stored_state(stale, tmp_path)


def test_saving_what_is_there_changes_nothing(tmp_path: Path) -> None:
    old().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(2):
        old().save(tmp_path)
        KVMemory.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_memory_saved_alone_keeps_the_examples_of_its_tasks_only(tmp_path: Path) -> None:
    old().save(tmp_path)
    memory = KVMemory.from_pretrained(tmp_path)
    memory.add(entry(70))
    memory.save_pretrained(tmp_path)
    assert loaded(tmp_path).state == old().state
    memory.forget("birds")
    memory.save_pretrained(tmp_path)
    assert loaded(tmp_path).state.tasks == ["ships ü"] and MARK not in on_disk(tmp_path)
    filled().save_pretrained(tmp_path)  # another memory: the examples are not its own
    assert loaded(tmp_path).state == TrainingState()


def test_only_names_that_are_written_here_are_removed(tmp_path: Path) -> None:
    foreign = [
        "memory-bank-of-mine.safetensors",
        "memory-" + "g" * 32 + ".safetensors",
        "training_state-of-mine.safetensors",
        "memory-" + "0" * 33 + ".safetensors",
        ".memory-notes.tmp",
        ".memory-7-abc.tmp",
        "notes.txt",
    ]
    ours = [
        "memory-" + "0" * 32 + ".safetensors",
        "training_state-" + "0" * 32 + ".safetensors",
        "training_state.safetensors",
        ".memory-7-0123abcd.tmp",
    ]
    for name in (*foreign, *ours):
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ("memory-" + "1" * 32 + ".safetensors")).mkdir()
    old().save(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= set(foreign) and not left & set(ours)
    assert "memory-" + "1" * 32 + ".safetensors" in left, "a folder is nothing that we wrote"


def test_a_sweep_without_an_index_removes_no_memory(tmp_path: Path) -> None:
    old().save(tmp_path)
    (tmp_path / "memory.json").unlink()
    before = names(tmp_path)
    refused(run("forget", tmp_path, "--task", "birds"), "no memory in")
    assert names(tmp_path) == before


def test_a_reader_beside_a_writer_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer puts a new generation in place between a reader's look at the index and at the files."""
    old().save(tmp_path)
    turns = [7]
    read_index, count = memory_file.read_index, [0]

    def overtaken(directory: Path) -> dict:
        index = read_index(directory)
        if turns[0]:
            turns[0] -= 1
            with monkeypatch.context() as patch:
                patch.setattr(memory_file, "read_index", read_index)
                both = loaded(directory)
                both.memory.add(entry(100 + count[0]))
                count[0] += 1
                both.state.anchors.append(Anchor("birds", f"more {count[0]}", "q", "a"))
                both.save(directory)
        return index

    monkeypatch.setattr(memory_file, "read_index", overtaken)
    memory = KVMemory.from_pretrained(tmp_path)
    assert len(memory) > 6 and torch.isfinite(memory.keys()).all()
    monkeypatch.setattr(memory_file, "read_index", read_index)
    (tmp_path / next(p.name for p in tmp_path.glob("memory-*"))).unlink()
    with pytest.raises(memory_file.MemoryFileError, match="is missing"):
        KVMemory.from_pretrained(tmp_path)


def test_a_damaged_training_state_stops_learning_and_nothing_else(tmp_path: Path) -> None:
    old().save(tmp_path)
    (path,) = tmp_path.glob("training_state-*")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        memory = KVMemory.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"missing or damaged.*learn --no-replay"):
            memory_file.stored_state(memory, tmp_path)
        with pytest.raises(ValueError, match="missing or damaged"):
            TrainingState.load(tmp_path)
    memory.add(entry(70))
    memory.save_pretrained(tmp_path)
    assert path.is_file(), "what is damaged may still be mended"
    path.unlink()
    assert len(KVMemory.from_pretrained(tmp_path)) == 7
    result = run_json("forget", tmp_path, "--task", "birds")
    assert result["dropped"] == 4 and "were deleted" in result["note"]
    assert names(tmp_path) == ["memory", "memory.json"]


def test_a_training_state_alone_notices_any_changed_byte_of_its_contents(tmp_path: Path) -> None:
    state = TrainingState(anchors("birds"))
    path = state.save(tmp_path)
    assert TrainingState.load(tmp_path) == state
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole)):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(ValueError, match="missing or damaged"):
            TrainingState.load(tmp_path)
