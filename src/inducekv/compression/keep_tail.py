"""Keeps the answer's tokens and the last ones before it, and drops the rest."""

import dataclasses
from dataclasses import dataclass

from inducekv.compression.base import Compression
from inducekv.encoded import ANSWER, IMAGE, Encoded


@dataclass(frozen=True)
class KeepTail(Compression):
    """The answer and the tokens just before it stay as they are (CHOICE).

    The header of the answer and the end of the question have read the whole question; published models find their way
    from there into the answer, which by itself they hardly read.

    Attributes:
        context_tokens: tokens before the answer that stay; 0 keeps the answer alone.

    Raises:
        ValueError: `context_tokens` is negative, or an example to compress has no answer tokens.
    """

    context_tokens: int = 8

    def __post_init__(self) -> None:
        if self.context_tokens < 0:
            raise ValueError(f"keep_tail needs payload_tokens of at least 0, got {self.context_tokens}")

    def compress(self, encoded: Encoded) -> Encoded:
        answer = (encoded.kinds == ANSWER).nonzero().flatten()
        if not len(answer):
            raise ValueError("keep_tail needs an example with an answer; this one has no answer tokens")
        first = max(0, int(answer[0]) - self.context_tokens)
        chosen = (encoded.kinds == ANSWER).clone()
        chosen[first : int(answer[0])] = True
        kept = encoded.select(chosen)
        together = bool(chosen[first:].all()) and not bool((kept.kinds == IMAGE).any())
        return dataclasses.replace(kept, span=min(encoded.span, kept.tokens)) if together else kept
