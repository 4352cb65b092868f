"""A sweep on a cluster: what is missing of it, submitted as far as the queue takes it.

Where it takes no more, the rest follows by itself: a last small job waits for the end of what was submitted,
and submits the next from the node that it runs on (:mod:`slurm.continuing`). Nothing stays alive outside.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nml.errors import UserError
from nml.files import write_json
from slurm import executor, states
from slurm.cluster import STAGES, Resources
from slurm.controller import TRIES, cancel, pause
from slurm.dag import PlannedJob, max_array_size, plan_jobs, resolved
from slurm.invocation import command_line
from slurm.journal import Job, own_user
from slurm.members import LAUNCH, Member, Submission
from slurm.plan import Part, make_plan
from slurm.pretraining import run_member
from slurm.registry import Registry, Taken, spared_jobs
from slurm.snapshot import take_snapshot
from slurm.study import Study

INCOMPLETE_STATUS = 75  # EX_TEMPFAIL: the same command again goes on
CONTINUE = "continue"
REST = "continue.json"
_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rest:
    """What the job that goes on with a sweep has to know.

    Attributes:
        snapshot: The code that the sweep runs.
        resources: What each stage asks for.
    """

    snapshot: str
    resources: dict[str, Resources]


def submit_sweep(study: Study, resources: dict[str, Resources], *, snapshot: Path | None = None) -> int:
    """Submit what is missing and not in the queue yet; return the exit status.

    Args:
        study: What the user wants.
        resources: What each stage asks for.
        snapshot: The code to run; None for a copy of what runs now.

    Raises:
        UserError: If Slurm refuses a part; what this call had submitted is then cancelled.
    """
    submission = _Submission(study, resources, snapshot)
    left, full = submission.submit()
    everything = left + len(submission.submitted)
    job = submission.go_on_later() if left else ""
    left = everything - len(submission.submitted)
    if submission.submitted:
        arrays = dict.fromkeys(one.array for one in submission.submitted.values())
        print(f"submitted {len(submission.submitted)} members as jobs {', '.join(arrays)}")
    if left:
        print(f"{left} members are left: {full}")
        later = f"job {job} submits them, once those before it have ended"
        print(later if job else "the same command again submits them")
    if submission.submitted or left:
        print(f"follow it: {command_line('status', study.folder)}")
    else:
        print("nothing to submit")
    print(f"sweep: {study.folder}")
    return INCOMPLETE_STATUS if left and not job else 0


class _Submission:
    """One call's submission of a sweep."""

    def __init__(self, study: Study, resources: dict[str, Resources], snapshot: Path | None) -> None:
        self.study, self.resources, self.snapshot = study, resources, snapshot
        self.folder = study.folder / LAUNCH
        self.registry = Registry(self.folder)
        self.active: dict[str, Job] = {}
        self.submitted: dict[str, Job] = {}
        self._tried = 0

    def submit(self) -> tuple[int, str]:
        """Submit what fits into the queue; return how many members are left, and why."""
        longest = max_array_size()
        try:
            while True:
                parts = self._look()
                try:
                    while True:
                        plan = self._plan(parts, longest)
                        try:
                            self._submit_all(plan)
                            return 0, ""
                        except executor.QueueFull as full:
                            done = self.submitted.keys() | self.active.keys()
                            left = [one for one in parts if not one.complete and one.member.name not in done]
                            if self._tried == 1:
                                if not self.submitted:
                                    raise
                                return len(left), full.what
                            # There may be room for a part of the array.
                            longest = min(longest, self._tried) // 2
                except Taken:
                    print("another command launches a part of it: looking again")
        except BaseException:
            # Half a sweep in the queue would be found by nobody. Others may wait for a part of it by now.
            jobs = list(self.submitted.values())
            spared = spared_jobs(jobs, self.folder) if jobs else {}
            cancel(job.id for job in jobs if job not in spared)
            raise

    def _look(self) -> list[Part]:
        # The queue first, the files second: what ends in between is then found complete. The other way round
        # it would be in neither, and be submitted again.
        self.active = self.registry.active(part.member for part in make_plan(self.study, run_member))
        parts = make_plan(self.study, run_member)
        say_counts(parts, self.active)
        return parts

    def _plan(self, parts: Sequence[Part], longest: int) -> list[PlannedJob]:
        return plan_jobs(
            parts,
            self.active | self.submitted,
            resources=self.resources.__getitem__,
            folder=self.folder,
            longest=longest,
        )

    def _submit_all(self, plan: Sequence[PlannedJob]) -> None:
        ids: dict[str, str] = {}
        for one in plan:
            self._tried = len(one.parts)
            asked = self.resources[one.stage]
            token = new_token()
            submission = one.submission(asked, token=token, snapshot=str(self._code()))
            found = self._hand_over(submission, asked, resolved(one.dependency, ids))
            ids[one.name] = found[0].array
            self.submitted |= {part.member.name: job for part, job in zip(one.parts, found, strict=True)}

    def _hand_over(self, submission: Submission, asked: Resources, dependency: str) -> list[Job]:
        file = self.folder / f"{submission.token}.json"
        ids = executor.submit(submission, asked, file, journal=self.registry, dependency=dependency)
        return [Job(number, submission.token, self.folder, own_user()) for number in ids]

    def _code(self) -> Path:
        if self.snapshot is None:
            self.snapshot = take_snapshot(self.folder / "snapshots")
        return self.snapshot

    def go_on_later(self) -> str:
        """Submit the job that goes on once what is in the queue has ended; return its id, or nothing."""
        waiting = self.registry.jobs().get(CONTINUE)
        if waiting and waiting.id != os.environ.get("SLURM_JOB_ID") and states.is_active(waiting):
            return waiting.id
        own = {name: job for name, job in self.active.items() if job.folder == self.folder} | self.submitted
        if len(own) < 2:
            return ""
        write_json(
            self.folder / REST,
            dataclasses.asdict(Rest(snapshot=str(self._code()), resources=self.resources)),
        )
        # It takes the place of the last one that has not begun, which comes first next time.
        found = states.job_states(self.submitted.values())
        waits = [name for name, job in self.submitted.items() if found[job].state == "PENDING"]
        name = (waits or [*self.submitted])[-1]
        last = self.submitted.pop(name)
        cancel([last.id])
        self.registry.withdraw(name, last)
        del own[name]
        # An image has no sbatch in it.
        asked = dataclasses.replace(self.resources["report"], container="")
        submission = Submission(
            stage=CONTINUE,
            token=new_token(),
            snapshot=str(self._code()),
            members=(self._going_on(),),
            max_idle_attempts=asked.max_idle_attempts,
        )
        before = ":".join(dict.fromkeys(job.array for job in own.values()))
        for attempt in range(TRIES):
            if attempt:
                pause(attempt)
            try:
                [job] = self._hand_over(submission, asked, f"afterany:{before}")
                return job.id
            except executor.QueueFull:
                submission = dataclasses.replace(submission, token=new_token())
            except UserError as error:
                print(f"no job could be submitted that goes on: {error.what}")
                break
        return ""

    def _going_on(self) -> Member:
        return Member(
            name=CONTINUE,
            argv=(sys.executable, "-m", "slurm.continuing", str(self.study.folder)),
            record=str(self.folder / "attempts" / CONTINUE),
            cwd=str(self.study.base),
        )


