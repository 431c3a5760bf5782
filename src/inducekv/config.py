"""Every knob of learning and answering, in one validated, serialisable object."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from inducekv.bytes import parse_bytes
from inducekv.error_text import shown
from inducekv.json_object import read_json_object

if TYPE_CHECKING:
    from inducekv.compression import Compression

PayloadDtype = Literal["float32", "float16", "bfloat16", "int8", "int4", "int3", "int2", "levels4", "polar4", "polar3"]
KeyDtype = Literal["float16", "int8", "int4"]
KeyPool = Literal["last_and_text", "question", "last", "mean"]
DEFAULT_KEY_POOL: KeyPool = "last_and_text"
KeySpaceName = Literal["raw", "centred", "whitened"]
Retrieval = Literal["in_flight", "two_pass"]
Weighting = Literal["sqrt", "sqrt_max", "log", "none"]
Visibility = Literal["all", "window"]
Selector = Literal["bilevel", "greedy", "facility_location", "herding", "reservoir", "random"]
PAYLOADS = ("none", "mean_pool", "keep_answer", "keep_tail", "shift_kv", "auto")
"""Names that `payload` may have."""
Hypergradient = Literal["first_order", "implicit"]


FAST: dict[str, Any] = {"selector": "facility_location", "calibration_steps": 0}
"""Fields of `InduceKVConfig.fast()`."""
LARGEST_MASS = 20.0
"""What may be added to the logits of memory tokens, at most: a factor of 5e8 on their attention."""
LARGEST_FILE = 65_536
"""Bytes of a file of fields, at most: it may come from where models come from."""


@dataclass(frozen=True)
class InduceKVConfig:
    """How a task is learned and how its memory is read. Defaults work for a newcomer; `paper()` is the paper's point.

    Attributes:
        budget: bytes the memory may occupy on disk, an int or text such as `"256KiB"`.
        payload: a compression method, or its name: `"none"`, `"mean_pool"` (the paper's), `"keep_answer"`,
            `"keep_tail"`, `"shift_kv"`; or `"auto"`: this and the next four are found on the first task's examples.
        payload_tokens: `mean_pool`: tokens an entry is pooled to (at least 1); `keep_answer`: tokens the part that is
            not the answer is pooled to (0 drops it); `keep_tail`: tokens before the answer that stay; `shift_kv`:
            tokens that stay (at least 1); ignored by `none`.
        payload_dtype: number format of stored keys and values; all but floats have a float16 scale a token,
            layer and head. A `payload` with a format of its own (`Compression.payload_dtype`) rules over it.
        key_dtype: number format of stored retrieval keys; integers are codes of the rotated key and need no scale.
        payload_layers: the model's layers that payloads are stored of and that read them, ascending; negative ones
            count from the end (`(0, -1)`: the first and the last); `None`: all, or with in-flight retrieval all from
            `key_layer` up.
        shared_preamble: entries are stored without the tokens that every prompt begins with (beginning of text, system
            text, header), and those of a prompt do not read memory: they stay as they are without it.
        neighbours: other examples of the task, the nearest, that an example is encoded behind; its entry holds its own
            tokens only. 0: every example is encoded alone.
        mass: what is added to the logits of memory tokens (see `Calibration.mass`): 0 for good, another number at
            first, to be fitted with the calibration; None: found, with the temperature, on the first task's questions.
        key_layer: hidden state that gives the retrieval key, `0` (embeddings) to the number of layers; `-1`: the last;
            `None`: the middle one.
        key_pool: `"last"`: the last token before the answer; `"mean"`: all tokens before the answer (the paper's);
            `"last_and_text"`: the last token, and beside it the mean input embedding of the words; `"question"`: the
            tokens of pictures and question alone, without what every prompt begins and ends with.
        key_space: how retrieval keys are compared: `"raw"` (the paper's), `"centred"` by the memory's mean, or
            `"whitened"` by the memory's keys (see `KeySpace`); the last two need at least two entries to act.
        retrieval: `"in_flight"`: the key is taken from `key_layer` within the pass that reads the prompt, and only that
            layer and those above it read memory; payloads of the lower layers are not stored. `"two_pass"` (the
            paper's): one extra frozen pass gives the query's key, and all layers read memory.
        top_k: entries retrieved for a question; `None`: all of them (the paper's).
        weighting: how the retrieval weight alpha enters attention. `"sqrt"`: the paper's sqrt(alpha) on K and V;
            `"sqrt_max"`: sqrt(alpha / max alpha); `"log"`: log(alpha / max alpha) added to the logits; `"none"`.
        visibility: what layers with a sliding window read: `"all"` of the memory, or what lies within their `"window"`.
        abstain: retrieve nothing for a question unlike anything learned.
        selector: who decides which candidates stay.
        candidates: new candidates encoded for a task, at most; `None`: all of its examples.
        anchors: examples kept from earlier tasks in the training state, at most.
        beta, gamma, epsilon: weight of each earlier task's anchors, of the coverage term, its ridge (J(w), Omega(w)).
        calibration_prior: how strongly the calibration phi is pulled to where it starts; 0: not at all (the paper's).
        projection_dim: dimensions D' that keys are projected to for coverage.
        inner_steps, inner_lr: gradient steps on the calibration phi for each outer step.
        calibration_steps: gradient steps on phi once the entries are chosen; 0: none, and then the model
            is asked no question while everything fits.
        outer_steps, outer_lr: projected gradient steps on the selection weights w.
        hypergradient: `"first_order"`, or `"implicit"` (through the inner problem's exact Hessian).
        temperature: initial retrieval temperature tau; where keys have two parts, half of what it would be with one.
        batch_size: rows in one forward pass.
        seed: of every random draw.

    Raises:
        ValueError, TypeError: naming the field, the value it got and what is allowed.
    """

    budget: int | str = "256KiB"
    payload: "str | Compression" = "keep_answer"
    payload_tokens: int = 0
    payload_dtype: PayloadDtype = "int4"
    key_dtype: KeyDtype = "int4"
    payload_layers: tuple[int, ...] | None = None
    shared_preamble: bool = False
    neighbours: int = 0
    mass: float | None = 0.0
    key_layer: int | None = None
    key_pool: KeyPool = DEFAULT_KEY_POOL
    key_space: KeySpaceName = "raw"
    retrieval: Retrieval = "two_pass"
    top_k: int | None = 16
    weighting: Weighting = "log"
    visibility: Visibility = "all"
    abstain: bool = True
    selector: Selector = "bilevel"
    candidates: int | None = None
    anchors: int = 128
    beta: float = 1.0
    gamma: float = 0.01
    epsilon: float = 1e-3
    projection_dim: int = 32
    inner_steps: int = 2
    inner_lr: float = 0.03
    calibration_steps: int = 5
    outer_steps: int = 20
    outer_lr: float = 0.1
    hypergradient: Hypergradient = "first_order"
    temperature: float = 0.035
    calibration_prior: float = 0.3
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if parse_bytes(self.budget) < 1:
            raise ValueError(f"budget must be at least one byte, got {shown(self.budget)}")
        for name, allowed in (
            ("payload_dtype", PayloadDtype),
            ("key_dtype", KeyDtype),
            ("key_pool", KeyPool),
            ("key_space", KeySpaceName),
            ("retrieval", Retrieval),
            ("weighting", Weighting),
            ("visibility", Visibility),
            ("selector", Selector),
            ("hypergradient", Hypergradient),
        ):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(map(repr, get_args(allowed)))
                raise ValueError(f"{name} must be one of {choices}; got {shown(getattr(self, name))}")
        if isinstance(self.payload, str) and self.payload not in PAYLOADS:
            names = ", ".join(map(repr, PAYLOADS))
            raise ValueError(f"payload must be {names} or a Compression; got {shown(self.payload)}")
        if (own := getattr(self.payload, "payload_dtype", None)) is not None:
            object.__setattr__(self, "payload_dtype", own)
        if self.payload_layers is not None:
            object.__setattr__(self, "payload_layers", _layers(self.payload_layers))
        for name, least in (
            ("payload_tokens", 1 if self.payload in ("mean_pool", "shift_kv") else 0),
            ("neighbours", 0),
            ("anchors", 0),
            ("projection_dim", 1),
            ("inner_steps", 0),
            ("calibration_steps", 0),
            ("outer_steps", 0),
            ("batch_size", 1),
            ("seed", 0),
        ):
            _whole_number(name, getattr(self, name), least)
        for name, least in (("key_layer", -1), ("top_k", 1), ("candidates", 1)):
            if getattr(self, name) is not None:
                _whole_number(name, getattr(self, name), least)
        for name, positive in (
            ("beta", False),
            ("gamma", False),
            ("calibration_prior", False),
            ("epsilon", True),
            ("inner_lr", True),
            ("outer_lr", True),
            ("temperature", True),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {shown(value)}")
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                raise ValueError(f"{name} must be a finite number {'> 0' if positive else '>= 0'}, got {shown(value)}")
        mass = 0.0 if self.mass is None else self.mass
        if isinstance(mass, bool) or not isinstance(mass, int | float) or not abs(mass) <= LARGEST_MASS:
            raise ValueError(
                f"mass must be a number from -{LARGEST_MASS:g} to {LARGEST_MASS:g}, or None to find one on the first "
                f"task, got {shown(mass)}"
            )
        for name in ("abstain", "shared_preamble"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {shown(getattr(self, name))}")

    @property
    def budget_bytes(self) -> int:
        """The budget as a number of bytes."""
        return parse_bytes(self.budget)

    @classmethod
    def paper(cls, **changes: Any) -> "InduceKVConfig":
        """The paper's operating point (InduceKV, sections 3 and 4): mean-pooled payloads, all entries, sqrt(alpha).

        The published total is 2,048 memory tokens a layer (entries x tokens an entry); how it splits is not public.
        CHOICE: 8 tokens an entry. Set `budget` to what 256 such entries take on your model.
        """
        return cls(
            **{
                "payload": "mean_pool",
                "payload_tokens": 8,
                "payload_dtype": "float16",
                "key_dtype": "float16",
                "key_layer": -1,
                "key_pool": "mean",
                "key_space": "raw",
                "temperature": 0.07,
                "retrieval": "two_pass",
                "top_k": None,
                "weighting": "sqrt",
                "abstain": False,
                "selector": "bilevel",
                "hypergradient": "first_order",
                "calibration_prior": 0.0,
                **changes,
            }
        )

    @classmethod
    def fast(cls, **changes: Any) -> "InduceKVConfig":
        """Learning that reads every example once and scores none: entries by facility location, phi as it starts.

        CHOICE, for where learning must take less time than an epoch of training. Anchors are kept, for when a task is
        learned in another way later, and not asked: earlier tasks keep their thresholds of abstention.
        """
        return cls(**{**FAST, **changes})

    def scores_questions(self, *, everything_fits: bool) -> bool:
        """Whether learning asks the model questions, rather than only reading examples.

        Args:
            everything_fits: the budget holds every candidate, so that nothing is to be chosen.
        """
        chooses = not everything_fits and self.selector in ("bilevel", "greedy")
        return chooses or self.calibration_steps > 0

    def replace(self, **changes: Any) -> "InduceKVConfig":
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values.

        Raises:
            ValueError: `payload` is a `Compression` object rather than a name.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not isinstance(self.payload, str):
            raise ValueError(f"only a payload given by name can be written as JSON, got {shown(self.payload)}")
        layers = self.payload_layers
        return {**fields, "payload_layers": None if layers is None else list(layers)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "InduceKVConfig":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field is unknown or its value is not allowed.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            near = get_close_matches(str(unknown[0]), known, n=3, cutoff=0.4)
            meant = f"did you mean {' or '.join(near)}?" if near else "InduceKVConfig() has those that there are"
            raise ValueError(f"unknown configuration field {shown(unknown[0])}: {meant}")
        return cls(**fields)


def read_fields(path: Path) -> dict[str, Any]:
    """Fields of `InduceKVConfig` in a JSON file, not yet validated.

    Raises:
        ValueError, OSError: as `read_json_object`.
    """
    return read_json_object(path, "InduceKVConfig fields", LARGEST_FILE)


def _layers(layers: Any) -> tuple[int, ...]:
    if not isinstance(layers, list | tuple):
        raise TypeError(f"payload_layers must be a list of layers, or None for all, got {shown(layers)}")
    for layer in layers:
        _whole_number("each of payload_layers", layer, None)
    if not layers or sorted(set(layers), key=lambda layer: (layer < 0, layer)) != list(layers):
        raise ValueError(f"payload_layers must be ascending, different and at least one, got {list(layers)}")
    return tuple(layers)


def _whole_number(name: str, value: Any, least: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {shown(value)}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
