"""Many customers, one model: rows of one batch read different memories; what they share is held once."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_families
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.injection import Injection, build_injection, joined
from inducekv.model import InducedModel
from inducekv.retrieval import Calibration, Retrieved
from test_attention import trace
from test_family_parity import answered, example
from test_in_flight import taught
from test_parity import TOLERANCE, inputs_of

SEEDS = (2, 5, 8)
FAMILIES = ["llava", "idefics3", "qwen2_5_vl", "gemma3", "llama"]


@pytest.mark.parametrize("retrieval", ["in_flight", "two_pass"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_reads_its_own_memory(family: str, options: dict[str, Any], retrieval: str) -> None:
    """The same logits as when every row is asked alone with its memory; rows of None are the plain model's."""
    backbone = tiny_families.model(family)
    first = taught(backbone, (1, 3, 4), retrieval=retrieval)
    second = taught(backbone, (6,), retrieval=retrieval)  # fewer entries than are retrieved elsewhere
    second.memory.calibration = Calibration.initial(len(second.memory.layout.layers), 0.5, 0.6)
    memories = [first.memory, None, second.memory]
    asked = [example(backbone, seed, False) for seed in SEEDS]
    with first.attached(memories):
        logits, tokens, _ = answered(backbone, inputs_of(backbone, asked), **options)
    for row, (memory, question) in enumerate(zip(memories, asked, strict=True)):
        with first.attached(memory):
            alone, expected, _ = answered(backbone, inputs_of(backbone, [question]), **options)
        assert torch.equal(tokens[row], expected[0])
        if not options:
            assert (logits[row] - alone[0]).abs().max() < TOLERANCE
    with first.attached(second.memory):
        other, _, _ = answered(backbone, inputs_of(backbone, asked))
    if not options:
        assert (other[0] - logits[0]).abs().max() > 1e-3, "the memories must differ for this test to mean anything"


def test_memories_are_read_with_what_they_were_learned_with(llava: Backbone) -> None:
    """top_k and abstention come from each memory's own metadata."""
    model, other = taught(llava), taught(llava, top_k=1)
    asked = [example(llava, seed, False) for seed in SEEDS]
    answers = model.answer_all(asked, memory=[model.memory, other.memory, None], max_new_tokens=2)
    assert [len(answer.sources) for answer in answers] == [2, 1, 0]
    plain = model.answer_all(asked, memory=None, max_new_tokens=2)
    assert [len(answer.sources) for answer in plain] == [0, 0, 0]
    assert answers[2].text == plain[2].text
    alone = other.answer_all(asked[1:2], max_new_tokens=2)[0]
    assert (alone.text, [s.id for s in alone.sources]) == (answers[1].text, [s.id for s in answers[1].sources])


def retrieved(indices: list[list[int]]) -> Retrieved:
    places = torch.tensor(indices)
    valid = places >= 0
    alpha = valid / valid.sum(-1, keepdim=True)
    return Retrieved(places.clamp_min(0), alpha, alpha, valid)


@pytest.mark.parametrize("weighting", ["none", "log"])
def test_what_rows_share_is_held_once(llava: Backbone, weighting: str) -> None:
    model = taught(llava)
    phi = model.memory.calibration
    shared = build_injection(model.memory, retrieved([[0, 1], [0, 1], [2, 1]]), phi, weighting, llava)
    apart = build_injection(model.memory, retrieved([[0, 1]]), phi, weighting, llava)
    assert shared is not None and apart is not None
    tokens = [entry.payload.tokens for entry in model.memory.entries]
    # entry 1 is held once for three rows, entry 0 once for two
    assert shared.places is not None and shared.keys[0].shape[0] == 3
    assert shared.nbytes < 3 * apart.nbytes
    assert shared.keys[0].shape[2] == max(tokens[:3])
    asked = [example(llava, seed, False) for seed in SEEDS]
    with attached(llava, shared):
        together, _, _ = answered(llava, inputs_of(llava, asked))
    for row in range(3):
        one = build_injection(model.memory, retrieved([[[0, 1], [0, 1], [2, 1]][row]]), phi, weighting, llava)
        with attached(llava, one):
            alone, _, _ = answered(llava, inputs_of(llava, asked[row : row + 1]))
        assert (together[row] - alone[0]).abs().max() < TOLERANCE


