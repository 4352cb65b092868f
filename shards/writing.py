"""Write a shard set in three steps: plan it once, pack its shards anywhere, finish it with set.json.

While a set is being written it has no set.json, and all unfinished work is in the work folder::

    OUT/.writing/              (for a URL: made in the staging folder, see shards.destination, and uploaded)
      plan.json ...            the plan (see shards.planning)
      shard-000000.arrow       a row a sample of a finished shard; the shard is finished if this is there
      parts-8                  shards are packed in eight parts

The plan is a pure function of the source and the request, and a shard of the plan and its number.
So a killed write continues shard by shard, on any machine and in any number of processes, and ends with
the same bytes as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa

from nml.errors import UserError
from nml.files import TEMPORARY_SUFFIX, is_full, make_folder
from nml.locking import NoLocksError, byte_lock
from nml.set_file import MANIFEST_FILE, SET_FILE
from shards.destination import Destination, open_destination
from shards.encoding import read_mark
from shards.finishing import SetDescription, finish
from shards.locking import PACKING_LOCK, made_and_locked
from shards.packshards import (
    ShardPacker,
    is_finished,
    pack_all,
    parse_record,
    record_name,
    recorded_forms,
    unfinished,
)
from shards.parts import Part
from shards.planning import PLAN_FILE, Plan, begin_encoding, plan_once, read_plan, refuse_other_encoder
from shards.request import WriteRequest, difference, refuse_changed_model_file
from shards.set_info import INDEX_FILE, STATS_FILE, SetInfo, Shard, parse_set_info
from shards.sources import Defect, Source

__all__ = ["Encoding", "Part", "WriteRequest", "Written", "finish_set", "pack_part", "plan_set", "write_set"]

_PARTS = "parts-"
_Made = TypeVar("_Made")
_LEFTOVER = re.compile(r"\.shard-(\d+)\.tar\..*" + re.escape(TEMPORARY_SUFFIX))


class Written(NamedTuple):
    """What a call of :func:`write_set` or :func:`finish_set` did.

    Attributes:
        info: The finished set.
        fresh: Samples that this call packed; 0 if the set was there already.
        resumed: Samples that an earlier, interrupted call had packed.
    """

    info: SetInfo
    fresh: int
    resumed: int


class Encoding(NamedTuple):
    """What a call of :func:`plan_set` began: features that any number of processes compute by parts.

    Attributes:
        runs: How many runs of samples there are to share out.
    """

    runs: int


class Packed(NamedTuple):
    """What a call of :func:`pack_part` did.

    Attributes:
        shards: Shards of the part.
        samples: Samples in them.
        fresh: Samples that this call packed.
    """

    shards: int
    samples: int
    fresh: int


def write_set(
    out: str | Path,
    request: WriteRequest,
    make_source: Callable[[], Source],
    *,
    workers: int,
    wait: bool = False,
    staging: str | Path | None = None,
    spool: bool = False,
    defects: list[Defect] | None = None,
) -> Written:
    """Write the set that ``request`` describes into ``out``, or continue, or find it done.

    Args:
        out: Folder or fsspec URL of the set.
        request: What was asked.
        make_source: Opens the source; called only if the plan is not there yet.
        workers: Processes that pack shards; has no influence on the result.
        wait: Wait for another process that writes the same set, instead of refusing.
        defects: Where the source notes samples that cannot be taken, as in :func:`open_source`.
        staging: For a URL, the local folder that files are made in before they are uploaded.
        spool: Whether images in tables are kept on disk, instead of being read again from their row groups.

    Raises:
        UserError: If ``out`` holds something else, the source cannot be read, or the disk is full.
    """
    destination = open_destination(out, staging)
    with _written_alone(destination, request, make_source, wait=wait) as begun:
        if isinstance(begun, Written):
            return begun
        plan = _plan(destination, request, begun, defects, spool=spool, make=plan_once)
        packed = _pack(destination, plan, Part(1, 1), workers)
        info = _finish(destination, plan)
        return Written(info, packed.fresh, info.num_samples - packed.fresh)


def plan_set(
    out: str | Path,
    request: WriteRequest,
    make_source: Callable[[], Source],
    *,
    staging: str | Path | None = None,
    spool: bool = False,
    defects: list[Defect] | None = None,
    encode_by_parts: bool = False,
) -> Plan | Written | Encoding:
    """Plan the set that ``request`` describes, or find it planned, or find it done.

    The other arguments are those of :func:`write_set`, and so are the errors.

    Args:
        encode_by_parts: Whether to leave the features that are to be computed to others
            (:func:`shards.encode.encode_part`); the same call without it makes the plan.
    """
    destination = open_destination(out, staging)
    with _written_alone(destination, request, make_source) as begun:
        if isinstance(begun, Written):
            return begun
        if encode_by_parts:
            runs = _plan(destination, request, begun, defects, spool=spool, make=begin_encoding)
            if runs is not None:
                destination.release()
                return Encoding(runs)
        plan = _plan(destination, request, begun, defects, spool=spool, make=plan_once)
        destination.release()
        return plan


def pack_part(
    out: str | Path, part: Part, *, workers: int, staging: str | Path | None = None
) -> Packed | None:
    """Pack the shards of one part that are not finished yet.

    Any number of processes may do so at once, also with the same part.

    Args:
        out: Folder or URL of a set that has been planned.
        part: Which shards.
        workers: Processes that pack them.
        staging: For a URL, the local folder that files are made in before they are uploaded.

    Returns:
        What was done; None where the set is finished.

    Raises:
        UserError: If there is no plan, an image cannot be read, or the disk is full.
    """
    destination = open_destination(out, staging)
    plan = _planned(destination)
    if plan is None:
        return None
    with _full_disk_told(destination.staging):
        make_folder(destination.work)
        return _pack(destination, plan, part, workers)


def finish_set(out: str | Path, *, staging: str | Path | None = None) -> Written:
    """Finish a set whose shards are all packed.

    Args:
        out: Folder or URL of the set.
        staging: For a URL, the local folder that files are made in before they are uploaded.

    Raises:
        UserError: If shards are missing, which are named with their parts, or there is no plan.
    """
    destination = open_destination(out, staging)
    with made_and_locked(destination.staging, shown=destination.shown, wait=False):
        plan = _planned(destination)
        if plan is None:
            info = parse_set_info(destination.read(SET_FILE) or b"", f"{destination.shown}/{SET_FILE}")
            destination.end()
            return Written(info, 0, 0)
        _refuse_missing(destination, plan)
        with _full_disk_told(destination.staging):
            make_folder(destination.work)
            info = _finish(destination, plan)
        return Written(info, 0, info.num_samples)


@contextlib.contextmanager
def _written_alone(
    destination: Destination, request: WriteRequest, make_source: Callable[[], Source], *, wait: bool = False
) -> Iterator[Callable[[], Source] | Written]:
    """Keep others out of the place; give what opens the source, or the set if it is there."""
    if done := find_done(destination, request):
        yield done
        return
    destination.refuse_other_content(request)
    if not destination.work.is_dir():
        # A source that cannot even be opened must leave nothing behind.
        make_source = _constant(make_source())
    with made_and_locked(destination.staging, shown=destination.shown, wait=wait):
        if done := find_done(destination, request):
            yield done
            return
        with _full_disk_told(destination.staging):
            yield make_source


def _plan(
    destination: Destination,
    request: WriteRequest,
    make_source: Callable[[], Source],
    defects: list[Defect] | None,
    *,
    spool: bool,
    make: Callable[..., _Made],
) -> _Made:
    with _clean_up_if_nothing_began(destination), _full_disk_told(destination.staging):
        # First: a place that cannot be written to must show before a long pass over the source.
        destination.begin(request)
        listed = destination.staging.absolute().with_name(f"{destination.staging.absolute().name}.bad.csv")
        return make(destination, request, make_source, spool=spool, defects=defects, listed=listed)


def _planned(destination: Destination) -> Plan | None:
    """Return the plan of a set; None if the set is finished.

    Raises:
        UserError: If there is neither.
    """
    if destination.read(SET_FILE) is not None:
        return None
    plan = read_plan(destination)
    if plan is None:
        raise UserError(
            f"{destination.shown}: no plan of a shard set there",
            mend=f"make one: python -m shards.plan --source SOURCE --out {destination.shown}",
        )
    return plan


def _pack(destination: Destination, plan: Plan, part: Part, workers: int) -> Packed:
    if part.count > 1:
        name = f"{_PARTS}{part.count}"
        (destination.work / name).touch()
        destination.publish_work(name)
    refuse_other_encoder(plan, destination.shown)
    _remove_leftovers(destination)
    packer = ShardPacker(destination, plan)
    numbers = part.of(plan.shards)
    fresh = pack_all(packer, unfinished(destination, numbers), 1 if destination.in_process else workers)
    return Packed(len(numbers), packer.samples(numbers), fresh)


def _remove_leftovers(destination: Destination) -> None:
    """Remove what processes left that were killed while they made a shard; others may be making one now."""
    for leftover in destination.staging.glob(f".*{TEMPORARY_SUFFIX}"):
        shard = _LEFTOVER.fullmatch(leftover.name)
        if shard is None:
            continue
        with (
            contextlib.suppress(NoLocksError),
            byte_lock(destination.work / PACKING_LOCK, int(shard[1]), wait=False) as mine,
        ):
            if mine:
                leftover.unlink(missing_ok=True)


def _refuse_missing(destination: Destination, plan: Plan) -> None:
    """Raise a UserError that names the shards which are not there as they were packed, and their parts."""
    records, sizes = destination.work_names(), destination.sizes()
    missing = [
        number
        for number in range(plan.shards)
        if record_name(number) not in records or not is_finished(destination, number, sizes)
    ]
    if not missing:
        return
    shown = destination.shown
    told = f"{shown}: {len(missing):,} of {plan.shards:,} shards are not packed yet"
    counts = [int(name.removeprefix(_PARTS)) for name in records if name.startswith(_PARTS)]
    if not counts:
        raise UserError(told, mend=f"python -m shards.pack {shown}")
    count = max(counts)
    parts = sorted({number % count + 1 for number in missing})
    named = ", ".join(f"{number}/{count}" for number in parts[:20]) + (", ..." if len(parts) > 20 else "")
    raise UserError(
        f"{told}, of part {named}",
        mend=f"python -m shards.pack {shown} --part {parts[0]}/{count}"
        + (" and so on" if len(parts) > 1 else ""),
    )


def _finish(destination: Destination, plan: Plan) -> SetInfo:
    # Records are read twice.
    counted: set[int] = set()
    forms: Counter[str] = Counter()
    description = SetDescription(
        kind=plan.kind,
        classes=plan.classes,
        source=plan.request["source"],
        seed=plan.request["seed"],
        levels=plan.levels,
        primary=plan.primary,
        request=plan.request,
        parent=plan.parent,
        held_out=plan.held_out,
        resized=plan.resized,
        forms=forms,
    )

    def records() -> Iterator[tuple[Shard, pa.Table]]:
        for number in range(plan.shards):
            content = destination.read_work(record_name(number)) or b""
            if number not in counted:
                counted.add(number)
                forms.update(recorded_forms(content))
            yield parse_record(number, content)

    for leftover in destination.staging.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    info = finish(destination.staging, records, description)
    for name in (MANIFEST_FILE, INDEX_FILE, STATS_FILE, SET_FILE):
        destination.publish(name)
    destination.end()
    return info


def find_done(destination: Destination, request: WriteRequest) -> Written | None:
    """Return the set at the destination if this request made it; None if there is no set.

    Raises:
        UserError: If another request made it.
    """
    content = destination.read(SET_FILE)
    if content is None:
        return None
    info = parse_set_info(content, f"{destination.shown}/{SET_FILE}")
    if info.request != request.as_json():
        raise UserError(
            f"--out {destination.shown}: holds a set written with other options "
            f"({difference(info.request, request.as_json())})",
            mend="choose another --out; to add a noise level to it: "
            f"python -m shards.relabel {destination.shown} --noise RATIO",
        )
    refuse_changed_model_file(info.levels.values(), request, destination.shown)
    # A kill between set.json and here leaves the work folder behind.
    destination.end()
    return Written(info, 0, 0)


def _constant(source: Source) -> Callable[[], Source]:
    return lambda: source


@contextlib.contextmanager
def _clean_up_if_nothing_began(destination: Destination) -> Iterator[None]:
    """Leave nothing behind when a user's mistake shows before the plan is whole."""
    destination.work.mkdir(exist_ok=True)
    try:
        yield
    except UserError:
        mark = read_mark(destination)
        if destination.read_work(PLAN_FILE) is None and not (mark and mark.get("by_parts")):
            with contextlib.suppress(UserError):
                destination.end()
        raise


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Tell a full disk in one line, wherever it shows: in the plan, a shard or the manifest."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise UserError(
                f"{folder}: no space left",
                mend="free some and run the same command again; finished shards are kept",
            ) from error
        raise
