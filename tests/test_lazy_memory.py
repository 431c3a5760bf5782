"""A memory left in its file is the same memory: whatever is done to it, whatever happens to the file."""

import copy
import dataclasses
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inducekv import memory_file, tensor_file
from inducekv.entries import Entries
from inducekv.entry import Entry
from inducekv.layer_lengths import Loaded
from inducekv.layout import Layout
from inducekv.memory import BudgetError, KVMemory
from inducekv.memory_file import MemoryFileError
from inducekv.payload_cache import PayloadCache
from inducekv.stored_entries import StoredEntries, StoredEntry
from test_memory import DTYPES, assert_same, encoded, entry, files, filled, memory, same
from test_memory import tensor_file as path_of

TASKS = ["a", "b", "ü" * 9]


def opened(directory: Path, **options: object) -> KVMemory:
    return KVMemory.from_pretrained(directory, lazy=True, **options)


def saved(directory: Path, dtype: str = "int8", count: int = 6) -> KVMemory:
    held = memory("1MiB", dtype=dtype)
    held.add_all([entry(i, 1 + i % 3, TASKS[i % 2], dtype) for i in range(count)])
    held.thresholds = {"a": 0.25}
    held.save_pretrained(directory)
    return held


def assert_reads_alike(lazy: KVMemory, eager: KVMemory) -> None:
    assert_same(lazy, eager)
    assert lazy.bytes_by_kind() == eager.bytes_by_kind()
    assert torch.equal(lazy.keys(), eager.keys())
    assert torch.equal(lazy.threshold_of_entries(), eager.threshold_of_entries())
    for chosen in ([0], [len(eager) - 1, 0], list(range(len(eager)))) if len(eager) else ():
        one, other = (held.payloads(torch.tensor(chosen)) for held in (lazy, eager))
        for name in ("keys", "values", "mask", "spans"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Bytes that are read of each tensor of a file."""
    seen: list[tuple[str, int]] = []
    real = tensor_file.TensorFile.read

    def counted(self: tensor_file.TensorFile, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        tensor = real(self, name, start, stop)
        seen.append((name, tensor.nbytes))
        return tensor

    monkeypatch.setattr(tensor_file.TensorFile, "read", counted)
    return seen


# -- the same memory


class LazyIsEager(RuleBasedStateMachine):
    """The same operations on a memory that is held and on one that lies in a file, in any order."""

    @initialize(dtype=st.sampled_from(DTYPES), count=st.integers(0, 5), cache=st.sampled_from([0, 300, 2000, 10**6]))
    def start(self, dtype: str, count: int, cache: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name)
        self.dtype = dtype
        self.eager = memory(4400, dtype=dtype)
        self.eager.add_all([entry(i, 1 + i % 3, TASKS[i % 3], dtype) for i in range(min(count, 3))])
        self.eager.save_pretrained(self.directory)
        self.lazy = opened(self.directory, payload_cache=cache)

    def both(self, operation: object) -> None:
        outcomes = []
        for held in (self.lazy, self.eager):
            before = held.entries
            try:
                outcomes.append(operation(held))
            except ValueError as error:
                assert held.entries is before
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]

    @rule(seed=st.integers(0, 9), tokens=st.integers(1, 4), task=st.sampled_from(TASKS))
    def add(self, seed: int, tokens: int, task: str) -> None:
        self.both(lambda held: held.add(entry(seed, tokens, task, self.dtype)))

    @rule(seed=st.integers(0, 9))
    def drop(self, seed: int) -> None:
        self.both(lambda held: held.drop([f"entry-{seed}"]))

    @rule(task=st.sampled_from(TASKS))
    def forget(self, task: str) -> None:
        self.both(lambda held: held.forget(task))

    @rule(seed=st.integers(0, 9), lazy=st.booleans())
    def merge(self, seed: int, lazy: bool) -> None:
        other = memory(10**6, dtype=self.dtype)
        other.add_all([entry(seed + i, 1 + i, "c", self.dtype) for i in range(2)])
        if lazy:
            other.save_pretrained(self.directory / "other")
            other = opened(self.directory / "other")
        self.both(lambda held: held.merge(other))

    @rule(order=st.randoms(use_true_random=False))
    def keep_some(self, order: object) -> None:
        places = order.sample(range(len(self.eager)), k=len(self.eager) // 2)
        self.both(lambda held: held.replace_all([held.entries[i] for i in places]))

    @rule(threshold=st.floats(-1, 1))
    def set_threshold(self, threshold: float) -> None:
        for held in (self.lazy, self.eager):
            held.thresholds = dict.fromkeys(held.tasks, threshold)

    @rule(limit=st.sampled_from([0, 200, 10**6]))
    def limit_the_cache(self, limit: int) -> None:
        self.lazy.payload_cache.limit = limit

    @rule(reopen=st.booleans())
    def save_in_place(self, reopen: bool) -> None:
        self.lazy.save_pretrained(self.directory)
        self.eager.save_pretrained(self.directory / "eager")
        assert unnumbered(self.directory) == unnumbered(self.directory / "eager")
        if reopen:
            limit = self.lazy.payload_cache.limit
            self.lazy = opened(self.directory, payload_cache=limit)

    @precondition(lambda self: hasattr(self, "lazy"))
    @invariant()
    def they_are_the_same(self) -> None:
        assert_reads_alike(self.lazy, self.eager)
        cache = self.lazy.payload_cache
        assert 0 <= cache.nbytes <= cache.limit

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


def files_only(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file() and p.name != memory_file.LOCK}


def unnumbered(directory: Path) -> dict[str, object]:
    """The files' contents, but for how often the folder was changed."""
    held: dict[str, object] = dict(files_only(directory))
    index = json.loads(held.pop("memory.json"))
    return held | {k: v for k, v in index.items() if k not in ("generation", "index_sha256")}


LazyIsEager.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLazyIsEager = LazyIsEager.TestCase


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_golden_memory_reads_alike(dtype: str, tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "memory"
    assert_reads_alike(opened(golden), filled())
    filled(dtype).save_pretrained(tmp_path)
    lazy = opened(tmp_path)
    assert lazy.lazy and not KVMemory.from_pretrained(tmp_path).lazy
    lazy.save_pretrained(tmp_path / "copy")
    assert files(tmp_path / "copy").items() <= files_only(tmp_path).items()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 6])
