"""Which texts a model cannot take, longer than its context for one; said before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inducekv.examples import Example

_GLANCE = 16
"""Characters for each token of the context that are looked at first, so that a huge text is refused at once."""


def context_of(text_model: Any) -> int | None:
    """Tokens that a text decoder was made for; None where its configuration does not say."""
    context = getattr(getattr(text_model, "config", None), "max_position_embeddings", None)
    return int(context) if context else None


def check_texts(
    examples: Iterable[Example], tokenizer: Any, context: int | None, image_token: int | None = None
) -> None:
    """Look for texts that alone are longer than the context, and for the token that stands for a picture's.

    Raises:
        ValueError: question and answer of an example are too long, or one holds the image token; names the example.
    """
    token = None if image_token is None else tokenizer.convert_ids_to_tokens(image_token)
    for example in examples:
        text = f"{example.question} {example.answer or ''}"
        if token and token in text:
            raise ValueError(
                f"{example.label}: the text holds {token}, which stands for a picture to this model; write another word"
            )
        if not context or len(text.encode()) <= context:  # a token has at least one byte
            continue
        for part in dict.fromkeys((text[: _GLANCE * context], text)):
            tokens = len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])
            if tokens > context:
                check_tokens(example, tokens, context, "" if part is text else "at least ")


def check_tokens(example: Example, tokens: int, context: int | None, bound: str = "") -> None:
    """
    Raises:
        ValueError: more tokens than the context has; names the example.
    """
    if context and tokens > context:
        raise ValueError(
            f"{example.label}: {bound}{tokens:,} tokens, more than the {context:,} that the model's context holds; "
            "shorten question or answer, or use fewer or smaller pictures"
        )


def longest_answer(examples: Iterable[Example], tokenizer: Any) -> int:
    """Tokens that suffice to generate any of the examples' answers and the end of the turn."""
    lengths = [len(tokenizer(e.answer or "", add_special_tokens=False)["input_ids"]) for e in examples]
    return 2 + max(lengths, default=0)
