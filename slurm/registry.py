"""Whose job is it? Each run and each set keeps the journal of its own jobs, whoever submits them.

A sweep submits members that others want as well: two sweeps share a pre-training, ``launch.py pretrain``
trains what a sweep has in its plan, a colleague works in the same folder. So a member's jobs are noted in the
``launch`` folder of its run or set, with the user and the place of the submission. Who wants the member then
looks there, and waits for that job instead of submitting another.

A claim is a line there that says ``submitting``. It is written with the folder locked and nothing changed
since it was looked at, so of two that want the same at once, one finds the other's claim. It counts while
its launcher lives, told by the lock on the folder that it launches, and afterwards by its answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.files import write_bytes
from nml.locking import LOCK_FILE, NoLocksError, held_alone, is_free
from nml.untrusted import read_object
from slurm import states
from slurm.attempt import CLOSE, newest_attempt
from slurm.controller import cancel_by_token, hides_jobs, jobs_by_token, waiting_jobs
from slurm.invocation import FILE as COMMAND
from slurm.journal import UNANSWERED, Job, Journal, own_user
from slurm.members import Member, Submission

# Two commands that look at the queue at once would each submit what the other submits.
BUSY = "another command launches it"
_WAIT_SECONDS = 120.0
# Of a submission of which nothing reached the queue.
_NOTHING = ("refused", "withdrawn")
_POLL_SECONDS = 0.2


class Taken(Exception):
    """Somebody else has claimed a member since it was looked at."""


class Registry(Journal):
    """The journal of what is launched from a folder, and with it those of its members elsewhere.

    Args:
        folder: The ``launch`` folder that is launched from, absolute.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._seen: dict[Path, int] = {}

    def jobs_for(self, members: Iterable[Member]) -> dict[str, Job]:
        """Return the newest job of each member, by its name."""
        own = self.lines()
        found = self.jobs_of(own)
        # What an earlier version submitted stands in the journal of the sweep alone.
        known = [line for line in own if line["event"] == "submitted"]
        since = {name: line["time"] for line in known for name in line["members"]}
        jobs = {}
        for member in members:
            if member.name in found:
                jobs[member.name] = found[member.name]
            if (home := self._elsewhere(member)) is not None:
                told = [line for line in home.lines() if member.name in line["members"]]
                jobs |= home.jobs_of(line for line in told if line["time"] >= since.get(member.name, 0))
        return jobs

    def active(self, members: Iterable[Member], *, settle: bool = True) -> dict[str, Job]:
        """Return the jobs of members that wait or run, by the member's name, and remember what was seen.

        A claim whose launcher is at work is waited for; one whose launcher died is looked up in the
        queue, and taken out of it.

        Args:
            members: The members.
            settle: Whether to do that: not where nothing is to be submitted.

        Raises:
            NoAnswer: If the queue does not answer.
            UserError: If somebody's submission does not end, or a job is another user's and it cannot be told
                whether it has ended.
        """
        wanted = list(members)
        for member in wanted:
            if settle and member.home is not None:
                self._settle(member, Journal(member.home))
            if (home := self._elsewhere(member)) is not None:
                self._seen[home.file] = _size(home.file)
        jobs = self.jobs_for(wanted)
        found = states.job_states(jobs.values())
        for member in wanted:
            job = jobs.get(member.name)
            if job and not job.is_own and found[job].state == states.UNKNOWN and not _has_ended(member, job):
                _refuse_hidden(member, job)
        return {name: job for name, job in jobs.items() if found[job].active}

    def note(self, event: str, submission: Submission, **more: Any) -> None:
        """Append a line here, and in the journals of members whose jobs belong elsewhere.

        Raises:
            Taken: If it is ``submitting``, and a member is not as :meth:`active` has found it.
        """
        if event == "submitting":
            self._claim(submission)
            super().note(event, submission)
            return
        super().note(event, submission, **more)
        if event != "retrying":
            self._tell(event, submission, **more)

    def withdraw(self, name: str, job: Job) -> None:
        """Note that a member's job was taken back out of the queue."""
        submission = Submission.read(job.submission)
        member = next(one for one in submission.members if one.name == name)
        alone = dataclasses.replace(submission, members=(member,), indices=())
        super().note("withdrawn", alone)
        self._tell("withdrawn", alone)

    def _claim(self, submission: Submission) -> None:
        claimed: list[Member] = []
        for member in submission.members:
            if (home := self._elsewhere(member)) is None:
                continue
            with _held(home.folder):
                if _size(home.file) != self._seen.get(home.file, 0):
                    self._tell("refused", dataclasses.replace(submission, members=tuple(claimed)))
                    raise Taken(member.name)
                home.append("submitting", submission, [member.name], folder=str(self.folder))
            claimed.append(member)

    def _tell(self, event: str, submission: Submission, **more: Any) -> None:
        jobs = more.pop("jobs", None)
        for position, member in enumerate(submission.members):
            if (home := self._elsewhere(member)) is None:
                continue
            own = {} if jobs is None else {"jobs": [jobs[position]]}
            home.append(event, submission, [member.name], folder=str(self.folder), **own, **more)
            if event in _NOTHING:
                _remove_if_never_launched(home)
            self._seen[home.file] = _size(home.file)

    def _settle(self, member: Member, home: Journal) -> None:
        """Wait for the claim of a launcher that is at work; take what a dead one left out of the queue."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while claim := _claim_of(member, home):
            place = Path(claim.get("folder", home.folder))
            if place == self.folder:
                # By one before this, whose token is looked for with the next submission.
                return
            if _is_over(place, claim["time"]):
                break
            if time.monotonic() > deadline:
                raise UserError(f"{place}: {BUSY}", mend="wait for it, or end it")
            time.sleep(_POLL_SECONDS)
        claim = _claim_of(member, home)
        if claim and claim.get("user") in (None, own_user()):
            cancel_by_token(claim["token"])
        elif claim and (jobs := jobs_by_token(claim["token"], user=claim["user"])):
            raise UserError(
                f"{member.name}: job {jobs[0]} of {claim['user']} may be it, and its launcher died",
                mend=f"ask {claim['user']} to cancel it, or to say the launch command again",
            )

    def _elsewhere(self, member: Member) -> Journal | None:
        home = member.home
        return None if home is None or home == self.folder else Journal(home)


def spared_jobs(jobs: Iterable[Job], folder: Path) -> dict[Job, str]:
    """Return those of the jobs that are not one sweep's alone to cancel, each with why.

    Args:
        jobs: Jobs that wait or run.
        folder: The ``launch`` folder of the sweep.

    Raises:
        NoAnswer: If the queue does not answer.
    """
    spared = {job: f"it was submitted from {job.folder.parent}" for job in jobs if job.folder != folder}
    own = {job.id: job for job in jobs if job.folder == folder}
    waiting = waiting_jobs() if own else []
    tokens = tuple(job.token for job in own.values())
    wanted = [waiter for waiter in waiting if not waiter.comment.endswith(tokens)]
    while wanted:
        waiter = wanted.pop()
        for parent in waiter.parents & own.keys():
            if own[parent] not in spared:
                spared[own[parent]] = f"job {waiter.id} of {waiter.user} waits for it"
                # And with it what it waits for itself.
                wanted += [one for one in waiting if one.id == parent]
    return spared


@contextlib.contextmanager
def nothing_left_if_refused(launch: Path, *written: Path) -> Iterator[None]:
    """Have a command that is refused leave a run or sweep as it was; its ``launch`` folder has to be held.

    What was refused when a part was in the queue already stays, to be looked at.

    Args:
        launch: The folder.
        written: Files outside of it that the command writes.
    """
    before = {file: file.read_bytes() if file.exists() else None for file in (launch / COMMAND, *written)}
    new = not [file for file in launch.iterdir() if file.name != LOCK_FILE]
    try:
        yield
    except UserError:
        for file, content in before.items():
            if content is not None:
                write_bytes(file, content)
        if new and _came_to_nothing(Journal(launch)):
            for file in written:
                file.unlink(missing_ok=True)
            _remove(launch)
        raise


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder that others hold for moments only, or for as long as they launch it."""
    deadline = time.monotonic() + _WAIT_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held_alone(folder, busy=BUSY))
                break
            except UserError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)
        yield


