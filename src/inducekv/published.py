"""How a model is read that says nothing of itself (`inducekv_config.json`): what was measured on published models."""

from typing import Any

READ_FROM = 0.3
"""Part of the layers below the key layer. CHOICE, measured on SmolLM2-135M: retrieval keys from there find more than
those of the middle, and the layers above read as well as all together (docs/real-models.md)."""

ANY: dict[str, Any] = {"shared_preamble": True, "mass": None, "temperature": 0.1, "calibration_steps": 0}
"""Whatever the model: its prompts' preamble stays free of memory, the mass of memory is found on the first task."""
TEXT: dict[str, Any] = {
    "payload": "keep_tail",
    "payload_tokens": 10,
    "neighbours": 1,
    "key_pool": "question",
    "key_space": "whitened",
    "retrieval": "in_flight",
    "payload_dtype": "int3",
    "selector": "facility_location",
}
"""Models without pictures."""


def published_fields(layers: int, reads_images: bool) -> dict[str, Any]:
    """Fields of `InduceKVConfig` for a model of so many layers."""
    if reads_images:  # no published weights were at hand to measure more
        return dict(ANY)
    lowest = round(0.4 * layers)
    return {**ANY, **TEXT, "key_layer": round(READ_FROM * layers), "payload_layers": tuple(range(lowest, layers))}
