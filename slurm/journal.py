"""jobs.jsonl: what was asked of Slurm, appended before and after each submission.

A crash between the two leaves a line that says so, and the token in it finds the job in the queue.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from nml.files import fsync_folder, make_folder
from nml.untrusted import parse_json
from slurm.members import Submission

FILE = "jobs.jsonl"
_UNANSWERED = ("submitting", "retrying", "unheard")


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
        """Return every line, oldest first; a last line cut short by a crash is left out."""
        if not self.file.exists():
            return []
        whole, _, _ = self.file.read_text().rpartition("\n")
        return [parse_json(line) for line in whole.splitlines()]

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