def test_the_file_is_what_the_safetensors_library_writes(tmp_path: Path, dtype: str, count: int) -> None:
    saved(tmp_path, dtype, count)
    data = path_of(tmp_path).read_bytes()
    assert safetensors.torch.save(safetensors.torch.load(data)) == data


def test_some_layers_only(tmp_path: Path) -> None:
    held = KVMemory("64KiB", Layout((1, 3), kv_heads=2, head_dim=4, key_dim=8), "int8", {"architecture": "Tiny"})
    held.add_all([Entry.of(encoded(), id=n, task="t", payload_dtype="int8", layers=(1, 3)) for n in "ab"])
    held.save_pretrained(tmp_path)
    assert_reads_alike(opened(tmp_path), held)


def test_large_payloads_stay_in_the_file_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = saved(tmp_path)
    stored = held.bytes_by_kind()["payload"] + held.bytes_by_kind()["scales"]
    for above, lazy in ((stored - 1, os.name == "posix"), (stored, False)):
        monkeypatch.setattr(memory_file, "LAZY_ABOVE", above)
        assert KVMemory.from_pretrained(tmp_path).lazy == lazy
        assert not KVMemory.from_pretrained(tmp_path, lazy=False).lazy


# -- a sequence


def test_entries_are_a_sequence(tmp_path: Path) -> None:
    held = saved(tmp_path)
    lazy = opened(tmp_path).entries
    assert len(lazy) == 6 and [e.id for e in lazy] == [f"entry-{i}" for i in range(6)]
    assert lazy[-1].id == "entry-5" and [e.id for e in lazy[4:0:-2]] == ["entry-4", "entry-2"]
    assert lazy[1] == lazy[1] and lazy[1] != lazy[2] and len({lazy[1], lazy[1], lazy[2]}) == 2
    assert lazy.index(lazy[3]) == 3 and lazy[3] in lazy
    for index in (6, -7):
        with pytest.raises(IndexError):
            lazy[index]
    for one, other in zip(lazy, held.entries, strict=True):
        assert same(one, other) and one.text == other.text
        assert (one.tokens, one.text_nbytes) == (other.tokens, other.text_nbytes)


