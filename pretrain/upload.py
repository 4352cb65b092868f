"""Batches on their way from the loader to the device: copied and normalised beside the step before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from nml.recipe import Recipe
from pretrain.loading import Batch
from pretrain.transforms import normalised
from shards.yuv import PACKED_DIMENSIONS, unpacked


class Uploader:
    """Puts batches on a device as the network takes them.

    Every batch is normalised into the same memory, as a step is over before the next begins: on a CPU the
    first touch of fresh memory takes longer than the arithmetic. On a GPU two memories take turns, since a
    batch arrives there while the one before it is trained on.

    Args:
        recipe: The recipe.
        device: Where to.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = recipe, device
        self._layout = torch.channels_last if recipe.engine.channels_last else torch.contiguous_format
        self._floats: list[torch.Tensor | None] = [None] * (2 if device.type == "cuda" else 1)
        self._turn = 0

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch of the loader on the device: see :class:`pretrain.loading.Batch`."""
        data = self._recipe.data
        images = self._copy(batch.images)
        if images.ndim == PACKED_DIMENSIONS:
            images = unpacked(images)
        images = images.contiguous(memory_format=self._layout)
        self._turn = (self._turn + 1) % len(self._floats)
        floats = self._floats[self._turn]
        if floats is None and images.dtype == torch.uint8:
            floats = self._floats[self._turn] = torch.empty_like(images, dtype=torch.float32)
        images = normalised(images, data.mean, data.std, out=floats)
        truth = None if batch.truth is None else self._copy(batch.truth)
        return Batch(images, self._copy(batch.targets), batch.indices, truth)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device, without waiting for what the device has been given before."""
    # Of memory that is not pinned the host waits for the copy, and that for the steps before it.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def uploaded(
    batches: Iterator[Batch], upload: Callable[[Batch], Batch], device: torch.device
) -> Iterator[Batch]:
    """Yield batches on the device. Whoever asks for the next one has given the device the step of this one.

    On a GPU the next one is copied on a stream of its own, which waits for the step before this one alone.
    """
    if device.type != "cuda":
        yield from map(upload, batches)
        return
    side = torch.cuda.Stream(device)
    # The first one waits for what was given to the device so far.
    free = torch.cuda.current_stream(device).record_event()
    for batch in batches:
        side.wait_event(free)
        with torch.cuda.stream(side):
            # The one before is let go of only then: its memory is the side stream's to be written to again,
            # and its step may not be over.
            ready = upload(batch)
        stream = torch.cuda.current_stream(device)
        stream.wait_stream(side)
        free = stream.record_event()
        yield ready