def new_token() -> str:
    """Return a word by which a submission is found again."""
    return f"nml-{secrets.token_hex(6)}"


def show_jobs(study: Study, resources: dict[str, Resources]) -> None:
    """Print the jobs that :func:`submit_sweep` would submit: what each runs, and its batch script."""
    folder = study.folder / LAUNCH
    active = Registry(folder).active(
        (part.member for part in make_plan(study, run_member)),
        settle=False,
    )
    parts = make_plan(study, run_member)
    say_counts(parts, active)
    ask = resources.__getitem__
    for one in plan_jobs(parts, active, resources=ask, folder=folder, longest=max_array_size()):
        for part, job in zip(one.parts, one.ids, strict=True):
            print(f"# {job} {part.member.name}")
        submission = one.submission(resources[one.stage], token="TOKEN", snapshot="SNAPSHOT")  # noqa: S106
        print(executor.batch_text(submission, resources[one.stage], folder / "TOKEN.json", one.dependency))


def say_counts(parts: Sequence[Part], active: dict[str, Job]) -> None:
    """Print how much of each stage is there, in the queue and to do, and what others train."""
    for stage in STAGES:
        own = [part for part in parts if part.stage == stage]
        if own:
            counts = Counter(
                "complete" if part.complete else "in the queue" if part.member.name in active else "to do"
                for part in own
            )
            print(f"{stage}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    others = [(name, job) for name, job in active.items() if not job.is_own]
    for name, job in others[:_MOST_NAMED]:
        print(f"{name} runs as job {job.id} of {job.user}")
    if len(others) > _MOST_NAMED:
        print(f"and {len(others) - _MOST_NAMED} more run as jobs of others")
