"""A backbone as a person names it: on a command line, or to processes that load one each."""

from inducekv.backbone import Backbone
from inducekv.model import InducedModel


def load_backbone(model: str, device: str = "cpu", system: str | None = None) -> Backbone:
    """The backbone by name, folder or GGUF file, or "embedded"; moved where `device` is not the CPU.

    `system`: text that every prompt begins with, as of `Backbone`.

    Raises:
        ValueError: the model cannot be had, or its family is not supported.
    """
    try:
        backbone = InducedModel.from_pretrained(model, system=system).backbone
    except OSError as error:
        raise ValueError(f"cannot load the model {model!r}: {error}") from error
    if device != "cpu":
        backbone.model.to(device)
    return backbone
