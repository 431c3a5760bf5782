"""Every grader's traps: empty answers, case, order, off by one, what cannot be parsed; and the published faults."""

from pathlib import Path

import numpy as np
import pytest

from inducekv.continual.graders import GRADERS, Grader, graders_named
from inducekv.continual.graders.captions import METRICS, caption_scores, caption_tokens
from inducekv.continual.graders.vqa import vqa_accuracy, vqa_normalised
from inducekv.examples import Example

OPTIONS = "Which is it?\nA. red\nB. dark blue\nC. red"
TEN = ("cat",) * 2 + ("Dog",) * 8


def example(answer: str, question: str = "q", **more) -> Example:
    return Example(question, answer, **more)


def mapqa(answer: str, question: str) -> Example:
    return Example(question, answer, (Path("Sci/images/MapQA/1.png"),))


CASES: list[tuple[str, str, Example, float]] = [
    ("exact", "Red.", example("red"), 1),
    ("exact", "4", example("5"), 0),
    ("upper", "red", example("RED"), 1),
    ("upper", "red.", example("red"), 0),
    ("gqa", "Yes.", example("yes"), 1),
    ("gqa", "yes, it is", example("yes"), 0),
    ("ocr_vqa", "John SMITH", example("john smith"), 1),
    ("ocr_vqa", "Unanswerable", example("unanswerable"), 0),
    ("finance/faithful", "U p.", example("Up"), 1),
    ("finance/faithful", "up", example("Up"), 0),
    ("finance/fixed", "up", example("Up"), 1),
    ("finance/fixed", "down", example("Up"), 0),
    ("vqa_soft", "the dog!", example("dog", references=TEN), 1),
    ("vqa_soft", "cat", example("dog", references=TEN), (2 * (1 / 3) + 8 * (2 / 3)) / 10),
    ("vqa_soft", "a", example("dog", references=(*TEN, "the")), 0),  # nothing is left of an article
    ("vqa_soft", "two", example("2"), 1),
    ("vqa_label", "Dog", example("dog", metadata={"label": {"dog": 0.9, "cat": 0.3}}), 0.9),
    ("vqa_label", "cow", example("dog", metadata={"label": {"dog": 0.9}}), 0),
    ("vqa_label", "dog", example("dog", metadata={"label": {}}), 0),
    ("scienceqa_letter/faithful", "B. dark blue", example("B"), 1),
    ("scienceqa_letter/faithful", "It is a dark one", example("A"), 1),  # the published fault: the article counts
    ("scienceqa_letter/fixed", "It is a dark one", example("A", OPTIONS), 0),
    ("scienceqa_letter/fixed", "(b)", example("B", OPTIONS), 1),
    ("scienceqa_letter/fixed", "The answer is B.", example("B", OPTIONS), 1),
    ("scienceqa_letter/fixed", "the answer is a dark one", example("A", OPTIONS), 0),
    ("scienceqa_letter/fixed", "Dark blue", example("B", OPTIONS), 1),
    ("scienceqa_letter/fixed", "red", example("A", OPTIONS), 0),  # two options say red
    ("scienceqa_letter/fixed", "C", example("B", OPTIONS), 0),
    ("iou/faithful", "[0.10,0.10,0.50,0.50]", example("[0.10,0.10,0.50,0.50]"), 1),
    ("iou/faithful", "[0,0,1,1]", example("[0,0,1,1]"), 0),  # the published parser drops the last digit
    ("iou/fixed", "[0,0,1,1]", example("[0,0,1,1]"), 1),
    ("iou/fixed", "The box is [0.1, 0.1, 0.5, 0.5].", example("x", metadata={"answer_bbox": "[0.1,0.1,0.5,0.5]"}), 1),
    ("iou/fixed", "[0,0,0.5,1]", example("[0,0,1,1]"), 0),  # exactly one half is not over one half
    ("iou/fixed", "[1,1,0,0]", example("[0,0,1,1]"), 0),
    ("iou/fixed", "[0,0,1]", example("[0,0,1,1]"), 0),
    ("iou/fixed", "somewhere", example("[0,0,1,1]"), 0),
    ("imagenet_containment/faithful", "", example("tench"), 1),  # the published fault
    ("imagenet_containment/faithful", "Tench", example("tench"), 0),
    ("imagenet_containment/fixed", "A Tench.", example("tench, Tinca tinca"), 1),
    ("imagenet_containment/fixed", "tenchman", example("tench"), 0),
    ("imagenet_containment/fixed", "t", example("tench"), 0),
    ("domain_containment/faithful", "unknown", example("no"), 1),  # the published fault
    ("domain_containment/faithful", "it is unknown", example("no"), 0),
    ("domain_containment/faithful", "Well, no.", example("no"), 1),
    ("domain_containment/fixed", "unknown", example("no"), 0),
    ("domain_containment/fixed", "a water body", example("water body"), 1),
    ("domain_containment/fixed", "12", example("2"), 0),
    ("pathology_containment/faithful", "normal", example("no"), 1),  # the published fault
    ("pathology_containment/fixed", "normal", example("no"), 0),
    ("pathology_containment/fixed", "Yes, no doubt", example("no"), 0),
    ("pathology_containment/fixed", "in the liver", example("Liver"), 1),
    ("science/faithful", "ohio, utah, iowa, texas", mapqa("Ohio, Utah", "Which states are dark?"), 1),  # its fault
    ("science/fixed", "ohio, utah, iowa, texas", mapqa("Ohio, Utah", "Which states are dark?"), 0.5),
    ("science/fixed", "utah, ohio", mapqa("Ohio, Utah", "Which states are dark?"), 1),
    ("science/faithful", "The answer is A", example("A"), 0),
    ("science/fixed", "a leaf", example("A"), 0),
    ("science/fixed", "b", example("B"), 1),
    ("medical_exact", "Yes, there is.", example("yes"), 1),
    ("medical_exact", "No, yes", example("yes"), 0),
    ("medical_exact", "left lung", example("left lung lobe"), 0),
    ("medical_exact", "Axial", example("axial", metadata={"answer_type": "CLOSED"}), 1),
    ("medical_recall", "left lung", example("left lung lobe"), 2 / 3),
    ("medical_recall", "lung lung lung", example("left lung lobe"), 1 / 3),
    ("medical_recall", "yes sure", example("yes", metadata={"answer_type": "OPEN "}), 1),
    ("finance/faithful", "15", example("1.5"), 1),  # the published fault
    ("finance/fixed", "15", example("1.5"), 0),
    ("finance/fixed", "U p.", example("up"), 1),
    ("slot_exact", "City = oslo.; sort = best", example("sort = best; city = Oslo"), 1),
    ("slot_exact", "sort = best", example("sort = best; city = Oslo"), 0),
    ("slot_exact", "sort = best; sort = best", example("sort = best"), 0),
    ("slot_exact", "city = best; sort = Oslo", example("sort = best; city = Oslo"), 0),
    ("slot_f1", "sort = best\ncity = Bergen", example("sort = best; city = Oslo"), 1 / 2),
    ("slot_f1", "sort = best; sort = best", example("sort = best"), 2 / 3),
    ("slot_f1", "city=", example("city = city"), 0),
    ("slot_f1", "I do not know", example("city = Oslo"), 0),
    ("rouge_l", "the cat lay", example("The cat sat."), 2 / 3),
    ("rouge_l", "sat cat", example("cat sat"), 1 / 2),
    ("rouge_l", "", example("cat"), 0),
]


