"""Entries under a budget: accounting, atomic changes, and files that can be trusted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inducekv import memory_file
from inducekv.compression.bits import unpack
from inducekv.compression.storage import BITS, dequantise, quantise
from inducekv.config import InduceKVConfig, PayloadDtype
from inducekv.encoded import Encoded
from inducekv.entry import TEXT_LIMIT, Entry
from inducekv.layout import Layout
from inducekv.memory import BudgetError, KVMemory
from inducekv.memory_file import FingerprintError, MemoryFileError, MemoryLockedError
from inducekv.retrieval import UNSCALED, Calibration
from inducekv.stored_payload import Payload

LAYOUT = Layout((0, 1, 2), kv_heads=2, head_dim=4, key_dim=8)
FINGERPRINT = {"architecture": "Tiny", "layers": 3, "key_layer": 3, "key_pool": "last"}
DTYPES = get_args(PayloadDtype)


def entry(seed: int, tokens: int = 2, task: str = "birds", dtype: str = "int8", answer: str = "zorb") -> Entry:
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens, 3, 2, 4)
    if dtype == "int8":
        numbers = [torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8) for _ in range(2)]
        scales = [torch.rand(shape[:-1], generator=generator).half() for _ in range(2)]
        payload = Payload(*numbers, *scales, dtype, 4)
    else:
        stored = [quantise(torch.randn(shape, generator=generator), dtype) for _ in range(2)]
        payload = Payload(*(x.values for x in stored), *(x.scales for x in stored), dtype, 4)
    key = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=-1).half()
    return Entry(f"entry-{seed}", task, key, payload, tokens + 3, 2, f"what is {seed}?", answer)


def memory(budget: int | str = "64KiB", dtype: str = "int8", fingerprint: dict | None = None) -> KVMemory:
    return KVMemory(budget, LAYOUT, dtype, FINGERPRINT if fingerprint is None else fingerprint)


def filled(dtype: str = "int8") -> KVMemory:
    full = memory(dtype=dtype)
    full.add_all(
        [entry(i, 1 + i % 3, ("birds", "ships\u2028ü")[i % 2].replace("\u2028", " "), dtype) for i in range(6)]
    )
    full.calibration = Calibration(torch.tensor(-1.5), torch.tensor([0.5, UNSCALED, -2.0]))
    full.thresholds = {"birds": 0.25}
    full.metadata = {"reading": "top 8"}
    return full


def same(a: Entry, b: Entry) -> bool:
    tensors = [(x.key, x.payload.keys, x.payload.values, x.payload.key_scales, x.payload.value_scales) for x in (a, b)]
    names = [(x.id, x.task, x.span, x.answer_length, x.question, x.answer) for x in (a, b)]
    pairs = zip(*tensors, strict=True)
    return names[0] == names[1] and all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def assert_same(a: KVMemory, b: KVMemory) -> None:
    assert len(a) == len(b) and all(map(same, a.entries, b.entries))
    for name in ("budget", "layout", "payload_dtype", "fingerprint", "thresholds", "metadata", "tasks", "nbytes"):
        assert getattr(a, name) == getattr(b, name), name
    assert torch.equal(a.calibration.phi_tau, b.calibration.phi_tau)
    assert torch.equal(a.calibration.phi_lambda, b.calibration.phi_lambda)


def files(directory: Path) -> dict[str, bytes]:
    """What a memory's directory holds, without the (empty) lock."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != memory_file.LOCK}


def bytes_on_disk(directory: Path) -> int:
    return sum(map(len, files(directory).values()))


def tensor_file(directory: Path) -> Path:
    (path,) = directory.glob("memory-*.safetensors")
    return path


