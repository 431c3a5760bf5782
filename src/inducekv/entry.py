"""One entry of a memory: retrieval key, stored payload, and where it came from."""

from dataclasses import dataclass

import torch
from jaxtyping import Num
from torch import Tensor

from inducekv.compression.storage import BITS, STORAGE_DTYPES, stored_width
from inducekv.config import KeyDtype, PayloadDtype
from inducekv.encoded import Encoded
from inducekv.error_text import shown
from inducekv.layer_lengths import fills
from inducekv.layout import Layout, json_bytes
from inducekv.stored_keys import KEY_DTYPES, encode_key, key_width
from inducekv.stored_payload import Payload

TEXT_LIMIT = 512
"""UTF-8 bytes of question and answer kept with an entry, together."""
NAME_LIMIT = 128
"""UTF-8 bytes of an entry's id, and of a task's name."""


@dataclass(frozen=True)
class Entry:
    """One learned example as it is kept.

    Attributes:
        id: unique in a memory; at most 128 UTF-8 bytes.
        task: name of the task it was learned with; at most 128 UTF-8 bytes.
        key: `[stored]` as it lies in the file (see `stored_keys`): `[key_dim]` of unit norm if float16, else codes.
        payload: see `Payload`.
        span: positions it occupies.
        answer_length: answer tokens of the original example.
        question, answer: source text to show to a person, shortened to 512 UTF-8 bytes together (the question first).
        behind: ids of the examples that it was encoded behind; no part of the file.
    """

    id: str
    task: str
    key: Num[Tensor, "stored"]
    payload: Payload
    span: int
    answer_length: int
    question: str = ""
    answer: str = ""
    behind: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, name in (("entry id", self.id), ("task name", self.task)):
            check_name(what, name)
        for what, number in (("span", self.span), ("answer_length", self.answer_length)):
            if not 0 <= number < 2**31:
                raise ValueError(f"{what} must be a whole number from 0 to 2^31 - 1, got {number}")
        answer = shorten(self.answer, TEXT_LIMIT)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "question", shorten(self.question, TEXT_LIMIT - len(answer.encode())))

    @classmethod
    def of(
        cls,
        encoded: Encoded,
        *,
        id: str,
        task: str,
        payload_dtype: PayloadDtype | str,
        layers: tuple[int, ...] | None = None,
        key_dtype: KeyDtype | str = "float16",
        question: str = "",
        answer: str = "",
        behind: tuple[str, ...] = (),
    ) -> "Entry":
        """An entry from an encoded (and compressed) example.

        Args:
            encoded: the example, with keys and values of all layers.
            id, task, question, answer, behind: as of an entry.
            payload_dtype: number format of the payload.
            layers: the layers to store (a memory's `Layout.layers`), ascending; `None`: all.
            key_dtype: number format of the retrieval key (a memory's `Layout.key_dtype`).

        Raises:
            ValueError: as `Payload.store` and `encode_key`, or a name or number that an entry may not have.
        """
        key = encode_key(encoded.key.detach().cpu(), key_dtype)
        payload = Payload.store(encoded, payload_dtype, layers)
        return cls(id, task, key, payload, encoded.span, encoded.answer_length, question, answer, behind)

    @property
    def tokens(self) -> int:
        """Tokens in the payload."""
        return self.payload.tokens

    @property
    def text(self) -> bytes:
        """Id, question and answer as one line of JSON: how they lie in the file."""
        return json_bytes([self.id, self.question, self.answer]) + b"\n"

    @property
    def text_nbytes(self) -> int:
        """Bytes of `text`."""
        return len(self.text)


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` UTF-8 bytes, "…" at the end where something was cut off."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    if limit < 3:
        return ""
    return data[: limit - 3].decode(errors="ignore") + "…"


def check_name(what: str, name: str) -> None:
    """
    Raises:
        ValueError: `name` is empty or blank, longer than 128 UTF-8 bytes, or holds characters that cannot be printed.
        TypeError: it is not a str.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be text, got {shown(name)}")
    if not name.strip() or not name.isprintable() or len(name.encode("utf-8", "replace")) > NAME_LIMIT:
        raise ValueError(f"{what} must be 1 to {NAME_LIMIT} bytes of printable text and not blank, got {shown(name)}")


def check_entry(entry: Entry, layout: Layout, payload_dtype: PayloadDtype | str) -> None:
    """
    Raises:
        ValueError: the entry is not of this layout and payload dtype, or holds numbers that are not finite.
    """
    check_name("entry id", entry.id)
    payload = entry.payload
    width = stored_width(layout.head_dim, payload_dtype)
    shape = (payload.tokens, len(layout.layers), layout.kv_heads, width)
    dtype = STORAGE_DTYPES[payload_dtype]
    if (payload.dtype, payload.head_dim) != (payload_dtype, layout.head_dim):
        raise ValueError(
            f"payload of entry {entry.id!r} must be {payload_dtype} with {layout.head_dim} numbers a head, "
            f"got {payload.dtype} with {payload.head_dim}"
        )
    for name, tensor in (("keys", payload.keys), ("values", payload.values)):
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not payload.tokens:
            raise ValueError(
                f"payload {name} of entry {entry.id!r} must be {dtype} [tokens >= 1, layers, kv_heads, {width}] = "
                f"{list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
    for name, scales in (("key_scales", payload.key_scales), ("value_scales", payload.value_scales)):
        if (scales is not None) != (payload_dtype in BITS):
            raise ValueError(f"{name} of entry {entry.id!r}: integer payloads, and only they, have scales")
        if scales is not None and (tuple(scales.shape) != shape[:-1] or scales.dtype != torch.float16):
            raise ValueError(
                f"{name} of entry {entry.id!r} must be float16 {list(shape[:-1])}, "
                f"got {scales.dtype} {list(scales.shape)}"
            )
    stored, key_dtype = key_width(layout.key_dim, layout.key_dtype), KEY_DTYPES[layout.key_dtype]
    if tuple(entry.key.shape) != (stored,) or entry.key.dtype != key_dtype:
        raise ValueError(
            f"key of entry {entry.id!r} must be {layout.key_dtype} [{layout.key_dim}], "
            f"stored as {key_dtype} [{stored}], got {entry.key.dtype} {list(entry.key.shape)}"
        )
    check_layer_lengths(entry.id, payload.layer_lengths, payload.tokens, layout)
    numbers = (entry.key, payload.keys, payload.values, payload.key_scales, payload.value_scales)
    if not all(torch.isfinite(x).all() for x in numbers if x is not None):
        raise ValueError(f"entry {entry.id!r} holds numbers that are not finite")


def check_layer_lengths(name: str, lengths: Tensor | None, tokens: int, layout: Layout) -> None:
    """
    Raises:
        ValueError: an entry's layer lengths are not what the layout asks for, or do not fill `tokens` a layer.
    """
    if (lengths is not None) != layout.layer_lengths:
        raise ValueError(
            f"entry {name!r} {'has' if lengths is not None else 'lacks'} lengths of its own for each layer, and this "
            f"memory's entries {'have' if layout.layer_lengths else 'lack'} them: learn into a new memory, or with the "
            "payload method that it was learned with"
        )
    if lengths is not None:
        count = len(layout.layers)
        if tuple(lengths.shape) != (count,) or lengths.dtype != torch.int32:
            raise ValueError(
                f"layer_lengths of entry {name!r} must be int32 [{count}], got {lengths.dtype} {list(lengths.shape)}"
            )
        if not fills(lengths, torch.tensor(tokens), count):
            raise ValueError(
                f"layer_lengths of entry {name!r} must be at least 1 and together fill {tokens} tokens of {count} "
                f"layers, got {lengths.tolist()}"
            )
