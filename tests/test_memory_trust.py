"""What the commands do with a memory's word, its raw examples, and names that would steer a terminal."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import tiny
from commands import refused, run, run_json, write_task
from inducekv.cli import common
from inducekv.error_text import LONGEST_MESSAGE, message, shown
from inducekv.fingerprint import check_fingerprint
from inducekv.memory import KVMemory
from inducekv.memory_file import FingerprintError, MemoryFileError
from inducekv.model_name import FOLDER, chosen_model, note_model
from inducekv.training_state import TrainingState
from test_lazy_memory import forged, path_of
from test_memory import filled, memory, reindexed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, data, and a memory that learned one task of it."""
    folder = tmp_path_factory.mktemp("trust")
    backbone = tiny.llava(torch.float32)
    backbone.model.save_pretrained(folder / "model")
    backbone.processor.save_pretrained(folder / "model")
    write_task(folder, "first", 4)
    write_task(folder, "second", 4)
    run_json(*learning(folder, folder / "memory", "first"))
    return folder


def learning(made: Path, memory: Path, task: str, *more: object) -> tuple[object, ...]:
    return ("learn", made / f"{task}.jsonl", "--memory", memory, "--model", made / "model", "--fast", *more)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "memory", tmp_path / "memory")
    return tmp_path / "memory"


@pytest.mark.parametrize("named", ["evil/model", "/etc/models/x", "smollm3", "\x1b[31mred", FOLDER, "x" * 900])
def test_no_model_is_loaded_because_a_memory_says_so(
    made: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr("inducekv.named.load_backbone", load)
    index = json.loads((copy / "memory.json").read_bytes())
    reindexed(copy, metadata={**index["metadata"], "model": named, "model_revision": "0" * 40})
    for command in (
        ("ask", "what?", "--memory", copy),
        ("eval", made / "first.jsonl", "--memory", copy),
        ("learn", made / "second.jsonl", "--memory", copy),
    ):
        result = run(*command)
        refused(result, "this memory", "--model")
        assert "\x1b" not in result.stderr and len(result.stderr) < LONGEST_MESSAGE + 50
    assert named == FOLDER or shown(named)[1:20] in result.stderr, "the name is shown"


def test_a_memory_of_a_model_in_a_folder_does_not_say_where_that_is(made: Path) -> None:
    for path in (made / "memory").iterdir():
        assert str(made).encode() not in path.read_bytes(), path
    assert run_json("inspect", made / "memory")["metadata"]["model"] == FOLDER


def test_models_are_noted_by_name_and_revision() -> None:
    held = memory()
    note_model(held, "org/name", "abc")
    assert held.metadata == {"model": "org/name", "model_revision": "abc"}
    with pytest.raises(ValueError, match=r"'org/name' \(revision 'abc'\).*--model"):
        chosen_model(None, held)
    assert chosen_model("org/name", held) == "org/name"
    note_model(held, "embedded", "abc")
    assert held.metadata == {"model": "embedded"} and chosen_model(None, held) == "embedded"
    assert chosen_model(None, None) == chosen_model(None, memory()) == "embedded"


def test_a_damaged_training_state_stops_learning_but_not_answering(made: Path, copy: Path) -> None:
    (path,) = copy.glob("training_state-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    assert run("ask", "what?", "--memory", copy, "--model", made / "model").exit_code == 0
    assert run_json("inspect", copy)["entries"] == 4
    refused(run(*learning(made, copy, "second")), "missing or damaged", "--no-replay")
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    report = run_json(*learning(made, copy, "second", "--no-replay"))
    assert report["anchors"] == 0 and set(run_json("inspect", copy)["tasks"]) == {"first", "second"}


def test_without_replay_no_raw_example_is_kept(made: Path, copy: Path, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in (made / "images").iterdir()]

    def raw(folder: Path) -> bool:
        held = b"".join(path.read_bytes() for path in folder.iterdir())
        return any(picture in held for picture in pictures)

    assert raw(copy) and TrainingState.load(copy).tasks == ["first"]
    run_json(*learning(made, copy, "second", "--no-replay"))
    run_json(*learning(made, tmp_path / "new", "first", "--no-replay"))
    for folder in (copy, tmp_path / "new"):
        assert not raw(folder) and not list(folder.glob("training_state*"))
        assert TrainingState.load(folder) == TrainingState()


def test_the_budget_is_what_the_files_take_that_answering_needs(made: Path, tmp_path: Path) -> None:
    for budget in (2_400, 3_000, 4_000, 6_000):
        folder = tmp_path / str(budget)
        result = run(*learning(made, folder, "first", "--budget", budget))
        if result.exit_code:
            refused(result, "budget")
            continue
        needed = [p for p in folder.iterdir() if not p.name.startswith("training_state")]
        assert sum(path.stat().st_size for path in needed) <= budget
        for path in folder.glob("training_state*"):
            path.unlink()
        assert run("ask", "what?", "--memory", folder, "--model", made / "model").exit_code == 0
    assert not result.exit_code


# -- messages


def test_messages_are_short_and_do_not_steer_a_terminal(tmp_path: Path) -> None:
    long = message("begins " + "x" * 2000 + " ends")
    assert len(long) == LONGEST_MESSAGE and long.startswith("begins ") and long.endswith(" ends")
    assert message("a\x1b[2Jb\u202e\x9b") == "a\\x1b[2Jb\\u202e\\x9b"
    assert message("as it was: \u00fc \u4efb") == "as it was: \u00fc \u4efb"
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[...]]]]"
    for command in (("inspect",), ("forget", "--task", "t")):
        result = run(command[0], tmp_path / "a\x1b[31mb", *command[1:])
        refused(result, "a\\x1b[31mb")
        assert "\x1b" not in result.stderr
    folder = tmp_path / "c\x9b31md"
    filled().save_pretrained(folder)
    for more in ((), ("--json",)):
        printed = run("inspect", folder, *more).stdout
        assert "\x9b" not in printed and "9b31md" in printed


