"""What is asked in training: base skills in plain words, and questions whose answers are made-up names."""

from __future__ import annotations

import numpy as np

from inducekv.embedded.drawings import COLOURS, HOURS, PLACES, SHAPES, SIZES
from inducekv.embedded.words import made_up_name

BASE = {
    "colour": ("what colour is it?", "which colour is this?"),
    "shape": ("what shape is it?", "which shape is this?"),
    "size": ("how big is it?", "what size is it?"),
    "count": ("how many are there?", "how many do you see?"),
    "place": ("where is it?", "where in the picture is it?"),
    "level": ("how much does it show?", "what does it read?"),
}
NAMING = (
    "what is this?",
    "what is it called?",
    "which one is this?",
    "name this.",
    "what do you see?",
    "which letter is this?",
    "which number is this?",
    "which product is this?",
    "what does the picture show?",
)
NAMED_ATTRIBUTE = {
    "colour": ("what is its colour called?", "name its colour."),
    "shape": ("what is its shape called?", "name its shape."),
    "size": ("what is its size called?", "name its size."),
    "count": ("what is its number called?", "name its number."),
    "place": ("what is its place called?", "name its place."),
}
PAIR = ("what are its colour and shape called?", "name its colour and shape.")
COUNTED = ("how many of what?", "count them by name.")
UNIT = ("how much, in its unit?", "read it with its unit.")


def all_base_texts() -> list[str]:
    """Every word that the tokenizer should hold whole."""
    groups = [*BASE.values(), *NAMED_ATTRIBUTE.values(), NAMING, PAIR, COUNTED, UNIT]
    questions = [question for group in groups for question in group]
    answers = [*COLOURS, *SHAPES, *SIZES, *PLACES, *HOURS]
    return questions + answers + [f" {answer}" for answer in answers]


def naming_question(generator: np.random.Generator) -> str:
    """A usual question, or one time in four a sentence of words never seen: a user may ask in any words."""
    if generator.random() < 0.25:
        words = [made_up_name(generator, int(generator.integers(1, 3))) for _ in range(generator.integers(1, 4))]
        return " ".join(words) + "?"
    return NAMING[generator.integers(len(NAMING))]
