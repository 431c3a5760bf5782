"""A model and its processor from the Hub or a folder; refused before anything large is loaded if memory cannot join."""

from pathlib import Path
from typing import Any

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
    place = {name: options[name] for name in WHERE_TO_LOAD if name in options}
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path, **place)
    kind = fields.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{name_or_path}: {unknown_family(kind, 'auto_map' in fields)}")
    own = own_fields(name_or_path, place)
    place["trust_remote_code"] = False  # or a question on the terminal would wait for an answer
    config = AutoConfig.from_pretrained(name_or_path, **place)
    if reasons := refusals(config):
        raise ValueError(f"{name_or_path}: {'; '.join(reasons)}")
    plain = FAMILIES[kind].image_token is None
    auto = AutoModelForCausalLM if plain else AutoModelForImageTextToText
    words = AutoTokenizer if plain else AutoProcessor
    processor = words.from_pretrained(name_or_path, **place)  # first: what it lacks is told before weights are read
    model = auto.from_pretrained(name_or_path, **options, trust_remote_code=False)
    return model, processor, own
