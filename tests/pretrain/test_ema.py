"""The moving average of what training moves; what it does to a network in use is in test_engines.py."""

from __future__ import annotations

import pytest
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


def test_running_statistics_are_averaged_like_weights() -> None:
    network = nn.BatchNorm1d(1)
    average = Average(network, decay=0.25)
    network.running_mean.fill_(8.0)
    network.weight.data.fill_(3.0)
    # The decay is 1/10 after the first update, and 1/4 once (1 + step) / (10 + step) is above it.
    average.update(network, 0)
    assert average.statistics["running_mean"].item() == pytest.approx(0.9 * 8)
    average.update(network, 90)
    assert average.statistics["running_mean"].item() == pytest.approx(0.25 * 7.2 + 0.75 * 8)
    assert average.shadow["weight"].item() == pytest.approx(0.25 * (0.1 * 1 + 0.9 * 3) + 0.75 * 3)
    # The network's own are not touched, and all that is averaged is there.
    assert network.running_mean.item() == 8
    names = {*average.shadow, *average.statistics}
    assert names == {"weight", "bias", "running_mean", "running_var"}
    assert len(average.tensors()) == 4
