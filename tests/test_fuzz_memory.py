"""A few hundred mutants of memory files, and a few killed writers; `tools/fuzz_memory.py` runs as many as you like."""

import importlib.util
import os
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "tools" / "fuzz_memory.py"
pytestmark = pytest.mark.skipif(not SOURCE.is_file(), reason="tools/ are not part of a source distribution")


@pytest.fixture(scope="module")
def fuzzer() -> object:
    spec = importlib.util.spec_from_file_location("fuzz_memory", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [1, 2])
def test_mutants_are_refused_or_read_right(fuzzer: object, seed: int) -> None:
    said: list[str] = []
    seen = fuzzer.fuzz(150, seed, said.append)
    assert not said, said[0]
    assert not any(seen[fault] for fault in ("tracebacks", "damaged used", "unsaved", "long messages")), seen
    assert seen["refused"] > 75 and seen["forged read"] > 5, "the mutants are neither all broken nor all harmless"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_writers_leave_one_state(fuzzer: object) -> None:
    said: list[str] = []
    seen = fuzzer.kill(4, 3, said.append)
    assert not said, said[0]
    assert seen["killed"] == 4 and not any(seen[fault] for fault in ("mixed", "forgotten found", "unreadable")), seen
