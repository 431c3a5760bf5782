"""Captions: the seven COCO metrics through pycocoevalcap and NLTK, without Java and without downloads.

What differs from the published figures: words are split by `caption_tokens` instead of Stanford's PTB tokenizer, and
METEOR is NLTK's with exact and stem matches alone (no synonyms or paraphrases, so it is lower). BLEU, ROUGE-L and CIDEr
are the published code.
"""

from __future__ import annotations

import contextlib
import io
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import regex

from inducekv.continual.graders.base import answer_of, checked_lengths
from inducekv.examples import Example

_OF_WORDS = r"[\p{L}\p{M}\p{N}]"
_TOKEN = regex.compile(
    rf"(?:(?<!{_OF_WORDS})[-−]?\.?(?=\d))?{_OF_WORDS}+(?:[-'.,]{_OF_WORDS}+)*"  # -5 and .5 are numbers
    r"|[\p{S}%&#@]"
)
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


def caption_tokens(text: str) -> list[str]:
    """Lower-case words and symbols without punctuation, as PTB's tokens are after the published code drops its
    punctuation; a contraction stays one word (CHOICE; PTB splits it). Words are letters, marks and numbers of Unicode.
    """
    return _TOKEN.findall(unicodedata.normalize("NFC", text).lower())


class _NoSynonyms:
    """Stands for WordNet, which would have to be fetched."""

    def synsets(self, *arguments: Any, **options: Any) -> list[Any]:
        return []


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Each of `METRICS`, float64 `[captions]` (CIDEr may exceed 1), scaled so that their mean is the corpus' figure.

    Raises:
        ValueError: not one list of references (at least one in each) for each prediction, or no predictions.
        ImportError: pycocoevalcap or NLTK is missing; they come with ``inducekv[captions]``.
    """
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(
            f"expected references (at least one each) for each of {len(predictions)} captions (at least one), "
            f"got {len(references)} lists"
        )
    try:
        from nltk.translate.meteor_score import meteor_score
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError("caption metrics need pycocoevalcap and NLTK: pip install 'inducekv[captions]'") from error
    said = [caption_tokens(prediction) for prediction in predictions]
    known = [[caption_tokens(reference) for reference in given] for given in references]
    results = {i: [" ".join(tokens)] for i, tokens in enumerate(said)}
    truth = {i: [" ".join(tokens) for tokens in given] for i, given in enumerate(known)}
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints lengths
        corpus_bleu, bleu = Bleu(4).compute_score(truth, results)
        _, rouge = Rouge().compute_score(truth, results)
        _, cider = Cider().compute_score(truth, results)
    meteor = [meteor_score(given, tokens, wordnet=_NoSynonyms()) for given, tokens in zip(known, said, strict=True)]
    scores = {f"BLEU-{n + 1}": _shares(np.array(bleu[n]), corpus_bleu[n]) for n in range(4)}
    others = {"METEOR": meteor, "ROUGE-L": rouge, "CIDEr": cider}
    spoken = np.array([bool(tokens) for tokens in said])
    scores |= {name: np.array(values, dtype=np.float64) for name, values in others.items()}
    return {name: np.where(spoken, scores[name], 0.0) for name in METRICS}


def _shares(each: np.ndarray, corpus: float) -> np.ndarray:
    """Scores of sentences, scaled to the corpus' figure, which is no mean of theirs."""
    mean = float(each.mean())
    return each * (corpus / mean) if mean > 0 else np.full(len(each), corpus)


class CocoCaption:
    """UCIT's score: the mean of the seven metrics; its corpus figure is the mean of `scores` (CIDEr can lift one over
    1). Predictions belong to their examples, not to positions in a file as in the published code."""

    name = "coco_caption"

    def scores(self, predictions: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        checked_lengths(predictions, examples)
        references = [example.references or (answer_of(example),) for example in examples]
        return np.mean(list(caption_scores(predictions, references).values()), axis=0)


COCO_CAPTION = CocoCaption()
