"""A map-style dataset over a shard set, for a DataLoader with :class:`shards.sampler.ElasticBatchSampler`.

Augmentation is keyed by (seed, epoch, sample key, view): the random states of Python, NumPy and
torch are set from it around the transform and put back after, so that any transform, also one that
draws from global random state, gives the same result in any worker, on any rank, at any world size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nml.errors import UserError
from nml.levels import CLEAN_LEVEL
from nml.randomness import randomness_kept, seed_randomness
from shards.decode import MAX_PIXELS, BadImage, SeveralViews, decode_rgb
from shards.hashing import hash_keys, mix_one
from shards.index_table import Place
from shards.reader import DEFAULT_SKIP_BUDGET, DamagedSample, ShardReader, SkipLedger
from shards.sampler import SampleRef
from shards.shardset import ShardSet
from shards.yuv_cache import YuvCache


class Sample(NamedTuple):
    """What the dataset returns.

    Attributes:
        image: The transformed image; a PIL image where no transform was given.
        target: The class at the chosen level, or the caption, passed through ``text_transform``.
        index: Sample number in the set. Where a damaged sample was skipped, the number of the one
            that stands in, so that image, target and index always belong together.
    """

    image: Any
    target: Any
    index: int  # type: ignore[assignment]  # every loader calls it so; tuple.index is not missed


class KnownSample(NamedTuple):
    """A sample, and what is true of it whatever it is trained as.

    Attributes:
        image: As of :class:`Sample`.
        target: The same.
        index: The same.
        truth: Its clean class; of a caption 1 where it is the image's own, 0 where it is another's.
    """

    image: Any
    target: Any
    index: int  # type: ignore[assignment]
    truth: int


_Images = dict[int, tuple[Place, SeveralViews]]


class WorkerError(UserError):
    """A mistake met in a loader's worker, told in the training process as the one line it is.

    torch rebuilds a worker's exception from the text of its traceback, whose last line is the message.

    Args:
        told: The message, or a traceback that ends with it.
    """

    def __init__(self, told: str) -> None:
        super().__init__(told.rpartition(f"{type(self).__name__}: ")[2])


class ShardDataset(torch.utils.data.Dataset[Sample | KnownSample]):
    """Samples of a set at one noise level, by number.

    Args:
        shard_set: The set.
        level: Level name or ratio; ``n00`` is clean.
        transform: From an RGB PIL image. A transform with a method ``from_bytes(bytes) -> Any``
            decodes for itself (see :mod:`shards.augment`).
        text_transform: From a caption, for caption sets, for example a tokenizer.
        seed: Seed of the augmentation.
        verify: Check each image's hash.
        max_pixels: Refuse larger images before decoding.
        skip_budget: Share of the samples that may be skipped because they are damaged, over all
            processes that share ``ledger``; 0 fails at the first.
        ledger: File that skipped samples are written to.
        cache: Short side of the cache beside the set that images are read from (``python -m shards.cache``);
            0 for the set itself. A transform with a method ``from_planes(Planes) -> Any`` takes what lies
            there (see :mod:`shards.yuv`), any other one an RGB PIL image of that size.
        with_truth: Return a :class:`KnownSample` each.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        level: str | float = "n00",
        transform: Callable[[Any], Any] | None = None,
        text_transform: Callable[[str], Any] | None = None,
        *,
        seed: int = 0,
        verify: bool = True,
        max_pixels: int = MAX_PIXELS,
        skip_budget: float = DEFAULT_SKIP_BUDGET,
        ledger: str | Path | None = None,
        cache: int = 0,
        with_truth: bool = False,
    ) -> None:
        self.shard_set = shard_set
        self.level = shard_set.level(level)
        self._transform = transform
        self._from_bytes = getattr(transform, "from_bytes", None)
        self._from_planes = getattr(transform, "from_planes", None)
        self._cache = YuvCache(shard_set, cache) if cache else None
        self._text_transform = text_transform
        self._clean = shard_set.level(CLEAN_LEVEL).column if with_truth else None
        self._seed = seed
        self._max_pixels = max_pixels
        self._reader = ShardReader(shard_set, verify=verify)
        self._ledger = SkipLedger(Path(ledger) if ledger else None, int(skip_budget * shard_set.num_samples))
        # Opened here once, so that a foreign index is refused before workers start.
        _ = shard_set.index

    def __len__(self) -> int:
        return self.shard_set.num_samples

    def __getitem__(self, ref: SampleRef | int) -> Sample | KnownSample:
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[Sample | KnownSample]:
        """Return the samples of a batch; global random state is saved and put back once.

        An image of which the batch has several views is read, checked and decoded once.
        """
        try:
            with randomness_kept():
                return self._load_all([_as_ref(ref) for ref in refs])
        except UserError as error:
            if torch.utils.data.get_worker_info() is None:
                raise
            raise WorkerError(str(error)) from None

    def _load_all(self, refs: list[SampleRef]) -> list[Sample | KnownSample]:
        turns: dict[int, list[int]] = {}
        for turn, ref in enumerate(refs):
            turns.setdefault(ref.index, []).append(turn)
        loaded: dict[int, Sample | KnownSample] = {}
        for alike in turns.values():
            images: _Images | None = {} if len(alike) > 1 else None
            loaded.update((turn, self._load(refs[turn], images)) for turn in alike)
        return [loaded[turn] for turn in range(len(refs))]

    def _load(self, ref: SampleRef, images: _Images | None) -> Sample | KnownSample:
        """Load a sample, or the next one in storage order that is whole.

        Args:
            ref: The sample.
            images: What its views have been loaded from, if there are more than this one.
        """
        for ahead in range(len(self)):
            try:
                return self._load_exactly(ref._replace(index=(ref.index + ahead) % len(self)), images)
            except DamagedSample as damage:
                self._ledger.record(damage)
        raise UserError(f"{self.shard_set.path}: no sample can be read", mend="restore the shards")

    def _load_exactly(self, ref: SampleRef, images: _Images | None) -> Sample | KnownSample:
        key, image = self._stored(ref, images) if self._cache is None else self._cached(ref, self._cache)
        several = self.shard_set.kind == "captions"
        turn = caption_turn(self._seed, ref.epoch, key, ref.view) if several else 0
        given = self.shard_set.index.supervision(ref.index, self.level.column, turn)
        target: Any = given
        if self._text_transform is not None and self.shard_set.kind != "class":
            target = self._text_transform(target)
        if self._clean is None:
            return Sample(image, target, ref.index)
        truth = self.shard_set.index.supervision(ref.index, self._clean, turn)
        known = truth if isinstance(truth, int) else int(truth == given)
        return KnownSample(image, target, ref.index, known)

    def _cached(self, ref: SampleRef, cache: YuvCache) -> tuple[str, Any]:
        place = self.shard_set.index.place(ref.index)
        planes = cache.planes(ref.index, place.shard, place.key)
        seed_randomness(augmentation_seed(self._seed, ref.epoch, place.key, ref.view))
        if self._from_planes is not None:
            return place.key, self._from_planes(planes)
        image = planes.to_rgb()
        return place.key, image if self._transform is None else self._transform(image)

    def _stored(self, ref: SampleRef, images: _Images | None) -> tuple[str, Any]:
        place, data = self._read(ref.index, images)
        seed_randomness(augmentation_seed(self._seed, ref.epoch, place.key, ref.view))
        try:
            return place.key, self._image(data)
        except BadImage as error:
            shard = self.shard_set.info.shards[place.shard].name
            raise DamagedSample(place.key, shard, str(error)) from error

    def _read(self, sample: int, images: _Images | None) -> tuple[Place, bytes]:
        if images is None:
            return self._reader.image(sample)
        if sample not in images:
            place, data = self._reader.image(sample)
            images[sample] = place, SeveralViews(data)
        return images[sample]

    def _image(self, data: bytes) -> Any:
        if self._from_bytes is not None:
            return self._from_bytes(data, max_pixels=self._max_pixels)
        image = decode_rgb(data, max_pixels=self._max_pixels)
        return image if self._transform is None else self._transform(image)


def augmentation_seed(seed: int, epoch: int, key: str, view: int) -> int:
    """Return the 64-bit seed of one augmentation draw."""
    return mix_one(int(hash_keys([key])[0]), seed, f"augment {epoch} {view}")


def caption_turn(seed: int, epoch: int, key: str, view: int) -> int:
    """Return which of its captions a sample has in an epoch, counted round and round.

    It begins somewhere by a keyed hash, and takes the next one each epoch (and view): of five captions, each
    has its turn in five epochs. That is a function of the sample, so that a run which goes on sees the same.
    """
    return mix_one(int(hash_keys([key])[0]), seed, "caption") + epoch + view


def _as_ref(ref: SampleRef | int) -> SampleRef:
    return ref if isinstance(ref, SampleRef) else SampleRef(int(ref), 0)
