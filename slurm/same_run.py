"""Whether the run that lies in a folder is the one that is asked for.

A run's name tells its recipe, level, seed and engine. Its epochs, its data and the rest of its recipe are
told by what it left in its folder, and a run that differs there is no part of what is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nml import layout
from nml.errors import UserError
from nml.initial_weights import describe_weights
from nml.levels import CLEAN_LEVEL
from nml.run_config import Difference, first_difference, read_command
from nml.run_options import absolute
from nml.set_file import local_folder, read_set_record
from nml.untrusted import Untrusted, parse_yaml, read_json, shown
from nml.urls import without_secret
from slurm import states
from slurm.journal import Job
from slurm.members import Member, Submission
from slurm.registry import Registry
from slurm.request import PretrainRequest
from slurm.rooms import options_of

_BUNDLED = "the bundled digits"


def check_same_run(
    request: PretrainRequest, command: str, *, mend: str, measured: Sequence[Path] = ()
) -> None:
    """Refuse a request whose folder holds another run; nothing is wrong with an empty one.

    Args:
        request: The run that is asked for.
        command: The resolved command of the run, or of one with the same recipe, as YAML.
        mend: What its user can do about it.
        measured: Where it may be told what was measured under its name, should its folder be gone.

    Raises:
        UserError: Naming the run, the first value that differs, and what it is there.
    """
    told = [file for file in (request.path / layout.CONFIG, *measured) if file.exists()]
    if not told or (before := read_command(told[0], mend=mend)) is None:
        return
    now = parse_yaml(command)
    asked = request.options
    now |= {"noise": asked.noise, "seed": asked.seed, "engine": asked.engine}
    if asked.epochs is not None:
        now["recipe"]["epochs"] = asked.epochs
    other = first_difference(before, now) or _other_data(request, before)
    if other:
        holds = (
            f"{request.path} holds a run" if told[0].parent == request.path else f"{told[0]} tells of a run"
        )
        raise UserError(f"{other.name} {other.now}: {holds} with {other.before}", mend=mend)


def check_same_words(member: Member, folder: Path) -> None:
    """Refuse a run that waits or runs with other options: it is not what is asked for, and may yet become it.

    Args:
        member: The run that is asked for.
        folder: Where it would be submitted from, with the journal of what was.

    Raises:
        UserError: Naming the job, the first option that differs, and what it is there.
    """
    job = Registry(folder).jobs_for([member]).get(member.name)
    there = None if job is None else submitted_member(job, member.name)
    if job is None or there is None:
        return
    before, now = options_of(there.argv), options_of(member.argv)
    other = next((name for name in [*now, *before] if now.get(name) != before.get(name)), None)
    if other and states.is_active(job):
        asked, submitted = (" ".join(words.get(other, ["not given"])) for words in (now, before))
        raise UserError(
            f"{other} {asked}: {member.name} is in the queue as job {job.id} with {submitted}",
            mend="cancel it first, or wait for its end",
        )


def submitted_member(job: Job, name: str) -> Member | None:
    """Return a member as it was submitted; None where that is not there any more, or another user's to read.

    Raises:
        Untrusted: If its submission has no such member.
    """
    try:
        members = Submission.read(job.submission).members
    except OSError:
        return None
    found = next((one for one in members if one.name == name), None)
    if found is None:
        raise Untrusted(f"it has no member {shown(name)}", job.submission)
    return found


def _other_data(request: PretrainRequest, before: dict[str, Any]) -> Difference | None:
    """Return how the data of a finished run differs; one that goes on checks its data itself."""
    if not layout.is_done(request.path):
        return None
    meta = _read(request.path / layout.EXPORT / layout.META)
    if (other := _other_start(request, meta)) is not None:
        return other
    used = meta.get("noise", {})
    try:
        asked = read_set_record(request.shard_set)
    except UserError:
        asked = {}
    named = request.options.shards
    trained_on = before.get("shards")
    if trained_on is None:
        same = named is None
    else:
        trained_on = without_secret(trained_on)
        same = _place(absolute(trained_on, request.base)) == _place(request.shard_set)
    if used and "fingerprint" in asked:
        # A set may move. What tells it is its samples, and for a noisy level, the manifest: it changes
        # where a level is added, but then the set still lies where it was.
        told = request.level == CLEAN_LEVEL or used["manifest_sha256"] == asked["manifest_sha256"]
        same = used["set_fingerprint"] == asked["fingerprint"] and (same or told)
    if same:
        return None
    return Difference("--shards", trained_on or _BUNDLED, named or _BUNDLED)


def _other_start(request: PretrainRequest, meta: dict[str, Any]) -> Difference | None:
    """Return how the weights that a finished run began from differ; those that are gone do not."""
    location, began = request.resolved.init_from, meta.get("init")
    if location is None or not began:
        return None
    try:
        now = describe_weights(location)
    except UserError:
        return None
    return None if now.sha256 == began["sha256"] else Difference("--init-from", began["file"], location)


def _place(location: str) -> str | Path:
    """Return what two names of one place have in common."""
    folder = local_folder(location)
    return without_secret(location).rstrip("/") if folder is None else folder.resolve()


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