# -- size


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    budget=st.integers(1500, 4500),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 30), st.integers(1, 5), st.sampled_from(["a", "b", "ü" * 9])),
            st.tuples(st.just("drop"), st.integers(0, 30)),
            st.tuples(st.just("forget"), st.sampled_from(["a", "b", "ü" * 9])),
            st.tuples(st.just("merge"), st.integers(0, 30), st.integers(1, 5)),
            st.tuples(st.just("resize"), st.integers(0, 4500)),
        ),
        max_size=25,
    ),
)
def test_no_order_of_operations_breaks_the_budget(budget: int, steps: list, tmp_path_factory: object) -> None:
    held = memory(budget)
    for step in steps:
        before, size_before = held.entries, held.nbytes
        try:
            if step[0] == "add":
                held.add(entry(step[1], step[2], step[3]))
            elif step[0] == "drop":
                held.drop([f"entry-{step[1]}"])
            elif step[0] == "forget":
                held.forget(step[1])
            elif step[0] == "merge":
                other = memory(10**6)
                other.add_all([entry(step[1] + i, step[2], "c") for i in range(3)])
                held.merge(other)
            else:
                held.resize(step[1])
        except ValueError:
            assert held.entries == before and held.nbytes == size_before
        assert held.nbytes < held.file_nbytes <= held.budget
        folder = tmp_path_factory.getbasetemp() / "budget"
        shutil.rmtree(folder, ignore_errors=True)
        held.save_pretrained(folder)
        assert bytes_on_disk(folder) <= held.file_nbytes
        assert sum(held.bytes_by_kind().values()) == held.nbytes


@pytest.mark.parametrize(("dtype", "count"), [*((dtype, n) for dtype in DTYPES for n in (0, 1)), ("int8", 10_000)])
def test_the_files_take_no_more_than_is_counted(tmp_path: Path, dtype: str, count: int) -> None:
    held = KVMemory("64MiB", Layout((0,), 1, 2, 4), dtype, FINGERPRINT)
    stored = quantise(torch.ones(1, 1, 1, 2), dtype)
    small = Payload(stored.values, stored.values, stored.scales, stored.scales, dtype, 2)
    key = torch.ones(4).half() / 2
    held.add_all(
        [Entry(f"{i}", f"task {i % 1000}", key, small, 1, 1, 'what is it?\n"é\u2028', "an é") for i in range(count)]
    )
    held.thresholds = dict.fromkeys(held.tasks, 0.123456789012345)
    held.save_pretrained(tmp_path)
    assert held.file_nbytes - 512 - 24 * len(held.tasks) < bytes_on_disk(tmp_path) <= held.file_nbytes
    assert_same(KVMemory.from_pretrained(tmp_path), held)


def test_sizes_are_those_of_the_tensors() -> None:
    for dtype in DTYPES:
        held, one = memory(dtype=dtype), entry(3, 4, dtype=dtype)
        held.add(one)
        tensors = [one.key, one.payload.keys, one.payload.values, one.payload.key_scales, one.payload.value_scales]
        stored = sum(x.nbytes for x in tensors if x is not None)
        kinds = held.bytes_by_kind()
        assert kinds["keys"] + kinds["payload"] + kinds["scales"] == stored
        assert held.entry_nbytes(one) == stored + 16 + len(one.text)


def test_a_budget_too_small_says_by_how_much() -> None:
    with pytest.raises(BudgetError, match=r" bytes .*budget is 5 "):
        memory(5)
    held = memory(1400)
    with pytest.raises(BudgetError, match="the budget is 1,400"):
        held.add(entry(1))
    assert len(held) == 0
    held.resize("2KiB")
    held.add(entry(1))
    with pytest.raises(BudgetError):
        held.resize(1400)
    assert held.budget == 2048


def test_metadata_that_grew_past_the_budget_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    held = memory(1400)
    held.metadata = {"note": "x" * 200}
    with pytest.raises(BudgetError, match="the budget is 1,400"):
        held.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# -- entries


