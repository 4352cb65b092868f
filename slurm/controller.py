"""What is asked of Slurm's controller by its client commands, and asked again while it is busy.

A command that fails has told nothing: an empty queue is one that squeue has shown, and a job is
cancelled where scancel has said so. Whoever took silence for either would submit twice what runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable

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
    for attempt in range(tries):
        if attempt:
            pause(attempt)
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        complaints = [line for line in done.stderr.splitlines() if not _ENDED.search(line)]
        if done.returncode == 0 or (done.stderr.strip() and not complaints):
            return done.stdout
        said = "; ".join(complaints) or f"exit status {done.returncode}"
    raise NoAnswer(f"{argv[0]} failed: {said}", mend=mend)


def show_queue(*words: str, tries: int = TRIES) -> str:
    """Return what squeue prints of the user's jobs.

    Raises:
        NoAnswer: If it fails each time: that is not an empty queue.
    """
    return ask(
        ["squeue", "--noheader", "--me", *words],
        mend="say it again once Slurm answers",
        tries=tries,
    )


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended by themselves are no failure.

    Raises:
        NoAnswer: If they may still run.
    """
    ids = list(jobs)
    if ids:
        ask(["scancel", *ids], mend=f"they may still run; once Slurm answers: scancel {' '.join(ids)}")


def jobs_by_token(token: str) -> list[str]:
    """Return the ids of the jobs and arrays in the queue that carry ``token`` in their comment.

    Raises:
        NoAnswer: If squeue fails.
    """
    listed = show_queue("--format=%F %k")
    return sorted({line.split(None, 1)[0] for line in listed.splitlines() if line.endswith(token)})


def cancel_by_token(token: str, *, but: Iterable[str] = ()) -> None:
    """Cancel every job that carries ``token``, but for those named.

    Raises:
        NoAnswer: If there may still be one.
    """
    kept = {job.partition("_")[0] for job in but}
    cancel(job for job in jobs_by_token(token) if job not in kept)