def test_an_entry_can_leave_its_file(tmp_path: Path) -> None:
    saved(tmp_path)
    one = opened(tmp_path).entries[1]
    assert type(one) is StoredEntry
    changed = dataclasses.replace(one, task="other")
    assert type(changed) is Entry and changed.task == "other" and changed.id == one.id
    for again in (pickle.loads(pickle.dumps(one)), Entry(*one.__reduce__()[1])):
        assert type(again) is Entry and same(again, one)


def test_a_copy_of_the_memory_is_a_memory(tmp_path: Path) -> None:
    held = saved(tmp_path)
    lazy = opened(tmp_path)
    copied = copy.deepcopy(lazy)
    copied.forget("a")
    assert_reads_alike(lazy, held)
    assert copied.tasks == ("b",)


def test_entries_of_another_shape_do_not_come_along(tmp_path: Path) -> None:
    saved(tmp_path, "float16")
    with pytest.raises(ValueError, match="this memory holds int8"):
        memory().add_all(opened(tmp_path).entries)


# -- what is read when


def test_payloads_are_read_when_they_are_retrieved(tmp_path: Path, reads: list) -> None:
    saved(tmp_path, count=60)
    lazy = opened(tmp_path)
    assert {name for name, _ in reads} <= {"numbers", "calibration", "keys"}
    del reads[:]
    tasks = [e.task for e in lazy.entries]
    sizes = (lazy.nbytes, lazy.tasks, lazy.bytes_by_kind(), lazy.threshold_of_entries(), len(tasks))
    assert [lazy.entry_nbytes(e) for e in lazy.entries] and sizes and not reads, "the table answers all of this"
    lazy.payloads(torch.tensor([3, 7]))
    tokens = lazy.entries[3].tokens + lazy.entries[7].tokens
    assert sum(size for _, size in reads) == 2 * tokens * 3 * 2 * (4 + 2)
    del reads[:]
    lazy.payloads(torch.tensor([7, 3]))
    assert not reads, "hot"
    lazy.payload_cache.limit = 0
    lazy.payloads(torch.tensor([7, 3]))
    assert reads and lazy.payload_cache.nbytes == 0
    del reads[:]
    lazy.forget("a")
    lazy.add(entry(99, 2, "c"))
    lazy.save_pretrained(tmp_path)
    assert {name for name, _ in reads} <= {"text"}


@settings(deadline=None, max_examples=100)
@given(
    limit=st.integers(0, 200),
    steps=st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 200))), max_size=40),
)
def test_the_cache_keeps_what_was_used_last_within_its_limit(limit: int, steps: list) -> None:
    cache, owner, loads = PayloadCache(limit), object(), []
    expected: list[int] = []  # the last used last

    def size(row: int) -> int:
        return 2 * 4 * (1 + row)

    for row, new_limit in steps:
        if new_limit is not None:
            cache.limit = limit = new_limit
            while sum(map(size, expected)) > limit:
                expected.pop(0)

        def load(row: int = row) -> Loaded:
            loads.append(row)
            return Loaded(torch.full((1, 1, 1 + row, 1), float(row)), torch.zeros(1, 1, 1 + row, 1), None)

        before = len(loads)
        keys = cache.get((owner, row), load).keys
        assert keys.flatten().tolist() == [float(row)] * (1 + row)
        assert (len(loads) == before) == (row in expected)
        if row in expected:
            expected.remove(row)
        if size(row) <= limit:
            while sum(map(size, expected)) + size(row) > limit:
                expected.pop(0)
            expected.append(row)
        assert cache.nbytes == sum(map(size, expected)) <= limit and len(cache) == len(expected)


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be replaced")
def test_what_was_forgotten_is_not_kept_open(tmp_path: Path) -> None:
    saved(tmp_path)
    lazy = opened(tmp_path)
    (old,) = lazy.entries.stores
    lazy.forget("a")
    lazy.save_pretrained(tmp_path / "elsewhere")
    assert lazy.entries.stores == [old], "saved elsewhere, it goes on reading where it did"
    lazy.save_pretrained(tmp_path)
    (new,) = lazy.entries.stores
    assert new is not old and new.file.path == path_of(tmp_path)
    descriptor = old.file._descriptor
    del old
    with pytest.raises(OSError):
        os.fstat(descriptor)


