"""Which model a memory belongs to."""

import hashlib
from typing import TYPE_CHECKING, Any, get_args

import torch

from inducekv.chat import QUESTION_ANSWER, shortened
from inducekv.config import DEFAULT_KEY_POOL, KeyPool
from inducekv.devices import at_hand, is_quantised
from inducekv.error_text import escaped, message, shown

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

HASHED_ROWS = 4096


class FingerprintError(ValueError):
    """A memory belongs to another model."""

    def __init__(self, text: str) -> None:
        super().__init__(message(text))


def fingerprint_of(backbone: "Backbone", key_layer: int | None, key_pool: KeyPool) -> dict[str, Any]:
    """What a memory must agree with, as JSON values: architecture, sizes, rope, embedding hash, key encoder.

    And how prompts are written, where that is not the chat template's own way: the plain form, a system text.
    """
    from inducekv.decoder import chosen_key_layer  # needs transformers, which reading a memory does not

    rope = dict(getattr(backbone.text_model.config, "rope_parameters", None) or {})
    prompt = {"prompt": QUESTION_ANSWER} if backbone.plain_prompt else {}
    return {
        "architecture": type(backbone.model).__name__,
        "model_type": backbone.model.config.model_type,
        "layers": backbone.layers,
        "kv_heads": backbone.kv_heads,
        "head_dim": backbone.head_dim,
        "hidden_size": backbone.hidden_size,
        "rope": {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(rope.items()) if v is not None},
        "embedding_sha256": backbone.embedding_hash,
        "key_layer": chosen_key_layer(key_layer, backbone.layers),
        "key_pool": key_pool,
        **prompt,
        **({} if backbone.system is None else {"system": backbone.system}),
    }


@torch.no_grad()
def embedding_hash(embeddings: Any) -> str:
    """SHA-256 of the input embeddings rounded to bfloat16, every n-th row so that at most 4,096 or so count.

    So it does not depend on whether a bfloat16 or float32 checkpoint is loaded in bfloat16 or float32, nor on where the
    weights are (they may be offloaded). `embeddings`: a `torch.nn.Embedding`.
    """
    count = embeddings.num_embeddings
    step = max(1, count // HASHED_ROWS)
    with at_hand(embeddings):
        weight = embeddings.weight
        if is_quantised(weight):
            chosen = embeddings(torch.arange(0, count, step, device=weight.device))
        else:
            chosen = weight[::step]
        rows = chosen.to("cpu", torch.bfloat16).contiguous()
    digest = hashlib.sha256(f"{(count, rows.shape[1])}".encode())
    digest.update(rows.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def check_fingerprint(fingerprint: dict[str, Any], backbone: "Backbone") -> None:
    """
    Raises:
        FingerprintError: naming every field in which the model differs.
    """
    named: Any = fingerprint.get("key_pool")
    pool: KeyPool = named if named in get_args(KeyPool) else DEFAULT_KEY_POOL
    layer = fingerprint.get("key_layer")
    possible = type(layer) is int and -1 <= layer <= backbone.layers  # anything else differs from what the model has
    actual = backbone.fingerprint(key_layer=layer if possible else None, key_pool=pool)
    names = sorted(set(fingerprint) | set(actual))
    differing = [n for n in names if fingerprint.get(n) != actual.get(n)]
    if differing:
        if differing == ["system"]:
            raise FingerprintError(
                f"this memory was learned with the system text {_text(fingerprint)}, the model has {_text(actual)}; "
                "load the model with system= as it was when the memory was learned"
            )
        details = "; ".join(
            f"{escaped(n)}: memory {shown(fingerprint.get(n))}, model {shown(actual.get(n))}" for n in differing
        )
        raise FingerprintError(
            f"this memory was made for another model ({details}); load it with the model it was learned with"
        )


def _text(fingerprint: dict[str, Any]) -> str:
    text = fingerprint.get("system")
    return "of the chat template" if text is None else shortened(str(text))
