"""A network evaluated between two training steps, which are none the wiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pretrain.batchnorm import averaged, running_statistics, set_statistics, unchanged_statistics
from pretrain.ema import Average
from pretrain.engines import Engine, Tensors, local


@contextmanager
def evaluated(engine: Engine, average: Average | None) -> Iterator[None]:
    """Let the network be evaluated inside the block, with its average where there is one. Collective.

    Running statistics are those of all ranks. Afterwards weights, statistics, modes of all modules and the
    sharding are as before, bit by bit. Random draws leave no trace either: see :mod:`pretrain.seeding`.
    """
    network = engine.network
    engine.release()
    modes = {module: module.training for module in network.modules()}
    statistics = running_statistics(network) | (average.statistics if average is not None else {})
    with _weights_of(network, average), unchanged_statistics(network), torch.no_grad():
        set_statistics(network, averaged(statistics))
        network.eval()
        try:
            yield
        finally:
            # Weights that are still gathered would be put back in the place of their shards.
            engine.release()
            for module, training in modes.items():
                module.training = training


@contextmanager
def _weights_of(network: nn.Module, average: Average | None) -> Iterator[None]:
    if average is None:
        yield
        return
    kept = {name: local(parameter).clone() for name, parameter in network.named_parameters()}
    _set_weights(network, average.shadow)
    try:
        yield
    finally:
        _set_weights(network, kept)


def _set_weights(network: nn.Module, values: Tensors) -> None:
    for name, parameter in network.named_parameters():
        local(parameter).copy_(local(values[name]))
