"""Write a shard set: plan once, pack shards in parallel, finish with set.json.

While a set is being written it is a folder without set.json, with all unfinished work in
``.writing``::

    OUT/.writing/
      catalogue.arrow  what the source holds (see shards.catalogue), with spool.bin and hashes.npy
      order.npy bounds.npy label_n20.npy ...   the plan: write order, shard boundaries, noisy supervision
      plan.json        what was asked; written last, so the plan is whole if this is there
      shard-000000.arrow  a row a sample of a finished shard; the shard is finished if this is there

The plan is a pure function of the source and the request, and a shard of the plan and its number.
So a killed write continues shard by shard, and ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nml.errors import UserError
from nml.files import fsync_folder, write_json
from nml.levels import CLEAN_LEVEL, decimal_text
from shards import hashing
from shards.catalogue import Catalogue, read_catalogue, write_catalogue
from shards.finishing import SetDescription, finish
from shards.ladder import Level, PlannedLevel, apply_flips, check_ratios, load_model, plan_ladder
from shards.layout import ShardLimits, cut, member_bytes, write_order
from shards.packshards import pack_all, read_record
from shards.setfile import SET_FILE, SetInfo, parse_set_info
from shards.sources import Source

WORK = ".writing"
PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """What the user asked for; equal requests give equal bytes.

    Attributes:
        source: The source as typed.
        ratios: Noise ratios, exact, in the order asked; the first is what ``.cls``/``.txt`` hold.
        model: Noise model, or None for the default one of the source's kind.
        model_file: File the model reads, or None.
        seed: Seed of the noise and of the write order.
        limits: Size of shards.
        options: Further options of the source: split and column names.
        chain: Whether a source that is itself a noisy set may be noised on top.
        force: Whether noise may touch a validation or test split.
    """

    source: str
    ratios: tuple[Fraction, ...]
    model: str | None
    model_file: str | None
    seed: int
    limits: ShardLimits
    options: dict[str, str]
    chain: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        check_ratios(self.ratios)

    def as_json(self) -> dict[str, Any]:
        """Return what plan.json and set.json store."""
        return {
            "source": self.source,
            "noise": [decimal_text(ratio) for ratio in self.ratios],
            "model": self.model,
            "model_file": self.model_file,
            "seed": self.seed,
            "max_shard_size": self.limits.size,
            "max_shard_count": self.limits.count,
            "options": {name: value for name, value in sorted(self.options.items()) if value},
            "hashing": hashing.VERSION,
        }


class Plan(NamedTuple):
    """A plan read back from the work folder.

    Attributes:
        catalogue: The samples.
        levels: The noisy levels, in the order asked.
        primary: Level that ``.cls``/``.txt`` hold.
        shards: How many shards there will be.
        parent: The set that the source was, if it was one.
    """

    catalogue: Catalogue
    levels: dict[str, Level]
    primary: str
    shards: int
    parent: dict[str, str] | None


class Written(NamedTuple):
    """What a call of :func:`write_set` did.

    Attributes:
        info: The finished set.
        fresh: Samples that this call packed; 0 if the set was there already.
        resumed: Samples that an earlier, interrupted call had packed.
    """

    info: SetInfo
    fresh: int
    resumed: int


def write_set(
    out: Path,
    request: WriteRequest,
    make_source: Callable[[], Source],
    *,
    workers: int,
    wait: bool = False,
) -> Written:
    """Write the set that ``request`` describes into ``out``, or continue, or find it done.

    Args:
        out: Folder of the set.
        request: What was asked.
        make_source: Opens the source; called only if the plan is not there yet.
        workers: Processes that pack shards; has no influence on the result.
        wait: Wait for another process that writes the same set, instead of refusing.

    Raises:
        UserError: If ``out`` holds something else, the source cannot be read, or the disk is full.
    """
    if done := find_done(out, request):
        return done
    if not (out / WORK).is_dir():
        refuse_other_content(out)
        # A source that cannot even be opened must leave nothing behind.
        source = make_source()
        make_source = _constant(source)
    with _locked(out, wait):
        return find_done(out, request) or _write(out, request, make_source, workers)


def _write(out: Path, request: WriteRequest, make_source: Callable[[], Source], workers: int) -> Written:
    work = out / WORK
    with _clean_up_if_nothing_began(out):
        plan = _plan(work, request, make_source)
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
    fresh = pack_all(out, work, plan.catalogue, plan.levels, plan.primary, plan.shards, workers)
    description = SetDescription(
        kind=plan.catalogue.kind,
        classes=plan.catalogue.classes,
        source=request.source,
        seed=request.seed,
        levels=plan.levels,
        primary=plan.primary,
        request=request.as_json(),
        parent=plan.parent,
    )
    info = finish(out, lambda: (read_record(work, number) for number in range(plan.shards)), description)
    shutil.rmtree(work)
    fsync_folder(out)
    return Written(info, fresh, info.num_samples - fresh)


def find_done(out: Path, request: WriteRequest) -> Written | None:
    """Return the set in ``out`` if this request made it; None if there is no set.

    Raises:
        UserError: If another request made it.
    """
    if not (out / SET_FILE).is_file():
        return None
    info = parse_set_info((out / SET_FILE).read_bytes(), str(out / SET_FILE))
    if info.request != request.as_json():
        raise UserError(
            f"--out {out}: holds a set written with other options "
            f"({_difference(info.request, request.as_json())})",
            mend="choose another --out; to add a noise level to it: "
            f"python -m shards.relabel {out} --noise RATIO",
        )
    # A kill between set.json and here leaves the work folder behind.
    shutil.rmtree(out / WORK, ignore_errors=True)
    return Written(info, 0, 0)


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return what differs between two requests, in words."""
    names = [name for name in sorted(found.keys() | asked.keys()) if found.get(name) != asked.get(name)]
    return ", ".join(f"{name}: {found.get(name)} there, {asked.get(name)} asked" for name in names)


