"""The feature pass: samples through an encoder, chunk by chunk, by as many processes as ask for it."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from nml.cli import is_interactive, log
from nml.errors import UserError
from probes.encoders.encoder import Encoder
from probes.encoders.feature_files import FileEncoder
from probes.encoders.layers import LayerEncoder
from probes.features.store import Entry, Features, FeatureStore, feature_key
from probes.samples import Content, SampleSet

# Rows of a chunk: what a killed pass loses at most, and the unit that processes share.
CHUNK_ROWS = 1024


def feature_pass(
    store: FeatureStore,
    encoder: Encoder,
    samples: SampleSet,
    *,
    dataset: str,
    view: int = 0,
    chunk_rows: int = CHUNK_ROWS,
) -> Features:
    """Return the features of ``samples``, computing what the store does not have.

    Any number of processes may ask for the same features at the same time, on one machine or on many
    with a shared file system: each chunk is computed by one of them, and all return when all are done.
    A killed process leaves its finished chunks; the bytes are the same as of an undisturbed pass.

    Args:
        store: Where features are kept.
        encoder: What computes them.
        samples: What it reads.
        dataset: Name for progress and listings.
        view: 0 for the samples as they are, n > 0 for the n-th augmented view.
        chunk_rows: Rows of a chunk.

    Raises:
        UserError: If a sample cannot be decoded, or features are not finite or of another width.
    """
    if isinstance(encoder, FileEncoder):
        array = encoder.look_up(dataset, len(samples.keys))
        if array is None:
            raise UserError(f"encoder {encoder.info.name} has no features of {dataset}")
        return Features(encoder.info.hash[:32], array, 0.0)
    # What one pass gives is stored at once: of several layers, whoever is asked first computes for all.
    group: Sequence[Encoder] = encoder.siblings if isinstance(encoder, LayerEncoder) else (encoder,)
    entries = [store.entry(feature_key(each.info, samples, view=view, dataset=dataset)) for each in group]
    entry = entries[group.index(encoder)]
    found = entry.open()
    if found is not None:
        return found
    for each in entries:
        each.begin()
    begun = time.perf_counter()
    count = len(samples.keys)
    chunks = -(-count // chunk_rows)
    with tqdm(
        total=count,
        unit="samples",
        desc=f"features of {dataset}",
        disable=not is_interactive(),
        leave=False,
    ) as progress:
        # First whatever nobody works on, then what others began: theirs are there when the lock comes free.
        for wait, chunk in itertools.product((False, True), range(chunks)):
            if entry.has_chunk(chunk):
                continue
            with entries[0].claim(chunk, wait=wait) as mine:
                if mine and not entry.has_chunk(chunk):
                    rows = range(chunk * chunk_rows, min(count, (chunk + 1) * chunk_rows))
                    _compute_chunk(entries, encoder, samples, view, rows, chunk, chunks)
                    progress.update(len(rows))
    entry.join(chunks)
    done = entry.open()
    if done is None:
        raise UserError(f"features in {entry.folder} went away while they were computed", mend="run again")
    log(
        f"features of {dataset} by {encoder.info.name}: "
        f"{count:,} samples in {time.perf_counter() - begun:.0f} s"
    )
    return done


def _compute_chunk(
    entries: Sequence[Entry],
    encoder: Encoder,
    samples: SampleSet,
    view: int,
    rows: range,
    chunk: int,
    chunks: int,
) -> None:
    """Compute one chunk of the features of an encoder, and of those that share its pass, an entry each."""
    begun = time.perf_counter()
    group = encoder.siblings if isinstance(encoder, LayerEncoder) else (encoder,)
    parts = [
        encoder.encode_together(batch) if isinstance(encoder, LayerEncoder) else [encoder.encode(batch)]
        for batch in prepared_batches(encoder, samples, _batches(rows, encoder.batch_size, view))
    ]
    found = [
        np.ascontiguousarray(np.concatenate(each), dtype=np.float32) for each in zip(*parts, strict=True)
    ]
    for entry, each, features in zip(entries, group, found, strict=True):
        _check(entry, each, samples, features, rows, chunks)
    seconds = (time.perf_counter() - begun) / len(entries)
    for entry, features in zip(entries, found, strict=True):
        if not entry.has_chunk(chunk):
            entry.write_chunk(chunk, features, seconds)


def prepared_batches(
    encoder: Encoder, samples: SampleSet, batches: Iterable[Sequence[tuple[int, int]]]
) -> Iterator[list[Any]]:
    """Yield batches of prepared samples, decoding ahead in threads while the model computes.

    Args:
        encoder: What they are prepared for.
        samples: The samples.
        batches: Of each batch the samples, their number and view; 0 is the sample as it is.
    """

    def prepare(index: int, view: int) -> Any:
        content = samples.read(index)
        return encoder.prepare(augment(content, samples.keys[index], view) if view else content)

    rest = iter(batches)
    with ThreadPoolExecutor(max_workers=min(16, len(os.sched_getaffinity(0)))) as pool:

        def submit(batch: Sequence[tuple[int, int]]) -> list[Future[Any]]:
            return [pool.submit(prepare, *sample) for sample in batch]

        ahead = deque(map(submit, itertools.islice(rest, 2)))
        while ahead:
            current = ahead.popleft()
            ahead.extend(map(submit, itertools.islice(rest, 1)))
            yield [future.result() for future in current]


def _batches(rows: range, size: int, view: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(rows), size):
        yield [(row, view) for row in rows[start : start + size]]


def _check(
    entry: Entry,
    encoder: Encoder,
    samples: SampleSet,
    features: npt.NDArray[np.float32],
    rows: range,
    chunks: int,
) -> None:
    name = encoder.info.name
    if features.ndim != 2 or len(features) != len(rows):
        raise UserError(
            f"encoder {name} returned features {list(features.shape)}", possible=f"[{len(rows)}, D]"
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(
            f"encoder {name}: features of sample {samples.keys[rows[int(bad[0])]]} are not finite "
            f"({len(bad)} of {len(rows)} samples)",
            mend="the weights diverged or overflow; probe an earlier checkpoint",
        )
    cached = entry.dim(chunks)
    if cached is not None and cached != features.shape[1]:
        raise UserError(
            f"encoder {name} gives {features.shape[1]} dimensions, the features cached for it have {cached}",
            mend=f"the encoder changed under its name; remove {entry.folder} and run again",
        )


# The bounds of the usual random resized crop.
AREA = (0.5, 1.0)
ASPECT = (3 / 4, 4 / 3)


def augment(content: Content, key: str, view: int) -> Image.Image:
    """Return view number ``view`` of an image: a random crop, resized back, flipped half of the time.

    Raises:
        UserError: If the sample is text.
    """
    if not isinstance(content, Image.Image):
        raise UserError("--views: the task holds text", possible="0 for tasks of text")
    seed = hashlib.blake2b(f"{view}\0{key}".encode(), digest_size=8).digest()
    stream = random.Random(int.from_bytes(seed, "little"))  # noqa: S311 - an augmentation, no secret
    width, height = content.size
    area = stream.uniform(*AREA) * width * height
    aspect = math.exp(stream.uniform(*map(math.log, ASPECT)))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = stream.randint(0, width - crop_width), stream.randint(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    cropped = content.crop(box).resize((width, height), Image.Resampling.BICUBIC)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if stream.random() < 0.5 else cropped
