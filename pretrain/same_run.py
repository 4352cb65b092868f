"""Whether a run folder holds the run that is asked for, and whether it may."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nml import layout
from nml.errors import UserError
from nml.initial_weights import InitialWeights, describe_weights
from nml.run_config import first_difference, read_command, read_record
from nml.untrusted import Untrusted, parse_yaml, typed
from pretrain.world import World, from_main

if TYPE_CHECKING:
    from shards.shardset import ShardSet

_OTHER = "name another --run-dir, or remove that one"
_BROKEN = "put it back as it was, or name another --run-dir"


def check_same_run(run: Path, text: str) -> None:
    """Refuse to continue a run folder with another recipe, data, noise, seed or engine.

    Args:
        run: The run folder; nothing is wrong with one that is not there.
        text: The resolved command as YAML.

    Raises:
        UserError: Naming the first value that differs.
    """
    before = read_command(run / layout.CONFIG, mend=_BROKEN)
    other = first_difference(before, parse_yaml(text)) if before is not None else None
    if other:
        raise UserError(f"{other.name} {other.now}: {run} holds a run with {other.before}", mend=_OTHER)


def check_same_command(world: World, text: str) -> None:
    """Refuse ranks that were given different runs: each would train its own way. Collective.

    Args:
        world: This process, in its group.
        text: Its resolved command as YAML.

    Raises:
        UserError: On every rank, naming the first rank and value that differ.
    """
    import torch.distributed as dist

    other = first_difference(parse_yaml(from_main(text)), parse_yaml(text))
    told = other and f"{other.name} {other.now} on rank {world.rank}: rank 0 was started with {other.before}"
    every: list[str | None] = [None] * world.size
    dist.all_gather_object(every, told)
    mistake = next(filter(None, every), None)
    if mistake is not None:
        raise UserError(mistake, mend="start all ranks by the same command")


def describe_data(shard_set: ShardSet, level: str) -> dict[str, Any]:
    """Return what tells the data of a run from any other: the samples, and their supervision at its level.

    A path does not: another set may be written to it, and a level made anew under its old name.
    """
    return {"set_fingerprint": shard_set.fingerprint, "level": shard_set.level(level).as_json()}


def check_same_data(run: Path, shard_set: ShardSet, level: str) -> None:
    """Refuse to continue a run folder, or to call it done, with other samples or other noise.

    Raises:
        UserError: Naming what differs.
    """
    before = read_record(run / layout.DATA, set_fingerprint=str, level=dict, mend=_BROKEN)
    if before is None:
        return
    now = describe_data(shard_set, level)
    if before["set_fingerprint"] != now["set_fingerprint"]:
        raise UserError(f"--shards {shard_set.path}: {run} holds a run on another set", mend=_OTHER)
    old, new = before["level"], now["level"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(
                f"--shards {shard_set.path}: {name} {new.get(name)} of its level {level}, but {run} holds a "
                f"run on one with {old.get(name)}",
                mend=_OTHER,
            )


def check_same_start(run: Path, location: str | None) -> InitialWeights | None:
    """Return what tells the weights that a run begins from, and refuse to continue it with others.

    A run that goes on needs them no more, so that they may be gone by then.

    Args:
        run: The run folder; nothing is wrong with one that is not there.
        location: What ``--init-from`` says.

    Returns:
        None where the weights are fresh.

    Raises:
        UserError: If there are none at ``location``, or the run began from others.
    """
    record = read_record(run / layout.DATA, set_fingerprint=str, level=dict, mend=_BROKEN)
    if location is None:
        return None
    before = _start_of(run, record or {})
    try:
        now = describe_weights(location)
    except UserError:
        saved = any(layout.is_complete(folder) for folder in layout.step_folders(run))
        if before is None or not (saved or layout.is_done(run)):
            raise
        return before
    if before is not None and before.sha256 != now.sha256:
        raise UserError(
            f"--init-from {location}: {run} holds a run that began from other weights", mend=_OTHER
        )
    return now


def _start_of(run: Path, record: dict[str, Any]) -> InitialWeights | None:
    if "init" not in record:
        return None
    try:
        return typed(InitialWeights, record["init"])
    except Untrusted as error:
        raise UserError(f"{run}: {layout.DATA}: init: {error}", mend=_BROKEN) from error


def read_done(run: Path) -> dict[str, Any] | None:
    """Return what a finished run says of itself, or None of one that is not finished.

    Raises:
        UserError: If it does not read.
    """
    mend = "remove it, and the same command continues from the newest checkpoint"
    return read_record(run / layout.DONE, step=int, epochs=int, mend=mend)


def check_can_be_written(run: Path) -> None:
    """Refuse a run folder that cannot be made or written to, and leave everything as it was.

    Raises:
        UserError: With the reason.
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(run.parents), run):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise UserError(
            f"--run-dir {run}: cannot be written: {error.strerror}", mend="name a folder you may write to"
        ) from error
    finally:
        for folder in reversed(made):
            # Somebody else may have put something there by now.
            with contextlib.suppress(OSError):
                folder.rmdir()
