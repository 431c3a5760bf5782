"""Where an image's patches lie, and how far each is from the best one that stays."""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from inducekv.compression.prompt import LayerPrompt


def spatial_decay(prompt: LayerPrompt, kept: Bool[Tensor, "batch kv_heads stored"]) -> Tensor:
    """gamma_h to the power of a patch's Manhattan distance from its image's root, 1 elsewhere.

    The root is the kept patch with the highest score, or the image's centre where none was kept.
    """
    batch, heads, stored = kept.shape
    decay = torch.ones(batch, heads, stored, device=kept.device)
    head = torch.arange(heads, device=kept.device, dtype=torch.float32)
    gamma = 1 - 2 ** -(2 + 4 * head / heads)
    images = prompt.stored_images
    for row in range(batch):
        edges = torch.diff(images[row].long(), prepend=images.new_zeros(1).long(), append=images.new_zeros(1).long())
        starts, stops = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
        for start, stop in zip(starts, stops, strict=True):
            count = stop - start
            side = math.ceil(math.sqrt(count))
            place = torch.arange(count, device=kept.device)
            down, across = place // side, place % side
            among = kept[row, :, start:stop]
            scores = prompt.notes["scores"][row, :, start:stop].masked_fill(~among, -torch.inf)
            centre = (math.ceil(count / side) // 2) * side + side // 2
            root = torch.where(among.any(-1), scores.argmax(-1), min(centre, count - 1))
            distance = (down - down[root][:, None]).abs() + (across - across[root][:, None]).abs()
            decay[row, :, start:stop] = gamma[:, None] ** distance
    return decay
