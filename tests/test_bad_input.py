"""What a user can get wrong, and what can go wrong under a user: a clear error, exit code 2, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

import tiny
from commands import refused, run, run_json, start, write_task
from inducekv.memory_file import LOCK
from pictures import png_header_only


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model, two tasks, and a memory that learned the first."""
    folder = tmp_path_factory.mktemp("bad-input")
    backbone = tiny.llava(torch.float32)
    backbone.model.save_pretrained(folder / "model")
    backbone.processor.save_pretrained(folder / "model")
    write_task(folder, "first", 6)
    write_task(folder, "second", 6)
    (folder / "config.json").write_text(json.dumps({"outer_steps": 1, "inner_steps": 1}))
    run_json(*learning(folder, folder / "memory", "first"))
    return folder


@pytest.fixture
def memory(made, tmp_path):
    """A copy of the memory to spoil."""
    return shutil.copytree(made / "memory", tmp_path / "memory")


def learning(made, memory, task):
    return (
        "learn",
        made / f"{task}.jsonl",
        "--memory",
        memory,
        "--model",
        made / "model",
        "--config",
        made / "config.json",
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


ROW = {"question": "what?", "answer": "zorb"}


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], ["holds no examples"]),
        ([ROW, {"question": "what?"}], ["data.jsonl, line 2", "no answer"]),
        ([{**ROW, "image": "gone.png"}], ["line 1", "gone.png", "no such file"]),
        ([{**ROW, "image": "broken.png"}], ["line 1", "broken.png"]),
        ([{**ROW, "image": "huge.png"}], ["line 1", "huge.png", "pixels"]),
        ([{**ROW, "image": "../secret.png"}], ["line 1", "leaves the folder"]),
        ([ROW, {**ROW, "image": "cut.png"}], ["cut.png"]),
    ],
    ids=["empty", "no answer", "missing", "broken", "huge", "outside", "truncated"],
)
def test_bad_data_is_refused_and_the_memory_stays(made, memory, tmp_path, rows, said):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    png_header_only(tmp_path / "huge.png", 30_000, 30_000)
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:600])
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    before = contents(memory)
    refused(run("learn", data, "--memory", memory, "--model", made / "model"), *said)
    assert contents(memory) == before


@pytest.mark.parametrize(
    "options, said",
    [
        (["--budget", "many"], "cannot read 'many' as a size"),
        (["--selector", "best"], "best"),
        (["--payload", "zip"], "payload must be"),
        (["--model", "no-such/model-anywhere"], "no-such/model-anywhere"),
        (["--config", "gone.json"], "gone.json"),
    ],
)
def test_bad_options_are_refused(made, tmp_path, options, said):
    arguments = dict(zip(*[iter(["--model", made / "model", *options])] * 2, strict=True))
    given = [item for pair in arguments.items() for item in pair]
    refused(run("learn", made / "first.jsonl", "--memory", tmp_path / "memory", *given), said)


def test_a_configuration_file_with_an_unknown_field_is_refused(made, tmp_path):
    (tmp_path / "config.json").write_text('{"bugdet": 3}')
    arguments = learning(made, tmp_path / "memory", "first")[:-1]
    refused(run(*arguments, tmp_path / "config.json"), "bugdet", "did you mean budget")


def test_a_budget_too_small_for_one_entry_is_refused(made, tmp_path):
    refused(run(*learning(made, tmp_path / "memory", "first"), "--budget", "400"), "budget")
    run_json(*learning(made, tmp_path / "memory", "first"))


@pytest.mark.parametrize("option", [("--budget", "500"), ("--payload-dtype", "float16")])
def test_what_a_memory_cannot_become_is_refused(made, memory, option):
    before = contents(memory)
    refused(run(*learning(made, memory, "second"), *option), option[1])
    assert contents(memory) == before


def test_a_memory_of_another_model_is_refused(made, memory, tmp_path):
    other = tiny.llava(torch.float32)
    other.model.get_input_embeddings().weight.data[7] += 1
    other.model.save_pretrained(tmp_path / "model")
    other.processor.save_pretrained(tmp_path / "model")
    refused(run("ask", "what?", "--memory", memory, "--model", tmp_path / "model"), "made for another model")


