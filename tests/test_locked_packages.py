"""The files that continuous integration installs are those of constraints.txt, each with its hash."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKED = re.compile(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_locked_file_has_a_hash_and_the_version_of_the_constraints() -> None:
    lines = [line for line in (ROOT / ".ci" / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    locked = {normal(found[1]): found[2] for line in lines if (found := LOCKED.fullmatch(line))}
    assert len(locked) == len(lines)
    constraints = [
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"
    ]
    pinned = {normal(name): version for name, version in constraints}
    assert locked.items() <= pinned.items(), "make lock"


def test_what_the_tests_need_is_locked() -> None:
    locked = {normal(line.split("==")[0]) for line in (ROOT / ".ci" / "requirements.txt").open()}
    extras = re.search(r"EXTRAS := (\S+)", (ROOT / "Makefile").read_text())
    assert extras is not None
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split("\n")
    for extra in extras[1].split(","):
        wanted += setup["options.extras_require"][extra].split("\n")
    names = {normal(re.split(r"[\[<>=;! ]", line)[0]) for line in wanted if line and not line.startswith("#")}
    assert names <= locked, "make lock"