@pytest.mark.parametrize("name, prediction, asked, score", CASES)
def test_a_grader_scores(name: str, prediction: str, asked: Example, score: float) -> None:
    got = GRADERS[name].scores([prediction], [asked])
    assert got.dtype == np.float64 and got == pytest.approx([score])


def test_every_grader_has_cases_and_refuses_to_mis_align() -> None:
    assert set(GRADERS) == {name for name, *_ in CASES} | {"coco_caption"}
    for name, grader in GRADERS.items():
        assert isinstance(grader, Grader) and grader.name == name
        with pytest.raises(ValueError, match="one prediction for each of 2 examples, got 1"):
            grader.scores(["a"], [example("a"), example("b")])


@pytest.mark.parametrize("name", sorted(set(GRADERS) - {"coco_caption", "imagenet_containment/faithful"}))
@pytest.mark.parametrize("empty", ["", " ", "..."])
def test_an_empty_answer_is_never_right(name: str, empty: str) -> None:
    answer = "[0,0,1,1]" if "iou" in name else "a = A" if "slot" in name else "A"
    asked = Example("q", answer, metadata={"label": {"A": 1.0}})
    assert GRADERS[name].scores([empty], [asked]).tolist() == [0]


def test_faithful_and_fixed_come_in_pairs() -> None:
    assert graders_named("iou") == (GRADERS["iou/fixed"], GRADERS["iou/faithful"])
    assert graders_named("upper") == (GRADERS["upper"], None)
    for name in GRADERS:
        if "/" in name:
            assert {f"{name.split('/')[0]}/{kind}" for kind in ("faithful", "fixed")} <= set(GRADERS)
    with pytest.raises(ValueError, match="unknown grader 'psychic'; choose one of exact"):
        graders_named("psychic")