def spoil(memory, how):
    index = memory / "memory.json"
    tensors = next(memory.glob("memory-*.safetensors"))
    data = tensors.read_bytes()
    if how == "truncated tensors":
        tensors.write_bytes(data[: len(data) // 2])
    elif how == "edited tensors":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "no tensors":
        tensors.unlink()
    elif how == "truncated index":
        index.write_bytes(index.read_bytes()[:100])
    elif how == "edited index":
        index.write_text(index.read_text().replace('"first"', '"thief"'))
    elif how == "no index":
        index.unlink()
    elif how == "no memory":
        shutil.rmtree(memory)


@pytest.mark.parametrize(
    "how",
    ["truncated tensors", "edited tensors", "no tensors", "truncated index", "edited index", "no index", "no memory"],
)
def test_a_spoilt_memory_is_refused(made, memory, how):
    spoil(memory, how)
    image = made / "images" / "first-0.png"
    refused(run("inspect", memory), "memory")
    refused(run("ask", "what?", "--memory", memory, "--model", made / "model", "--image", image), "memory")
    refused(run("eval", made / "first.jsonl", "--memory", memory, "--model", made / "model"), "memory")
    refused(run("forget", memory, "--task", "first"), "memory")


def test_a_spoilt_memory_is_not_written_over_by_learn(made, memory):
    spoil(memory, "edited tensors")
    before = contents(memory)
    refused(run(*learning(made, memory, "second")), "edited")
    assert contents(memory) == before


def test_a_memory_in_use_is_refused_and_intact(made, memory):
    before = contents(memory)
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, memory / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "1\n"
        refused(run(*learning(made, memory, "second")), "another process")
        refused(run("forget", memory, "--task", "first"), "another process")
        other.communicate("\n")
    assert contents(memory) == before
    run_json(*learning(made, memory, "second"))


def test_two_learns_at_once_lose_nothing(made, memory):
    write_task(made, "third", 6)
    both = {task: start(*learning(made, memory, task)) for task in ("second", "third")}
    told = {task: process.communicate()[1] for task, process in both.items()}
    codes = {task: process.returncode for task, process in both.items()}
    assert set(codes.values()) <= {0, 2}, told
    assert 0 in codes.values(), told
    tasks = set(run_json("inspect", memory)["tasks"])
    assert tasks == {"first", *(task for task, code in codes.items() if code == 0)}
    for task, code in codes.items():
        if code == 2:
            assert "another process" in told[task]
            assert "Traceback" not in told[task]


KILLED_AT_RENAME = """
import os, pathlib, signal, sys
from inducekv.cli import app
import inducekv.model  # everything slow is imported once, before the children are made
at, *arguments = sys.argv[1:]
for number in map(int, at.split(",")):
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1])
        continue
    calls = []
    def killed(rename):
        def wrapper(source, target, *more, **options):
            calls.append(target)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(source, target, *more, **options)
        return wrapper
    os.replace = killed(os.replace)
    os.rename = killed(os.rename)
    pathlib.Path.replace = lambda self, target: os.replace(self, target)
    app(arguments)
"""


def test_a_learn_killed_while_it_writes_leaves_a_whole_memory(made, memory):
    before = contents(memory)
    arguments = [str(argument) for argument in learning(made, memory, "second")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RENAME, "1", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert first.stdout.split() == [str(int(signal.SIGKILL))], first.stderr
    assert contents(memory) == before, "nothing had been renamed into place"
    assert list(run_json("inspect", memory)["tasks"]) == ["first"]
    later = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RENAME, "2,3", *arguments],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert later.stdout.split()[0] == str(int(signal.SIGKILL)), later.stderr
    assert set(run_json("inspect", memory)["tasks"]) >= {"first"}, "the old memory or the new one, whole"
    assert set(run_json(*learning(made, memory, "second"))["dropped"]) == set()
    assert set(run_json("inspect", memory)["tasks"]) == {"first", "second"}
