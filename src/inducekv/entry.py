"""One entry of a memory: retrieval key, stored payload, and where it came from; and what each part weighs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Num
from torch import Tensor

from inducekv.compression.storage import BITS, STORAGE_DTYPES, dequantise, quantise, stored_width
from inducekv.config import KeyDtype, PayloadDtype
from inducekv.encoded import Encoded
from inducekv.layer_lengths import Loaded, by_layer, fills, of_layers
from inducekv.stored_keys import KEY_DTYPES, check_key_dtype, encode_key, key_width

TEXT_LIMIT = 512
"""UTF-8 bytes of question and answer kept with an entry, together."""
NAME_LIMIT = 128
"""UTF-8 bytes of an entry's id, and of a task's name."""
BOOKKEEPING = 16
"""Bytes of an entry's four int32 numbers: tokens, span, answer length, task."""
TASK_BOOKKEEPING = 40
"""Bytes counted for a task beside its name: its abstention threshold, written as JSON."""


@dataclass(frozen=True)
class Layout:
    """Shape of the entries of one memory.

    Attributes:
        layers: the model's layers that payloads are kept for, ascending.
        kv_heads, head_dim: of those layers.
        key_dim: length of a retrieval key.
        key_dtype: number format of the stored keys.
        layer_lengths: each entry notes how many tokens each of its layers holds; otherwise all hold the same number.
    """

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    key_dim: int
    key_dtype: KeyDtype | str = "float16"
    layer_lengths: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.layer_lengths, bool):
            raise TypeError(f"layer_lengths must be True or False, got {self.layer_lengths!r}")
        sizes = (len(self.layers), self.kv_heads, self.head_dim, self.key_dim)
        if any(isinstance(x, bool) or not isinstance(x, int) for x in (*sizes, *self.layers)):
            raise TypeError(f"a layout is made of whole numbers, got {self}")
        if not all(1 <= size <= 2**20 for size in sizes) or min(self.layers) < 0:
            raise ValueError(f"a layout needs at least one layer, head and dimension, got {self}")
        if sorted(set(self.layers)) != list(self.layers):
            raise ValueError(f"layers must be ascending and different, got {self.layers}")
        check_key_dtype(self.key_dtype)

    @property
    def key_nbytes(self) -> int:
        """Bytes of a stored retrieval key."""
        return key_width(self.key_dim, self.key_dtype) * KEY_DTYPES[self.key_dtype].itemsize

    def payload_nbytes(self, tokens: int, payload_dtype: PayloadDtype | str) -> int:
        """Bytes of keys and values of `tokens` tokens, without scales."""
        width = stored_width(self.head_dim, payload_dtype) * STORAGE_DTYPES[payload_dtype].itemsize
        return 2 * tokens * len(self.layers) * self.kv_heads * width

    def scales_nbytes(self, tokens: int, payload_dtype: PayloadDtype | str) -> int:
        """Bytes of the float16 scales of integer payloads: one a token, layer and head, for keys and for values."""
        return 2 * tokens * len(self.layers) * self.kv_heads * 2 if payload_dtype in BITS else 0

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes of an entry's small numbers: four int32, and one a layer where layers differ in length."""
        return BOOKKEEPING + (4 * len(self.layers) if self.layer_lengths else 0)

    def entry_nbytes(self, tokens: int, payload_dtype: PayloadDtype | str, text_nbytes: int) -> int:
        """Bytes that an entry takes in the memory file: key, payload, scales, bookkeeping, text (`text_nbytes`)."""
        payload = self.payload_nbytes(tokens, payload_dtype) + self.scales_nbytes(tokens, payload_dtype)
        return self.key_nbytes + payload + self.bookkeeping_nbytes + text_nbytes

    def base_nbytes(self, tasks: Iterable[str]) -> int:
        """Bytes beside the entries: the calibration phi (float32) and the table of tasks."""
        return 4 * (1 + len(self.layers)) + sum(len(_json(task)) + TASK_BOOKKEEPING for task in set(tasks))