# -- files that change or lie


def test_a_file_that_shrinks_after_opening_is_an_error_and_no_crash(tmp_path: Path) -> None:
    saved(tmp_path)
    lazy = opened(tmp_path)
    os.truncate(path_of(tmp_path), 700)
    for read in (
        lambda: lazy.payloads(torch.tensor([5])),
        lambda: lazy.entries[5].payload,
        lambda: lazy.entries[5].question,
        lazy.keys,
        lambda: lazy.save_pretrained(tmp_path / "copy"),
    ):
        with pytest.raises(MemoryFileError, match="truncated or written to after it was opened; load the memory again"):
            read()
    assert not [p for p in (tmp_path / "copy").iterdir() if p.name != memory_file.LOCK]


def test_a_file_written_to_after_opening_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path)
    lazy = opened(tmp_path)
    lazy.payloads(torch.tensor([0]))
    with path_of(tmp_path).open("r+b") as file:
        file.seek(-300, os.SEEK_END)
        file.write(b"x")
    os.utime(path_of(tmp_path), ns=(0, 0))
    with pytest.raises(MemoryFileError, match="written to"):
        lazy.payloads(torch.tensor([1]))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed_when_opening(tmp_path: Path, place: float, flip: int) -> None:
    saved(tmp_path)
    data = bytearray(path_of(tmp_path).read_bytes())
    data[int(place * len(data))] ^= flip
    path_of(tmp_path).write_bytes(data)
    with pytest.raises(MemoryFileError, match="checksum"):
        opened(tmp_path)


def forged(directory: Path, data: bytes, **changes: object) -> None:
    """An attacker's tensor file, all checksums made right."""
    import hashlib

    path_of(directory).unlink()
    digest = hashlib.sha256(data).hexdigest()
    name = f"memory-{digest[:32]}.safetensors"
    (directory / name).write_bytes(data)
    index = json.loads((directory / "memory.json").read_bytes())
    index |= {"file": name, "size": len(data), "sha256": digest, **changes}
    index["index_sha256"] = memory_file._index_digest(index)
    (directory / "memory.json").write_bytes(memory_file._encode(index))


def text_of(*lines: str) -> torch.Tensor:
    return torch.frombuffer(bytearray("".join(line + "\n" for line in lines).encode()), dtype=torch.uint8)