def _remove_if_never_launched(home: Journal) -> None:
    """Remove the folder that was made for a claim of which nothing came."""
    with _held(home.folder):
        others = [file for file in home.folder.iterdir() if file.name not in (LOCK_FILE, home.file.name)]
        if not others and _came_to_nothing(home):
            _remove(home.folder)


def _came_to_nothing(journal: Journal) -> bool:
    """Whether Slurm has nothing of all that a journal tells; without an answer it may have."""
    last = {line["token"]: line["event"] for line in journal.lines()}
    return set(last.values()) <= set(_NOTHING)


def _remove(launch: Path) -> None:
    shutil.rmtree(launch)
    for empty in launch.parents[:2]:
        with contextlib.suppress(OSError):
            empty.rmdir()


def _is_over(place: Path, since: float) -> bool:
    """Whether nobody launches from a folder any more."""
    try:
        return is_free(place / LOCK_FILE)
    except NoLocksError:
        return time.time() - since > _WAIT_SECONDS


def _claim_of(member: Member, home: Journal) -> dict[str, Any] | None:
    """Return the newest line about a member, if it is a claim without an answer."""
    lines = [line for line in home.lines() if member.name in line["members"]]
    return lines[-1] if lines and lines[-1]["event"] in UNANSWERED else None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _has_ended(member: Member, job: Job) -> bool:
    """Whether a job that Slurm does not show is known to have ended."""
    if not hides_jobs():
        return True
    newest = newest_attempt(Path(member.record), job.id)
    with contextlib.suppress(OSError, ValueError):
        return newest is not None and read_object(newest / CLOSE, outcome=str)["outcome"] != "requeue"
    return False


def _refuse_hidden(member: Member, job: Job) -> None:
    raise UserError(
        f"{member.name} was submitted as job {job.id} of {job.user}, whose jobs this cluster hides",
        mend=f"ask {job.user}; if it is not in the queue, remove {member.home}/jobs.jsonl",
    )
