"""Models in GGUF files: what llama.cpp reads, dequantised by transformers."""

import struct
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, key-value pairs
VERSIONS = (2, 3)
MOST = 2**16
"""Tensors, or fields, that a file may say it has."""


def is_gguf(name_or_path: str | Path) -> bool:
    """Whether a model's name says that it is a GGUF file."""
    return str(name_or_path).lower().endswith(".gguf")


def checked_gguf(path: Path) -> Path:
    """The file, if its beginning is that of a GGUF file; the rest is for the `gguf` package to read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no GGUF file, or one of a version that is not read.
        ModuleNotFoundError: `gguf` is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        begin = file.read(_HEADER.size)
    if len(begin) < _HEADER.size or begin[:4] != b"GGUF":
        raise ValueError(f"{path} is no GGUF file: it begins with {begin[:4]!r}")
    _, version, tensors, fields = _HEADER.unpack(begin)
    if version not in VERSIONS:
        raise ValueError(f"{path} is a GGUF file of version {version}; versions 2 and 3, little-endian, are read")
    if not (0 < tensors <= MOST and 0 < fields <= MOST):
        raise ValueError(
            f"{path} says it has {tensors:,} tensors and {fields:,} fields; between 1 and {MOST:,} are read"
        )
    import gguf  # noqa: F401 - so that it is named if it is missing

    return path


def plain(model: Any) -> Any:
    """A model from a GGUF file, as one that was never quantised: its weights are dequantised already."""
    model.hf_quantizer = None
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def save_converted(file: Path, folder: Path) -> None:
    """Write a GGUF file's model (float32) and tokenizer as a folder.

    Raises:
        ValueError: as `checked_gguf`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checked_gguf(file)
    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    AutoTokenizer.from_pretrained(file.parent, **place).save_pretrained(folder)
    plain(AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **place)).save_pretrained(folder)
