"""Attention for entries encoded alone: far cheaper than a mask over the whole episode, and exactly what memory does.

``alone``: an entry sees only itself, a query sees all entries and itself. ``answers``: a query sees only the entries'
answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

_HIDDEN = -1e4


class _Turns:
    """What the attention function needs to know about the batch at hand."""

    def __init__(self, kinds: np.ndarray, entries: int, mode: str) -> None:
        self.episodes, self.turns, self.length = kinds.shape
        self.entries = entries
        real = torch.from_numpy(kinds > 0)
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        sees = (causal & real[:, :, None, :]) | torch.eye(self.length, dtype=torch.bool)
        self.within = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, _HIDDEN)[:, None]
        shown = (kinds[:, :entries] > 0 if mode == "alone" else kinds[:, :entries] == 2).reshape(self.episodes, -1)
        width = int(shown.sum(1).max()) if entries else 0
        # The shown tokens of each episode in order, then whatever fills up the widest row.
        order = np.argsort(~shown, axis=1, kind="stable")[:, :width]
        self.shown = torch.from_numpy(order)
        seen = torch.from_numpy(np.take_along_axis(shown, order, 1))
        self.across = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, _HIDDEN)[:, None, None]


_current: list[_Turns] = []


def _attend(module, query, key, value, attention_mask, scaling=None, **unused):
    turns = _current[-1]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    b, h, _, d = query.shape
    split = (b, h, turns.turns, turns.length, d)
    q, k, v = (query * scaling).reshape(split), key.reshape(split), value.reshape(split)
    within = q @ k.transpose(-1, -2) + turns.within
    e = turns.entries
    entry = within[:, :, :e].softmax(-1) @ v[:, :, :e]
    index = turns.shown[:, None, :, None].expand(-1, h, -1, d)
    shown_keys = k[:, :, :e].reshape(b, h, -1, d).gather(2, index)
    shown_values = v[:, :, :e].reshape(b, h, -1, d).gather(2, index)
    rows = q[:, :, e:].reshape(b, h, -1, d)
    across = (rows @ shown_keys.transpose(-1, -2) + turns.across).view(*split[:2], turns.turns - e, turns.length, -1)
    weights = torch.cat([across, within[:, :, e:]], -1).softmax(-1)
    read = weights[..., : turns.shown.shape[1]].flatten(2, 3) @ shown_values
    asked = read.view(*split[:2], turns.turns - e, turns.length, d) + weights[..., turns.shown.shape[1] :] @ v[:, :, e:]
    output = torch.cat([entry, asked], 2).reshape(b, h, -1, d)
    return output.transpose(1, 2), None


AttentionInterface.register("embedded_turns", _attend)
AttentionMaskInterface.register("embedded_turns", lambda *args, **kwargs: None)


@contextmanager
def turn_attention(model: PreTrainedModel, kinds: np.ndarray, entries: int, mode: str) -> Iterator[None]:
    """Run ``model`` (the text tower) turn by turn inside this context. ``kinds``: ``[episodes, turns, length]``."""
    before = model.config._attn_implementation
    _current.append(_Turns(kinds, entries, mode))
    model.set_attn_implementation("embedded_turns")
    try:
        yield
    finally:
        _current.pop()
        model.set_attn_implementation(before)
