"""What a model says about how memory suits it: fields of `InduceKVConfig` in a file beside its weights.

As `generation_config.json` does for generating, `inducekv_config.json` holds what was found once, by `inducekv tune`
say, for all who use the model after.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from inducekv.config import InduceKVConfig, read_fields

FILE = "inducekv_config.json"


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
    fields = read_fields(Path(found))
    try:
        InduceKVConfig.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{found}: {error}; mend it or delete it") from error
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
    if "payload" in changes and "payload_tokens" not in changes:
        fields.pop("payload_tokens", None)  # those of another method
    return InduceKVConfig.from_dict({**fields, **changes})
