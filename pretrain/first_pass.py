"""What a network would refuse of its first batch, told before a run writes anything.

A recipe names the size of the images and the network each for itself, and only a forward pass knows whether
they fit. It is made on the meta device, where tensors have shapes and no values, so that it takes neither
memory nor the time of the network's computations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from torch import nn
from torch.func import functional_call

from nml.errors import UserError
from nml.recipe import BatchNormMode, Recipe
from pretrain.batchnorm import set_training, unchanged_statistics
from pretrain.engines.native import device_of_rank
from pretrain.objective import Objective
from pretrain.utilisation import generators_kept

_META = torch.device("meta")


class _Passed(Exception):
    """The network took what it was given: nothing after its first forward pass is of interest."""


class _Refused(Exception):
    """The network did not take it, because of the exception that is the cause of this one."""


class _OnePass:
    """What an objective asks of an engine, as far as its first forward pass."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network, self.device = network, device

    def forward(self, *inputs: torch.Tensor | None) -> NoReturn:
        placed = tuple(one if one is None else one.to(self.device) for one in inputs)
        try:
            if self.device == _META:
                functional_call(self._network, _without_values(self._network), placed)
            else:
                self._network(*placed)
        except Exception as error:
            raise _Refused from error
        raise _Passed

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - as of an engine
        return torch.no_grad()


def check_first_pass(recipe: Recipe, objective: Objective, network: nn.Module, *, samples: int) -> None:
    """Refuse a recipe whose network does not take its images, or too few of them at once.

    What the objective itself fails at is no matter of this check, nor is what cannot be tried.

    Args:
        recipe: The recipe.
        objective: Its objective, which has begun with the network.
        network: The network, which may be moved to the device of the run, and is left as it was else.
        samples: Of a micro-batch of a process.

    Raises:
        UserError: Naming the values that do not fit.
    """
    modes = [(module, module.training) for module in network.modules()]
    mode: BatchNormMode = recipe.model.batch_norm
    if mode == "sync" and objective.setting.world_size > 1:
        # Statistics of several processes are of more than one value, and not to be had in one of them.
        mode = "frozen"

    def train(samples: int) -> BaseException | None:
        def attempt(engine: Any) -> Any:
            # The objective parts it; its first part is what is tried.
            batch = objective.empty_batch(samples * objective.setting.micro_batches)
            # Numbers of samples are read where the batch comes from.
            placed = batch._replace(
                images=batch.images.to(engine.device), targets=batch.targets.to(engine.device)
            )
            return objective.backward(engine, placed, 0)

        set_training(network, mode)
        # An own network beside the trained one has values, and answers no question without; its size of
        # images is that of the trained one.
        return _refusal(network, attempt, values=samples == 1)

    def evaluate(size: int) -> BaseException | None:
        def attempt(engine: Any) -> Any:
            images = torch.zeros(1, 3, size, size, device=engine.device)
            # Prompts would be embedded first, of which there may be many.
            return engine.forward(images, None) if objective.prompted else objective.scorer(engine)(images)

        network.eval()
        return _refusal(network, attempt, values=False)

    try:
        with generators_kept():
            # A dictionary of sizes: where both are one, it is tried once.
            for size, field in {recipe.data.test_size: "test_size", recipe.data.size: "size"}.items():
                if (refusal := evaluate(size)) is not None:
                    raise _size_refused(recipe, objective, network, field, refusal) from refusal
            if (refusal := train(min(samples, 2))) is None:
                return
            if samples == 1 and train(2) is None:
                raise _one_refused(recipe) from refusal
            raise _size_refused(recipe, objective, network, "size", refusal) from refusal
    finally:
        for module, training in modes:
            module.training = training


def _refusal(network: nn.Module, attempt: Callable[[Any], Any], *, values: bool) -> BaseException | None:
    """Return why the network refuses what an attempt gives it; None where it does not, or nobody knows.

    Args:
        network: The network.
        attempt: Is given an engine.
        values: Whether what cannot be told without values is tried with some.
    """
    try:
        attempt(_OnePass(network, _META))
    except _Passed:
        return None
    except _Refused:
        pass
    except Exception:
        if not values:
            return None
    # A network that reads values fails on the meta device alone.
    device = device_of_rank()
    network.to(device)
    try:
        with torch.no_grad(), unchanged_statistics(network):
            attempt(_OnePass(network, device))
    except _Refused as refused:
        refusal = refused.__cause__
        return None if isinstance(refusal, torch.OutOfMemoryError | MemoryError) else refusal
    except Exception:
        return None
    return None


def _without_values(network: nn.Module) -> dict[str, torch.Tensor]:
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.detach().to(_META) for name, tensor in named}


def _one_refused(recipe: Recipe) -> UserError:
    limit = recipe.engine.micro_batch
    parts = f" in parts of recipe.engine.micro_batch {limit}" if limit else ""
    return UserError(
        f"recipe.global_batch {recipe.global_batch}{parts}: a process has "
        f"one sample at once, and at recipe.data.size {recipe.data.size} {recipe.model.name} would normalise "
        "over one value",
        mend="two samples or more, larger images, or --recipe.model.batch_norm frozen",
    )


def _size_refused(
    recipe: Recipe, objective: Objective, network: nn.Module, field: str, refusal: BaseException
) -> UserError:
    size, name = getattr(recipe.data, field), recipe.model.name
    sides = _sides(network.get_submodule(objective.encoder.removesuffix(".")))
    if sides is None or sides == (size, size):
        return UserError(
            f"recipe.data.{field} {size}: {name} does not take such images: {refusal}",
            mend="choose another size or another recipe.model",
        )
    argument = "img_size"
    if objective.library == "open_clip":
        argument = "vision_cfg.image_size" if "vision_cfg" in recipe.model.kwargs else "force_image_size"
    fits = f"--recipe.data.{field} {sides[0]}, or " if sides[0] == sides[1] else ""
    return UserError(
        f"recipe.data.{field} {size}: {name} sees images of {sides[0]} x {sides[1]}",
        mend=f"{fits}set recipe.model.kwargs {argument} to {size}",
    )


def _sides(encoder: nn.Module) -> tuple[int, int] | None:
    """Return the height and width of the images that an encoder says it is made for."""
    for part, name in (("visual", "image_size"), ("patch_embed", "img_size")):
        found = getattr(getattr(encoder, part, None), name, None)
        if found is not None:
            height, width = (found, found) if isinstance(found, int) else found
            return int(height), int(width)
    return None
