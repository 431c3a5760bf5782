"""Finds the levels of `inducekv.compression.trellis`: python tools/trellis_levels.py [--seeds 12] [--rounds 40]

Starts from normal quantiles at random places, once for each seed, and keeps the best. Prints the lower half (the upper
is its mirror image) and the mean squared error on normal numbers not seen before.
"""

from __future__ import annotations

import argparse

import torch

from inducekv.compression import trellis

WIDTH = 64


def mirrored(levels: torch.Tensor) -> torch.Tensor:
    return (levels - levels.flip(0)) / 2


def fitted(seed: int, rounds: int, heads: int) -> tuple[float, ...]:
    """Levels for normal numbers: encode, and replace each level by the mean of what chose it."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(heads, WIDTH, generator=generator)
    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(trellis.STATES) + 0.5) / trellis.STATES)
    levels = mirrored(quantiles[torch.randperm(trellis.STATES, generator=generator)])
    levels = levels / levels.square().mean().sqrt()
    for _ in range(rounds):
        trellis.LEVELS = tuple(levels.tolist())
        codes = trellis.encode_trellis(numbers).long()
        states = sum(codes.roll(age, -1) << (trellis.BITS * age) for age in range(trellis.WINDOW))
        count = torch.bincount(states.flatten(), minlength=trellis.STATES)
        total = torch.bincount(states.flatten(), numbers.flatten().double(), minlength=trellis.STATES)
        levels = mirrored(torch.where(count > 0, total / count.clamp_min(1), levels.double()).float())
    return tuple(round(level, 4) for level in levels.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--heads", type=int, default=4000)
    options = parser.parse_args()
    fresh = torch.randn(options.heads, WIDTH, generator=torch.Generator().manual_seed(2**31))
    found = []
    for seed in range(options.seeds):
        trellis.LEVELS = fitted(seed, options.rounds, options.heads)
        error = (fresh - trellis.decode_trellis(trellis.encode_trellis(fresh))).square().mean()
        found.append((float(error), trellis.LEVELS))
    error, levels = min(found)
    print(levels[: trellis.STATES // 2])
    print(f"mean squared error {error:.4f}")


if __name__ == "__main__":
    main()
