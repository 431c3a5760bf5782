"""A backbone as a person names it: on a command line, or to processes that load one each."""

import torch

from inducekv.backbone import Backbone
from inducekv.model import InducedModel

DTYPES = ("float32", "bfloat16", "float16")
"""Number formats that weights can be loaded in, by the names that a command takes."""


def load_backbone(model: str, device: str = "cpu", system: str | None = None, dtype: str | None = None) -> Backbone:
    """The backbone by name, folder or GGUF file, or "embedded"; moved where `device` is not the CPU.

    `system`: text that every prompt begins with, as of `Backbone`. `dtype`: one of `DTYPES`; None: the model's own.

    Raises:
        ValueError: the model cannot be had, or its family is not supported.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    try:
        backbone = InducedModel.from_pretrained(model, system=system, **options).backbone
    except OSError as error:
        raise ValueError(f"cannot load the model {model!r}: {error}") from error
    if device != "cpu":
        backbone.model.to(device)
    return backbone
