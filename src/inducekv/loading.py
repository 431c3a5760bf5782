"""A model and its processor from the Hub, a folder or a file; refused before anything large is loaded if need be."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from inducekv.families import FAMILIES, refusals, unknown_family
from inducekv.gguf_file import checked_gguf, is_gguf, plain
from inducekv.hub import hub_answers, hub_name
from inducekv.known_models import located
from inducekv.own_config import own_fields

WHERE_TO_LOAD = ("revision", "subfolder", "cache_dir", "token", "local_files_only", "force_download")
"""Options of `from_pretrained` that say which files, for the configuration and the processor too."""


def loaded(name_or_path: str | Path, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its processor and its own configuration of memory; see `Backbone.from_pretrained`."""
    if options.pop("trust_remote_code", False):
        raise ValueError(
            f"{name_or_path}: trust_remote_code=True is refused, because memory can only join attention that goes "
            "through the attention interface of transformers; leave it out to use transformers' own class"
        )
    source: str | Path = located(name_or_path)
    if is_gguf(source):
        file = checked_gguf(Path(source))
        source, options = file.parent, {"dtype": torch.float32, **options, "gguf_file": file.name}
    elif not str(source) or not Path(source).is_dir():
        if not hub_name(str(source)):
            raise FileNotFoundError(f"{str(source)[:200]}: no such folder, and not a name that a model on the Hub has")
        if not options.get("local_files_only") and not hub_answers():
            options = {**options, "local_files_only": True}  # or every file would be tried for again and again
    place = {name: options[name] for name in (*WHERE_TO_LOAD, "gguf_file") if name in options}
    fields = _fields(source, place)
    kind = fields.get("model_type")
    if kind is None or kind not in CONFIG_MAPPING:
        raise ValueError(f"{name_or_path}: {unknown_family(kind, 'auto_map' in fields)}")
    own = {} if "gguf_file" in place else own_fields(source, place)
    place["trust_remote_code"] = False  # or a question on the terminal would wait for an answer
    if "gguf_file" in place:  # reading its header once more would take seconds
        config = CONFIG_MAPPING[kind].from_dict(fields)
    else:
        config = AutoConfig.from_pretrained(source, **place)
    if reasons := refusals(config):
        raise ValueError(f"{name_or_path}: {'; '.join(reasons)}")
    family = FAMILIES[kind]
    needs = family.processor_needs
    if needs is not None and importlib.util.find_spec(needs) is None:
        raise ModuleNotFoundError(
            f"{name_or_path}: the processor of {kind} models needs the package {needs}: pip install {needs}", name=needs
        )
    text_only = family.image_token is None
    auto = AutoModelForCausalLM if text_only else AutoModelForImageTextToText
    words = AutoTokenizer if text_only else AutoProcessor
    processor = words.from_pretrained(source, **place)  # first: what it lacks is told before weights are read
    model = auto.from_pretrained(source, **options, trust_remote_code=False)
    return plain(model) if "gguf_file" in place else model, processor, own


def _fields(source: str | Path, place: dict[str, Any]) -> dict[str, Any]:
    try:
        fields, _ = PreTrainedConfig.get_config_dict(source, **place)
    except OSError as error:
        if Path(source).is_dir() or not place.get("local_files_only"):
            raise
        raise FileNotFoundError(
            f"no model {str(source)!r} in the local cache, and the Hub was not asked or does not answer; "
            "give a folder, fetch it while there is a network, or see: inducekv models list"
        ) from error
    return dict(fields)
