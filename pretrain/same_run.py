"""Whether a run folder holds the run that is asked for, and whether it may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nml import layout
from nml.errors import UserError
from nml.run_config import first_difference

if TYPE_CHECKING:
    from shards.shardset import ShardSet


def check_same_run(run: Path, text: str) -> None:
    """Refuse to continue a run folder with another recipe, data, noise, seed or engine.

    Args:
        run: The run folder; nothing is wrong with one that is not there.
        text: The resolved command as YAML.

    Raises:
        UserError: Naming the first value that differs.
    """
    path = run / layout.CONFIG
    if not path.exists():
        return
    other = first_difference(yaml.safe_load(path.read_text()), yaml.safe_load(text))
    if other:
        raise UserError(
            f"{other.name} {other.now}: {run} holds a run with {other.before}",
            mend="name another --run-dir, or remove that one",
        )


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
    path = run / layout.DATA
    if not path.exists():
        return
    before, now = json.loads(path.read_text()), describe_data(shard_set, level)
    mend = "name another --run-dir, or remove that one"
    if before["set_fingerprint"] != now["set_fingerprint"]:
        raise UserError(f"--shards {shard_set.path}: {run} holds a run on another set", mend=mend)
    old, new = before["level"], now["level"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(
                f"--shards {shard_set.path}: {name} {new.get(name)} of its level {level}, but {run} holds a "
                f"run on one with {old.get(name)}",
                mend=mend,
            )
