"""An answer and what it was read from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """An entry that an answer was read from.

    Attributes:
        id, task, question, answer: of the entry (texts as they are kept, shortened).
        alpha: retrieval weight; an answer's sum to 1.
        mass: share of attention the entry took, mean over layers, heads and positions of the question and of the answer
            (in a batch: up to where its longest answer ends).
        similarity: of its key to the question's.
    """

    id: str
    task: str
    alpha: float
    mass: float
    question: str
    answer: str
    similarity: float


@dataclass(frozen=True)
class Answer:
    """An answer and the entries it was read from, the most similar first; none if the plain model answered."""

    text: str
    sources: list[Source]
