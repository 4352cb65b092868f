"""Change the modules that decide what is true, one place at a time, and count the changes that tests notice.

    python -m tests.mutants                      # what `make mutants` runs
    python -m tests.mutants --sample 0 shards/quota.py
                                                 # all mutants of a module

mutmut makes the mutants and runs the tests that cover each (settings: [tool.mutmut] in pyproject.toml). This
draws a sample of every module's, leaves out those of which equivalent_mutants.toml says why nothing can
notice them, and prints the share of noticed ones by module, and each that was not.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
# A test that ends otherwise than it should has noticed, also by hanging or by crashing.
NOTICED = ("killed", "timeout", "segfault", "suspicious")
LEAST = 0.95


class Change(NamedTuple):
    """What a mutant is: the lines that it takes the place of, and those that it has instead."""

    was: str
    becomes: str


def change_of(diff: str) -> Change:
    """Read a change off a unified diff."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    sides = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return Change(*sides)


def equivalent_changes() -> dict[tuple[str, Change], str]:
    """Return the changes that nothing can notice, with the reason of each."""
    return {
        (entry["file"], Change(entry["was"], becomes)): entry["reason"]
        for entry in tomllib.loads(EQUIVALENT.read_text())["equivalent"]
        for becomes in entry["becomes"]
    }


def mutants_of(path: Path) -> list[str]:
    """Return the names of a module's mutants."""
    return [
        get_mutant_name(path, name) for name in mutate_file_contents(str(path), path.read_text()).mutant_names
    ]


def draw(path: Path, sample: int, seed: int) -> list[str]:
    """Return a sample of a module's mutants, the same for every run of a seed; all of them for 0."""
    names = mutants_of(path)
    # Shuffled first, so that a larger sample holds the smaller ones.
    random.Random(f"{seed} {path}").shuffle(names)
    return names[: sample or None]


class Outcome(NamedTuple):
    """What became of a module's mutants.

    Attributes:
        path: The module.
        made: How many mutants it has.
        tried: How many of the sample can be noticed.
        equivalent: How many of the sample cannot.
        missed: Difference and status of those that no test noticed.
    """

    path: Path
    made: int
    tried: int
    equivalent: int
    missed: list[tuple[str, str]]

    @property
    def share(self) -> float:
        """Noticed ones of those tried."""
        return 1 - len(self.missed) / max(self.tried, 1)


def outcomes(drawn: dict[Path, list[str]]) -> Iterator[Outcome]:
    """Read what mutmut noted."""
    known = equivalent_changes()
    for path, names in drawn.items():
        noted = SourceFileMutationData(path=path)
        noted.load()
        equivalent, missed = 0, []
        for name in names:
            status = status_by_exit_code[noted.exit_code_by_key[name]]
            if status in NOTICED:
                continue
            diff = get_diff_for_mutant(name, path=path)
            if (str(path), change_of(diff)) in known:
                equivalent += 1
            else:
                missed.append((f"{name}: {status}", diff))
        yield Outcome(path, len(noted.exit_code_by_key), len(names) - equivalent, equivalent, missed)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "modules", nargs="*", type=Path, help="files of [tool.mutmut] only_mutate; default: all"
    )
    parser.add_argument("--sample", type=int, default=12, help="mutants a module, 0 for all (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    parser.add_argument("--processes", type=int, default=2, help="mutants tried at once (default: 2)")
    asked = parser.parse_args()
    os.chdir(ROOT)
    paths = sorted(walk_mutatable_files())
    unknown = [str(path) for path in asked.modules if path not in paths]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not mutated; possible: {', '.join(map(str, paths))}")
    drawn = {path: draw(path, asked.sample, asked.seed) for path in asked.modules or paths}
    drawn = {path: names for path, names in drawn.items() if names}
    # Threads do not survive the fork of each mutant; CI=true: hypothesis draws the same for all of them.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CI": "true"}
    command = [
        "mutmut",
        "run",
        "--max-children",
        str(asked.processes),
        *(name for names in drawn.values() for name in names),
    ]
    if subprocess.run(command, env=environment).returncode:
        return 1
    found = list(outcomes(drawn))
    for outcome in found:
        for name, diff in outcome.missed:
            print(f"\n{name}\n{diff}")
    print(f"\n{'module':34} {'mutants':>7} {'tried':>6} {'equivalent':>10} {'noticed':>8}")
    for outcome in found:
        noticed = outcome.tried - len(outcome.missed)
        print(
            f"{outcome.path!s:34} {outcome.made:7} {outcome.tried:6} {outcome.equivalent:10} "
            f"{noticed:4} {outcome.share:6.1%}"
        )
    tried, missed = sum(one.tried for one in found), sum(len(one.missed) for one in found)
    print(
        f"{'all':34} {sum(one.made for one in found):7} {tried:6} {sum(one.equivalent for one in found):10} "
        f"{tried - missed:4} {1 - missed / max(tried, 1):6.1%}"
    )
    return int(1 - missed / max(tried, 1) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
