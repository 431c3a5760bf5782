"""Text-only models from a folder or a file, with a bare tokenizer; what cannot be loaded is told at once."""

import importlib.util
import json
import struct
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import tiny
import tiny_families as families
from commands import refused, run, run_json
from inducekv import Backbone, InducedModel, InduceKVConfig, hub, loading
from inducekv.cli import common
from inducekv.examples import Example
from inducekv.families import FAMILIES, TEXT_ONLY
from inducekv.gguf_file import checked_gguf, save_converted
from tiny_gguf import write_gguf

TEXT_FAMILIES = sorted(name for name, family in FAMILIES.items() if family is TEXT_ONLY)
ROWS = [Example(f"what is {i}?", "zorb") for i in range(5)]
QUICK = {"budget": "1MiB", "abstain": False, "outer_steps": 1, "inner_steps": 1}


def saved(name: str, folder: Path) -> Path:
    backbone = families.model(name)
    backbone.model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_text_model_learns_and_answers_from_its_folder(name: str, tmp_path: Path) -> None:
    model = InducedModel.from_pretrained(saved(name, tmp_path / "model"), config=InduceKVConfig(**QUICK))
    assert type(model.backbone.model) is type(families.model(name).model)
    model.learn(ROWS, task="t")
    model.save_memory(tmp_path / "memory")
    again = InducedModel.from_pretrained(tmp_path / "model", memory=tmp_path / "memory")
    answer = again.answer([], ROWS[0].question, max_new_tokens=4)
    assert answer == model.answer([], ROWS[0].question, max_new_tokens=4) and answer.sources
    with pytest.raises(ValueError, match="reads text alone"):
        model.answer([tiny.picture(1)], ROWS[0].question)


def test_the_command_line_teaches_a_text_model_under_a_system_text(tmp_path: Path) -> None:
    model, rows, config = saved("llama", tmp_path / "model"), tmp_path / "rows.jsonl", tmp_path / "config.json"
    rows.write_text("\n".join(json.dumps({"question": e.question, "answer": e.answer}) for e in ROWS))
    config.write_text(json.dumps(QUICK))
    learn = ("learn", rows, "--memory", tmp_path / "memory", "--model", model, "--config", config)
    run_json(*learn, "--system", "be kind", "--task", "first")
    run_json(*learn, "--task", "second")
    assert run_json("inspect", tmp_path / "memory")["fingerprint"]["system"] == "be kind"
    assert run_json("ask", "what is 1?", "--memory", tmp_path / "memory", "--model", model)["sources"]
    refused(run(*learn, "--system", "be rude", "--task", "third"), "learned with the system text 'be kind'")


def test_a_bare_tokenizer_is_enough_for_a_loaded_model() -> None:
    model = families.model("llama").model
    induced = InducedModel.from_pretrained(model, processor=tiny.tokenizer(), config=QUICK, system="be kind")
    induced.learn(ROWS, task="t")
    assert induced.backbone.system == "be kind" and induced.memory.tasks == ("t",)
    with pytest.raises(TypeError, match="dtype: options for loading"):
        InducedModel.from_pretrained(induced.backbone, dtype="float32")


def test_what_the_processor_lacks_is_told_before_weights_are_read(monkeypatch, tmp_path: Path) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", never)
    (saved("llama", tmp_path / "text") / "tokenizer.json").write_text("{")
    with pytest.raises(Exception) as caught:
        Backbone.from_pretrained(tmp_path / "text")
    assert not isinstance(caught.value, AssertionError)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else found(name))
    families.model("qwen2_vl").model.config.save_pretrained(tmp_path / "pictures")
    with pytest.raises(ModuleNotFoundError, match=r"processor of qwen2_vl models needs .*pip install torchvision"):
        Backbone.from_pretrained(tmp_path / "pictures")
    (tmp_path / "rows.jsonl").write_text('{"question": "what?", "answer": "zorb"}')
    asked = run("learn", tmp_path / "rows.jsonl", "--memory", tmp_path / "memory", "--model", tmp_path / "pictures")
    refused(asked, "pip install torchvision")


# -- names


def test_without_a_network_a_name_is_refused_at_once(monkeypatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[str] = []

    class Session:
        def head(self, address: str, timeout: float) -> None:
            asked.append(address)
            time.sleep(30)  # as a name server that does not answer

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no model 'no/such' in the local cache") as caught:
        Backbone.from_pretrained("no/such")
    assert asked and time.monotonic() - begun < 25, "the time limit is of our own, not the name server's"
    assert len(str(caught.value)) <= 500


def test_offline_the_hub_is_not_even_asked(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("asked"))
    assert not hub.hub_answers()


@pytest.mark.parametrize("name", ["./model", "/no/such/folder", "a b", "a/b/c", "", "https://example.org/model"])
def test_what_is_no_name_is_no_folder(name: str, monkeypatch) -> None:
    monkeypatch.setattr(loading, "hub_answers", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Backbone.from_pretrained(name)


# -- GGUF files


def test_a_gguf_file_is_a_model_like_any_other(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    model = InducedModel.from_pretrained(file, config=QUICK)
    assert isinstance(model.backbone.model, LlamaForCausalLM) and model.backbone.dtype == torch.float32
    assert not hasattr(model.backbone.model.config, "quantization_config")
    model.learn(ROWS, task="t")
    model.save_memory(tmp_path / "memory")
    save_converted(file, tmp_path / "folder")
    again = InducedModel.from_pretrained(tmp_path / "folder", memory=tmp_path / "memory")
    for name, weights in again.backbone.model.state_dict().items():
        assert torch.equal(weights, model.backbone.model.state_dict()[name]), name
    assert again.answer([], "the one?").text == model.answer([], "the one?").text
    assert AutoTokenizer.from_pretrained(tmp_path / "folder").chat_template


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no GGUF file"),
        (b"{}", "no GGUF file"),
        (b"PK\x03\x04" + bytes(40), "no GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 1, 1), "version 1;"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 1, 1), "little-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**40, 1), "1,099,511,627,776 tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1), "0 tensors"),
    ],
)
def test_what_is_no_gguf_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        checked_gguf(file)


# -- errors of libraries


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("no\nluck"), "ImportError (no luck); --debug"),
        (ModuleNotFoundError("gguf", name="gguf"), 'pip install "inducekv[gguf]"'),
        (RuntimeError("CUDA " + "x" * 5000), "a library failed: RuntimeError (CUDA xx"),
        (MemoryError(), "out of memory"),
        (RecursionError("deep"), "nested too deeply"),
        (Exception("tokenizers say so"), "tokenizers say so"),
        (type("SafetensorError", (Exception,), {"__module__": "safetensors"})("header"), "SafetensorError (header)"),
        (ValueError("v" * 5000), "vvv"),
    ],
)
def test_errors_of_libraries_are_one_message(error: Exception, said: str, monkeypatch, tmp_path: Path) -> None:
    def raises(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("inducekv.KVMemory.from_pretrained", raises)
    result = run("inspect", tmp_path)
    refused(result, said)
    assert len(result.stderr) < 530
    assert run("inspect", tmp_path, "--debug").exception is error


def test_our_own_faults_keep_their_traceback() -> None:
    assert common.message_of(KeyError("x")) is None and common.message_of(AssertionError()) is None
