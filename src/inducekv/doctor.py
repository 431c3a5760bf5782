"""What inducekv can do with a model, from its configuration alone: no weights, no network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from inducekv.bytes import parse_bytes
from inducekv.config import InduceKVConfig
from inducekv.families import DECODERS, FAMILIES, refusals, rope_types, unknown_family
from inducekv.json_object import read_json_object
from inducekv.known_models import located
from inducekv.layout import BOOKKEEPING, Layout
from inducekv.retrieval_key import key_dim

CONFIG_LIMIT = 4 * 2**20
"""Bytes of a `config.json` that is read."""
BITS = (16, 8, 4, 2)
"""Bits of a stored number."""
FRAMING = 2048
"""Bytes left for `memory.json` and the header of the tensors (CHOICE): what they take of models with short names."""
TEXT_NBYTES = 128
"""Bytes of source text assumed for an entry."""


@dataclass(frozen=True)
class Diagnosis:
    """What a configuration says.

    Attributes:
        model: the name or path that was asked about.
        family, decoder: `model_type` of the whole model and of its text decoder; None where the file names none.
        layers, kv_heads, head_dim, hidden_size: of the text decoder; None where they cannot be told.
        sliding_layers, window: layers with a sliding window, and its positions (0 and None without).
        rope: types of rotary embedding.
        reasons: why memory cannot be attached; empty where it can.
        notes: what works differently.
        missing: packages that the family's processor needs and that are not installed.
    """

    model: str
    family: str | None
    decoder: str | None
    layers: int | None
    kv_heads: int | None
    head_dim: int | None
    hidden_size: int | None
    sliding_layers: int
    window: int | None
    rope: tuple[str, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        """Whether memory can be attached to such a model."""
        return not self.reasons

    @property
    def ready(self) -> bool:
        """Whether it is supported and can be loaded here."""
        return self.supported and not self.missing

    @property
    def faults(self) -> tuple[str, ...]:
        """What stands in the way: the reasons, and what must be installed."""
        needed = (
            f'its processor needs {package}, which is not installed: pip install "inducekv[processors]"'
            for package in self.missing
        )
        return (*self.reasons, *needed)

    @property
    def layout(self) -> Layout | None:
        """Shape of a memory of this model, over all layers; None where a size is not known."""
        sizes = (self.layers, self.kv_heads, self.head_dim, self.hidden_size)
        if any(size is None for size in sizes):
            return None
        layers, width = tuple(range(self.layers or 0)), key_dim(self.hidden_size or 0, InduceKVConfig.key_pool)
        return Layout(layers, self.kv_heads or 0, self.head_dim or 0, width, InduceKVConfig.key_dtype)

    def slot_nbytes(self, bits: int) -> int:
        """Bytes of one memory token in all layers: keys, values, and below 16 bits a float16 scale a layer and head.

        Raises:
            ValueError: the sizes are not known.
        """
        layout = self.layout
        if layout is None:
            raise ValueError(f"the configuration of {self.model} does not say how large its keys and values are")
        vectors = 2 * len(layout.layers) * layout.kv_heads
        return vectors * ((layout.head_dim * bits + 7) // 8 + (2 if bits < 16 else 0))

    def entries(self, budget: int | str, tokens: int, bits: int) -> int:
        """Entries of so many tokens that fit in a budget with one task, each with 128 bytes of source text.

        `FRAMING` bytes are left for `memory.json` and the header of the tensors.
        """
        layout = self.layout
        slot = self.slot_nbytes(bits)
        assert layout is not None  # slot_nbytes has raised
        each = tokens * slot + layout.key_nbytes + BOOKKEEPING + TEXT_NBYTES
        return max(0, parse_bytes(budget) - FRAMING - layout.base_nbytes(["task"])) // each

    def to_dict(self, budgets: Sequence[str], tokens: int) -> dict[str, Any]:
        """Everything as JSON values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.layout is not None:
            fields["bits"] = {
                str(bits): {
                    "token_slot_nbytes": self.slot_nbytes(bits),
                    "entries": {budget: self.entries(budget, tokens, bits) for budget in budgets},
                }
                for bits in BITS
            }
        return {**fields, "supported": self.supported, "ready": self.ready, "tokens": tokens}


