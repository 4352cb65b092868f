"""Top-1 and top-5 on a clean validation set between epochs; zero-shot for CLIP, by neighbours without labels.

What learns from images alone has no scores of classes. Its features are judged by a classifier of nearest
neighbours among the validation images themselves, each left out in turn: that costs a forward pass of them
and nothing else, reads no label of the training set, and so is the same measure at every noise level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from nml import digits
from nml.errors import UserError
from pretrain.batchnorm import averaged, running_statistics, set_statistics, unchanged_statistics
from pretrain.ema import Average
from pretrain.engines import Engine, Tensors, local
from pretrain.loading import worker_processes
from pretrain.objective import Objective
from pretrain.world import World
from shards.dataset import ShardDataset
from shards.shardset import ShardSet

NEIGHBOURS = 20
_VOTE_TEMPERATURE = 0.07
# Of the matrix of cosines, at once.
_ROWS = 1024
_BATCH = 64
# Images of a rank below which starting processes costs more than they save.
_WORTH_WORKERS = 256


class ValidationData(NamedTuple):
    """A clean set to validate on.

    Attributes:
        name: What it is, for the record.
        dataset: Items are (image [3, H, W], class) by number.
        classes: Class names.
    """

    name: str
    dataset: Dataset[tuple[torch.Tensor, int]]
    classes: tuple[str, ...]


def validation_data(
    path: str | None,
    training: ShardSet,
    transform: Callable[[Any], Any],
    *,
    signed_by: str | None = None,
    same_classes: bool = True,
) -> ValidationData | None:
    """Return the set named by ``--validation``; the bundled set has its own; else None.

    Raises:
        UserError: If it holds captions, or its classes have to be those of the training set and are not.
    """
    if path is None:
        if training.info.source.split(":")[0] != "digits":
            return None
        return ValidationData("digits/validation", _BundledImages(transform), digits.CLASSES)
    shard_set = ShardSet.open(path, signed_by=signed_by)
    if shard_set.kind != "class" or shard_set.classes is None:
        raise UserError(f"--validation {path}: holds captions", possible="a shard set with classes")
    if same_classes and training.kind == "class" and shard_set.classes != training.classes:
        raise UserError(
            f"--validation {path}: its classes are not those of {training.path}",
            mend="write both from sources with the same class names",
        )
    return ValidationData(str(path), _CleanImages(shard_set, transform), shard_set.classes)


class _BundledImages(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self._data = digits.load("validation")
        self._transform = transform

    def __len__(self) -> int:
        return len(self._data.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        image = Image.fromarray(self._data.images[number]).convert("RGB")
        return self._transform(image), int(self._data.labels[number])


class _CleanImages(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, shard_set: ShardSet, transform: Callable[[Any], Any]) -> None:
        self._samples = ShardDataset(shard_set, "n00", transform)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        sample = self._samples[number]
        return sample.image, sample.target


def validate(
    engine: Engine,
    objective: Objective,
    data: ValidationData,
    world: World,
    *,
    average: Average | None,
    workers: int,
) -> dict[str, Any]:
    """Return top-1 and top-5 accuracy in [0, 1], and ``neighbours`` where it was by those. Collective.

    Every rank takes its share. The network carries ``average`` for the occasion, if there is one. Large sets
    are read by ``workers`` processes.
    """
    # Whole numbers; they stay where they are computed until all are there.
    counts = torch.zeros(3, dtype=torch.float64, device=engine.device)
    with evaluated(engine, average):
        answer = objective.scorer(engine)
        shares: Iterator[tuple[torch.Tensor, torch.Tensor]] = (
            (
                answer(images.to(engine.device, non_blocking=True)),
                labels.to(engine.device, non_blocking=True),
            )
            for images, labels in share(data, world, workers)
        )
        by_neighbours = objective.judged_by == "neighbours"
        if by_neighbours:
            features, labels = (torch.cat(parts).cpu() for parts in zip(*shares, strict=True))
            shares = _scores_by_neighbours(features, labels, len(data.classes))
        for scores, labels in shares:
            # What only fills up has the class -1, which is none of the best.
            best = scores.topk(min(5, scores.shape[1]), dim=1).indices
            hits = best == labels[:, None]
            counts += torch.stack([hits[:, 0].sum(), hits.sum(), (labels >= 0).sum()]).to(counts.device)
    counts = counts.cpu()
    dist.all_reduce(counts)
    top1, top5, number = counts.tolist()
    found = {"data": data.name, "num_samples": int(number), "top1": top1 / number, "top5": top5 / number}
    return found | ({"neighbours": NEIGHBOURS} if by_neighbours else {})


def _scores_by_neighbours(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield scores of classes for a rank's images, by the neighbours of each among those of all ranks.

    A neighbour has the weight exp(cosine / 0.07) (Wu et al. 2018). Collective.

    Args:
        features: Of the rank's images, [n, D].
        labels: Theirs, int64 [n]; -1 for what only fills up.
        num_classes: K.
    """
    own = nn.functional.normalize(features, dim=1)
    world = dist.get_world_size()
    every = [torch.empty_like(own) for _ in range(world)]
    theirs = [torch.empty_like(labels) for _ in range(world)]
    dist.all_gather(every, own)
    dist.all_gather(theirs, labels)
    among, their_labels = torch.cat(every), torch.cat(theirs)
    first = dist.get_rank() * len(own)
    number = min(NEIGHBOURS, int((their_labels >= 0).sum()) - 1)
    for start in range(0, len(own), _ROWS):
        cosines = own[start : start + _ROWS] @ among.T
        cosines[:, their_labels < 0] = -torch.inf
        rows = torch.arange(len(cosines))
        cosines[rows, first + start + rows] = -torch.inf
        near, places = cosines.topk(number, dim=1)
        votes = torch.zeros(len(cosines), num_classes).scatter_add_(
            1, their_labels[places], (near / _VOTE_TEMPERATURE).exp()
        )
        yield votes, labels[start : start + _ROWS]


def share(data: ValidationData, world: World, workers: int) -> DataLoader[Any]:
    """Return every world-size-th sample, padded (label -1) to whole batches, equally many on all ranks.

    Ranks whose weights are sharded must call the network equally often, and a compiled network is
    compiled anew for a batch of another size.
    """
    total = len(data.dataset)  # type: ignore[arg-type]
    longest = -(-total // world.size)
    batch = min(_BATCH, longest)
    numbers = list(range(world.rank, total, world.size))
    padded = _Padded(data.dataset, numbers, -(-longest // batch) * batch)
    workers = workers if longest >= _WORTH_WORKERS else 0
    return DataLoader(
        padded,
        batch_size=batch,
        **worker_processes(workers, world.timeout),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
    )


class _Padded(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, dataset: Dataset[tuple[torch.Tensor, int]], numbers: list[int], length: int) -> None:
        self._dataset, self._numbers, self._length = dataset, numbers, length
        self._blank = torch.zeros_like(dataset[0][0])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        if place < len(self._numbers):
            return self._dataset[self._numbers[place]]
        return self._blank, -1


@contextmanager
def evaluated(engine: Engine, average: Average | None) -> Iterator[None]:
    """Let the network be evaluated inside the block, with its average where there is one. Collective.

    Running statistics are those of all ranks. Afterwards weights, statistics, modes of all modules and the
    sharding are as before, bit by bit. Random draws leave no trace either, see
    :func:`pretrain.objective.seed_step`.
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
