"""Attaching and detaching: nothing is left behind, nothing else changes, masses and gradients are right."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import tiny
import tiny_families
from inducekv.attachment import TRAVELS
from inducekv.attention import REGISTERED, attached
from inducekv.backbone import Backbone
from inducekv.cache_name import CACHE, CACHE_NAMES, cache_in, cache_of
from inducekv.injection import build_injection
from inducekv.payloads import Payloads
from inducekv.retrieval import Calibration, retrieve
from test_family_parity import example as family_example
from test_parity import WEIGHTINGS, assert_close, generated, inputs_of, memory_of

ASKED = [tiny.example(i, images=i % 2, answer=False) for i in (2, 5, 7)]
LEARNED = [[tiny.example(1)], [tiny.example(3), tiny.example(4, images=0)], [tiny.example(6)]]


def trace(model: Any) -> list[Any]:
    """Everything a context could leave on a model: attributes, hooks, attention implementations."""
    return [
        (
            sorted(module.__dict__),
            list(module._forward_pre_hooks),
            module.config._attn_implementation if hasattr(module, "config") else None,
        )
        for module in model.modules()
    ]


def parameters_of(model: Any) -> list[Tensor]:
    return [x.detach().clone() for x in (*model.parameters(), *model.buffers())]


def test_empty_and_detached_memory_are_bit_identical(backbone: Backbone) -> None:
    inputs = inputs_of(backbone, ASKED)
    plain = generated(backbone, inputs)[0]  # first, because transformers itself leaves a note on modules that have run
    before, weights = trace(backbone.model), parameters_of(backbone.model)
    for empty in (None, lambda inputs: None):
        with attached(backbone, empty):
            assert torch.equal(generated(backbone, inputs)[0], plain)
    with attached(backbone, memory_of(backbone, LEARNED)):
        assert not torch.equal(generated(backbone, inputs)[0], plain)
    assert torch.equal(generated(backbone, inputs)[0], plain)
    assert trace(backbone.model) == before
    assert all(map(torch.equal, parameters_of(backbone.model), weights))


def test_nothing_is_left_behind_after_an_exception(backbone: Backbone) -> None:
    before = trace(backbone.model)
    with pytest.raises(KeyboardInterrupt), attached(backbone, lambda inputs: memory_of(backbone, LEARNED)):
        raise KeyboardInterrupt
    assert trace(backbone.model) == before

    def broken(inputs: dict[str, Any]) -> None:
        raise RuntimeError("no memory today")

    with pytest.raises(RuntimeError, match="no memory today"), attached(backbone, broken):
        generated(backbone, inputs_of(backbone, ASKED))
    assert trace(backbone.model) == before


def test_contexts_nest(backbone: Backbone) -> None:
    inputs = inputs_of(backbone, ASKED)
    outer, inner = memory_of(backbone, LEARNED), memory_of(backbone, LEARNED[::-1])
    plain = generated(backbone, inputs)[0]
    with attached(backbone, outer):
        with_outer = generated(backbone, inputs)[0]
        with attached(backbone, inner):
            assert not torch.equal(generated(backbone, inputs)[0], with_outer)
            with attached(backbone, None):
                assert torch.equal(generated(backbone, inputs)[0], plain)
        assert torch.equal(generated(backbone, inputs)[0], with_outer)


def test_encoding_ignores_an_open_context(backbone: Backbone) -> None:
    example = tiny.example(8)
    plain, key = backbone.encode([example])[0], backbone.query_keys([example])
    with attached(backbone, memory_of(backbone, LEARNED[:1])):
        inside = backbone.encode([example])[0]
        assert torch.equal(inside.keys, plain.keys) and torch.equal(inside.values, plain.values)
        assert torch.equal(backbone.query_keys([example]), key)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
def test_a_provider_answers_each_prompt(backbone: Backbone, options: dict[str, Any]) -> None:
    """A function of the inputs, asked once for each prompt, gives plain `generate` its memory."""
    inputs, static = inputs_of(backbone, ASKED), memory_of(backbone, LEARNED)
    asked = []

    def provider(inputs: dict[str, Any]) -> Any:
        keys = backbone.query_keys_from_inputs(**inputs)
        asked.append(keys)
        return static

    with attached(backbone, static):
        expected = generated(backbone, inputs, **options)
    with attached(backbone, provider):
        got = generated(backbone, inputs, **options)
        again = generated(backbone, inputs, **options)
    assert torch.equal(got[1], expected[1]) and torch.equal(got[0], expected[0]) and torch.equal(again[0], expected[0])
    assert len(asked) == 2
    beams = options.get("num_beams", 1)
    assert_close(asked[0][::beams], backbone.query_keys(ASKED))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_attention_mass_is_what_eager_attention_reports(llava: Backbone, weighting: str) -> None:
    backbone = tiny.llava(attention="eager")
    inputs = inputs_of(backbone, ASKED[:1])
    alpha = torch.tensor([[0.3, 0.7]])
    injection = memory_of(llava, LEARNED[1:2], weighting, alpha)
    with attached(backbone, injection, record_mass=True) as attachment, torch.no_grad():
        output = backbone.model(**inputs, output_attentions=True)
    tokens = injection.mask.shape[1]
    weights = torch.stack(output.attentions)[:, 0, :, :, :tokens].mean((0, 1, 2))
    expected = torch.stack([weights[injection.slots[0] == slot].sum() for slot in (0, 1)])
    assert_close(attachment.mass[0].double(), expected.double())
    assert attachment.mass.shape == (1, 2) and 0 < attachment.mass.sum() < 1


def test_attention_mass_ignores_padding_and_averages_beams(backbone: Backbone) -> None:
    inputs, injection = inputs_of(backbone, ASKED), memory_of(backbone, LEARNED)
    with attached(backbone, injection, record_mass=True) as attachment:
        generated(backbone, inputs, num_beams=2)
    assert attachment.mass.shape == (3, 2)
    assert attachment.mass[0, 0] == 0 and (attachment.mass[:, 1] > 0).all()
    with attached(backbone, injection, record_mass=True) as batched, torch.no_grad():
        backbone.model(**inputs, **positions_of(backbone, inputs))
    for i, example in enumerate(ASKED):
        one = inputs_of(backbone, [example])
        with attached(backbone, injection.rows(torch.tensor([i])), record_mass=True) as alone, torch.no_grad():
            backbone.model(**one, **positions_of(backbone, one))
        assert_close(batched.mass[i], alone.mass[0])


def positions_of(backbone: Backbone, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    positions = backbone.family.positions(inputs)
    return {} if positions is None else {"position_ids": positions}


def test_mass_needs_to_be_asked_for(llava: Backbone) -> None:
    with attached(llava, memory_of(llava, LEARNED)) as attachment:
        generated(llava, inputs_of(llava, ASKED))
    with pytest.raises(RuntimeError, match="record_mass=True"):
        _ = attachment.mass


def test_log_weighting_is_the_logarithm_added_to_the_logits(llava: Backbone) -> None:
    """Half the other's share: as if every token had half its weight, and the other entry were there twice."""
    injection = memory_of(llava, [[tiny.example(1), tiny.example(3)]], "log", torch.tensor([[1 / 3, 2 / 3]]))
    tokens, first = injection.mask.shape[1], injection.slots[0] == 0
    again = torch.arange(tokens)[~first]
    twice = type(injection)(
        [torch.cat([k, k[:, :, again]], 2) for k in injection.keys],
        [torch.cat([v, v[:, :, again]], 2) for v in injection.values],
        torch.cat([injection.mask, injection.mask[:, again]], 1),
        torch.full((1, tokens + len(again)), 0.5, dtype=torch.float64).log(),
        torch.cat([injection.slots, injection.slots[:, again]], 1),
        2,
    )
    inputs = inputs_of(llava, ASKED[:1])
    with attached(llava, injection):
        expected = generated(llava, inputs)[0]
    with attached(llava, twice):
        assert_close(generated(llava, inputs)[0], expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradients_reach_alpha_and_calibration(backbone: Backbone, weighting: str) -> None:
    """Against finite differences, through scoring."""
    learned = [tiny.example(i) for i in (1, 3, 4)]
    encoded = backbone.encode(learned, key_layer=-1)  # the middle keys of this model lie on an edge of the top 2
    payloads, memory_keys = Payloads.of(encoded), torch.stack([e.key for e in encoded]).double()
    asked = [tiny.example(2), tiny.example(5, images=0)]
    prepared, queries = backbone.prepare(asked, True, embed=True), backbone.query_keys(asked, key_layer=-1).double()

    def loss(phi_tau: Tensor, phi_lambda: Tensor, weights: Tensor) -> Tensor:
        calibration = Calibration(phi_tau, phi_lambda)
        retrieved = retrieve(queries, memory_keys, calibration.tau, top_k=2, weights=weights)
        return backbone.score(
            prepared, build_injection(payloads, retrieved, calibration, weighting, backbone)
        ).nll.mean()

    point = [torch.tensor(-2.0), torch.tensor([0.5, -0.3, 0.1]), torch.tensor([0.6, 0.3, 0.5])]
    point = [x.double().requires_grad_() for x in point]
    gradients = torch.autograd.grad(loss(*point), point, allow_unused=True)
    for place, gradient in enumerate(gradients):
        if gradient is None:
            assert weighting == "none" and place in (0, 2)
            continue
        step, flat = 3e-3, point[place].detach().reshape(-1)
        for i in range(len(flat)):
            values = []
            for sign in (1, -1):
                moved = [x.detach().clone() for x in point]
                moved[place].view(-1)[i] += sign * step
                values.append(loss(*moved).item())
            numeric = (values[0] - values[1]) / (2 * step)
            assert gradient.reshape(-1)[i].item() == pytest.approx(numeric, abs=1e-4, rel=1e-2)  # norms run in float32


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    backbone = tiny.llava()
    inputs = inputs_of(backbone, ASKED)
    injection = memory_of(backbone, LEARNED)
    leaf = injection.values[0].requires_grad_()
    gradients = []
    for checkpointing in (False, True):
        backbone.model.train()
        if checkpointing:
            model = backbone.model
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        with attached(backbone, injection):
            loss = backbone.model(**inputs, labels=inputs["input_ids"]).loss
            gradients.append(torch.autograd.grad(loss, leaf)[0])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12) and gradients[0].abs().max() > 0


