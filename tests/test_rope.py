"""Keys moved by a rotation are the keys the model itself would have made there."""

import pytest
import torch

import tiny
from inducekv.backbone import Backbone
from inducekv.families import FAMILIES, family_of, rotation
from inducekv.rope import rotate_keys


def model_rotation(backbone: Backbone, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Keys `[heads, tokens, head_dim]` at positions `[tokens]`, rotated the way a first pass would."""
    cos, sin = rotation(backbone.text_model, positions)
    return rotate_keys(keys, cos, sin)


@pytest.mark.parametrize("shift", [-300, -1, 0, 5])
def test_rotations_add_up(backbone: Backbone, shift: int) -> None:
    keys = torch.randn(2, 7, backbone.head_dim)
    positions = torch.arange(400, 407)
    direct = model_rotation(backbone, keys, positions + shift)
    moved = model_rotation(backbone, model_rotation(backbone, keys, positions), torch.full((7,), shift))
    assert torch.allclose(moved, direct, atol=1e-4)
    assert torch.allclose(moved.norm(dim=-1), keys.norm(dim=-1), atol=1e-5)


def test_scores_depend_on_distance_alone(backbone: Backbone) -> None:
    query, key = torch.randn(2, 1, 1, backbone.head_dim, dtype=torch.float64)
    at = lambda x, p: model_rotation(backbone, x, torch.tensor([p]))  # noqa: E731
    near = (at(query, 10) * at(key, -2)).sum()
    assert (at(query, 12) * at(key, 0)).sum().item() == pytest.approx(near.item(), abs=1e-5)
    assert (at(query, 10) * at(key, 0)).sum().item() != pytest.approx(near.item(), abs=1e-3)


def test_each_entry_has_its_own_shift(backbone: Backbone) -> None:
    keys, shifts = torch.randn(3, 2, 5, backbone.head_dim), torch.tensor([-4, 0, 9])
    cos, sin = rotation(backbone.text_model, shifts)
    moved = rotate_keys(keys, cos[:, None, None], sin[:, None, None])
    for key, shift, got in zip(keys, shifts, moved, strict=True):
        assert torch.allclose(got, model_rotation(backbone, key, shift.expand(5)))


def test_partial_rotary_dimensions_are_left_alone(llava: Backbone) -> None:
    keys = torch.randn(4, llava.head_dim + 6)
    cos, sin = rotation(llava.text_model, torch.full((4,), -3))
    moved = rotate_keys(keys, cos, sin)
    assert torch.equal(moved[:, -6:], keys[:, -6:]) and not torch.equal(moved[:, :-6], keys[:, :-6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept_and_the_work_done_in_float32(llava: Backbone, dtype: torch.dtype) -> None:
    keys = torch.randn(3, llava.head_dim, dtype=torch.float64).to(dtype)
    cos, sin = rotation(llava.text_model, torch.arange(3))
    moved = rotate_keys(keys, cos, sin)
    assert moved.dtype == dtype
    exact = rotate_keys(keys.double(), cos, sin)
    assert torch.allclose(moved.double(), exact, atol=torch.finfo(dtype).eps * 4)


def test_attention_scaling_is_not_applied_twice(llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = rotation(llava.text_model, torch.arange(4))
    monkeypatch.setattr(llava.text_model.rotary_emb, "attention_scaling", 1.7)  # as in YaRN
    scaled = rotation(llava.text_model, torch.arange(4))
    assert torch.allclose(plain[0], scaled[0]) and torch.allclose(plain[1], scaled[1])


def test_unknown_families_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama().model
    monkeypatch.setattr(model.model.rotary_emb, "rope_type", "dynamic")
    with pytest.raises(ValueError, match="rotary embedding type 'dynamic'"):
        family_of(model)
    monkeypatch.setattr(model.config, "model_type", "bloom")
    with pytest.raises(ValueError, match=r"'bloom' is not supported; supported: .*families\.py"):
        family_of(model)
    with pytest.raises(ValueError, match="None is not supported"):
        family_of(torch.nn.Linear(1, 1))
    assert list(FAMILIES) == sorted(FAMILIES)
