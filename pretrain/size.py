"""How large a recipe's network and its checkpoints are, told before any of it is trained.

python -m pretrain.size --recipe rsb_a2
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from nml.cli import run
from nml.recipe import Recipe
from pretrain.models import architecture, build_network
from pretrain.options import parse_options

# Numbers that an optimizer keeps for each parameter.
_MOMENTS = {"sgd": 1, "adamw": 2, "lamb": 2}
_BYTES = 4


class Size(NamedTuple):
    """What a network takes.

    Attributes:
        parameters: Trainable numbers of the encoder; a classifier's are not among them.
        dim: Features of an image; None where the network does not say.
        checkpoint_bytes: A checkpoint of ddp: weights, statistics and optimizer.
        export_bytes: An export: weights and statistics.
    """

    parameters: int
    dim: int | None
    checkpoint_bytes: int
    export_bytes: int


def size_of(recipe: Recipe) -> Size:
    """Return the size of a recipe's network.

    Raises:
        UserError: If there is no such network.
    """
    arch = architecture(recipe, 0)
    # open_clip moves what it has built to a device, which takes memory.
    with torch.device("meta") if arch.library == "timm" else contextlib.nullcontext():
        network = build_network(arch, seed=0)
    parameters = sum(one.numel() for one in network.parameters())
    statistics = sum(one.numel() for one in network.buffers())
    copies = 1 + _MOMENTS.get(recipe.optimizer.name, 2) + bool(recipe.ema)
    visual = getattr(network, "visual", network)
    dim = getattr(visual, "output_dim", None) or getattr(visual, "num_features", None)
    return Size(
        parameters,
        dim,
        _BYTES * (copies * parameters + statistics),
        _BYTES * (parameters + statistics),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the size for the options of a run as JSON."""
    options, _ = parse_options(None if argv is None else list(argv))
    print(json.dumps(size_of(options.recipe)._asdict(), indent=1))


if __name__ == "__main__":
    run(main)
