"""What a network would refuse of its first batch, told before a run writes anything.

A recipe names the size of the images and the network each for itself, and only a forward pass knows whether
they fit. It is made on the meta device, where tensors have shapes and no values, so that it takes neither
memory nor the time of the network's computations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, NoReturn

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

    What the objective itself fails at is no matter of this check, nor is what cannot be tried. Collective
    where the objective's backward pass or scorer is before it asks the network.

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

    def train(samples: int) -> _Answer:
        def attempt(engine: Any) -> Any:
            # The objective parts it; its first part is what is tried.
            batch = objective.empty_batch(samples * objective.setting.micro_batches)
            # Numbers of samples are read where the batch comes from.
            placed = batch._replace(
                images=batch.images.to(engine.device), targets=batch.targets.to(engine.device)
            )
            return objective.backward(engine, placed, 0)

        set_training(network, mode)
        # An own network beside the trained one has values, and answers no question without.
        return _answer(network, attempt, values=True)

    def evaluate(size: int) -> _Answer:
        def attempt(engine: Any) -> Any:
            images = torch.zeros(1, 3, size, size, device=engine.device)
            # Prompts would be embedded first, of which there may be many.
            return engine.forward(images, None) if objective.prompted else objective.scorer(engine)(images)

        network.eval()
        return _answer(network, attempt, values=False)

    try:
        with generators_kept():
            trained = train(min(samples, 2))
            if trained.refusal is not None:
                if samples == 1 and train(2).refusal is None:
                    raise _one_refused(recipe) from trained.refusal
                raise _size_refused(recipe, objective, network, "size", trained.refusal) from trained.refusal
            sizes = {recipe.data.test_size: "test_size"}
            if not trained.taken:
                # A teacher may have failed at it, which is no word of the network.
                sizes[recipe.data.size] = "size"
            for size, field in sizes.items():
                if (refusal := evaluate(size).refusal) is not None:
                    raise _size_refused(recipe, objective, network, field, refusal) from refusal
    finally:
        for module, training in modes:
            module.training = training


class _Answer(NamedTuple):
    """What a network said to what it was given; neither where nobody knows."""

    taken: bool = False
    refusal: BaseException | None = None


def _answer(network: nn.Module, attempt: Callable[[Any], Any], *, values: bool) -> _Answer:
    """Return what the network says to what an attempt gives it.

    Args:
        network: The network.
        attempt: Is given an engine.
        values: Whether what cannot be told without values is tried with some.
    """
    try:
        attempt(_OnePass(network, _META))
    except _Passed:
        return _Answer(taken=True)
    except _Refused:
        pass
    except Exception:
        if not values:
            return _Answer()
    # A network that reads values fails on the meta device alone.
    device = device_of_rank()
    try:
        network.to(device)
        with torch.no_grad(), unchanged_statistics(network):
            attempt(_OnePass(network, device))
    except _Passed:
        return _Answer(taken=True)
    except _Refused as refused:
        out_of_memory = isinstance(refused.__cause__, torch.OutOfMemoryError | MemoryError)
        return _Answer() if out_of_memory else _Answer(refusal=refused.__cause__)
    except Exception:
        return _Answer()
    return _Answer()


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
    for name, field in (("visual", "image_size"), ("patch_embed", "img_size")):
        part = getattr(encoder, name, None)
        # Of those that take any size of a kind, timm's keep the one that they were built with.
        found = getattr(part, field, None) if getattr(part, "strict_img_size", True) else None
        if found is not None:
            height, width = (found, found) if isinstance(found, int) else found
            return int(height), int(width)
    return None
