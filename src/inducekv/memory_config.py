"""What a configuration and a memory say of each other: a memory made for a configuration, and the way back."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inducekv.backbone import Backbone
from inducekv.compression import compression_named
from inducekv.config import InduceKVConfig
from inducekv.decoder import chosen_key_layer
from inducekv.layout import Layout
from inducekv.memory import KVMemory
from inducekv.memory_file import FingerprintError
from inducekv.retrieval_key import key_dim

READING = (
    "key_layer",
    "key_pool",
    "key_space",
    "retrieval",
    "top_k",
    "weighting",
    "visibility",
    "abstain",
    "shared_preamble",
)
"""Configuration that answering must share with learning; kept in the memory's metadata."""
PAYLOAD = ("payload", "payload_tokens", "payload_layers", "neighbours")
"""How payloads were made, where that has a name; kept in the memory's metadata for the tasks to come."""


def empty_memory(backbone: Backbone, config: InduceKVConfig) -> KVMemory:
    """A memory without entries that fits a backbone.

    Raises:
        ValueError: `config.key_layer` or `config.payload_layers` does not suit the model, or each other.
        BudgetError: the budget is too small even for an empty memory.
    """
    layout = Layout(
        payload_layers(backbone, config),
        backbone.kv_heads,
        backbone.head_dim,
        key_dim(backbone.hidden_size, config.key_pool),
        config.key_dtype,
        layer_lengths=config.payload != "auto" and compression_named(config).layer_lengths,
    )
    fingerprint = backbone.fingerprint(key_layer=config.key_layer, key_pool=config.key_pool)
    return KVMemory(config.budget, layout, config.payload_dtype, fingerprint)


def storable_layers(backbone: Backbone, config: InduceKVConfig) -> tuple[int, ...]:
    """The model's layers that can read memory: all, or in flight those from the key layer up.

    Raises:
        ValueError: no layer is above the key layer, in flight.
    """
    lowest = 0
    if config.retrieval == "in_flight":
        lowest = chosen_key_layer(config.key_layer, backbone.layers)
        if lowest == backbone.layers:
            raise ValueError(
                f"in-flight retrieval needs a key_layer below {backbone.layers}, so that a layer is left that can read "
                f"memory; got {config.key_layer}: choose a lower one, or retrieval='two_pass'"
            )
    return tuple(range(lowest, backbone.layers))


def payload_layers(backbone: Backbone, config: InduceKVConfig) -> tuple[int, ...]:
    """The model's layers that a configuration stores, ascending, counted from the start.

    Raises:
        ValueError: the model lacks one, two are the same or out of order, or in flight one is not above the key layer.
    """
    possible = storable_layers(backbone, config)
    if config.payload_layers is None:
        return possible
    wanted = tuple(layer + backbone.layers if layer < 0 else layer for layer in config.payload_layers)
    if sorted(set(wanted)) != list(wanted):
        raise ValueError(
            f"payload_layers must be ascending and different; of this model's {backbone.layers} layers "
            f"{list(config.payload_layers)} are {list(wanted)}"
        )
    if wanted[0] < possible[0] or wanted[-1] > possible[-1]:
        why = "" if config.retrieval == "two_pass" else " with in-flight retrieval, which reads above the key layer"
        raise ValueError(
            f"payload_layers must be from {possible[0]} to {possible[-1]} (or from {possible[0] - backbone.layers} to "
            f"-1) for this model{why}; got {list(config.payload_layers)}"
        )
    return wanted


def note_config(memory: KVMemory, config: InduceKVConfig) -> None:
    """Writes into the memory how it was learned and is to be read."""
    memory.metadata["reading"] = reading_of(config)
    memory.metadata.pop("payload", None)
    if isinstance(config.payload, str):
        memory.metadata["payload"] = _named_fields(config, PAYLOAD)


def reading_of(config: InduceKVConfig) -> str:
    """The part of a configuration that answering shares with learning, as one line of JSON."""
    return _named_fields(config, READING)


def _named_fields(config: InduceKVConfig, names: Sequence[str]) -> str:
    return json.dumps({name: getattr(config, name) for name in names}, separators=(",", ":"))


def config_of(memory: KVMemory, changes: Mapping[str, Any] | None = None) -> InduceKVConfig:
    """The defaults, read as the memory wants to be read, with some fields changed.

    Raises:
        ValueError, TypeError: the memory says nothing usable, or as `InduceKVConfig` of the changes.
    """
    stored = _stored_config(memory)
    if not changes:
        return stored
    known = stored.to_dict()
    if "payload" in changes and "payload_tokens" not in changes:
        del known["payload_tokens"]  # those of another method
    return InduceKVConfig.from_dict({**known, **changes})


def _stored_config(memory: KVMemory) -> InduceKVConfig:
    try:
        stored = json.loads(memory.metadata.get("reading", "{}"))
        if stored:
            stored.setdefault("retrieval", "two_pass")  # memories from before there was a choice
            if stored.pop("key_centering", False):  # its name until there was whitening
                stored["key_space"] = "centred"
        reading = {name: stored[name] for name in READING if name in stored}
        formats = {"payload_dtype": memory.payload_dtype, "key_dtype": memory.layout.key_dtype}
        fields = {**reading, **_payload_of(memory), "budget": memory.budget, **formats}
        return InduceKVConfig.from_dict(fields)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the memory says nothing usable about how it is to be read: {error}") from error


def concrete(config: InduceKVConfig, memory: KVMemory) -> InduceKVConfig:
    """The configuration with what `payload="auto"` stands for, once the memory holds something.

    Raises:
        ValueError: the memory says nothing usable about its payloads.
    """
    if config.payload != "auto" or not len(memory):
        return config
    names = ("payload", "payload_tokens", "payload_dtype", "key_dtype", "payload_layers")
    stored = config_of(memory)
    return config.replace(**{name: getattr(stored, name) for name in names})


def _payload_of(memory: KVMemory) -> dict[str, Any]:
    """How the memory's payloads were made, as far as it says; `keep_answer` before memories said it."""
    stored = json.loads(memory.metadata.get("payload", "{}"))
    return {name: stored[name] for name in PAYLOAD if name in stored}


def check_config(backbone: Backbone, memory: KVMemory, config: InduceKVConfig) -> None:
    """
    Raises:
        ValueError: the memory's keys or payloads are not as the configuration says.
    """
    wanted = backbone.fingerprint(key_layer=config.key_layer, key_pool=config.key_pool)
    for name in ("key_layer", "key_pool"):
        if memory.fingerprint.get(name) != wanted[name]:
            raise FingerprintError(
                f"the memory's retrieval keys have {name} {memory.fingerprint.get(name)!r}, the configuration says "
                f"{wanted[name]!r}; use the memory's, or learn into a new memory"
            )
    if config.key_dtype != memory.layout.key_dtype:
        raise ValueError(
            f"the memory stores retrieval keys as {memory.layout.key_dtype}, the configuration says "
            f"{config.key_dtype}; use the memory's, or learn into a new memory"
        )
    if config.payload_dtype != memory.payload_dtype:
        raise ValueError(
            f"the memory stores payloads as {memory.payload_dtype}, the configuration says {config.payload_dtype}; "
            "use the memory's, or learn into a new memory"
        )
    if config.payload_layers is not None and payload_layers(backbone, config) != memory.layout.layers:
        raise ValueError(
            f"the memory holds payloads of layers {list(memory.layout.layers)}, the configuration says "
            f"{list(config.payload_layers)}; use the memory's, or learn into a new memory"
        )
