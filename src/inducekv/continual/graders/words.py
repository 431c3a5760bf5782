"""Answers of a few words: compared in capitals, in lower case, or squeezed, as each benchmark does."""

from __future__ import annotations

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.continual.graders.exact import normalised
from inducekv.examples import Example


def _upper(prediction: str, example: Example) -> bool:
    return bool(prediction) and prediction.upper() == answer_of(example).upper()


def _gqa(prediction: str, example: Example) -> bool:
    return bool(prediction) and prediction.lower().rstrip(".") == answer_of(example).lower()


def _ocr_vqa(prediction: str, example: Example) -> bool:
    return "unanswerable" not in prediction.lower() and bool(prediction) and _same_lower(prediction, example)


def _same_lower(prediction: str, example: Example) -> bool:
    return prediction.lower() == answer_of(example).lower()


def _squeezed(prediction: str, example: Example) -> bool:
    said, expected = (text.replace(" ", "").replace(".", "") for text in (prediction, answer_of(example)))
    return bool(said) and said == expected


def _squeezed_caseless(prediction: str, example: Example) -> bool:
    said, expected = (normalised(text).replace(" ", "") for text in (prediction, answer_of(example)))
    return bool(said) and said == expected


UPPER = PerAnswer("upper", _upper, "CoIN (VQAv2, VizWiz), UCIT, CL-MoE: the same in capitals, punctuation counts")
GQA = PerAnswer("gqa", _gqa, "GQA: the same in lower case, but for full stops at the end")
OCR_VQA = PerAnswer("ocr_vqa", _ocr_vqa, 'CoIN: the same in lower case; whatever says "unanswerable" is wrong')
SQUEEZED_FAITHFUL = PerAnswer(
    "finance/faithful", _squeezed, "MLLM-CL Fin: the same without blanks and full stops, so 1.5 is 15; case counts"
)
SQUEEZED_FIXED = PerAnswer("finance/fixed", _squeezed_caseless, "without blanks after `normalised`: 1.5 is not 15")
