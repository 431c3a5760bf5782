"""Every knob is checked on construction, and sizes are read as people write them."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inducekv.bytes import format_bytes, parse_bytes
from inducekv.config import InduceKVConfig


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256KiB", 262144),
        ("1.5 MiB", 1572864),
        ("64 mb", 64_000_000),
        ("10", 10),
        (" 7 B ", 7),
        ("2GiB", 2**31),
        (5, 5),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1e3", "5 apples", "1,5MiB", "٣KiB", "nan", -1, "1" * 30])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", [None, 1.5, True, b"1"])
def test_sizes_are_text_or_whole_numbers(text: object) -> None:
    with pytest.raises(TypeError):
        parse_bytes(text)


@given(st.integers(0, 2**40))
def test_sizes_are_written_so_that_they_can_be_read(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size)) - size) <= max(0, size * 0.05)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"payload_dtype": "int7"}, ValueError, "payload_dtype must be one of 'float32'.*got 'int7'"),
        ({"key_pool": "max"}, ValueError, "'last', 'mean'"),
        ({"weighting": "linear"}, ValueError, "'sqrt', 'sqrt_max', 'log', 'none'"),
        ({"selector": "best"}, ValueError, "'bilevel'"),
        ({"visibility": "far"}, ValueError, "'all', 'window'; got 'far'"),
        ({"hypergradient": "second"}, ValueError, "'first_order', 'implicit'"),
        ({"retrieval": "on_foot"}, ValueError, "'two_pass'"),
        ({"payload": "zip"}, ValueError, "'auto' or a Compression; got 'zip'"),
        ({"payload": "mean_pool"}, ValueError, "payload_tokens must be at least 1, got 0"),
        ({"payload_tokens": -1}, ValueError, "at least 0"),
        ({"budget": 0}, ValueError, "at least one byte"),
        ({"budget": "much"}, ValueError, "cannot read 'much'"),
        ({"budget": 1.5}, TypeError, "256KiB"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"top_k": 2.0}, TypeError, "whole number"),
        ({"key_layer": -2}, ValueError, "key_layer must be at least -1"),
        ({"candidates": 0}, ValueError, "candidates"),
        ({"anchors": -1}, ValueError, "anchors"),
        ({"beta": -0.1}, ValueError, "beta must be a finite number >= 0"),
        ({"gamma": float("inf")}, ValueError, "gamma"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be a finite number > 0"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"inner_lr": "fast"}, TypeError, "inner_lr must be a number"),
        ({"batch_size": True}, TypeError, "batch_size"),
        ({"abstain": 1}, TypeError, "True or False"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_values_say_what_is_allowed(changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        InduceKVConfig(**changes)


def test_configurations_survive_json() -> None:
    for config in (InduceKVConfig(), InduceKVConfig.paper(), InduceKVConfig(budget=1000, top_k=None, seed=3)):
        assert InduceKVConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"unknown configuration field 'buget': did you mean .*budget"):
        InduceKVConfig.from_dict({"buget": 5})


def test_the_papers_point_is_the_papers() -> None:
    paper = InduceKVConfig.paper(budget="64MiB")
    assert (paper.top_k, paper.weighting, paper.payload, paper.abstain) == (None, "sqrt", "mean_pool", False)
    assert paper.budget_bytes == 64 * 2**20


def test_configurations_do_not_change() -> None:
    config = InduceKVConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert config.replace(seed=1).seed == 1 and config.seed == 0
    with pytest.raises(ValueError, match="seed"):
        config.replace(seed=-1)
