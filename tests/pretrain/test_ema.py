"""The moving average of the weights, and of the statistics that belong to them."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.ema import Average


def test_statistics_are_averaged_with_the_weights_and_put_back() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    average = Average(network, decay=0.5)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(5):
        network(torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            network[0].weight.add_(0.1)
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with average.in_place(network):
        found = {name: value.clone() for name, value in network.state_dict().items()}
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[name], expected[name])
        assert not torch.equal(found[name], before[name])
    # How many batches there were is a count, of which there is no average.
    assert found["1.num_batches_tracked"] == 5
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
