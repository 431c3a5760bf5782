"""Whether an answer counts as right, or how right it is: one grader a rule, side by side.

Where the published code has a known fault there are two graders: `<name>/faithful` does what it does, `<name>/fixed`
what was meant.
"""

from inducekv.continual.graders import boxes, choice, containment, medical, slots, vqa, words
from inducekv.continual.graders.base import Grader, PerAnswer
from inducekv.continual.graders.captions import COCO_CAPTION
from inducekv.continual.graders.exact import EXACT, accuracy, exact_match, normalised
from inducekv.continual.graders.rouge import ROUGE_L
from inducekv.error_text import shown

_ALL: tuple[Grader, ...] = (
    EXACT,
    ROUGE_L,
    words.UPPER,
    words.GQA,
    words.OCR_VQA,
    words.SQUEEZED_FAITHFUL,
    words.SQUEEZED_FIXED,
    vqa.VQA_SOFT,
    vqa.VQA_LABEL,
    choice.LETTER_FAITHFUL,
    choice.LETTER_FIXED,
    boxes.BOX_FAITHFUL,
    boxes.BOX_FIXED,
    containment.IMAGENET_FAITHFUL,
    containment.IMAGENET_FIXED,
    containment.DOMAIN_FAITHFUL,
    containment.DOMAIN_FIXED,
    containment.PATHOLOGY_FAITHFUL,
    containment.PATHOLOGY_FIXED,
    containment.SCIENCE_FAITHFUL,
    containment.SCIENCE_FIXED,
    medical.MEDICAL_EXACT,
    medical.MEDICAL_RECALL,
    slots.SLOT_EXACT,
    slots.SLOT_F1,
    COCO_CAPTION,
)
GRADERS: dict[str, Grader] = {grader.name: grader for grader in _ALL}
"""Every grader by its name."""


def graders_named(name: str) -> tuple[Grader, Grader | None]:
    """The grader to use and, where it mends a fault of the published one, that one.

    Raises:
        ValueError: no such grader; lists the names.
    """
    if name in GRADERS:
        return GRADERS[name], None
    if f"{name}/fixed" in GRADERS:
        return GRADERS[f"{name}/fixed"], GRADERS[f"{name}/faithful"]
    raise ValueError(f"unknown grader {shown(name)}; choose one of {', '.join(GRADERS)}")


__all__ = [
    "COCO_CAPTION",
    "EXACT",
    "GRADERS",
    "Grader",
    "PerAnswer",
    "accuracy",
    "exact_match",
    "graders_named",
    "normalised",
]