@dataclass(frozen=True)
class Payload:
    """Keys and values as they lie in the file.

    Attributes:
        keys, values: `[tokens, layers, kv_heads, stored]` in the storage dtype, `stored` elements for the `head_dim`
            numbers (`storage.stored_width`); keys in the canonical frame. With `layer_lengths` the `tokens · layers`
            places are filled layer by layer, what is left at the end with zeros.
        key_scales, value_scales: `[tokens, layers, kv_heads]` float16 for integer payloads, else None.
        dtype: number format (`payload_dtype`).
        head_dim: numbers of a head.
        layer_lengths: `[layers]` int32: tokens that each layer holds, at least one; None: `tokens` each.
    """

    keys: Num[Tensor, "tokens layers kv_heads stored"]
    values: Num[Tensor, "tokens layers kv_heads stored"]
    key_scales: Float[Tensor, "tokens layers kv_heads"] | None
    value_scales: Float[Tensor, "tokens layers kv_heads"] | None
    dtype: PayloadDtype | str
    head_dim: int
    layer_lengths: Int32[Tensor, "layers"] | None = None

    @property
    def tokens(self) -> int:
        """Tokens a layer, as far as bytes are concerned: their mean over the layers, rounded up."""
        return self.keys.shape[0]

    @classmethod
    def store(
        cls, encoded: Encoded, payload_dtype: PayloadDtype | str, layers: tuple[int, ...] | None = None
    ) -> "Payload":
        """Quantise an encoded example's keys and values.

        Args:
            encoded: the example, with keys and values of all layers.
            payload_dtype: number format to store them in.
            layers: the layers to keep, ascending; `None`: all.

        Raises:
            ValueError: unknown dtype, numbers that are not finite, no tokens, or layers that the example lacks.
        """
        if encoded.tokens == 0:
            raise ValueError("a payload needs at least one token")
        kept = slice(None) if layers is None else _checked_layers(layers, encoded.keys.shape[0])
        keys, values = (x.detach()[kept].cpu().permute(2, 0, 1, 3).contiguous() for x in (encoded.keys, encoded.values))
        lengths = None
        if encoded.layer_mask is not None:
            held = encoded.layer_mask[kept].cpu()
            lengths = held.sum(-1, dtype=torch.int32)
            keys, values = by_layer(keys, held), by_layer(values, held)
        stored_keys, stored_values = quantise(keys, payload_dtype), quantise(values, payload_dtype)
        scales = (stored_keys.scales, stored_values.scales)
        return cls(stored_keys.values, stored_values.values, *scales, payload_dtype, keys.shape[-1], lengths)

    def load(self) -> Loaded:
        """The numbers again, in float32."""
        keys = dequantise(self.keys, self.key_scales, self.dtype, self.head_dim)
        values = dequantise(self.values, self.value_scales, self.dtype, self.head_dim)
        if self.layer_lengths is None:
            return Loaded(keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3), None)
        held = torch.arange(int(self.layer_lengths.max())) < self.layer_lengths[:, None]
        return Loaded(of_layers(keys, held), of_layers(values, held), held)


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
    """

    id: str
    task: str
    key: Num[Tensor, "stored"]
    payload: Payload
    span: int
    answer_length: int
    question: str = ""
    answer: str = ""

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
    ) -> "Entry":
        """An entry from an encoded (and compressed) example.

        Args:
            encoded: the example, with keys and values of all layers.
            id, task, question, answer: as of an entry.
            payload_dtype: number format of the payload.
            layers: the layers to store (a memory's `Layout.layers`), ascending; `None`: all.
            key_dtype: number format of the retrieval key (a memory's `Layout.key_dtype`).

        Raises:
            ValueError: as `Payload.store` and `encode_key`, or a name or number that an entry may not have.
        """
        key = encode_key(encoded.key.detach().cpu(), key_dtype)
        payload = Payload.store(encoded, payload_dtype, layers)
        return cls(id, task, key, payload, encoded.span, encoded.answer_length, question, answer)

    @property
    def tokens(self) -> int:
        """Tokens in the payload."""
        return self.payload.tokens

    @property
    def text(self) -> bytes:
        """Id, question and answer as one line of JSON: how they lie in the file."""
        return _json([self.id, self.question, self.answer]) + b"\n"

    @property
    def text_nbytes(self) -> int:
        """Bytes of `text`."""
        return len(self.text)


def _checked_layers(layers: tuple[int, ...], count: int) -> list[int]:
    if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(
            f"layers to store must be ascending, different and from 0 to {count - 1} (the example has {count} layers); "
            f"got {layers}"
        )
    return list(layers)


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
        ValueError: `name` is empty, longer than 128 UTF-8 bytes, or holds characters that cannot be printed.
        TypeError: it is not a str.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be text, got {name!r}")
    if not name or not name.isprintable() or len(name.encode("utf-8", "replace")) > NAME_LIMIT:
        raise ValueError(f"{what} must be 1 to {NAME_LIMIT} bytes of printable text, got {name[:NAME_LIMIT]!r}")


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


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
