"""A method's state on disk: `deployed.safetensors`, `training.safetensors` and `method.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from inducekv.atomic import write_atomically
from inducekv.error_text import shown

FORMAT, VERSION = "inducekv-method", 1
INDEX, DEPLOYED, TRAINING = "method.json", "deployed.safetensors", "training.safetensors"
LARGEST_INDEX = 16 * 2**20
LARGEST_TENSORS = 64 * 2**30

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class State:
    """What a method keeps.

    Attributes:
        deployed: tensors that inference needs.
        training: tensors that only learning needs.
        facts: small JSON values: tasks learned, their names.
    """

    deployed: Tensors = field(default_factory=dict)
    training: Tensors = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def tensors_nbytes(tensors: Tensors) -> int:
    """Bytes of the numbers, which is what a safetensors file holds beside its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_state(directory: Path, name: str, state: State) -> None:
    """Writes the tensors, then the index; a directory without an index holds no state."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, tensors in ((DEPLOYED, state.deployed), (TRAINING, state.training)):
        if tensors:
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            write_atomically(directory / file, safetensors.torch.save(plain))
    index = {
        "format": FORMAT,
        "version": VERSION,
        "method": name,
        "files": [file for file, tensors in ((DEPLOYED, state.deployed), (TRAINING, state.training)) if tensors],
        "facts": state.facts,
    }
    write_atomically(directory / INDEX, json.dumps(index, ensure_ascii=False, indent=1).encode())


def read_state(directory: Path, name: str) -> State:
    """Reads what `write_state` wrote for the method called `name`.

    Raises:
        ValueError: files are missing, damaged, too large, or another method's.
    """
    path = directory / INDEX
    if not path.is_file():
        raise ValueError(f"no saved method in {directory}: it has no {INDEX}")
    if path.stat().st_size > LARGEST_INDEX:
        raise ValueError(f"{path} is {path.stat().st_size:,} bytes, more than the {LARGEST_INDEX:,} allowed")
    try:
        index = json.loads(path.read_bytes())
        found, files, facts = index["method"], index["files"], index["facts"]
        if (index["format"], index["version"]) != (FORMAT, VERSION) or not isinstance(facts, dict):
            raise ValueError(f"format {shown(index['format'])} version {shown(index['version'])}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no index of a saved method, or is damaged: {error}") from error
    if found != name:
        raise ValueError(f"{directory} holds the state of {shown(found)}, not of {shown(name)}")
    if not isinstance(files, list) or not set(files) <= {DEPLOYED, TRAINING}:
        raise ValueError(f"{path} names files that are no method's: {shown(files)}")
    deployed, training = (_read(directory / file) if file in files else {} for file in (DEPLOYED, TRAINING))
    return State(deployed, training, facts)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; {INDEX} refers to it")
    if path.stat().st_size > LARGEST_TENSORS:
        raise ValueError(f"{path} is {path.stat().st_size:,} bytes, more than the {LARGEST_TENSORS:,} allowed")
    try:
        return dict(safetensors.torch.load_file(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def check_like(tensors: Tensors, expected: Mapping[str, Tensor], where: Path) -> None:
    """
    Raises:
        ValueError: names, shapes or dtypes are not those of `expected`.
    """
    for name in sorted({*tensors, *expected}):
        got, wanted = (
            "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            for tensor in (tensors.get(name), expected.get(name))
        )
        if got != wanted:
            raise ValueError(f"the state in {where} does not fit: {name!r} is {got}, expected {wanted}")


def count_of(facts: Mapping[str, Any], name: str, where: Path) -> int:
    """A whole number >= 0 among the facts.

    Raises:
        ValueError: it is missing or something else.
    """
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"the state in {where} is damaged: {name} must be a whole number, got {shown(value)}")
    return value