FORGERIES = {
    "a key that is not finite": lambda t: t["keys"][2].fill_(torch.inf),
    "an entry without tokens": lambda t: t["numbers"][:2, 0].copy_(torch.tensor([0, 3])),
    "more tokens than payload": lambda t: t["numbers"][0, 0].fill_(9),
    "a negative span": lambda t: t["numbers"][0, 1].fill_(-1),
    "a task that is not there": lambda t: t["numbers"][5, 3].fill_(2),
    "tasks in another order": lambda t: t["numbers"][:, 3].copy_(1 - t["numbers"][:, 3]),
    "a tensor too few": lambda t: t.pop("key_scales"),
    "a tensor too many": lambda t: t.update(extra=torch.ones(3)),
    "no table": lambda t: t.pop("numbers"),
    "another dtype": lambda t: t.update(payload_keys=t["payload_keys"].float()),
    "another shape": lambda t: t.update(payload_keys=t["payload_keys"].flatten(1)),
    "calibration that is no number": lambda t: t["calibration"][0].fill_(torch.nan),
    "a text too few": lambda t: t.update(text=text_of(*['["entry-1","",""]'] * 5)),
    "one id twice": lambda t: t.update(text=text_of(*[f'["entry-{i // 2}","",""]' for i in range(6)])),
    "text that is no list": lambda t: t.update(text=text_of(*['{"a":1}'] * 6)),
    "text with spaces": lambda t: t.update(text=text_of(*[f'["{i}", "",""]' for i in range(6)])),
    "text with escapes": lambda t: t.update(text=text_of(*[f'["{i}","\\u0061",""]' for i in range(6)])),
    "half a character": lambda t: t.update(text=text_of(*[f'["{i}","\\ud800",""]' for i in range(6)])),
    "numbers for ids": lambda t: t.update(text=text_of(*[f'["{i}",1,"x"]' for i in range(6)])),
    "an empty id": lambda t: t.update(text=text_of('["","",""]', *[f'["{i}","",""]' for i in range(5)])),
    "a long id": lambda t: t.update(text=text_of(*[f'["{i}{"x" * 130}","",""]' for i in range(6)])),
    "an id of control characters": lambda t: t.update(text=text_of(*[f'["{i}\\t","",""]' for i in range(6)])),
    "a long question": lambda t: t.update(text=text_of(*[f'["{i}","{"x" * 600}",""]' for i in range(6)])),
    "rows across lines": lambda t: t.update(
        text=text_of('["a","b","c"],["d","]', '[","y"]', *[f'["{i}","",""]' for i in range(4)])
    ),
    "two rows in a line": lambda t: t.update(
        text=text_of('["a","b","c"],["d","e","f"]', *[f'["{i}","",""]' for i in range(4)])
    ),
    "a row over two lines": lambda t: t.update(
        text=text_of('["x","y","z"],["a"', '"b","c"]', *[f'["{i}","",""]' for i in range(4)])
    ),
    "text that does not end": lambda t: t.update(text=t["text"][:-1].clone()),
    "text that is not UTF-8": lambda t: t["text"][-4].fill_(255),
}


MESSAGES = {
    "a key that is not finite": "key holds numbers that are not finite",
    "an entry without tokens": "at least one token",
    "more tokens than payload": "with 20 tokens must be",
    "a negative span": "table of entries",
    "a task that is not there": "of task 2, there are 2",
    "tasks in another order": "order of their first entry",
    "a tensor too few": "key_scales",
    "a tensor too many": "extra",
    "no table": "numbers",
    "another dtype": "payload_keys of 6 entries",
    "another shape": "payload_keys of 6 entries",
    "calibration that is no number": "calibration",
    "a text too few": "5 texts for 6 entries",
    "one id twice": "'entry-0' comes more than once",
    "text that is no list": "not a list of",
    "text with spaces": "not written as",
    "text with escapes": "not written as",
    "half a character": "surrogates not allowed",
    "numbers for ids": "must be text",
    "an empty id": "printable text",
    "a long id": "printable text",
    "an id of control characters": "not consistent",
    "a long question": "longer than 512",
    "rows across lines": "Invalid control character",
    "two rows in a line": "not a list of",
    "a row over two lines": "not a list of",
    "text that does not end": "does not end",
    "text that is not UTF-8": "can't decode",
}


@pytest.mark.parametrize("what", FORGERIES)
@pytest.mark.parametrize("lazy", [True, False])
def test_forgeries_are_refused_lazily_or_not(tmp_path: Path, what: str, lazy: bool) -> None:
    layout = saved(tmp_path).layout
    tensors = safetensors.torch.load(path_of(tmp_path).read_bytes())
    FORGERIES[what](tensors)
    each = layout.entry_nbytes(0, "int8", 0)
    size = layout.base_nbytes(["a", "b"]) + 6 * each + layout.entry_nbytes(12, "int8", len(tensors["text"])) - each
    forged(tmp_path, safetensors.torch.save(tensors), nbytes=size)
    with pytest.raises(MemoryFileError, match=MESSAGES[what]):
        KVMemory.from_pretrained(tmp_path, lazy=lazy)


