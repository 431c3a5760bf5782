"""What a model says about its own memory: who takes it, who overrides it, and what is refused."""

import inspect
import json
import shutil
from pathlib import Path

import pytest

from inducekv import InducedModel, InduceKVConfig
from inducekv.backbone import Backbone
from inducekv.config import LARGEST_FILE
from inducekv.continual.methods import make_method
from inducekv.embedded import path
from inducekv.embedded.tasks import alphabet
from inducekv.own_config import FILE, changed, own_fields
from inducekv.published import published_fields
from inducekv.tuning.tuner import fields_of

OWN = {"payload_layers": [0, -1], "payload_dtype": "int3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model's folder without its own configuration."""
    copy = tmp_path / "model"
    shutil.copytree(path(), copy)
    (copy / FILE).unlink()
    return copy


def test_a_new_memory_is_as_the_model_says(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps({"payload_layers": [-1], "top_k": 3}))
    model = InducedModel.from_pretrained(folder)
    assert model.config == InduceKVConfig(payload_layers=(-1,), top_k=3)
    assert model.memory.layout.layers == (4,)


def test_a_model_that_says_nothing_is_read_as_published_models_are(folder: Path) -> None:
    model = InducedModel.from_pretrained(folder)
    assert model.config == InduceKVConfig.from_dict(published_fields(model.backbone.layers, True))
    assert model.config.mass is None and model.config.shared_preamble
    assert Backbone.from_pretrained(folder).own_config == {}


def test_the_embedded_model_has_one_of_its_own() -> None:
    own = json.loads((path() / FILE).read_text())
    backbone = Backbone.from_pretrained(path())
    assert own
    assert backbone.own_config == own
    assert backbone.config() == InduceKVConfig.from_dict(own)


def test_a_mapping_changes_fields_and_a_configuration_replaces_all(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(OWN))
    changed_budget = InducedModel.from_pretrained(folder, config={"budget": "32KiB"}).config
    assert changed_budget == InduceKVConfig(budget="32KiB", payload_layers=(0, -1), payload_dtype="int3")
    assert InducedModel.from_pretrained(folder, config={"payload_layers": None}).config.payload_layers is None
    assert InducedModel.from_pretrained(folder, config=InduceKVConfig(budget="32KiB")).config.payload_layers is None


def test_a_configuration_is_a_configuration_or_fields() -> None:
    as_users_call_it = inspect.unwrap(InducedModel.from_pretrained.__func__)  # types are checked while tests run
    for wrong in ("64KiB", 65_536, [("budget", "64KiB")]):
        with pytest.raises(TypeError, match="a mapping of its fields"):
            as_users_call_it(InducedModel, path(), config=wrong)
    with pytest.raises(ValueError, match="unknown configuration field 'budgets'"):
        InducedModel.from_pretrained(path(), config={"budgets": "64KiB"})


def test_a_model_may_ask_for_tuning(folder: Path) -> None:
    (folder / FILE).write_text('{"payload": "auto"}')
    model = InducedModel.from_pretrained(folder)
    train, _ = alphabet(seed=7, classes=2, train=2, test=1)
    assert any("not tuned" in warning for warning in model.learn(train, task="letters").warnings)
    assert model.config.payload == InduceKVConfig.payload


def test_layers_hold_for_the_retrieval_they_were_found_with() -> None:
    assert changed(OWN, {"retrieval": "in_flight"}).payload_layers is None
    assert changed(OWN, {"retrieval": "two_pass"}).payload_layers == (0, -1)
    assert changed({**OWN, "retrieval": "in_flight"}, {"top_k": 2}).payload_layers == (0, -1)
    assert changed(OWN, {"retrieval": "in_flight", "payload_layers": [3]}).payload_layers == (3,)


def test_a_stored_memory_stays_as_it_was_learned(folder: Path, tmp_path: Path) -> None:
    plain = InducedModel.from_pretrained(folder)
    plain.save_memory(tmp_path / "memory")
    (folder / FILE).write_text(json.dumps(OWN))
    again = InducedModel.from_pretrained(folder, tmp_path / "memory", {"budget": "64KiB"})
    assert again.config == InduceKVConfig(budget="64KiB")
    assert again.memory.budget == 65_536


def test_the_bench_takes_it_and_ablations_change_it(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(OWN))
    backbone = Backbone.from_pretrained(folder)
    made = {
        name: make_method(name, backbone, budget=65_536, seed=3, stream_length=2)
        for name in ("inducekv", "inducekv/no_coverage", "inducekv/all_layers")
    }
    described = {name: method.describe() for name, method in made.items()}
    assert described["inducekv"]["payload_layers"] == described["inducekv/no_coverage"]["payload_layers"] == [0, -1]
    assert described["inducekv/no_coverage"]["gamma"] == 0
    assert made["inducekv/all_layers"].model.config == InduceKVConfig(budget=65_536, seed=3)


def test_tuned_fields_say_what_the_model_would_else_decide() -> None:
    assert "payload_layers" not in fields_of(InduceKVConfig())
    fields = fields_of(InduceKVConfig(), OWN)
    assert changed(OWN, fields) == InduceKVConfig()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[" * 5_000, "not JSON"),
        ("[1]", "expected one JSON object"),
        ('{"payload_layer": [0]}', "unknown configuration field 'payload_layer'"),
        ('{"top_k": 0}', "top_k"),
        ('{"payload_layers": "all"}', "payload_layers must be a list"),
        (" " * (LARGEST_FILE + 1), "bytes"),
    ],
)
def test_an_unusable_file_is_named(folder: Path, content: str, said: str) -> None:
    (folder / FILE).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        Backbone.from_pretrained(folder)
    assert FILE in str(caught.value)


def test_a_layer_that_the_model_lacks_is_told(folder: Path) -> None:
    (folder / FILE).write_text('{"payload_layers": [7]}')
    with pytest.raises(ValueError, match="payload_layers must be from 0 to 4"):
        InducedModel.from_pretrained(folder)


def test_no_file_is_no_mistake(tmp_path: Path) -> None:
    assert own_fields(tmp_path) == {}


def test_a_repository_that_cannot_be_asked_says_nothing() -> None:
    assert own_fields("someone/something", {"revision": "main"}) == {}
