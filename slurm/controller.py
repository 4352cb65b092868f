"""What is asked of Slurm's controller by its client commands, and asked again while it is busy.

A command that fails has told nothing: an empty queue is one that squeue has shown, and a job is
cancelled where scancel has said so. Whoever took silence for either would submit twice what runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from nml.errors import UserError

# The clients give up on a busy controller long before the controller does.
TRIES = 4
RETRY_SECONDS = float(os.environ.get("NML_SUBMIT_RETRY_SECONDS", "10"))
_ANSWER_SECONDS = 120
# Said by a controller, or of one, that may answer later.
BUSY = re.compile(
    r"timed out|temporarily unable|Unable to contact|Resource temporarily|try again|Connection refused"
    r"|Zero Bytes|connect failure",
    re.IGNORECASE,
)
# Said of jobs that have ended, which is an answer.
_ENDED = re.compile(r"Invalid job id specified|already completing or completed", re.IGNORECASE)


class NoAnswer(UserError):
    """Slurm did not answer, or refused; what was asked is not known, what was ordered not done."""


def answer(
    argv: Sequence[str], *, seconds: float = 60, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return how a client command of Slurm ended, and what it said; one that does not run has failed.

    Args:
        argv: The command.
        seconds: How long it may take.
        more: Environment variables on top of one's own.
    """
    own = os.environ | (more or {})
    try:
        return subprocess.run(argv, env=own, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", f"{argv[0]} timed out")
    except OSError as error:
        return subprocess.CompletedProcess(argv, 1, "", f"{argv[0]} does not run here: {error}")


def pause(attempt: int) -> None:
    """Wait before the next try, longer after each."""
    time.sleep(RETRY_SECONDS * attempt)


def ask(argv: list[str], *, mend: str, tries: int = TRIES) -> str:
    """Return what a client command of Slurm printed.

    Args:
        argv: The command.
        mend: What its user can do where there is no answer.
        tries: How often to ask.

    Raises:
        NoAnswer: If it fails each time.
    """
    said = ""
    # A partition or a state that its user likes to see would hide all other jobs.
    own = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    for attempt in range(tries):
        if attempt:
            pause(attempt)
        try:
            done = subprocess.run(argv, env=own, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        complaints = [line for line in done.stderr.splitlines() if not _ENDED.search(line)]
        if done.returncode == 0 or (done.stderr.strip() and not complaints):
            return done.stdout
        said = "; ".join(complaints) or f"exit status {done.returncode}"
    raise NoAnswer(f"{argv[0]} failed: {said}", mend=mend)


def show_queue(*words: str, users: Collection[str] = (), tries: int = TRIES) -> str:
    """Return what squeue prints of the user's jobs.

    Args:
        words: Options of squeue.
        users: Whose jobs; none: this user's.
        tries: How often to ask.

    Raises:
        NoAnswer: If it fails each time: that is not an empty queue.
    """
    whose = f"--user={','.join(sorted(users))}" if users else "--me"
    return ask(
        ["squeue", "--noheader", whose, *words],
        mend="say it again once Slurm answers",
        tries=tries,
    )


class Waiting(NamedTuple):
    """A job of anybody's that waits for others.

    Attributes:
        id: Its id, ``12_3`` of an element of an array.
        user: Whose it is.
        parents: The jobs that have to end well before.
        comment: Its comment.
    """

    id: str
    user: str
    parents: frozenset[str]
    comment: str


def waiting_jobs() -> list[Waiting]:
    """Return every job in the queue, this user's or not, that waits for others to end well.

    Raises:
        NoAnswer: If squeue fails.
    """
    words = ("--noheader", "--states=PENDING", "--array", "--format=%F|%K|%u|%E|%k")
    found = []
    for line in ask(["squeue", *words], mend="say it again once Slurm answers").splitlines():
        array, index, user, waits, comment = line.split("|", 4)
        parents = []
        for kind, of in re.findall(r"(afterok|aftercorr):(\d+(?:_(?:\d+|\*))?)", waits):
            # An element of an array waits for the one of its number.
            parents.append(of.replace("*", index) if kind == "aftercorr" else of)
        if parents:
            own = array if index == "N/A" else f"{array}_{index}"
            found.append(Waiting(own, user, frozenset(parents), comment))
    return found


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended by themselves are no failure.

    Raises:
        NoAnswer: If they may still run.
    """
    ids = list(jobs)
    if ids:
        ask(["scancel", *ids], mend=f"they may still run; once Slurm answers: scancel {' '.join(ids)}")


def hides_jobs() -> bool:
    """Whether this cluster shows nobody the jobs of others: ``PrivateData`` of its configuration."""
    shown = answer(["scontrol", "show", "config"]).stdout
    return re.search(r"^PrivateData\s*=.*\bjobs\b", shown, re.MULTILINE) is not None


def jobs_by_token(token: str, *, user: str = "") -> list[str]:
    """Return the ids of the jobs and arrays in the queue that carry ``token`` in their comment.

    Args:
        token: The word.
        user: Whose jobs to look through; empty: this user's.

    Raises:
        NoAnswer: If squeue fails.
    """
    listed = show_queue("--format=%F %k", users=[user] if user else ())
    return sorted({line.split(None, 1)[0] for line in listed.splitlines() if line.endswith(token)})


def cancel_by_token(token: str, *, but: Iterable[str] = ()) -> None:
    """Cancel every job that carries ``token``, but for those named.

    Raises:
        NoAnswer: If there may still be one.
    """
    kept = {job.partition("_")[0] for job in but}
    cancel(job for job in jobs_by_token(token) if job not in kept)