@pytest.mark.parametrize("family", [name for name in tiny_families.MODELS if name != "llava"])
def test_checkpointing_knows_its_memory_in_a_thread_of_autograds_own(family: str) -> None:
    """On a GPU backward() runs layers again in another thread, where no context is open."""
    backbone = tiny_families.model(family)
    memory, attend = memory_of(backbone, [[family_example(backbone, 1)]]), list[Any]()
    inputs = inputs_of(backbone, [family_example(backbone, 2, False)])

    def noted(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        attend.append(kwargs.get(TRAVELS))

    hooks = [x.self_attn.register_forward_pre_hook(noted, with_kwargs=True) for x in backbone.text_model.layers]
    backbone.model.train()
    with attached(backbone, memory) as attachment:
        backbone.model(**inputs)
    backbone.model.eval()
    for hook in hooks:
        hook.remove()
    assert len(attend) == backbone.layers and all(given is attachment.now for given in attend)


def test_rows_must_fit_the_batch(llava: Backbone) -> None:
    with attached(llava, memory_of(llava, LEARNED[:2])), pytest.raises(ValueError, match="2 rows, the batch has 3"):
        generated(llava, inputs_of(llava, ASKED))


@pytest.mark.parametrize("chosen", [[0, 1], [1, 0], [1], [0]])
def test_rows_are_those_that_were_chosen_and_all_of_them_are_not_copied(llava: Backbone, chosen: list[int]) -> None:
    injection = memory_of(llava, LEARNED[:2])
    assert injection is not None and injection.places is None
    rows = injection.rows(torch.tensor(chosen))
    for whole, some in zip([*injection.keys, *injection.values], [*rows.keys, *rows.values], strict=True):
        assert torch.equal(some, whole[chosen])
        assert (some is whole) == (chosen == [0, 1])
    assert torch.equal(rows.mask, injection.mask[chosen])
    rows.keys[0] = rows.keys[0] * 2
    assert not torch.equal(rows.keys[0], injection.keys[0]), "what is put in its place is not put into the other"


def test_other_attention_implementations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.llava()
    monkeypatch.setattr(backbone.text_model.config, "_attn_implementation_internal", "flash_attention_2")
    with (
        pytest.raises(ValueError, match=r"flash_attention_2.*'sdpa' or 'eager'"),
        attached(backbone, memory_of(tiny.llava(), LEARNED)),
    ):
        pass
    assert backbone.text_model.config._attn_implementation == "flash_attention_2"


def test_the_vision_tower_keeps_its_own_attention(llava: Backbone) -> None:
    with attached(llava, memory_of(llava, LEARNED)):
        assert llava.text_model.config._attn_implementation in REGISTERED.values()
        assert llava.model.model.vision_tower.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_prompt_that_goes_on_in_a_cache_is_not_looked_up_again(backbone: Backbone, name: str) -> None:
    """Whatever this release calls the cache; later ones take the old name too."""
    if name not in (CACHE, "past_key_values"):
        pytest.skip(f"this release of transformers knows no {name!r}")
    if backbone.family.state:
        pytest.skip("outside generate() its positions depend on the prompt that was read last")
    inputs, looked_up = inputs_of(backbone, ASKED[:1]), []

    def provide(given: dict[str, Any]) -> None:
        looked_up.append(sorted(given))

    cache = DynamicCache()
    with torch.no_grad(), attached(backbone, provide):
        output = backbone.model(**inputs, **{name: cache}, use_cache=True)
        assert cache_of(output) is cache
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        backbone.model(input_ids=inputs["input_ids"][:, :1], attention_mask=mask, **{name: cache})
    assert looked_up == [sorted(set(inputs) - {name})]


def test_the_cache_of_a_module_is_found_under_either_name() -> None:
    cache = DynamicCache()
    assert all(cache_in({"use_cache": True, name: cache}) is cache for name in CACHE_NAMES)
    assert cache_in({"cache": None, "past_key_values": cache}) is cache
    assert cache_in({"use_cache": True}) is None and cache_of(object()) is None
