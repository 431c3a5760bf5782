"""The training loop: parameters in one block are trained exactly as parameters on their own."""

import torch
from torch import nn

from inducekv.continual.methods.training import side_by_side


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(24, 144), (144, 24), (7,), (), (3, 5)]
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return [*made, nn.Parameter(torch.randn(9, generator=generator).double())]


def loss(some: list[nn.Parameter], step: int) -> torch.Tensor:
    inputs = torch.randn(8, 144, generator=torch.Generator().manual_seed(step))
    hidden = (inputs @ some[0].T).tanh() @ some[1].T * some[3] + some[5].float().sum()
    return hidden.square().mean() + (some[2] * some[4].sum()).abs().sum()


def trained(some: list[nn.Parameter], optimised: list[nn.Parameter]) -> list[torch.Tensor]:
    optimiser = torch.optim.AdamW(optimised, lr=0.01, weight_decay=0.0)
    for step in range(12):
        optimiser.zero_grad(set_to_none=False)
        loss(some, step).backward()
        norm = nn.utils.get_total_norm([each.grad for each in some if each.grad is not None])
        nn.utils.clip_grads_with_norm_(optimised, 1.0, norm)
        optimiser.step()
    return [parameter.detach().clone() for parameter in some]


def test_parameters_side_by_side_learn_the_same_to_the_last_bit() -> None:
    alone, together = parameters(), parameters()
    blocks = side_by_side(together)
    assert [(block.dtype, block.numel()) for block in blocks] == [
        (torch.float32, 2 * 24 * 144 + 7 + 1 + 15),
        (torch.float64, 9),
    ]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True)), "moving changes nothing"
    before = [parameter.detach().clone() for parameter in alone]
    expected, got = trained(alone, alone), trained(together, blocks)
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(before, got, strict=True)), "nothing was learned"
    assert [tuple(parameter.shape) for parameter in together] == [tuple(parameter.shape) for parameter in alone]


def test_no_parameters_make_no_block() -> None:
    assert side_by_side([]) == []
