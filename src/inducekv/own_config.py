"""What a model says about how memory suits it: fields of `InduceKVConfig` in a file beside its weights.

As `generation_config.json` does for generating, `inducekv_config.json` holds what was found once, by `inducekv tune`
say, for all who use the model after.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from inducekv.config import InduceKVConfig

FILE = "inducekv_config.json"
LARGEST = 65_536
"""Bytes of the file, at most: it comes from where models come from."""


def own_fields(name_or_path: str | Path, place: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields that a model's folder or repository names; none where there is no such file.

    Args:
        name_or_path: of the model.
        place: `revision`, `cache_dir` and the like, as in its `from_pretrained`.

    Raises:
        ValueError: the file is larger than 64 KiB, not a JSON object, or names an unknown field or a bad value.
    """
    found = cached_file(
        str(name_or_path),
        FILE,
        **dict(place or {}),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return {}
    path = Path(found)
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path} has {size:,} bytes; a model's own configuration has {LARGEST:,} at most")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); mend it or delete it") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected one JSON object of InduceKVConfig fields, got {type(fields).__name__}")
    try:
        InduceKVConfig.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; mend it or delete it") from error
    return fields


def changed(own: Mapping[str, Any], changes: Mapping[str, Any]) -> InduceKVConfig:
    """The defaults, what the model says, and what was asked for; later ones win.

    `payload_layers` of the model hold for the `retrieval` that they were found with: other layers may read in flight.

    Raises:
        ValueError, TypeError: as `InduceKVConfig`.
    """
    fields = dict(own)
    found_with = own.get("retrieval", InduceKVConfig.retrieval)
    if changes.get("retrieval", found_with) != found_with:
        fields.pop("payload_layers", None)
    return InduceKVConfig.from_dict({**fields, **changes})
