"""Contrastive language-image pre-training with open_clip's models and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from nml.recipe import Recipe
from pretrain.engines import Engine
from pretrain.loading import Batch, micro_batches
from pretrain.losses import OPTIONS, Cost, MeanCost, cost_of
from pretrain.models import Architecture
from pretrain.objective import Objective, Setting, seed_step
from pretrain.whole_batch import backward_of_whole
from pretrain.zero_shot import class_embeddings

if TYPE_CHECKING:
    from open_clip import ClipLoss

MAX_LOGIT_SCALE = math.log(100)
# open_clip trains SigLIP from scale 10 and bias -10 (Zhai et al. 2023, section 3.1).
_FEATURES = ("image_features", "text_features")
SMALL_MODEL: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1},
}
_SIGLIP = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}


class Clip(Objective):
    """InfoNCE over the global batch (local loss, gathered with gradients), or SigLIP's pairwise loss.

    InfoNCE is cross-entropy, the caption of an image being its class among all captions of the batch, and
    the other way round. ``gce`` and ``sce`` put another loss in its place, in both directions: a caption that
    belongs to another image is a wrong label of that classification.

    The loss is always that of the global batch: where a rank's batch is cut into parts, features come first,
    without gradients, then each part again (Gao et al. 2021).
    """

    takes = "caption"
    library = "open_clip"
    losses = ("infonce", "siglip", "gce", "sce")
    loss_fields = OPTIONS
    prompted = True
    small: ClassVar[dict[str, Any]] = {
        "loss": {"name": "infonce"},
        # Five times halved, and pooled where more than a point is left.
        "data": {"size": 32, "test_size": 32},
        "model": {"name": "RN50", "kwargs": SMALL_MODEL},
    }

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        import open_clip

        super().__init__(recipe, setting)
        arch = self.architecture
        if recipe.loss.name == "siglip":
            self.architecture = Architecture(arch.library, arch.name, {**_SIGLIP, **arch.kwargs})
        context = arch.kwargs.get("text_cfg", {}).get("context_length")
        self._tokenizer = open_clip.get_tokenizer(arch.name, context_length=context)
        self.text_transform = lambda caption: self._tokenizer([caption])[0]
        self._criterion = _criterion(recipe, setting.rank, setting.world_size)

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""
        setting = self.setting
        loss, self.seen = backward_of_whole(
            engine,
            micro_batches(batch, setting.micro_batches),
            lambda part: engine.forward(part.images, part.targets),
            self._loss,
            rows=_FEATURES,
            seed=lambda number: seed_step(setting.seed, step, setting.rank, number),
        )
        return loss

    def _loss(self, output: dict[str, torch.Tensor]) -> torch.Tensor:
        features = output["image_features"].float(), output["text_features"].float()
        scale = output["logit_scale"].float()
        if "logit_bias" in output:
            return self._criterion(*features, scale, output["logit_bias"].float())
        return self._criterion(*features, scale)

    def empty_batch(self, size: int) -> Batch:
        """See :class:`pretrain.objective.Objective`."""
        return super().empty_batch(size)._replace(targets=self._tokenizer([""] * size))

    def after_step(self, engine: Engine, step: int) -> None:  # noqa: ARG002 - it is the same at any step
        """Keep the logit scale within [1, 100] (Radford et al. 2021, section 2.5)."""
        engine.clamp("logit_scale", 0.0, MAX_LOGIT_SCALE)

    def scorer(self, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
        """See :class:`pretrain.objective.Objective`: zero-shot, by cosine to the class prompts."""
        if self.setting.prompts is None:
            raise ValueError("zero-shot validation needs prompts")
        classes = class_embeddings(engine, self._tokenizer, self.setting.prompts).to(engine.device)

        def score(images: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = engine.forward(images, None)["image_features"]
            return features.float() @ classes.T

        return score


def _criterion(recipe: Recipe, rank: int, world_size: int) -> Callable[..., torch.Tensor]:
    """Return the rank's part of the loss; its mean over the ranks is that of the global batch."""
    from open_clip.loss import ClipLoss, SigLipLoss

    if recipe.loss.name == "siglip":
        pairwise: Callable[..., torch.Tensor] = SigLipLoss(rank=rank, world_size=world_size)
        return pairwise
    contrast = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
    cost = cost_of(recipe.loss)
    return contrast if cost is None else _contrast_by_cost(contrast, cost)


def _contrast_by_cost(contrast: ClipLoss, cost: Cost) -> Callable[..., torch.Tensor]:
    mean = MeanCost(cost)

    def loss(*output: torch.Tensor) -> torch.Tensor:
        per_image, per_text = contrast.get_logits(*output)
        own = contrast.get_ground_truth(per_image.device, len(per_image))
        both: torch.Tensor = mean(per_image, own) + mean(per_text, own)
        return both / 2

    return loss
