"""Batches on their way to the device: what arrives is what the loader gave, whatever else the device does."""

from __future__ import annotations

import pytest
import torch

from nml.recipe import Data, Engine, Recipe
from pretrain.loading import Batch
from pretrain.transforms import normalised
from pretrain.upload import Uploader, uploaded

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_batch_stays_as_it_is_while_the_next_ones_arrive(device: str) -> None:
    recipe = Recipe(data=Data(size=32, test_size=32), engine=Engine(channels_last=True))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    pinned = images.pin_memory() if device == "cuda" else images
    batches = [Batch(each, torch.full((16,), number), torch.arange(16)) for number, each in enumerate(pinned)]
    place = torch.device(device)
    busy, found = torch.ones(1024, 1024, device=place), []
    for batch in uploaded(iter(batches), Uploader(recipe, place), place):
        # A step that takes the device longer than the next copy, and reads its batch at the end.
        for _ in range(20 if device == "cuda" else 1):
            busy = busy @ busy / 1024
        found.append((batch.images + 0 * busy[0, 0], batch.targets.clone()))
    for number, (given, targets) in enumerate(found):
        torch.testing.assert_close(given.cpu(), normalised(images[number], recipe.data.mean, recipe.data.std))
        assert targets.tolist() == [number] * 16