def test_rows_joined_are_rows_alone(llava: Backbone) -> None:
    """Injections with and without bias, with and without window, of different widths, in any order of rows."""
    model, other = taught(llava), taught(llava, (6,))
    wide = build_injection(model.memory, retrieved([[0, 1], [-1, 3]]), model.memory.calibration, "log", llava, "window")
    thin = build_injection(other.memory, retrieved([[0]]), other.memory.calibration, "none", llava)
    both = joined([wide, None, thin], [torch.tensor([3, 0]), torch.tensor([1]), torch.tensor([2])], 5)
    assert both is not None and wide is not None and thin is not None
    assert both.mask.shape[0] == 5 and not both.mask[1].any() and not both.mask[4].any()
    assert both.span == max(wide.span, thin.span)
    like = wide.keys[0]
    for layer in model.memory.layers:
        keys, values = both.of_layer(layer, like) or (like, like)
        for source, row, place in ((wide, 3, 0), (wide, 0, 1), (thin, 2, 0)):
            own = source.of_layer(layer, like)
            assert own is not None
            read = both.mask[row]
            assert torch.equal(keys[row][:, read], own[0][place][:, source.mask[place]])
            assert torch.equal(values[row][:, read], own[1][place][:, source.mask[place]])
            if source.bias is not None and both.bias is not None:
                assert torch.equal(both.bias[row][read], source.bias[place][source.mask[place]])
            slots = both.slots[row][read] - (both.slot_count - source.slot_count)
            assert torch.equal(slots, source.slots[place][source.mask[place]])
    assert joined([None, None], [torch.tensor([0]), torch.tensor([1])], 2) is None


def test_what_rows_read_is_put_together_once_for_all_tokens(llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept under the limit, apart for each dtype and number of beams; not for other rows, not under gradients."""
    model = taught(llava)
    upper, top = model.memory.layers[0], model.memory.layers[-1]

    def built() -> Injection:
        made = build_injection(
            model.memory, retrieved([[0, 1], [0, 1], [2, 1]]), model.memory.calibration, "log", llava
        )
        assert made is not None and made.places is not None
        return made

    def read(memory: Injection, layer: int, like: Tensor, repeats: int = 1) -> tuple[Tensor, Tensor]:
        both = memory.of_layer(layer, like, repeats)
        assert both is not None
        return both

    memory, like = built(), torch.zeros(1)
    with torch.no_grad():
        first = read(memory, upper, like)
        assert read(memory, upper, like) is first
        assert not torch.equal(read(memory, top, like)[0], first[0])
        assert torch.equal(read(memory, upper, like, 2)[0], first[0].repeat_interleave(2, 0))
        assert torch.equal(read(memory.rows(torch.tensor([2, 0])), upper, like)[0], first[0][[2, 0]])
        assert torch.equal(read(memory, upper, like.double())[0], first[0].double())
    under_gradients = read(memory, upper, like)
    assert under_gradients is not first and torch.equal(under_gradients[1], first[1])

    monkeypatch.setattr("inducekv.injection.KEPT", sum(x.nbytes for x in first))
    memory = built()
    with torch.no_grad():
        assert read(memory, upper, like) is read(memory, upper, like)
        assert read(memory, top, like) is not read(memory, top, like)


def test_memories_that_do_not_suit_are_refused(llava: Backbone, qwen: Backbone) -> None:
    model = taught(llava)
    before = trace(llava.model)
    inputs = inputs_of(llava, [example(llava, seed, False) for seed in SEEDS])
    with pytest.raises(ValueError, match="the batch has 3 rows"), model.attached([model.memory, None]):
        answered(llava, inputs)
    with pytest.raises(ValueError, match="2 memories were given for 1 examples"):
        model.answer_all([example(llava, 2, False)], memory=[None, None])
    with pytest.raises(ValueError, match="another model"), model.attached(taught(qwen).memory):
        pass
    two_pass = taught(llava, retrieval="two_pass").memory
    with pytest.raises(ValueError, match="retrieval 'two_pass'"), model.attached([model.memory, two_pass]):
        pass
    with pytest.raises(TypeError, match="KVMemory"), model.attached([model]):  # type: ignore[list-item]
        pass
    wrong = taught(llava, (1,), weighting="none")
    with pytest.raises(ValueError, match="weighting 'none'"), model.attached([model.memory, wrong.memory]):
        pass
    assert trace(llava.model) == before


def test_nothing_attached_reads_nothing(llava: Backbone) -> None:
    inputs = inputs_of(llava, [example(llava, seed, False) for seed in SEEDS])
    plain, _, _ = answered(llava, inputs)
    model = taught(llava)
    empty = InducedModel.from_pretrained(llava, config=InduceKVConfig(retrieval="in_flight"))
    for memory in (None, [None, None, None], [empty.memory, None, None]):
        with model.attached(memory):
            assert torch.equal(answered(llava, inputs)[0], plain)
