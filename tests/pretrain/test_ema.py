"""The moving average of what training moves; what it does to a network in use is in test_engines.py."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.ema import Average


def test_an_infinite_mask_stays_what_it_is() -> None:
    network = nn.BatchNorm1d(2)
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = Average(network, decay=0.5)
    average.update(network, 3)
    assert all(value.isfinite().all() for value in average.tensors())
    assert "mask" not in average.statistics
