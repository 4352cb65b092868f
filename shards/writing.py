"""Write a shard set: plan once, pack shards in parallel, finish with set.json.

While a set is being written it has no set.json, and all unfinished work is in the work folder::

    OUT/.writing/              (for a URL: in the staging folder, see shards.destination)
      plan.json ...            the plan (see shards.planning)
      shard-000000.arrow       a row a sample of a finished shard; the shard is finished if this is there

The plan is a pure function of the source and the request, and a shard of the plan and its number.
So a killed write continues shard by shard, and ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError
from nml.set_file import MANIFEST_FILE, SET_FILE
from shards.destination import Destination, open_destination
from shards.finishing import SetDescription, finish
from shards.locking import made_and_locked
from shards.packshards import ShardPacker, forget_lost, pack_all, read_record
from shards.planning import PLAN_FILE, Plan, plan_once
from shards.request import WriteRequest, difference, refuse_changed_model_file
from shards.set_info import INDEX_FILE, STATS_FILE, SetInfo, parse_set_info
from shards.sources import Defect, Source

__all__ = ["WriteRequest", "Written", "write_set"]


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
    out: str | Path,
    request: WriteRequest,
    make_source: Callable[[], Source],
    *,
    workers: int,
    wait: bool = False,
    staging: str | Path | None = None,
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

    Raises:
        UserError: If ``out`` holds something else, the source cannot be read, or the disk is full.
    """
    destination = open_destination(out, staging)
    if done := find_done(destination, request):
        return done
    destination.refuse_other_content(request)
    if not destination.work.is_dir():
        # A source that cannot even be opened must leave nothing behind.
        source = make_source()
        make_source = _constant(source)
    with made_and_locked(destination.staging, shown=destination.shown, wait=wait):
        return find_done(destination, request) or _write(destination, request, make_source, workers, defects)


def _write(
    destination: Destination,
    request: WriteRequest,
    make_source: Callable[[], Source],
    workers: int,
    defects: list[Defect] | None,
) -> Written:
    work = destination.work
    with _clean_up_if_nothing_began(destination), _full_disk_told(destination.staging):
        # First: a place that cannot be written to must show before a long pass over the source.
        destination.begin(request)
        listed = destination.staging.absolute().with_name(f"{destination.staging.absolute().name}.bad.csv")
        plan = plan_once(work, request, make_source, destination.shown, defects=defects, listed=listed)
        for leftover in destination.staging.glob(".*.tmp"):
            leftover.unlink()
        forget_lost(work, plan.shards, destination.sizes())
        packer = ShardPacker(destination, plan.kind, list(plan.levels.values()), plan.primary, request.resize)
        fresh = pack_all(packer, work, plan.shards, 1 if destination.in_process else workers)
        info = _finish(destination, request, plan)
    destination.end()
    return Written(info, fresh, info.num_samples - fresh)


def _finish(destination: Destination, request: WriteRequest, plan: Plan) -> SetInfo:
    description = SetDescription(
        kind=plan.kind,
        classes=plan.classes,
        source=request.source,
        seed=request.seed,
        levels=plan.levels,
        primary=plan.primary,
        request=request.as_json(),
        parent=plan.parent,
        held_out=plan.held_out,
        resized=plan.resized,
    )
    work = destination.work
    info = finish(
        destination.staging,
        lambda: (read_record(work, number) for number in range(plan.shards)),
        description,
    )
    for name in (MANIFEST_FILE, INDEX_FILE, STATS_FILE, SET_FILE):
        destination.publish(name)
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
        if not (destination.work / PLAN_FILE).exists():
            with contextlib.suppress(UserError):
                destination.end()
        raise


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Tell a full disk in one line, wherever it shows: in the plan, a shard or the manifest."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: no space left",
                mend="free some and run the same command again; finished shards are kept",
            ) from error
        raise
