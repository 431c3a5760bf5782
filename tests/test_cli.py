"""Every command, on a tiny model saved to disk."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from PIL import Image

import inducekv
import tiny
from commands import WORDS, refused, run, run_json, write_task
from inducekv.cli import app, common


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, two tasks, and a memory that learned both."""
    folder = tmp_path_factory.mktemp("commands")
    backbone = tiny.llava(torch.float32)
    backbone.model.save_pretrained(folder / "model")
    backbone.processor.save_pretrained(folder / "model")
    write_task(folder, "first")
    write_task(folder, "second")
    (folder / "config.json").write_text(json.dumps({"outer_steps": 2, "inner_steps": 1, "abstain": False}))
    learned = learn(folder, "memory", "first"), learn(folder, "memory", "second")
    (folder / "learned.json").write_text(json.dumps(learned))
    return folder


def learn(folder, memory, task, *more):
    data, model = folder / f"{task}.jsonl", folder / "model"
    options = ("--memory", folder / memory, "--model", model, "--config", folder / "config.json", "--budget", "64KiB")
    return run_json("learn", data, *options, *more)


def test_learn_extends_a_memory_and_reports(folder):
    first, second = json.loads((folder / "learned.json").read_text())
    assert (first["task"], second["task"]) == ("first", "second")
    assert first["candidates"] == 12
    assert 0 < len(first["chosen"]) <= 12
    assert second["nbytes"] <= second["budget"] == 65536


def test_learn_starts_from_what_the_model_says_and_options_go_before(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    own = {"payload_layers": [-1], "payload_dtype": "int3", "top_k": 5}
    (tmp_path / "model" / "inducekv_config.json").write_text(json.dumps(own))
    options = ("--memory", tmp_path / "memory", "--fast", "--payload-dtype", "int8")
    run_json("learn", folder / "first.jsonl", "--model", tmp_path / "model", *options)
    run_json("learn", folder / "second.jsonl", "--model", tmp_path / "model", "--memory", tmp_path / "memory", "--fast")
    shown = run_json("inspect", tmp_path / "memory")
    assert (shown["layers"], shown["payload_dtype"]) == ([2], "int8")
    assert json.loads(shown["metadata"]["reading"])["top_k"] == 5
    assert set(shown["tasks"]) == {"first", "second"}
    assert "payloads of layer 2 in int8" in run("inspect", tmp_path / "memory").stdout


def test_what_a_model_says_amiss_is_told_on_one_line(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "inducekv_config.json").write_text('{"top_k": "many"}')
    result = run("learn", folder / "first.jsonl", "--memory", tmp_path / "memory", "--model", tmp_path / "model")
    refused(result, "inducekv_config.json", "top_k")


def test_learning_fast_asks_nothing(folder, tmp_path):
    report = learn(folder, tmp_path / "fast", "first", "--fast")
    assert report["chosen"] and report["before"] == report["after"] == {}


def test_inspect_shows_what_is_there_without_a_model(folder):
    shown = run_json("inspect", folder / "memory")
    assert set(shown["tasks"]) == {"first", "second"}
    assert sum(shown["tasks"].values()) == shown["entries"]
    assert sum(shown["bytes_by_kind"].values()) == shown["nbytes"] <= shown["budget"]
    assert shown["calibration"]["tau"] > 0
    assert shown["layers"] == [0, 1, 2] and len(shown["calibration"]["lambdas"]) == 3
    assert shown["fingerprint"]["model_type"] == "llava"
    text = run("inspect", folder / "memory").stdout
    assert (shown["payload_dtype"], shown["key_dtype"]) == ("int4", "int4")
    for words in ("first", "second", "payloads of layers 0-2 in int4", "keys in int4", "calibration", "fingerprint"):
        assert words in text


def test_ask_answers_and_names_its_sources(folder):
    image = folder / "images" / "first-0.png"
    question = ("ask", "what?", "--memory", folder / "memory", "--model", folder / "model", "--image", image)
    answer = run_json(*question)
    assert answer["sources"], "entries of the very same question are near enough"
    assert sum(source["alpha"] for source in answer["sources"]) == pytest.approx(1, abs=1e-3)
    for source in answer["sources"]:
        assert source["task"] in ("first", "second")
        assert source["answer"] in WORDS
        assert 0 <= source["mass"] <= 1
    text = run(*question).stdout
    assert answer["sources"][0]["id"] in text
    assert "α" in text
    assert run(*question, "--quiet").stdout.count("\n") <= answer["answer"].count("\n") + 1


def test_texts_cannot_steer_the_terminal(folder, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "a[/bold]?", "answer": "[red]\x1b[31mb"}))
    options = ("--memory", tmp_path / "memory", "--model", folder / "model")
    config = ("--config", folder / "config.json", "--task", "[/odd]")
    assert "learned [/odd]" in run("learn", data, *options, *config).stdout
    text = run("ask", "a[/bold]?", *options).stdout
    for words in ("[/odd]", "[red]�[31mb", "a[/bold]?"):
        assert words in text
    assert "\x1b" not in text
    assert "[/odd]" in run("inspect", tmp_path / "memory").stdout