@pytest.mark.parametrize(
    "name, asked, said",
    [
        ("exact", Example("q"), "no answer"),
        ("vqa_label", Example("q", "a"), "no soft labels"),
        ("iou/fixed", Example("q", "left"), "no box of four numbers, got 'left'"),
        ("scienceqa_letter/fixed", Example("q", "perhaps"), "no letter A to E, got 'perhaps'"),
        ("slot_exact", Example("q", "Oslo"), "'slot = words; slot = words', got 'Oslo'"),
        ("slot_f1", Example("q", "city = "), "'slot = words; slot = words', got 'city = '"),
    ],
)
def test_an_example_without_its_reference_is_named(name: str, asked: Example, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GRADERS[name].scores(["x"], [asked])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Dogs, please!", "dogs please"),
        ("dont", "don't"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("yes.", "yes"),
        ("None", "0"),
        ("black/white", "black white"),
        ("  TEN\nmen ", "10 men"),
    ],
)
def test_vqa_normalisation(text: str, expected: str) -> None:
    assert vqa_normalised(text) == expected


def test_vqa_accuracy_by_hand() -> None:
    assert vqa_accuracy("x", ("x",) * 10) == 1
    assert vqa_accuracy("x", ("x",) * 3 + ("y",) * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa_accuracy("z", ("x",) * 10) == 0
    with pytest.raises(ValueError, match="got none"):
        vqa_accuracy("x", ())


REFERENCES = [["A red ball on grass.", "a ball"], ["Two dogs run.", "dogs running in a field"], ["a tall tree"]]


def captions(*predictions: str) -> dict[str, np.ndarray]:
    pytest.importorskip("pycocoevalcap")
    pytest.importorskip("nltk")
    return caption_scores(predictions, REFERENCES)


def test_caption_metrics_know_the_right_caption() -> None:
    right = captions("a red ball on grass", "two dogs run", "a tall tree")
    assert tuple(right) == METRICS
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "ROUGE-L"):
        assert right[name].mean() == pytest.approx(1, abs=1e-6)
    assert right["METEOR"].mean() > 0.9 and right["CIDEr"].mean() > 3


def test_captions_belong_to_their_pictures_and_an_empty_one_gets_nothing() -> None:
    right = captions("a red ball on grass", "two dogs run", "a tall tree")
    swapped = captions("two dogs run", "a red ball on grass", "a tall tree")
    assert swapped["CIDEr"][:2].max() < right["CIDEr"][:2].min()
    assert swapped["CIDEr"][2] == pytest.approx(right["CIDEr"][2])
    empty = captions("", "two dogs run", "...")
    assert all(values[[0, 2]].tolist() == [0, 0] for values in empty.values())
    graded = GRADERS["coco_caption"].scores(
        ["a red ball on grass", "two dogs run", "a tall tree"],
        [Example("q", given[0], references=tuple(given)) for given in REFERENCES],
    )
    assert graded.mean() == pytest.approx(np.mean([values.mean() for values in right.values()]))


def test_bleu_of_sentences_adds_up_to_the_corpus() -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu

    said = ["a red ball", "dogs run", "tree"]
    truth = {i: [" ".join(caption_tokens(text)) for text in given] for i, given in enumerate(REFERENCES)}
    corpus, _ = Bleu(4).compute_score(truth, {i: [text] for i, text in enumerate(said)}, verbose=0)
    scores = captions(*said)
    for n in range(4):
        assert scores[f"BLEU-{n + 1}"].mean() == pytest.approx(corpus[n])


def test_caption_words_and_mistakes() -> None:
    assert caption_tokens("A dog's well-worn, 3.5 m (blue) mat.") == [
        "a",
        "dog's",
        "well-worn",
        "3.5",
        "m",
        "blue",
        "mat",
    ]
    for references in ([], [["a"], []]):
        with pytest.raises(ValueError, match="expected references"):
            caption_scores(["a"] * len(references), references)