def test_json_output_reads_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"a\x1b": '\x9b\u202e\U000e0041 \u00fc \n " \\'}
    common.print_json(said)
    text = capsys.readouterr().out
    assert json.loads(text) == said and text.replace("\n", "").isprintable()


def test_a_fingerprint_of_anything_is_refused_in_a_short_message(llava: object) -> None:
    true = llava.fingerprint()
    for odd in (
        {"key_layer": "x"},
        {"key_layer": [1]},
        {"key_layer": 10**9},
        {"key_pool": ["last"]},
        {"rope": {"x" * 3000: 1}},
        {"\x1b" * 600: "\x1b" * 600},
    ):
        with pytest.raises(FingerprintError) as error:
            check_fingerprint({**true, **odd}, llava)
        assert len(str(error.value)) <= LONGEST_MESSAGE and "\x1b" not in str(error.value)


@pytest.mark.parametrize("depth", [40, 900, 30_000])
def test_deep_nesting_is_refused_wherever_it_is(tmp_path: Path, depth: int) -> None:
    filled().save_pretrained(tmp_path)
    index = tmp_path / "memory.json"
    whole = index.read_text(encoding="utf-8")
    deep = "[" * depth + "]" * depth
    for place in ('"fingerprint":{', '"layout":{', '"metadata":{'):
        index.write_text(whole.replace(place, f'{place}"deep":{deep},'), encoding="utf-8")
        with pytest.raises(MemoryFileError, match="nested deeper than 32"):
            KVMemory.from_pretrained(tmp_path)
    index.write_text(whole.replace('"version"', '"version":4,"version"'), encoding="utf-8")
    with pytest.raises(MemoryFileError, match="named twice"):
        KVMemory.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "numbers",
    [
        [-torch.inf, 0.0, 0.5, 0.5, 0.5],
        [-1.0, 0.0, 0.5, -torch.inf, 0.5],
        [-1.0, 0.0, 0.5, torch.inf, 0.5],
        [-1.0, 0.0, torch.nan, 0.5, 0.5],
        [-1e9, 0.0, 0.5, 0.5, 0.5],
        [0.0, torch.inf, 0.5, 0.5, 0.5],
        [0.0, 21.0, 0.5, 0.5, 0.5],
    ],
)
def test_a_calibration_that_is_no_number_is_refused(tmp_path: Path, numbers: list[float]) -> None:
    filled().save_pretrained(tmp_path)
    tensors = safetensors.torch.load(path_of(tmp_path).read_bytes())
    tensors["calibration"].copy_(torch.tensor(numbers))
    forged(tmp_path, safetensors.torch.save(tensors))
    with pytest.raises(MemoryFileError, match="calibration must be finite"):
        KVMemory.from_pretrained(tmp_path)
    held = filled()
    held.calibration = type(held.calibration)(*map(torch.tensor, (numbers[0], numbers[2:], numbers[1])))
    with pytest.raises(ValueError, match="calibration must be finite"):
        held.save_pretrained(tmp_path / "new")
    held = filled()
    held.thresholds["birds"] = numbers[0] * torch.inf
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        held.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
