"""A fixed sample of the training set, looked at between epochs as validation data are.

It tells what the training passes cannot: what a network makes of single images where it trains on mixed
ones, and which caption of a pool an image is nearest to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from nml.levels import CLEAN_LEVEL
from pretrain.engines import Engine
from pretrain.noise_sums import OF_CLASSES, class_sums, means
from pretrain.objective import Objective
from pretrain.validation import ValidationData, evaluated, share
from pretrain.world import World, decided_by_main
from shards.captions import flat, owners_of, starts_of
from shards.dataset import ShardDataset
from shards.shardset import ShardSet

# Samples of each group at most, and the part of the set that they are at most.
MOST, PART = 1024, 16
# Texts of one forward pass.
_TEXTS = 64


def flipped_samples(shard_set: ShardSet, level: str) -> npt.NDArray[np.bool_]:
    """Return whether the label of each sample is altered at a level, or any of its captions; bool [N]."""
    given, clean = (shard_set.level(name).column for name in (level, CLEAN_LEVEL))
    if given == clean:
        return np.zeros(shard_set.num_samples, np.bool_)
    one, other = (shard_set.index.column(name) for name in (given, clean))
    found: npt.NDArray[np.bool_] = pc.not_equal(flat(one), flat(other)).to_numpy()
    if shard_set.kind != "captions":
        return found
    whole = np.zeros(shard_set.num_samples, np.bool_)
    np.logical_or.at(whole, owners_of(starts_of(other)), found)
    return whole


class FixedSample:
    """Kept and flipped samples of a level, the same in every epoch and on every rank. Collective.

    Args:
        shard_set: The set.
        level: Name of the level that is trained on.
        transform: From an image to a tensor [3, H, W], as for validation.
        world: This process.
        workers: Processes that read large samples.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        level: str,
        transform: Callable[[Any], Any],
        world: World,
        *,
        workers: int,
    ) -> None:
        self._world, self._workers = world, workers
        kept, flipped = decided_by_main(world, lambda: _choose(shard_set, level))
        self.numbers = np.array(sorted(kept + flipped), np.int64)
        self.flipped = np.isin(self.numbers, flipped)
        columns = (shard_set.level(name).column for name in (level, CLEAN_LEVEL))
        self.given, self.truth = (
            [shard_set.index.supervision(int(number), column) for number in self.numbers]
            for column in columns
        )
        images = _Images(ShardDataset(shard_set, level, transform), self.numbers)
        self._data = ValidationData("training sample", images, shard_set.classes or ())

    def look_at_classes(self, engine: Engine, objective: Objective) -> tuple[dict[str, Any], torch.Tensor]:
        """Return what is told of both groups, and the scores, float32 [n, K]. Collective."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        with evaluated(engine, None):
            score = objective.scorer(engine)
            found = [
                (score(images.to(engine.device)).cpu(), places)
                for images, places in share(self._data, self._world, self._workers)
            ]
        scores = self._together(found)
        given, truth = torch.tensor(self.given), torch.tensor(self.truth)
        sums = dict(zip(OF_CLASSES, class_sums(scores, given, truth).tolist(), strict=True))
        return means(sums), scores

    def look_at_pairs(self, engine: Engine, objective: Objective) -> dict[str, dict[str, float]]:
        """Return what is told of both groups of images and captions. Collective.

        The pool is that of the true captions of the whole sample, equal ones counted once.
        """
        pool = sorted(set(map(str, self.truth)))
        place = [pool.index(str(text)) for text in self.truth]
        with evaluated(engine, None):
            images = self._together(
                [
                    (engine.forward(images.to(engine.device), None)["image_features"].float().cpu(), places)
                    for images, places in share(self._data, self._world, self._workers)
                ]
            )
            texts = _embedded(engine, objective, [*pool, *map(str, self.given)])
        images, texts = (torch.nn.functional.normalize(part, dim=1) for part in (images, texts))
        to_pool, own = images @ texts[: len(pool)].T, torch.tensor(place)
        true = to_pool.gather(1, own[:, None])[:, 0]
        given = (images * texts[len(pool) :]).sum(1)
        first = to_pool.argmax(1) == own
        flipped, told = torch.from_numpy(self.flipped), {}
        if (~flipped).any():
            told["kept"] = {
                "samples": int((~flipped).sum()),
                "similarity": _mean(given[~flipped]),
                "true_first": _mean(first[~flipped]),
            }
        if flipped.any():
            told["flipped"] = {
                "samples": int(flipped.sum()),
                "similarity": _mean(given[flipped]),
                "true_similarity": _mean(true[flipped]),
                "true_first": _mean(first[flipped]),
                "given_nearer": _mean((given > true)[flipped]),
            }
        return told

    def _together(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Return the rows of all ranks by their places; those at -1 are none. Collective."""
        rows, places = (torch.cat([part[number] for part in parts]) for number in (0, 1))
        every = torch.zeros(len(self.numbers), rows.shape[1])
        every[places[places >= 0]] = rows[places >= 0]
        dist.all_reduce(every)
        return every


def _choose(shard_set: ShardSet, level: str) -> tuple[list[int], list[int]]:
    flipped = flipped_samples(shard_set, level)
    most = min(MOST, max(1, shard_set.num_samples // PART))
    draws = np.random.default_rng(0)
    kept, altered = (
        draws.choice(group, min(most, len(group)), replace=False).tolist()
        for group in (np.flatnonzero(~flipped), np.flatnonzero(flipped))
    )
    return kept, altered


def _embedded(engine: Engine, objective: Objective, texts: list[str]) -> torch.Tensor:
    """Return the features of texts, float32 [n, D]. Collective: each rank embeds its share.

    Ranks whose weights are sharded must call the network equally often, so all take equally many.
    """
    read = objective.text_transform
    if read is None:
        raise ValueError("the objective reads no captions")
    rank, size = dist.get_rank(), dist.get_world_size()
    own = range(rank, len(texts), size)
    share_of_each = -(-len(texts) // size)
    rows = []
    for start in range(0, share_of_each, _TEXTS):
        places = range(start, start + _TEXTS)
        tokens = [torch.as_tensor(read(texts[own[place] if place < len(own) else 0])) for place in places]
        output = engine.forward(None, torch.stack(tokens).to(engine.device))
        rows.append(output["text_features"].float().cpu())
    embedded = torch.cat(rows)
    every = torch.zeros(len(texts), embedded.shape[1])
    every[own] = embedded[: len(own)]
    dist.all_reduce(every)
    return every


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())


class _Images(Dataset[tuple[torch.Tensor, int]]):
    """Images by their place in the sample, with that place."""

    def __init__(self, samples: ShardDataset, numbers: npt.NDArray[np.int64]) -> None:
        self._samples, self._numbers = samples, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self._samples[int(self._numbers[place])].image, place
