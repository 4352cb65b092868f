"""RotNet (Gidaris et al. 2018): an encoder learns to tell by how many right angles an image was turned."""

from dataclasses import dataclass

import torch
from nml.recipe_checks import below_one
from pretrain.objectives.embedding import Embedding
from torch import nn


@dataclass(frozen=True, kw_only=True)
class TurnsOptions:
    """What a recipe may say in its section ``options``."""

    smoothing: float = 0.0

    def __post_init__(self):
        below_one("recipe.options", self, "smoothing")


class Turns(Embedding):
    """Cross-entropy over four turns of every image; labels are not read."""

    takes = "any"
    views = 1
    Options = TurnsOptions

    def projector(self, features):
        return nn.Linear(features, 4)

    def backward(self, engine, batch, step):
        def loss(part):
            turned = torch.cat([part.images.rot90(turns, (2, 3)) for turns in range(4)])
            turns = torch.arange(4, device=turned.device).repeat_interleave(len(part.images))
            scores = engine.forward(turned)["projected"].float()
            return nn.functional.cross_entropy(scores, turns, label_smoothing=self.options.smoothing)

        return self.mean_over_parts(engine, batch, step, loss)