def test_eval_stands_beside_zero_shot_and_label_copy(folder):
    arguments = ("eval", folder / "first.jsonl", "--memory", folder / "memory", "--model", folder / "model")
    result = run_json(*arguments, "--limit", 6)
    assert result["questions"] == 6
    assert set(result["accuracy"]) == {"inducekv", "zero_shot", "nearest_neighbour"}
    assert all(0 <= accuracy <= 100 for accuracy in result["accuracy"].values())
    assert result["accuracy"]["zero_shot"] == 0, "a random model does not know made-up names"
    assert run_json(*arguments, "--limit", 6) == result
    assert "Zero-shot" in run(*arguments).stdout


def test_a_question_finds_its_own_entry_by_label_copy(folder):
    learn(folder, "whole", "first")
    arguments = ("eval", folder / "first.jsonl", "--memory", folder / "whole", "--model", folder / "model")
    kept = run_json("inspect", folder / "whole")["entries"]
    assert kept == 12, "64 KiB hold this task whole"
    assert run_json(*arguments)["accuracy"]["nearest_neighbour"] == 100


def test_same_seed_same_memory_byte_for_byte(folder):
    for memory in ("one", "two"):
        learn(folder, memory, "first", "--seed", 4)
    files = [{p.name: p.read_bytes() for p in (folder / m).iterdir() if p.suffix != ".lock"} for m in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) >= 2


def test_forget_takes_a_task_out_of_every_file(folder):
    for task in ("first", "second"):
        learn(folder, "forgetful", task)
    result = run_json("forget", folder / "forgetful", "--task", "first")
    assert result["dropped"] > 0
    assert list(run_json("inspect", folder / "forgetful")["tasks"]) == ["second"]
    for path in (folder / "forgetful").iterdir():
        assert b"first" not in path.read_bytes(), path
    refused(run("forget", folder / "forgetful", "--task", "first"), "no task 'first'", "second")


def test_options_reach_the_configuration(folder):
    learn(folder, "options", "first", "--payload", "none", "--payload-dtype", "float16", "--selector", "random")
    learn(folder, "defaults", "first", "--selector", "random")
    whole, kept = (run_json("inspect", folder / name) for name in ("options", "defaults"))
    assert whole["bytes_by_kind"]["scales"] == 0
    assert whole["nbytes"] / whole["entries"] > kept["nbytes"] / kept["entries"]


def test_help_and_version_come_without_loading_a_model():
    code = (
        "import sys; from inducekv.cli import app\ntry:\n app(['--version'])\nfinally:\n print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split() == [inducekv.__version__, "False"]
    commands = run("--help").stdout
    for name in ("demo", "learn", "ask", "inspect", "forget", "eval"):
        assert name in commands
        help_text = run(name, "--help").stdout
        for option in ("--json", "--quiet", "--seed"):
            assert (option in help_text) == (option != "--seed" or name not in ("inspect", "forget")), (name, option)


def every_command():
    """Every command's name and function, those of `bench` too."""
    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    for prefix, group in groups:
        for command in group.registered_commands:
            yield prefix + (command.name or command.callback.__name__), command.callback


def test_no_option_does_nothing():
    for name, callback in every_command():
        function = inspect.unwrap(callback)
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        assert set(inspect.signature(function).parameters) <= read, name


def test_demo_prints_the_promised_object_and_writes_its_report(folder, tmp_path, monkeypatch):
    for module in ("peft", "matplotlib", "sklearn"):
        pytest.importorskip(module)
    tasks = [(name, *[inducekv.read_examples(folder / f"{name}.jsonl")] * 2) for name in ("first", "second")]
    monkeypatch.setattr("inducekv.embedded.path", lambda: folder / "model")
    monkeypatch.setattr("inducekv.embedded.tasks.demo_stream", lambda seed: tasks)
    figures = run_json("demo", "--seed", 3, "--budget", "64KiB", "--report", tmp_path / "report")
    assert (figures["seed"], figures["budget_bytes"], figures["tasks"]) == (3, 65536, ["first", "second"])
    assert list(figures["methods"]) == ["zero_shot", "nearest_neighbour", "sequential_lora", "inducekv"]
    for name, method in figures["methods"].items():
        keys = {"matrix", "avg", "last", "forgetting", "deployed_bytes", "learn_seconds", "answer_seconds"}
        assert set(method) == keys, name
        assert method["matrix"][0][1] is None
        assert method["last"] == pytest.approx(sum(method["matrix"][1]) / 2, abs=0.01)
        assert 0 <= method["deployed_bytes"] <= 65536
    assert figures["methods"]["nearest_neighbour"]["last"] == 100, "the test asks the very examples it learned from"
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == figures
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 6
    assert 'class="source"' in page


def test_a_missing_extra_is_named(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else found(name, *more))
    refused(run("demo"), 'pip install "inducekv[bench]"', "peft")


def test_debugging_shows_where_an_error_comes_from(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "INDUCEKV_DEBUG", "1")
    assert isinstance(run("inspect", tmp_path).exception, ValueError)


def test_json_has_no_numbers_that_json_lacks(capsys):
    common.print_json({"a": [float("nan"), float("inf"), 1.5, None], "b": ("x", True)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5, None], "b": ["x", True]}


def test_ask_refuses_a_broken_picture_before_loading_anything(folder, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:20])
    refused(run("ask", "what?", "--memory", folder / "memory", "--image", tmp_path / "cut.png"), "cut.png")
