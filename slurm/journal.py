"""jobs.jsonl: what was asked of Slurm, appended before and after each submission.

A crash between the two leaves a line that says so, and the token in it finds the job in the queue.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nml.files import append_json_line, make_folder
from nml.untrusted import Untrusted, check_object, parse_json, read_file, shown
from slurm.members import Submission

FILE = "jobs.jsonl"
UNANSWERED = ("submitting", "retrying", "unheard")
# What becomes an argument of Slurm's commands: with nothing for a token, every job would carry it.
_TOKEN = re.compile(r"nml-[0-9a-f]{1,64}")
_JOB = re.compile(r"[0-9]{1,20}(_[0-9]{1,10})?")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@$-]{0,63}")


class Job(NamedTuple):
    """A job of one member.

    Attributes:
        id: As Slurm's commands take it: ``12``, or ``12_3`` of an array.
        token: The word in its comment. Ids begin anew with a new controller, and every cluster has its own:
            a job of that number without the word is another one.
        folder: Where its submission, its pickle and its logs are, the ``launch`` folder of who submitted it.
        user: Whose it is; empty where a journal of an earlier version does not say.
    """

    id: str
    token: str
    folder: Path
    user: str = ""

    @property
    def array(self) -> str:
        """The id of the whole array, or its own."""
        return self.id.partition("_")[0]

    @property
    def submission(self) -> Path:
        """The file of its submission."""
        return self.folder / f"{self.token}.json"

    @property
    def is_own(self) -> bool:
        """Whether it is a job of this user."""
        return self.user in ("", own_user())


def own_user() -> str:
    """Return the user that runs this process, by number where it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


class Journal:
    """The journal of a run or a sweep.

    Args:
        folder: The folder that holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / FILE

    def note(self, event: str, submission: Submission, **more: Any) -> None:
        """Append one line, and have it on disk before anything else happens."""
        self.append(event, submission, [member.name for member in submission.members], **more)

    def append(self, event: str, submission: Submission, names: Sequence[str], **more: Any) -> None:
        """Append one line about some members of a submission."""
        line = {
            "time": time.time(),
            "event": event,
            "stage": submission.stage,
            "token": submission.token,
            "members": list(names),
            "user": own_user(),
            **more,
        }
        make_folder(self.file.parent)
        append_json_line(self.file, line)

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
        """Return the tokens of submissions from here of which nobody knows whether Slurm took them."""
        last = {line["token"]: line["event"] for line in self.lines() if "folder" not in line}
        return [token for token, event in last.items() if event in UNANSWERED]

    def jobs(self) -> dict[str, Job]:
        """Return the newest job of each member, by the member's name."""
        return self.jobs_of(self.lines())

    def jobs_of(self, lines: Iterable[dict[str, Any]]) -> dict[str, Job]:
        """Return the newest job of each member that some lines of it tell."""
        found: dict[str, Job] = {}
        for line in lines:
            if line["event"] == "withdrawn":
                for name in line["members"]:
                    found.pop(name, None)
            if line["event"] == "submitted":
                place, user = Path(line.get("folder", self.folder)), line.get("user", "")
                for name, job in zip(line["members"], line["jobs"], strict=True):
                    found[name] = Job(job, line["token"], place, user)
        return found


def _line(fields: Any) -> dict[str, Any]:
    """Return a line whose ids are such as Slurm and the launcher give.

    Raises:
        Untrusted: If it is none.
    """
    line = check_object(fields, time=int | float, event=str, stage=str, token=str, members=list)
    jobs = line.get("jobs", [])
    if not _TOKEN.fullmatch(line["token"]):
        raise Untrusted(f"token is {shown(line['token'])}")
    if not all(isinstance(name, str) for name in line["members"]):
        raise Untrusted(f"members is {shown(line['members'])}")
    if not isinstance(jobs, list) or not all(isinstance(job, str) and _JOB.fullmatch(job) for job in jobs):
        raise Untrusted(f"jobs is {shown(jobs)}")
    if line["event"] == "submitted" and len(jobs) != len(line["members"]):
        raise Untrusted(f"it names {len(jobs)} jobs of {len(line['members'])} members")
    if not isinstance(line.get("user", "u"), str) or not _USER.fullmatch(line.get("user", "u")):
        raise Untrusted(f"user is {shown(line['user'])}")
    place = line.get("folder", "/")
    if not isinstance(place, str) or not place.startswith("/") or "\0" in place:
        raise Untrusted(f"folder is {shown(place)}")
    return line
