"""Short ways of unpacking and rotating give what the long ones give."""

import pytest
import torch

from inducekv.compression.bits import from_stream, pack, to_stream, unpack
from inducekv.compression.hadamard import LARGEST, _butterfly, hadamard


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 64])
def test_codes_come_back(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 3, count), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits, count), codes)
    assert torch.equal(from_stream(to_stream(packed, 8)[..., : count * bits], bits), codes)


@pytest.mark.parametrize("width", [2, 48, 64, LARGEST, 2 * LARGEST])
def test_the_product_is_the_transform_and_its_own_inverse(width: int) -> None:
    x = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(width))
    block = width & -width
    torch.testing.assert_close(hadamard(x), _butterfly(x.unflatten(-1, (-1, block))).flatten(-2), atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(hadamard(hadamard(x)), x, atol=1e-5, rtol=1e-5)


def test_a_rotation_first_used_without_gradients_still_gives_them() -> None:
    with torch.inference_mode():
        hadamard(torch.randn(2, 128))
    x = torch.randn(2, 128, requires_grad=True)
    hadamard(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
