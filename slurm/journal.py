"""jobs.jsonl: what was asked of Slurm, appended before and after each submission.

A crash between the two leaves a line that says so, and the token in it finds the job in the queue.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from nml.files import fsync_folder, make_folder
from nml.untrusted import Untrusted, check_object, parse_json, read_file, shown
from slurm.members import Submission

FILE = "jobs.jsonl"
_UNANSWERED = ("submitting", "retrying", "unheard")
# What becomes an argument of Slurm's commands: with nothing for a token, every job would carry it.
_TOKEN = re.compile(r"nml-[0-9a-f]{1,64}")
_JOB = re.compile(r"[0-9]{1,20}(_[0-9]{1,10})?")


class Journal:
    """The journal of a run or a sweep.

    Args:
        folder: The folder that holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    def note(self, event: str, submission: Submission, **more: Any) -> None:
        """Append one line, and have it on disk before anything else happens."""
        line = {
            "time": time.time(),
            "event": event,
            "stage": submission.stage,
            "token": submission.token,
            "members": [member.name for member in submission.members],
            **more,
        }
        make_folder(self.file.parent)
        new = not self.file.exists()
        with self.file.open("a") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            fsync_folder(self.file.parent)

    def lines(self) -> list[dict[str, Any]]:
        """Return every line, oldest first; a last line cut short by a crash is left out.

        Raises:
            Untrusted: If a line is none of a journal's.
        """
        if not self.file.exists():
            return []
        whole, _, _ = read_file(self.file).rpartition(b"\n")
        try:
            return [_line(parse_json(line)) for line in whole.splitlines()]
        except Untrusted as error:
            error.path = self.file
            raise

    def unanswered(self) -> list[str]:
        """Return the tokens of submissions of which nobody knows whether Slurm took them."""
        last = {line["token"]: line["event"] for line in self.lines()}
        return [token for token, event in last.items() if event in _UNANSWERED]

    def jobs(self) -> dict[str, str]:
        """Return the newest job id of each member, by the member's name."""
        found: dict[str, str] = {}
        for line in self.lines():
            if line["event"] == "submitted":
                found |= dict(zip(line["members"], line["jobs"], strict=True))
        return found

    def submission(self, job: str) -> Path:
        """Return the file of the submission that Slurm knows as ``job``.

        Raises:
            KeyError: If the journal has no such job.
        """
        for line in self.lines():
            if job in line.get("jobs", ()):
                return self.file.parent / f"{line['token']}.json"
        raise KeyError(job)


def _line(fields: Any) -> dict[str, Any]:
    """Return a line whose ids are such as Slurm and the launcher give.

    Raises:
        Untrusted: If it is none.
    """
    line = check_object(fields, event=str, stage=str, token=str, members=list)
    jobs = line.get("jobs", [])
    if not _TOKEN.fullmatch(line["token"]):
        raise Untrusted(f"token is {shown(line['token'])}")
    if not all(isinstance(name, str) for name in line["members"]):
        raise Untrusted(f"members is {shown(line['members'])}")
    if not isinstance(jobs, list) or not all(isinstance(job, str) and _JOB.fullmatch(job) for job in jobs):
        raise Untrusted(f"jobs is {shown(jobs)}")
    if line["event"] == "submitted" and len(jobs) != len(line["members"]):
        raise Untrusted(f"it names {len(jobs)} jobs of {len(line['members'])} members")
    return line