def header_edit(data: bytes, change: object) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize(
    "forge",
    [
        lambda d: b"",
        lambda d: d[:7],
        lambda d: (2**63).to_bytes(8, "little") + d[8:],
        lambda d: d[:8] + b"[" * 100 + d[108:],
        lambda d: header_edit(d, lambda h: h["keys"].update(data_offsets=[0, 10**12])),
        lambda d: header_edit(d, lambda h: h["keys"].update(shape=[-6, -8])),
        lambda d: header_edit(d, lambda h: h["keys"].update(shape=[True, 96])),
        lambda d: header_edit(d, lambda h: h["keys"].update(shape=[10**30, 8])),
        lambda d: header_edit(d, lambda h: h["keys"].update(dtype="F8")),
        lambda d: header_edit(d, lambda h: h["text"].update(data_offsets=h["keys"]["data_offsets"])),
        lambda d: header_edit(d, lambda h: h.update(keys=7)),
        lambda d: d + b"more",
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, forge: object) -> None:
    saved(tmp_path)
    forged(tmp_path, forge(path_of(tmp_path).read_bytes()))
    with pytest.raises(MemoryFileError, match="is not a safetensors file"):
        opened(tmp_path)


@pytest.mark.parametrize(("dtype", "name"), [("float16", "payload_values"), ("int8", "key_scales")])
def test_payloads_that_are_not_finite_are_refused_when_read(tmp_path: Path, dtype: str, name: str) -> None:
    saved(tmp_path, dtype)
    tensors = safetensors.torch.load(path_of(tmp_path).read_bytes())
    tensors[name][0].fill_(torch.nan)
    forged(tmp_path, safetensors.torch.save(tensors))
    with pytest.raises(MemoryFileError, match="not finite"):
        KVMemory.from_pretrained(tmp_path, lazy=False)
    lazy = opened(tmp_path)
    lazy.payloads(torch.tensor([1]))
    for read in (lambda: lazy.payloads(torch.tensor([1, 0])), lambda: lazy.entries[0].payload):
        with pytest.raises(MemoryFileError, match=r"entry 0 of .* not finite"):
            read()


# -- entries that share a hash


def test_ids_with_equal_hashes_are_different_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of ids only narrow the search."""
    import inducekv.entries
    import inducekv.entry_table
    import inducekv.table_reader

    for module in (inducekv.entries, inducekv.entry_table, inducekv.table_reader):
        monkeypatch.setattr(module, "hash", lambda text: len(text) % 2, raising=False)
    held = saved(tmp_path)
    lazy = opened(tmp_path)
    assert_reads_alike(lazy, held)
    lazy.add(entry(31))
    with pytest.raises(ValueError, match="'entry-31' comes more than once"):
        lazy.add(entry(31))
    lazy.drop(["entry-31", "entry-2"])
    assert [e.id for e in lazy.entries] == ["entry-0", "entry-1", "entry-3", "entry-4", "entry-5"]
    assert lazy.merge(held) == 1 and lazy.entries[-1].id == "entry-2"
    with pytest.raises(ValueError, match="'entry-8'"):
        lazy.drop(["entry-8"])


def test_runs_join_neighbours(tmp_path: Path) -> None:
    saved(tmp_path)
    stored = opened(tmp_path).entries
    mixed = Entries.of([*stored[1:3], entry(40), entry(41), *stored[3:5], stored[0]])
    assert [(r.start, r.stop, len(r.held or ())) for r in mixed.runs()] == [(1, 3, 0), (0, 0, 2), (3, 5, 0), (0, 1, 0)]
    assert isinstance(mixed.stores[0], StoredEntries) and len(mixed.stores) == 1 and len(mixed.held) == 2
    assert np.array_equal(mixed.table.numbers[:, 0], [e.tokens for e in mixed])


def test_a_budget_holds_for_what_lies_in_files(tmp_path: Path) -> None:
    held = saved(tmp_path)
    lazy = opened(tmp_path)
    small = memory(held.nbytes - 1)
    with pytest.raises(BudgetError):
        small.add_all(lazy.entries)
    assert len(small) == 0 and not small.lazy
    with pytest.raises(BudgetError):
        lazy.resize(held.nbytes - 1)