def test_adding_is_all_or_nothing() -> None:
    held = filled()
    before = held.entries
    with pytest.raises(ValueError, match="'entry-1' comes more than once"):
        held.add_all([entry(20), entry(1)])
    for broken, message in (
        (entry(21, dtype="float16"), "must be int8 with 4 numbers a head"),
        (entry(21, dtype="int4"), "got int4"),
        (Entry("x", "t", torch.full((8,), torch.nan).half(), entry(1).payload, 1, 1), "not finite"),
        (Entry("x", "t", torch.ones(9).half(), entry(1).payload, 1, 1), r"must be float16 \[8\]"),
        (
            Entry(
                "x",
                "t",
                torch.ones(8).half(),
                Payload(*2 * [torch.ones(2, 3, 2, 4).char()], None, None, "int8", 4),
                1,
                1,
            ),
            "have scales",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            held.add_all([entry(20), broken])
    assert held.entries == before


def test_names_and_texts_are_limited() -> None:
    one = entry(1)
    for name in ("", "   ", "\u3000", "x" * 129, "a\nb", "\ud800"):
        with pytest.raises(ValueError, match="1 to 128 bytes"):
            Entry(name, "task", one.key, one.payload, 1, 1)
        with pytest.raises(ValueError, match="1 to 128 bytes"):
            Entry("id", name, one.key, one.payload, 1, 1)
    long = Entry("id", "task", one.key, one.payload, 1, 1, "ü" * 400, "answer" * 30)
    assert long.answer == "answer" * 30 and long.question.endswith("ü…")
    assert TEXT_LIMIT - 3 < len((long.question + long.answer).encode()) <= TEXT_LIMIT
    huge = Entry("id", "task", one.key, one.payload, 1, 1, "why?", "é" * 600)
    assert huge.question == "" and len(huge.answer.encode()) <= TEXT_LIMIT


@pytest.mark.parametrize("dtype", ["polar4", "polar3"])
def test_heads_that_cannot_be_halved_are_refused_by_polar_formats(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match=r"power of two; this model's is 12: use payload_dtype='int3'"):
        KVMemory("64KiB", Layout((0,), 2, 12, 8), dtype, FINGERPRINT)
    filled().save_pretrained(tmp_path)
    reindexed(tmp_path, payload_dtype=dtype, layout={**GOOD_LAYOUT, "head_dim": 12})
    with pytest.raises(MemoryFileError, match=r"not consistent.*power of two"):
        KVMemory.from_pretrained(tmp_path)


def test_forgetting_unknown_things_helps() -> None:
    held = filled()
    with pytest.raises(ValueError, match=r"no task 'fish'.*'birds', 'ships ü'"):
        held.forget("fish")
    with pytest.raises(ValueError, match="'nobody'"):
        held.drop(["entry-1", "nobody"])
    assert len(held) == 6
    assert held.forget("birds") == 3 and held.tasks == ("ships ü",) and held.thresholds == {}


def test_merging_takes_what_is_new() -> None:
    held, other = memory(), filled()
    assert held.merge(other) == 6 and held.thresholds == other.thresholds
    assert torch.equal(held.calibration.phi_lambda, other.calibration.phi_lambda)
    assert held.merge(other) == 0
    with pytest.raises(ValueError, match="same payload_dtype"):
        held.merge(memory(dtype="float16"))
    with pytest.raises(ValueError, match="same fingerprint"):
        held.merge(memory(fingerprint={"architecture": "other"}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_payloads_come_back_padded_and_dequantised(dtype: str) -> None:
    held = filled(dtype)
    chosen = torch.tensor([4, 0])
    got = held.payloads(chosen)
    for place, index in enumerate(chosen.tolist()):
        stored = held.entries[index].payload
        tokens = stored.tokens
        assert got.mask[place].tolist() == [i < tokens for i in range(got.mask.shape[1])]
        codes = stored.values.float()
        if dtype == "int4":
            codes = unpack(stored.values, 4, 4).float() - 7
        values = codes * (1 if stored.value_scales is None else stored.value_scales.float()[..., None])
        if dtype in BITS and not dtype.startswith(("int8", "int4")):  # test_compression says what its codes are
            values = dequantise(stored.values, stored.value_scales, dtype, 4)
        assert torch.equal(got.values[place, :, :, :tokens], values.permute(1, 2, 0, 3))
        assert got.spans[place] == held.entries[index].span
    held.drop(["entry-0"])
    assert torch.equal(held.payloads(torch.tensor([3])).values, got.values[:1, :, :, : got.mask[0].sum()])
    assert held.keys().shape == (5, 8) and torch.allclose(held.keys().norm(dim=-1), torch.ones(5))
    assert held.threshold_of_entries().tolist() == [-torch.inf, 0.25, -torch.inf, 0.25, -torch.inf]


# -- layers


def encoded(layers: int = 5) -> Encoded:
    draw = torch.Generator().manual_seed(7)
    keys, values = (torch.randn(layers, 2, 3, 4, generator=draw) for _ in range(2))
    key = torch.nn.functional.normalize(torch.randn(8, generator=draw), dim=-1)
    return Encoded(key, keys, values, torch.zeros(3, dtype=torch.int8), 6, 2)


@pytest.mark.parametrize("layers", [(0,), (4,), (1, 3), (2, 3, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_some_layers_are_stored_as_they_are_among_all(
    tmp_path: Path, dtype: PayloadDtype, layers: tuple[int, ...]
) -> None:
    whole = Entry.of(encoded(), id="a", task="t", payload_dtype=dtype)
    some = Entry.of(encoded(), id="a", task="t", payload_dtype=dtype, layers=layers)
    for name in ("keys", "values", *(["key_scales", "value_scales"] if dtype == "int8" else [])):
        assert torch.equal(getattr(some.payload, name), getattr(whole.payload, name)[:, list(layers)]), name
    held = KVMemory("64KiB", Layout(layers, kv_heads=2, head_dim=4, key_dim=8), dtype, FINGERPRINT)
    held.add(some)
    held.save_pretrained(tmp_path)
    loaded = KVMemory.from_pretrained(tmp_path)
    assert_same(loaded, held)
    assert loaded.payloads(torch.tensor([0])).keys.shape == (1, len(layers), 2, 3, 4)
    if len(layers) < 5:
        with pytest.raises(ValueError, match="tokens >= 1, layers, kv_heads"):
            held.add(Entry.of(encoded(), id="b", task="t", payload_dtype=dtype))


@pytest.mark.parametrize("layers", [(), (3, 1), (1, 1), (-1, 0), (4, 5)])
def test_layers_that_an_example_lacks_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 4 .*; got \("):
        Entry.of(encoded(), id="a", task="t", payload_dtype="int8", layers=layers)


# -- files


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    lengths=st.lists(st.integers(1, 4), max_size=6),
    text=st.text(max_size=300),
    task=st.sampled_from(["a", "ü b", "任务"]),
)
def test_saving_and_loading_is_the_identity(tmp_path: Path, dtype: str, lengths: list, text: str, task: str) -> None:
    held = memory(dtype=dtype)
    held.add_all([entry(i, n, task if i % 2 else "z", dtype, text) for i, n in enumerate(lengths)])
    held.save_pretrained(tmp_path)
    loaded = KVMemory.from_pretrained(tmp_path)
    assert_same(loaded, held)
    first = files(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert files(tmp_path) == first


def test_what_was_forgotten_is_not_in_the_files(tmp_path: Path) -> None:
    held = filled("float16")
    held.save_pretrained(tmp_path)
    gone = [e for e in held.entries if e.task == "birds"]
    kept = [e for e in held.entries if e.task != "birds"]

    def traces(entries: list[Entry]) -> list[bytes]:
        parts = [x.contiguous() for e in entries for x in (e.key, e.payload.keys, e.payload.values)]
        return [x.view(torch.uint8).numpy().tobytes() for x in parts] + [e.id.encode() for e in entries]

    def on_disk() -> bytes:
        return b"".join(files(tmp_path).values())

    assert all(trace in on_disk() for trace in traces(gone + kept))
    held.forget("birds")
    held.save_pretrained(tmp_path)
    assert not any(trace in on_disk() for trace in [*traces(gone), b"birds"])
    assert all(trace in on_disk() for trace in traces(kept))
    alone = memory(dtype="float16")
    alone.add_all(kept)
    alone.calibration, alone.metadata = held.calibration, held.metadata
    assert_same(KVMemory.from_pretrained(tmp_path), alone)


def test_a_crash_leaves_the_old_memory_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the save at every system call that changes the directory."""
    old, new = filled(), filled()
    new.add(entry(50))

    class Crash(BaseException):
        pass

    real = {"replace": Path.replace, "unlink": Path.unlink, "fsync": os.fsync}
    for survive in range(12):
        directory = tmp_path / str(survive)
        old.save_pretrained(directory)
        left = [survive]

        def crashing(name: str, left: list = left) -> object:
            def call(*args: object, **options: object) -> object:
                if left[0] == 0:
                    raise Crash
                left[0] -= 1
                return real[name](*args, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", crashing("replace"))
            patch.setattr(Path, "unlink", crashing("unlink"))
            patch.setattr(os, "fsync", crashing("fsync"))
            try:
                new.save_pretrained(directory)
                finished = True
            except Crash:
                finished = False
        loaded = KVMemory.from_pretrained(directory)
        assert len(loaded) in ((7,) if finished else (6, 7))
        new.save_pretrained(directory)
        assert_same(KVMemory.from_pretrained(directory), new)
        assert sorted(name[:7] for name in files(directory)) == ["memory-", "memory."], "a later save cleans up"
        if finished:
            break
    assert finished and survive > 4


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    filled().save_pretrained(tmp_path)
    for path in (tensor_file(tmp_path), tmp_path / "memory.json"):
        whole = path.read_bytes()
        for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(MemoryFileError):
                KVMemory.from_pretrained(tmp_path)
        path.write_bytes(whole)
    assert_same(KVMemory.from_pretrained(tmp_path), filled())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(["tensors", "index"]), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(tmp_path: Path, which: str, place: float, flip: int) -> None:
    filled().save_pretrained(tmp_path)
    path = tensor_file(tmp_path) if which == "tensors" else tmp_path / "memory.json"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= flip
    path.write_bytes(data)
    with pytest.raises(MemoryFileError):
        KVMemory.from_pretrained(tmp_path)
    path.write_bytes(whole)


GOOD_LAYOUT = {"layers": [0, 1, 2], "kv_heads": 2, "head_dim": 4, "key_dim": 8}


def reindexed(directory: Path, **changes: object) -> None:
    """An attacker's edit: the index changed (`...`: a field left out), its checksum made right again."""
    index = json.loads((directory / "memory.json").read_bytes()) | changes
    index = {name: field for name, field in index.items() if field is not ...}
    index["index_sha256"] = memory_file._index_digest(index)
    (directory / "memory.json").write_bytes(memory_file._encode(index))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "../secret.safetensors"}, "no valid tensor file"),
        ({"file": "/etc/passwd"}, "no valid tensor file"),
        ({"file": "memory-" + "0" * 32 + ".safetensors"}, "is missing"),
        ({"size": 10**15}, "truncated"),
        ({"version": 5}, "format version 5.*reads 1 to 4"),
        ({"generation": 0}, "generation 0"),
        ({"generation": True}, "generation True"),
        ({"generation": "1"}, "generation '1'"),
        ({"training_state": "state"}, "no valid training state"),
        ({"training_state": ...}, "no valid training state: 'nothing'"),
        ({"training_state": {"file": "../anchors.safetensors", "sha256": ""}}, "no valid training state"),
        ({"budget": 10**30}, "the budget is 10*, at most|the budget is 1"),
        ({"version": True}, "format version True"),
        ({"version": [1]}, "format version"),
        ({"version": 1, "payload_dtype": "int2"}, "2-bit payloads of format version 1.*learn the memory again"),
        ({"version": 2, "payload_dtype": "int2"}, "2-bit payloads of format version 2.*learn the memory again"),
        ({"format": "pickle"}, "not the index of an inducekv memory"),
        ({"entries": 10**12}, "table of entries"),
        ({"entries": -1}, "table of entries"),
        ({"entries": "many"}, "table of entries"),
        ({"budget": 10}, "budget is 10"),
        ({"budget": None}, "not consistent"),
        ({"nbytes": 3}, "size do not match"),
        ({"payload_dtype": "float64"}, "payload_dtype must be"),
        ({"payload_dtype": "float16"}, "not consistent"),
        ({"payload_dtype": "polar3"}, "payload_keys of 6 entries.*must be torch.uint8"),
        ({"payload_dtype": ["int8"]}, "not consistent"),
        ({"layout": {"layers": [0], "kv_heads": 2, "head_dim": 4, "key_dim": 8}}, "calibration"),
        ({"layout": {"layers": [0, 1, 2], "kv_heads": 10**9, "head_dim": 4, "key_dim": 8}}, "not consistent"),
        ({"layout": {"layers": [0, 1, 2], "kv_heads": 1, "head_dim": 8, "key_dim": 8}}, "not consistent"),
        ({"layout": {**GOOD_LAYOUT, "key_dtype": "int8"}}, "keys of 6 entries.*must be torch.int8"),
        ({"layout": {**GOOD_LAYOUT, "key_dtype": "int3"}}, "key_dtype must be one of float16, int8, int4"),
        ({"layout": {**GOOD_LAYOUT, "key_dtype": ["int8"]}}, "not consistent"),
        ({"layout": "flat"}, "not consistent"),
        ({"tasks": [["birds", 0.25]]}, "not consistent"),
        ({"tasks": [["birds", "high"], ["ships ü", None]]}, "threshold"),
        ({"tasks": [["birds", None], ["extra", None], ["ships ü", None]]}, "do not match"),
        ({"tasks": 7}, "not consistent"),
        ({"fingerprint": "Tiny"}, "not consistent"),
        ({"metadata": {"reading": 8}}, "metadata must be"),
        ({"metadata": {"reading": "x" * 5000}}, "at most 4,096 bytes"),
    ],
)
def test_edited_indices_are_refused_even_with_a_right_checksum(tmp_path: Path, changes: dict, message: str) -> None:
    filled().save_pretrained(tmp_path)
    reindexed(tmp_path, **changes)
    with pytest.raises(MemoryFileError, match=message):
        KVMemory.from_pretrained(tmp_path)


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileError, match="no memory in"):
        KVMemory.from_pretrained(tmp_path / "nothing")
    for text in ("[]", "{}", '"x"', "[" * 100_000, "\0"):
        (tmp_path / "memory.json").write_text(text)
        with pytest.raises(MemoryFileError):
            KVMemory.from_pretrained(tmp_path)


def test_the_format_has_not_changed(tmp_path: Path) -> None:
    """A memory written when version 4 was made is read, and written again byte for byte."""
    golden = Path(__file__).parent / "golden" / "memory"
    loaded = KVMemory.from_pretrained(golden)
    assert_same(loaded, filled())
    loaded.save_pretrained(tmp_path)
    assert files(tmp_path) == files(golden)


@pytest.mark.parametrize("version", ["memory-v1", "memory-v2"])
def test_memories_of_earlier_formats_are_read_and_saved_in_the_new_one(tmp_path: Path, version: str) -> None:
    folder = Path(__file__).parent / "golden"
    loaded = KVMemory.from_pretrained(folder / version)
    assert_same(loaded, filled())
    loaded.save_pretrained(tmp_path)
    assert files(tmp_path) == files(folder / "memory")


def test_a_full_memory_of_an_earlier_format_is_read(tmp_path: Path) -> None:
    """Its budget counted less than today's: it is raised to what the files take."""
    shutil.copytree(Path(__file__).parent / "golden" / "memory-v2", tmp_path, dirs_exist_ok=True)
    reindexed(tmp_path, budget=filled().nbytes - 4)  # there was no mass
    loaded = KVMemory.from_pretrained(tmp_path)
    assert len(loaded) == 6 and loaded.budget == loaded.file_nbytes
    loaded.save_pretrained(tmp_path / "new")
    assert bytes_on_disk(tmp_path / "new") <= loaded.budget
    reindexed(tmp_path, budget=filled().nbytes - 5)
    with pytest.raises(MemoryFileError, match="budget"):
        KVMemory.from_pretrained(tmp_path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from inducekv import memory_file\n"
        "try:\n"
        "    with memory_file.lock(pathlib.Path(sys.argv[1])): print('wrote')\n"
        "except memory_file.MemoryLockedError as error: print(error)\n"
    )

    def other_process() -> str:
        run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
        return run.stdout

    with KVMemory.lock(tmp_path):
        assert "another process is writing" in other_process()
    assert other_process() == "wrote\n"
    with pytest.raises(RuntimeError, match="inside"), KVMemory.lock(tmp_path):
        raise RuntimeError("inside")
    assert other_process() == "wrote\n"
    assert issubclass(MemoryLockedError, ValueError)


def test_a_memory_belongs_to_its_backbone(tmp_path: Path, llava: object, qwen: object) -> None:
    layout = Layout(tuple(range(3)), 2, 16, 64)
    print_of_llava = llava.fingerprint(key_layer=2, key_pool="mean")
    KVMemory("64KiB", layout, "int8", print_of_llava).save_pretrained(tmp_path)
    assert KVMemory.from_pretrained(tmp_path, llava).fingerprint == print_of_llava
    with pytest.raises(FingerprintError, match=r"another model.*architecture: memory 'Llava.*model 'Qwen2_5"):
        KVMemory.from_pretrained(tmp_path, qwen)
    assert print_of_llava == json.loads(json.dumps(print_of_llava))
    assert InduceKVConfig().key_pool == llava.fingerprint()["key_pool"]
