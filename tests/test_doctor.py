"""What `inducekv doctor` says of a configuration, without weights and without a network."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig
from typer.testing import CliRunner

import tiny_families
from inducekv.cli import app
from inducekv.doctor import FRAMING, TEXT_NBYTES, _missing, diagnose, examine
from inducekv.families import FAMILIES
from inducekv.layout import Layout


@pytest.mark.parametrize("family", tiny_families.MODELS)
def test_what_is_said_of_a_configuration_is_true_of_the_model(family: str, tmp_path: Path) -> None:
    backbone = tiny_families.model(family)
    backbone.model.config.to_json_file(tmp_path / "config.json")
    for source in (tmp_path, tmp_path / "config.json"):
        found = examine(source)
        assert found.supported and found.layout is not None
        assert (found.layers, found.kv_heads, found.head_dim) == (
            backbone.layers,
            backbone.kv_heads,
            backbone.head_dim,
        )
        assert found.hidden_size == backbone.hidden_size
    modules = [layer.self_attn for layer in backbone.text_model.layers]
    assert sum(getattr(module, "sliding_window", None) is not None for module in modules) == found.sliding_layers or (
        found.decoder == "mistral" and found.sliding_layers == backbone.layers  # whose modules read the configuration
    )


def test_entries_weigh_what_a_memory_counts() -> None:
    found = diagnose("a model", tiny_families.model("llava").model.config)
    layout = found.layout
    assert isinstance(layout, Layout)
    for bits, dtype in ((16, "float16"), (8, "int8")):
        assert found.slot_nbytes(bits) == layout.payload_nbytes(1, dtype) + layout.scales_nbytes(1, dtype)
        each = layout.entry_nbytes(5, dtype, TEXT_NBYTES)
        base = FRAMING + layout.base_nbytes(["task"])
        assert found.entries(base + 7 * each, 5, bits) == 7 and found.entries(base + 7 * each - 1, 5, bits) == 6
    assert found.slot_nbytes(2) < found.slot_nbytes(4) < found.slot_nbytes(8) < found.slot_nbytes(16)
    assert found.entries("0B", 5, 16) == 0


def test_the_command_prints_both_ways(tmp_path: Path) -> None:
    tiny_families.model("gemma3").model.config.to_json_file(tmp_path / "config.json")
    said = CliRunner().invoke(app, ["doctor", str(tmp_path), "--budget", "1MiB", "--tokens", "4"])
    assert said.exit_code == 0 and "supported" in said.output and "1MiB" in said.output
    assert "window of 512" in said.output and "sdpa and eager" in said.output
    fields = json.loads(CliRunner().invoke(app, ["doctor", str(tmp_path), "--json", "--budget", "1MiB"]).output)
    assert fields["supported"] and fields["family"] == "gemma3" and fields["bits"]["8"]["entries"]["1MiB"] > 100
    assert fields["bits"]["4"]["entries"]["1MiB"] > fields["bits"]["8"]["entries"]["1MiB"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "made_up", "auto_map": {"AutoModel": "x.Y"}}, "'made_up'.*brings its own code"),
        ({}, "None is not one that the installed transformers knows"),
        (AutoConfig.for_model("bloom").to_dict(), r"'bloom' is not supported.*families\.py"),
        (AutoConfig.for_model("t5").to_dict(), "encoder-decoder"),
        (AutoConfig.for_model("falcon").to_dict(), "'falcon' is not supported"),
    ],
)
def test_what_cannot_be_supported_is_said_with_the_reason(fields: dict, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = examine(tmp_path)
    assert not found.supported
    with pytest.raises(ValueError, match=reason):
        raise ValueError(" ".join(found.reasons))
    assert CliRunner().invoke(app, ["doctor", str(tmp_path)]).exit_code == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_files_that_are_no_configuration_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    said = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert said.exit_code == 2 and "config.json: " in said.output and " JSON" in said.output


@pytest.mark.parametrize("name", ["/no/such/folder", "no/such/folder", "./absent", "../absent", "~/absent", "a b"])
def test_what_is_neither_there_nor_a_name_is_said_to_be_so(name: str) -> None:
    said = CliRunner().invoke(app, ["doctor", name])
    assert said.exit_code == 2 and said.stdout == ""
    assert f"{name}: no such folder or file" in said.stderr and "owner/name" in said.stderr


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert said.exit_code == 2 and "no config.json" in said.stderr


@pytest.mark.parametrize("installed", [True, False])
def test_what_must_be_installed_is_a_fault(installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inducekv.doctor.find_spec", lambda name: object() if installed else None)
    needs = [family for family, row in FAMILIES.items() if row.processor_needs is not None]
    assert needs
    for family in needs:
        missing = () if installed else (FAMILIES[family].processor_needs,)
        found = replace(examine("embedded"), missing=_missing(family))
        assert (found.supported, found.ready, found.missing) == (True, installed, missing)
    tiny_families.model("qwen2_vl").model.config.to_json_file(tmp_path / "config.json")
    said = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    fields = json.loads(CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"]).stdout)
    assert said.exit_code == (0 if installed else 1) and fields["ready"] is installed
    assert ("cannot be loaded without torchvision" in said.stdout) is not installed
    assert ('pip install "inducekv[processors]"' in said.stdout) is not installed
    short = CliRunner().invoke(app, ["doctor", str(tmp_path), "--quiet"]).stdout
    assert said.stdout.startswith(short) and len(short.splitlines()) == (1 if installed else 2)


def test_an_extra_brings_every_package_that_a_processor_needs() -> None:
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    brought = {requirement.split(">=")[0] for requirement in extras["optional-dependencies"]["processors"]}
    assert {row.processor_needs for row in FAMILIES.values()} - {None} == brought
