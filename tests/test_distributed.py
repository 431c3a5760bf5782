"""Two processes that share a test out write what one writes."""

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bench_fakes
import tiny
from inducekv.config import InduceKVConfig
from inducekv.continual import bench
from inducekv.continual.bench import Bench, Pass, Settings
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.methods.zero_shot import ZeroShot
from inducekv.continual.results import read_results
from inducekv.examples import Example
from inducekv.model import InducedModel
from inducekv.ranks import Ranks
from test_learner import FAST, colour_task


def _tiny_methods(name, backbone, **_):
    if name == "parrot":
        return ZeroShot(backbone, max_new_tokens=4)
    return InduceKV(InducedModel.from_pretrained(backbone, config=InduceKVConfig(budget="1MiB", abstain=False)), 4)


def _bench(folder, ranks=None):
    bench_fakes.install()
    bench.make_method = _tiny_methods
    made = Bench(Path(folder), tiny.llava, Settings(max_new_tokens=4), ranks=ranks)
    for method in ("parrot", "oracle"):
        made.run(Pass("fake", (method,), 2**20, 0))


def _learn_two_tasks(folder, ranks=None):
    """Writes the memory, and what this process encoded of 12 and of 9 candidates, in chunks of 4."""
    backbone, encoded = tiny.llava(), []
    encode = backbone.encode
    backbone.encode = lambda examples, **options: (
        encoded.append([example.id for example in examples]) or encode(examples, **options)
    )
    config = InduceKVConfig(budget="1MiB", payload_dtype="int4", **{**FAST, "batch_size": 4})
    model, options = InducedModel.from_pretrained(backbone, config=config), {} if ranks is None else {"ranks": ranks}
    for task, examples in (("one", colour_task(4, seed=0)), ("two", colour_task(3, seed=1))):
        model.learn(examples, task=task, **options)
    model.save_memory(folder)
    said = ""
    try:
        bad = Example("which?", "red", (folder.parent / "none.png",), id="bad")
        model.learn([*colour_task(2, seed=2), bad], task="three", **options)
    except ValueError as error:
        said = str(error)
    (folder / "encoded.json").write_text(json.dumps([encoded, said]))


def _process(rank, port, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    ranks = Ranks.of_environment()
    gathered = ranks.gather({"rank": rank, "text": "ü" * (rank + 1)})
    shared = ranks.shared_out(list("abcde"), lambda mine: [f"{letter}{rank}" for letter in mine])
    few = ranks.shared_out(["x"], lambda mine: ["only"])
    passed = [len(part) for part in ranks.gather_bytes(b"\0" * 3 * rank)], ranks.gather_bytes(b"")
    assert passed == ([0, 3], [b"", b""])
    Path(folder, f"said-{rank}.json").write_text(json.dumps([gathered, shared, few, ranks.from_first(rank)]))
    _learn_two_tasks(Path(folder) / f"learned-{rank}", ranks)
    _bench(Path(folder) / "two", ranks)
    torch.distributed.destroy_process_group()


@pytest.fixture
def _restored(monkeypatch):
    for name in ("METHODS", "make_method", "stream_named"):
        monkeypatch.setattr(bench, name, getattr(bench, name))


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_give_what_one_gives(tmp_path, _restored):
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        gathered, shared, few, first = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert gathered == [{"rank": 0, "text": "ü"}, {"rank": 1, "text": "üü"}]
        assert shared == ["a0", "b1", "c0", "d1", "e0"]
        assert (few, first) == (["only"], 0)
    _bench(tmp_path / "one")
    alone, together = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert len(alone) == len(together) == 2
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.matrix, two.matrix)
        for name in ("final", "diagonal", "scores", "deployed_bytes", "training_bytes", "ledger", "clusters"):
            assert getattr(one, name) == getattr(two, name), name
    assert any(answer for block in alone[0].final for answer in block), "the model says something"

    _learn_two_tasks(tmp_path / "learned")
    whole, said = json.loads((tmp_path / "learned" / "encoded.json").read_text())
    parts = [json.loads((tmp_path / f"learned-{rank}" / "encoded.json").read_text()) for rank in (0, 1)]
    assert "none.png: no such file" in said
    assert [part[1] for part in parts] == [said, said], "a mistake in one's share is told by both"
    assert [len(chunk) for chunk in whole[:6]] == [4, 4, 4, 4, 4, 1]
    assert parts[0][0][:4] == [whole[i] for i in (0, 2, 3, 5)] and parts[1][0][:2] == [whole[i] for i in (1, 4)]
    for rank in (0, 1):
        for file in sorted((tmp_path / "learned").iterdir()):
            same = tmp_path / f"learned-{rank}" / file.name
            assert file.name == "encoded.json" or same.read_bytes() == file.read_bytes(), (rank, file.name)


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    ranks = Ranks.of_environment()
    assert (ranks, ranks.first) == (Ranks(), True)
    assert ranks.shared_out(["a", "b"], lambda mine: [x.upper() for x in mine]) == ["A", "B"]
    assert ranks.shared_out([], lambda mine: pytest.fail("nothing to answer")) == []
