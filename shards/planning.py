"""The plan of a write: which sample goes where, and what supervision it gets at every level.

A pure function of the source and the request, kept in the work folder::

    WORK/
      rows.bin rows.npy   what each shard is packed from (see shards.plan_rows)
      spool.bin           images that lie nowhere by themselves
      plan.json           what was asked; written last, so the plan is whole if this is there

While it is made, what the source holds (see shards.catalogue) and features of an encoder (see
shards.encoding) lie there, too.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nml.errors import UserError
from nml.files import json_bytes, sha256_file, sync_tree, write_json
from nml.levels import CLEAN_LEVEL
from nml.untrusted import parse_json
from shards.catalogue import SPOOL, Catalogue, read_catalogue, write_catalogue
from shards.defects import Checks
from shards.encoding import (
    FEATURES,
    MARK,
    WorkFiles,
    begin,
    brought,
    encode_runs,
    gathered_features,
    is_of,
    is_run,
    read_mark,
    remove_runs,
    runs_of,
)
from shards.features import Encoder, describe_input, open_encoder
from shards.finishing import refuse_unreadable
from shards.gathering import tell_of_reading_again
from shards.ladder import (
    Level,
    PlannedLevel,
    apply_flips,
    load_model,
    plan_ladder,
    refuse_noise,
    with_own_rate,
)
from shards.layout import cut, shard_name, write_order
from shards.locking import PACKING_LOCK
from shards.manifest import index_schema
from shards.noise import Integers, Kind, NoiseModel
from shards.plan_rows import BOUNDS, ROWS, small, write_rows
from shards.request import WriteRequest, difference, refuse_changed_model_file
from shards.resize import encoder_version
from shards.sample_sizes import sample_sizes
from shards.set_info import Shard
from shards.sources import Defect, Source

PLAN_FILE = "plan.json"
_DIGEST = "plan_sha256"


class Plan(NamedTuple):
    """A plan read back from the work folder.

    Attributes:
        kind: ``class`` or ``caption``.
        classes: Class names in index order; None for captions.
        levels: The noisy levels, in the order asked.
        primary: Level that ``.cls``/``.txt`` hold.
        shards: How many shards there will be.
        samples: How many samples.
        parent: The set that the source was, if it was one.
        held_out: Whether the source is a validation or test split.
        resized: How images are made smaller, and by which encoder; empty where they are copied.
        request: What was asked, as :meth:`WriteRequest.as_json` gives it.
    """

    kind: Kind
    classes: tuple[str, ...] | None
    levels: dict[str, Level]
    primary: str
    shards: int
    samples: int
    parent: dict[str, str] | None
    held_out: bool
    resized: dict[str, Any]
    request: dict[str, Any]


def plan_once(
    files: WorkFiles,
    request: WriteRequest,
    make_source: Callable[[], Source],
    *,
    spool: bool = False,
    defects: list[Defect] | None = None,
    listed: Path | None = None,
) -> Plan:
    """Return the plan of a set, making it first if it is not whole.

    Args:
        files: The files of unfinished work.
        request: What was asked.
        make_source: Opens the source; called only if the plan is not there yet.
        spool: Whether images in tables are kept on disk, instead of being read again from their row groups.
        defects: Where the source notes samples that cannot be taken.
        listed: The file that lists these.

    Raises:
        UserError: If a plan for other options is there, or the source cannot be read.
    """
    found = read_plan(files)
    if found is not None:
        refuse_other_request(found.request, request, files.shown)
        refuse_changed_model_file(found.levels.values(), request, f"what lies in {files.shown}")
        return found
    work = files.work
    reading = _Reading(_checks(request, listed), defects, spool)
    stored = _make(files, request, make_source(), reading)
    sync_tree(work)
    stored["files"] = {BOUNDS: sha256_file(work / BOUNDS)}
    if (work / SPOOL).exists():
        # Whoever made it reads it where it lies.
        files.publish_work(SPOOL, keep=True)
    for name in (ROWS, BOUNDS):
        files.publish_work(name)
    write_json(work / PLAN_FILE, {**stored, _DIGEST: _digest(stored)})
    files.publish_work(PLAN_FILE)
    if (mark := read_mark(files)) is not None:
        remove_runs(files, mark)
    return _plan(stored)


def begin_encoding(
    files: WorkFiles,
    request: WriteRequest,
    make_source: Callable[[], Source],
    *,
    spool: bool = False,
    defects: list[Defect] | None = None,
    listed: Path | None = None,
) -> int | None:
    """Write down what a source holds, for any number of processes to compute its features.

    The arguments and errors are those of :func:`plan_once`.

    Returns:
        How many runs of samples there are to encode; None if the plan is made already.
    """
    if read_plan(files) is not None:
        return None
    source = make_source()
    opened = _opened(files.work, request, source)
    if opened.encoder is None:
        raise UserError("--encode-by-parts: no --encoder is named", mend="leave it out, or name one")
    reading = _Reading(_checks(request, listed), defects, spool)
    mark = _encoding(files, request, source, reading, opened.encoder, by_parts=True)
    return runs_of(mark)


class _Opened(NamedTuple):
    """A noise model by its name, the file that it reads, and what computes that."""

    name: str
    model: NoiseModel
    file: str | None
    encoder: Encoder | None


def _opened(work: Path, request: WriteRequest, source: Source) -> _Opened:
    """Open what noise needs: what is wrong with a request must show before the pass over the source."""
    encoder = open_encoder(request.encoder, request.model, request.model_file)
    file = str(work / FEATURES) if encoder else request.model_file
    name, model = load_model(request.model, source.kind, file)
    if any(request.ratios) or model.own_ratio or request.own_rate:
        refuse_noise(source, f"--source {request.source}", chain=request.chain, force=request.force)
    return _Opened(name, model, file, encoder)


class _Reading(NamedTuple):
    """How a source is read, and what becomes of samples that cannot be taken."""

    checks: Checks
    defects: list[Defect] | None
    spool: bool

    def write(self, source: Source, work: Path) -> None:
        """Write the catalogue of a source in place of what is there."""
        _remove_content(work)
        write_catalogue(source, work, keep_cells=self.spool, checks=self.checks, defects=self.defects)


def _checks(request: WriteRequest, listed: Path | None) -> Checks:
    return Checks(request.decode_check or request.resize is not None, request.skip_bad, listed)


def _encoding(
    files: WorkFiles,
    request: WriteRequest,
    source: Source,
    reading: _Reading,
    encoder: Encoder,
    *,
    by_parts: bool = False,
) -> dict[str, Any]:
    """Return the mark of what is being encoded, whose catalogue is in the work folder."""
    mark = read_mark(files)
    if mark is not None and mark.get("by_parts"):
        refuse_other_request(mark["request"], request, files.shown)
    if mark is not None and is_of(mark, request, encoder) and brought(files, files.work, mark):
        if by_parts and not mark.get("by_parts"):
            return begin(files, request, encoder, by_parts=True)
        return mark
    reading.write(source, files.work)
    return begin(files, request, encoder, by_parts=by_parts)


def read_plan(files: WorkFiles) -> Plan | None:
    """Return the plan of a set that is being written; None if there is none, or not all of it.

    Raises:
        UserError: If it is damaged: what is packed by it would get hashes that are right.
    """
    content = files.read_work(PLAN_FILE)
    if content is None:
        return None
    try:
        stored = parse_json(content)
        digest = stored.pop(_DIGEST, None)
        expected = stored.get("files", {})
        if BOUNDS not in expected and digest in (None, _digest(stored)):
            # Of an earlier version, which had the rows of a shard in other files.
            return None
        wrong = PLAN_FILE if digest != _digest(stored) else ""
        if not wrong and hashlib.sha256(files.read_work(BOUNDS) or b"").hexdigest() != expected[BOUNDS]:
            wrong = BOUNDS
    except (ValueError, TypeError, KeyError, AttributeError):
        wrong = PLAN_FILE
    if wrong:
        raise damaged_plan(files, wrong)
    return _plan(stored)


def refuse_other_encoder(plan: Plan, shown: str) -> None:
    """Refuse to pack with another encoder: the shards of one set are made by one."""
    if plan.resized and plan.resized["encoder"] != encoder_version():
        raise UserError(
            f"--out {shown}: an interrupted write is there whose images were made smaller by "
            f"{plan.resized['encoder']}, and here is {encoder_version()}",
            mend="finish it with that version, or remove the folder to start anew",
        )


def damaged_plan(files: WorkFiles, name: str) -> UserError:
    """Return the error for a file of a plan that is not as it was written."""
    return UserError(
        f"--out {files.shown}: the plan of an interrupted write is damaged: {files.work / name}",
        mend="remove the folder to start anew",
    )


def _plan(stored: dict[str, Any]) -> Plan:
    return Plan(
        stored["kind"],
        tuple(stored["classes"]) if stored["classes"] is not None else None,
        {level["name"]: Level(**level) for level in stored["levels"]},
        stored["primary"],
        stored["shards"],
        stored["samples"],
        stored["parent"],
        stored["held_out"],
        stored.get("resized", {}),
        stored["request"],
    )


def _digest(stored: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes(stored)).hexdigest()


def refuse_other_request(found: dict[str, Any], request: WriteRequest, shown: str) -> None:
    """Raise a UserError if an interrupted write had other options."""
    if found != request.as_json():
        raise UserError(
            f"--out {shown}: an interrupted write with other options is there "
            f"({difference(found, request.as_json())})",
            mend="repeat its options to finish it, or remove the folder to start anew",
        )


def _make(files: WorkFiles, request: WriteRequest, source: Source, reading: _Reading) -> dict[str, Any]:
    work = files.work
    name, model, file, encoder = _opened(work, request, source)
    if encoder:
        mark = _encoding(files, request, source, reading, encoder)
        encode_runs(files, work, mark, encoder, range(runs_of(mark)))
        gathered_features(files, mark)
    else:
        reading.write(source, work)
    catalogue = read_catalogue(work, source.classes)
    model_input = describe_input(file, encoder)
    population, ratios = catalogue.population(), request.ratios
    if request.own_rate:
        ratios = with_own_rate(ratios, model, name, population)
    planned = plan_ladder(model, name, population, ratios, request.seed, model_input, request.names)
    order = write_order(catalogue.hashes, request.seed)
    bounds = cut(sample_sizes(catalogue, planned)[order], request.limits)
    _refuse_too_many_shards(request, catalogue, len(planned), len(bounds) - 1)
    tell_of_reading_again(catalogue.batches(), bounds)
    supervision = _supervision(catalogue, planned, len(population))
    levels = [planned_level.level for planned_level in planned]
    del population, planned
    write_rows(work, supervision, order, bounds)
    for used in work.iterdir():
        kept = used.name in (ROWS, BOUNDS, SPOOL, PACKING_LOCK, MARK) or is_run(used.name)
        if not kept or not used.stat().st_size:
            used.unlink()
    clean_first = not levels or (request.ratios and not request.ratios[0])
    return {
        "request": request.as_json(),
        "kind": catalogue.kind,
        "classes": catalogue.classes,
        "levels": [{"name": level.name, **level.as_json()} for level in levels],
        "primary": CLEAN_LEVEL if clean_first else levels[0].name,
        "shards": len(bounds) - 1,
        "samples": int(bounds[-1]),
        "parent": source.parent,
        "held_out": source.held_out,
        **({"resized": request.resize.as_json()} if request.resize else {}),
    }


def _refuse_too_many_shards(request: WriteRequest, catalogue: Catalogue, levels: int, shards: int) -> None:
    limits = request.limits
    typical = Shard(shard_name(shards), min(limits.count, len(catalogue.hashes)), limits.size, "0" * 64)
    columns = index_schema(catalogue.kind, [str(level) for level in range(1 + levels)], "")
    refuse_unreadable(
        f"--max-shard-size {limits.size:,} bytes, --max-shard-count {limits.count:,}",
        typical,
        shards,
        len(catalogue.hashes),
        len(columns),
        catalogue.classes or (),
        mend="ask for shards {times} times as large or more by both, or write several sets",
    )


def _supervision(catalogue: Catalogue, planned: Sequence[PlannedLevel], captions: int) -> dict[str, Integers]:
    """Return the column of each level: the class of every sample, or for every caption the one it becomes."""
    # A set has fewer captions than 32 bits count, and many a plan as many as memory holds.
    clean = catalogue.labels if catalogue.kind == "class" else np.arange(captions, dtype=small(captions))
    return {level.column: apply_flips(clean, flips) for level, flips in planned}


def _remove_content(work: Path) -> None:
    """Remove what a plan that was cut short has left, but for the marks of who holds what."""
    for stale in work.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale)
        elif stale.name != PACKING_LOCK:
            stale.unlink()