def refuse_other_content(out: Path) -> None:
    """Raise a UserError if ``out`` is a file, or a folder with something in it that is not ours."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file", mend="name a folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"--out {out}: is not empty and holds no shard set", mend="name a new or an empty folder"
        )


def _constant(source: Source) -> Callable[[], Source]:
    return lambda: source


@contextlib.contextmanager
def _clean_up_if_nothing_began(out: Path) -> Iterator[None]:
    """Leave nothing behind when a user's mistake shows before the plan is whole."""
    (out / WORK).mkdir(exist_ok=True)
    try:
        yield
    except UserError:
        if not (out / WORK / PLAN_FILE).exists():
            shutil.rmtree(out / WORK)
        raise


@contextlib.contextmanager
def _locked(out: Path, wait: bool) -> Iterator[None]:
    """Make ``out`` and keep a second writer out of it; remove it again if it ends up empty.

    The lock is on the folder itself, and goes with the process, also when that is killed.
    """
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    descriptor = _open_locked(out, wait)
    try:
        yield
    finally:
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def _open_locked(out: Path, wait: bool) -> int:
    while True:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"--out {out}: another process is writing there", mend="wait for it, or end it"
            ) from error
        # Who held the lock before may have removed the folder, empty, on its way out.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), out.stat()):
                return descriptor
        os.close(descriptor)


def _plan(work: Path, request: WriteRequest, make_source: Callable[[], Source]) -> Plan:
    """Return the plan in the work folder, making it first if it is not whole."""
    plan_file = work / PLAN_FILE
    if plan_file.exists():
        stored = json.loads(plan_file.read_text())
        if stored["request"] != request.as_json():
            raise UserError(
                f"--out {work.parent}: an interrupted write with other options is there "
                f"({_difference(stored['request'], request.as_json())})",
                mend="repeat its options to finish it, or remove the folder to start anew",
            )
    else:
        stored = _make_plan(work, request, make_source())
        write_json(plan_file, stored)
    classes = tuple(stored["classes"]) if stored["classes"] is not None else None
    return Plan(
        read_catalogue(work, classes),
        {level["name"]: Level(**level) for level in stored["levels"]},
        stored["primary"],
        stored["shards"],
        stored["parent"],
    )


def _make_plan(work: Path, request: WriteRequest, source: Source) -> dict[str, Any]:
    # Before the pass over the source: what is wrong with the request shows at once.
    name, model = load_model(request.model, source.kind, request.model_file)
    if any(request.ratios) or model.own_ratio:
        refuse_noise_on(source, request)
    for stale in work.iterdir():
        stale.unlink()
    write_catalogue(source, work)
    catalogue = read_catalogue(work, source.classes)
    population = catalogue.population()
    planned = plan_ladder(model, name, population, request.ratios, request.seed)
    _save_levels(work, catalogue, planned)
    order = write_order(catalogue.hashes, request.seed)
    sizes = _sample_sizes(catalogue, len(planned))[order]
    bounds = cut(sizes, request.limits)
    np.save(work / "order.npy", order)
    np.save(work / "bounds.npy", bounds)
    levels = [planned_level.level for planned_level in planned]
    clean_first = not levels or (request.ratios and not request.ratios[0])
    return {
        "request": request.as_json(),
        "classes": catalogue.classes,
        "levels": [{"name": level.name, **level.as_json()} for level in levels],
        "primary": CLEAN_LEVEL if clean_first else levels[0].name,
        "shards": len(bounds) - 1,
        "parent": source.parent,
    }


def refuse_noise_on(source: Source, request: WriteRequest) -> None:
    """Raise a UserError if noise would touch a held-out split, or samples that are noisy already."""
    if source.held_out and not request.force:
        raise UserError(
            f"--source {request.source}: is a validation or test split, which noise must not touch",
            mend="use --noise 0, the training split, or --force if the name misleads",
        )
    if source.parent and source.parent["level"] != CLEAN_LEVEL and not request.chain:
        raise UserError(
            f"--source {request.source}: its labels are already noisy ({source.parent['level']})",
            mend="add a level to that set with python -m shards.relabel, or noise on top with --chain, "
            "which set.json records",
        )


def _save_levels(work: Path, catalogue: Catalogue, planned: Sequence[PlannedLevel]) -> None:
    """Save each level: the given class of every sample, or the sample whose caption it gets."""
    samples = catalogue.table.num_rows
    clean = catalogue.labels if catalogue.kind == "class" else np.arange(samples, dtype=np.int64)
    for level, flips in planned:
        np.save(work / f"{level.column}.npy", apply_flips(clean, flips))


def _sample_sizes(catalogue: Catalogue, levels: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return about the bytes that each sample takes in a tar, int64 [N]."""
    import pyarrow.compute as pc

    images = catalogue.table["size"].to_numpy()
    overhead = pc.binary_length(catalogue.table["key"]).to_numpy().astype(np.int64) + 64 * (levels + 2)
    if catalogue.kind == "class":
        return member_bytes(images, np.full(len(images), 8), overhead)
    text = pc.binary_length(catalogue.table["caption"]).to_numpy().astype(np.int64)
    return member_bytes(images, text, overhead + text * (levels + 1))
