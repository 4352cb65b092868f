"""Contrastive language-image pre-training with open_clip's models and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from nml.recipe import Recipe
from pretrain.batchnorm import unchanged_statistics
from pretrain.engines import Engine
from pretrain.loading import Batch, micro_batches
from pretrain.losses import Cost, MeanCost, cost_of
from pretrain.models import Architecture, architecture
from pretrain.objective import seed_step
from pretrain.zero_shot import Prompts, class_embeddings

if TYPE_CHECKING:
    from open_clip import ClipLoss

MAX_LOGIT_SCALE = math.log(100)
# open_clip trains SigLIP from scale 10 and bias -10 (Zhai et al. 2023, section 3.1).
_SIGLIP = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}


class Clip:
    """InfoNCE over the global batch (local loss, gathered with gradients), or SigLIP's pairwise loss.

    InfoNCE is cross-entropy, the caption of an image being its class among all captions of the batch, and
    the other way round. ``gce`` and ``sce`` put another loss in its place, in both directions: a caption that
    belongs to another image is a wrong label of that classification.

    Args:
        recipe: The recipe.
        rank: This process.
        world_size: Number of processes.
        seed: Seed of the run.
        micro_batches: Parts that a rank's batch is cut into. The loss is always that of the global
            batch: features first, without gradients, then each part again (Gao et al. 2021).
        prompts: What zero-shot validation asks; None if there is none.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        rank: int,
        world_size: int,
        seed: int,
        micro_batches: int,
        prompts: Prompts | None,
    ) -> None:
        import open_clip

        arch = architecture(recipe, None)
        if recipe.loss.name == "siglip":
            arch = Architecture(arch.library, arch.name, {**_SIGLIP, **arch.kwargs})
        self.architecture = arch
        context = arch.kwargs.get("text_cfg", {}).get("context_length")
        self._tokenizer = open_clip.get_tokenizer(arch.name, context_length=context)
        self.text_transform: Callable[[str], Any] | None = lambda caption: self._tokenizer([caption])[0]
        self._size = recipe.data.size
        self._rank = rank
        self._seed = seed
        self._micro_batches = micro_batches
        self._prompts = prompts
        self._criterion = _criterion(recipe, rank, world_size)

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""
        if self._micro_batches > 1:
            return self._backward_in_parts(engine, batch, step)
        seed_step(self._seed, step, self._rank, 0)
        with engine.micro_step(last=True):
            loss: torch.Tensor = self._loss(engine.forward(batch.images, batch.targets))
            engine.backward(loss)
        return loss.detach()

    def _backward_in_parts(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """Take the gradient with respect to all features once, then send it through part by part."""
        parts = micro_batches(batch, self._micro_batches)
        outputs: list[dict[str, torch.Tensor]] = []
        # This pass must leave no trace: batch normalisation would count every sample twice.
        with unchanged_statistics(engine.network), torch.no_grad():
            for number, part in enumerate(parts):
                seed_step(self._seed, step, self._rank, number)
                outputs.append(engine.forward(part.images, part.targets))
        names = ("image_features", "text_features")
        whole = {name: torch.cat([output[name].float() for output in outputs]) for name in names}
        scalars = {name: outputs[0][name].float() for name in outputs[0] if name not in names}
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in (whole | scalars).items()}
        loss: torch.Tensor = self._loss(leaves)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        pieces = {name: gradients[name].chunk(len(parts)) for name in names}
        for number, part in enumerate(parts):
            seed_step(self._seed, step, self._rank, number)
            with engine.micro_step(last=number == len(parts) - 1):
                output = engine.forward(part.images, part.targets)
                surrogate = sum((output[name].float() * pieces[name][number]).sum() for name in names)
                # A scalar's gradient is whole already: each part carries its share.
                surrogate += sum((output[name] * gradients[name]).sum() for name in scalars) / len(parts)
                engine.backward(surrogate)
        return loss.detach()

    def _loss(self, output: dict[str, torch.Tensor]) -> torch.Tensor:
        features = output["image_features"].float(), output["text_features"].float()
        scale = output["logit_scale"].float()
        if "logit_bias" in output:
            return self._criterion(*features, scale, output["logit_bias"].float())
        return self._criterion(*features, scale)

    def empty_batch(self, size: int) -> Batch:
        """See :class:`pretrain.objective.Objective`."""
        images = torch.zeros(size, 3, self._size, self._size)
        tokens = self._tokenizer([""] * size)
        return Batch(images, tokens, torch.zeros(size, dtype=torch.int64))

    def after_step(self, engine: Engine) -> None:
        """Keep the logit scale within [1, 100] (Radford et al. 2021, section 2.5)."""
        engine.clamp("logit_scale", 0.0, MAX_LOGIT_SCALE)

    def scorer(self, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
        """See :class:`pretrain.objective.Objective`: zero-shot, by cosine to the class prompts."""
        if self._prompts is None:
            raise ValueError("zero-shot validation needs prompts")
        classes = class_embeddings(engine, self._tokenizer, self._prompts).to(engine.device)

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
