"""Samples that training and test data share: a head that has seen them scores what it remembers.

Samples are compared by the hash of their bytes, as they are stored. The same picture saved twice is another
file, and is not found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import write_bytes
from nml.untrusted import read_json
from probes.hashing import hash_value
from probes.samples import SampleSet
from probes.tasks.remembered import cache_folder
from probes.tasks.samplesets import Hashed, Selected, Shifted
from probes.tasks.task import Evaluation, Task

BATCH = 256  # samples in memory at once
SHOWN = 3
# What took longer to compare is remembered, by the content of both sides.
WORTH_REMEMBERING_SECONDS = 2.0


class Overlap(NamedTuple):
    """Test samples that the training data have, too.

    Attributes:
        test: Name of the test set.
        shared: How many of its samples.
        samples: Out of how many.
        keys: Names of a few of them.
    """

    test: str
    shared: int
    samples: int
    keys: tuple[str, ...]

    def __str__(self) -> str:
        named = ", ".join(self.keys) + (", ..." if self.shared > len(self.keys) else "")
        return f"{self.shared:,} of {self.samples:,} samples of {self.test} ({named})"


def check_overlap(task: Task, *, published: bool, allowed: bool) -> str | None:
    """Refuse a task whose data share samples: training or validation with test data, or two tests all.

    Args:
        task: The task.
        published: Whether its division is not the user's to mend: then it is told, and not refused.
        allowed: Whether the user asked for it all the same.

    Returns:
        What is shared, as a line to print; None where nothing is.

    Raises:
        UserError: If samples are shared; names the test set, how many and some of them.
    """
    test = task.evaluations[0].samples.fingerprint
    same = [other.name for other in task.evaluations[1:] if other.samples.fingerprint == test]
    if same and not allowed:
        raise UserError(
            f"--task {task.name}: the samples of {same[0]} are those of the test data",
            mend="name another file, or keep it with --allow-overlap",
        )
    shared = "; ".join(shared_samples(task))
    if not shared:
        return None
    if published or allowed:
        return f"{task.name}: its {shared}: accuracy on these is of what the head has seen"
    raise UserError(
        f"--task {task.name}: its {shared}",
        mend="divide the data anew, or keep it with --allow-overlap",
    )


def shared_samples(task: Task) -> list[str]:
    """Return what of the test sets the training data hold and what the validation data, in words."""
    shared = [f"training data hold {found}" for found in overlaps(task)]
    if task.validation is not None:
        held = dataclasses.replace(task, train=task.validation)
        shared += [f"validation data hold {found}" for found in overlaps(held)]
    return shared


def overlaps(task: Task) -> list[Overlap]:
    """Return the test sets of a task that share samples with its training data; shifts of one count once."""
    found: list[Overlap] = []
    seen: set[str] = set()
    for evaluation in task.evaluations:
        samples = _unshifted(evaluation.samples)
        if samples.fingerprint not in seen:
            seen.add(samples.fingerprint)
            found.append(_compare(task.train, evaluation, samples))
    return [overlap for overlap in found if overlap.shared]


def _unshifted(samples: SampleSet) -> SampleSet:
    return _unshifted(samples.base) if isinstance(samples, Shifted) else samples


def _compare(train: SampleSet, evaluation: Evaluation, test: SampleSet) -> Overlap:
    name = hash_value(["overlap/1", train.fingerprint, test.fingerprint])
    place = cache_folder() / f"overlap-{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        places: list[int] = read_json(place)
        return _overlap(evaluation.name, test, places)
    begun = time.perf_counter()
    known = set(_hashes(train, "training"))
    places = [number for number, content in enumerate(_hashes(test, evaluation.name)) if content in known]
    if time.perf_counter() - begun > WORTH_REMEMBERING_SECONDS:
        # A home that cannot be written to costs time, nothing else.
        with contextlib.suppress(OSError):
            write_bytes(place, json.dumps(places).encode())
    return _overlap(evaluation.name, test, places)


def _overlap(name: str, test: SampleSet, places: list[int]) -> Overlap:
    return Overlap(name, len(places), len(test.keys), tuple(test.keys[place] for place in places[:SHOWN]))


def _hashes(samples: SampleSet, name: str) -> Iterator[bytes]:
    """Yield the hash of every sample's bytes, in order."""
    count = len(samples.keys)
    with (
        tqdm(
            total=count, unit="samples", desc=f"comparing {name}", disable=not is_interactive(), leave=False
        ) as progress,
        # Files on a network answer one by one; several are asked at once.
        ThreadPoolExecutor(max_workers=8) as pool,
    ):
        for start in range(0, count, BATCH):
            batch = range(start, min(count, start + BATCH))
            yield from pool.map(functools.partial(_hash, samples), batch)
            progress.update(len(batch))


def _hash(samples: SampleSet, index: int) -> bytes:
    if isinstance(samples, Selected):
        return _hash(samples.base, int(samples.rows[index]))
    if isinstance(samples, Hashed):
        return samples.content_hash(index)
    # Its source does not give its bytes: of what it is read as.
    content = samples.read(index)
    if isinstance(content, Image.Image):
        return hashlib.sha256(f"{content.mode} {content.size} ".encode() + content.tobytes()).digest()
    return bytes.fromhex(hash_value(content if isinstance(content, str) else list(content)))