def examine(model: str | Path) -> Diagnosis:
    """Look at a model's configuration.

    Args:
        model: a folder with a `config.json`, such a file, `"embedded"`, or a name that the local cache or hub has.

    Raises:
        ValueError: the file is no configuration, a folder has none, or there is neither folder nor file and it can be
            no name on the Hub.
        OSError: there is no such model.
    """
    if str(model) == "embedded":
        from inducekv.embedded import path

        return replace(examine(path()), model="embedded")
    model = located(model)
    file = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    if file.is_file():
        fields = read_json_object(file, "a model's configuration", CONFIG_LIMIT)
        kind = fields.get("model_type")
        if kind not in CONFIG_MAPPING:
            return _unknown(str(model), fields)
        config = CONFIG_MAPPING[kind].from_dict(fields)
    else:
        _check_name(model)
        config = AutoConfig.from_pretrained(str(model))
    return diagnose(str(model), config)


def _check_name(model: str | Path) -> None:
    """Refuses what is no file and can be no name on the Hub, before anyone is asked for it."""
    if Path(model).is_dir():
        raise ValueError(f"{model}: the folder has no config.json, so it is no model's")
    try:
        validate_repo_id(str(model))
    except HFValidationError as error:
        raise ValueError(
            f"{model}: no such folder or file, and a model on the Hub has a name of the form owner/name"
        ) from error


def diagnose(model: str, config: Any) -> Diagnosis:
    """What a loaded configuration says."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None)
    hidden = getattr(text, "hidden_size", None)
    sliding, window = _sliding(text)
    return Diagnosis(
        model=model,
        family=config.model_type,
        decoder=text.model_type,
        layers=getattr(text, "num_hidden_layers", None),
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or (hidden // heads if hidden and heads else None),
        hidden_size=hidden,
        sliding_layers=sliding,
        window=window,
        rope=tuple(rope_types(text)),
        reasons=tuple(refusals(config)),
        notes=tuple(_notes(config, text, sliding, window)),
        missing=_missing(config.model_type),
    )


def _unknown(model: str, fields: dict[str, Any]) -> Diagnosis:
    kind = fields.get("model_type")
    reason = unknown_family(kind, "auto_map" in fields)
    return Diagnosis(model, kind, None, None, None, None, None, 0, None, (), (reason,), ())


def _sliding(text: Any) -> tuple[int, int | None]:
    """Layers with a sliding window, and the window."""
    window = getattr(text, "sliding_window", None)
    if window is None or getattr(text, "use_sliding_window", True) is False:
        return 0, None
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    count = kinds.count("sliding_attention")
    return count, window if count else None


def _missing(model_type: str) -> tuple[str, ...]:
    needs = FAMILIES[model_type].processor_needs if model_type in FAMILIES else None
    return (needs,) if needs is not None and find_spec(needs) is None else ()


def _notes(config: Any, text: Any, sliding: int, window: int | None) -> list[str]:
    family, decoder = FAMILIES.get(config.model_type), DECODERS.get(text.model_type)
    notes = []
    if sliding:
        notes.append(
            f"{sliding} layers have a window of {window} positions: by default they read all of the memory, "
            "with visibility='window' what lies within it"
        )
    if decoder is not None:
        bare = sum(decoder.rope(text, layer) is None for layer in range(text.num_hidden_layers))
        if bare:
            notes.append(f"{bare} layers have no rotary embedding: memory has no place in them, only content")
    if family is not None and family.token_types is not None:
        notes.append("as_cache refuses prompts whose token types decide what is seen; attached() takes them")
    if getattr(config, "auto_map", None):
        notes.append("brings its own code, which is not run: the class that transformers has for the family is used")
    if getattr(config, "quantization_config", None) is not None:
        notes.append("quantised weights: attached(check=True) compares memory with prompt tokens on the loaded model")
    notes.append("attention implementations: sdpa and eager, and flex (untested on GPUs); flash attention is refused")
    return notes
