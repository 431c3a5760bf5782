"""The lmms-eval plugin, against a minimal stand-in for lmms-eval's base class and registry (version 0.7's)."""

import importlib
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import tiny
from inducekv.config import InduceKVConfig
from inducekv.examples import Example
from inducekv.model import InducedModel


class Base:
    """What `lmms_eval.api.model.lmms` gives its subclasses."""

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str


@dataclass
class Request:
    args: tuple


@pytest.fixture
def plugin(monkeypatch):
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", types.SimpleNamespace(lmms=Base))
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", types.SimpleNamespace(ModelManifest=Manifest))
    monkeypatch.delitem(sys.modules, "inducekv.lmms_eval_plugin", raising=False)
    module = importlib.import_module("inducekv.lmms_eval_plugin")
    yield module
    sys.modules.pop("inducekv.lmms_eval_plugin", None)


@pytest.fixture
def model(plugin, llava, monkeypatch):
    induced = InducedModel.from_pretrained(llava, config=InduceKVConfig(budget="1MiB", abstain=False))
    induced.learn([Example("what?", f"w{i}", (tiny.picture(i),)) for i in range(4)], task="t")
    monkeypatch.setattr(plugin, "_loaded", lambda *_: induced)
    model = plugin.InduceKVForLmmsEval(batch_size="3", max_new_tokens="4")
    docs = [{"picture": tiny.picture(i), "answer": f"w{i}"} for i in range(5)]
    model.task_dict = {"task": {"test": docs}}
    return model


def requests(second, count=5):
    return [Request(("<image>\nwhat?", second, lambda doc: [doc["picture"]], i, "task", "test")) for i in range(count)]


def examples(count=5, answered=False):
    return [Example("what?", f"w{i}" if answered else None, (tiny.picture(i),)) for i in range(count)]


def test_answers_are_those_of_the_model_with_its_memory(model):
    expected = [answer.text for answer in model.model.answer_all(examples(), max_new_tokens=4)]
    assert model.generate_until(requests({"max_new_tokens": 4})) == expected
    plain = model.model.backbone.generate(examples(), max_new_tokens=4)
    assert expected != plain, "the memory is read"


def test_stop_sequences_cut_and_groups_keep_their_places(model):
    whole = model.generate_until(requests({"max_new_tokens": 4}))
    mixed = requests({"max_new_tokens": 4})
    stop = whole[1][1]
    mixed[1] = Request((mixed[1].args[0], {"max_new_tokens": 4, "until": [stop]}, *mixed[1].args[2:]))
    cut = model.generate_until(mixed)
    assert cut[1] == whole[1].split(stop)[0]
    assert [cut[0], *cut[2:]] == [whole[0], *whole[2:]]


def test_log_probabilities_read_the_memory(model):
    found = model.loglikelihood(requests(lambda doc: doc["answer"]))
    likelihoods = torch.tensor([likelihood for likelihood, _ in found])
    plain = -model.model.backbone.score(examples(answered=True)).token_nll.sum(1).detach()
    taught, untaught = (likelihoods - plain)[:4], (likelihoods - plain)[4]
    assert (taught.abs() > 1e-3).all(), "what was learned changes what is likely"
    model.model.memory.forget("t")
    without = torch.tensor([p for p, _ in model.loglikelihood(requests(lambda doc: doc["answer"]))])
    torch.testing.assert_close(without, plain.float(), check_dtype=False)
    assert untaught.isfinite()
    assert {type(greedy) for _, greedy in found} == {bool}
    assert model.loglikelihood([]) == []


def test_what_cannot_be_done_is_said(model, plugin):
    film = Request(("what?", {}, lambda doc: ["film.mp4"], 0, "task", "test"))
    with pytest.raises(ValueError, match="only pictures"):
        model.generate_until([film])
    with pytest.raises(NotImplementedError, match="rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(ValueError, match="batch_size must be a whole number, got 'auto'"):
        plugin.InduceKVForLmmsEval(batch_size="auto")


def test_the_entry_point_names_the_class(plugin):
    manifest = plugin.manifest()
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert (manifest.model_id, module, hasattr(plugin, name)) == ("inducekv", "inducekv.lmms_eval_plugin", True)
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"]["inducekv"] == "inducekv.lmms_eval_plugin:manifest"
