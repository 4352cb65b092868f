"""One bit flipped, or the end cut off, anywhere in a set: what readers, verify and relabel make of it.

    python -m tests.shards.damage_grid --draws 2000

draws that many damages of a small set of this project and says how many were told by whom; the exit status is
1 if one was not. The suite draws a few (test_damaged_files.py).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError
from shards.reader import ShardReader
from shards.relabel import relabel
from shards.shardset import ShardSet
from shards.verify import verify

# A level that the set does not have.
ADDED = Fraction("0.5")
_TRUNCATED = 0.2


class Damage(NamedTuple):
    """One bit of a file to flip; or, where there is none, the size to cut it to."""

    file: str
    place: int
    bit: int | None

    def apply(self, folder: Path) -> None:
        """Damage the file."""
        path = folder / self.file
        content = bytearray(path.read_bytes())
        if self.bit is None:
            del content[self.place :]
        else:
            content[self.place] ^= 1 << self.bit
        path.write_bytes(content)


def draw(folder: Path, count: int, seed: int) -> Iterator[Damage]:
    """Yield damages of the files of a set: every file as often, any place of it as likely."""
    chance = random.Random(seed)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for number in range(count):
        name = list(sizes)[number % len(sizes)]
        flipped = chance.random() >= _TRUNCATED
        yield Damage(name, chance.randrange(sizes[name]), chance.randrange(8) if flipped else None)


def read(folder: Path) -> dict[tuple[str, int], object]:
    """Return every label and image that a reader gets, by what it is and its number; damage left out."""
    found: dict[tuple[str, int], object] = {}
    try:
        shard_set = ShardSet.open(folder)
    except UserError:
        return found
    reader = ShardReader(shard_set)
    for sample in range(shard_set.num_samples):
        for level in shard_set.levels.values():
            try:
                found[level.name, sample] = shard_set.index.supervision(sample, level.column)
            except UserError:
                continue
        try:
            place, found["image", sample] = reader.image(sample)
        except UserError:
            continue
        found["key", sample] = place.key
    return found


def is_found(folder: Path) -> bool:
    """Whether shards.verify tells of something."""
    try:
        return any(finding.problem for finding in verify(folder))
    except UserError:
        return True


def faults(folder: Path, damage: Damage, expected: dict[tuple[str, int], object]) -> list[str]:
    """Damage a set, put it back, and return what was not as promised."""
    pristine = {path: path.read_bytes() for path in folder.iterdir()}
    damage.apply(folder)
    damaged = {path: path.read_bytes() for path in folder.iterdir()}
    told = []
    if not read(folder).items() <= expected.items():
        told.append("read")
    if not is_found(folder):
        told.append("verify")
    try:
        relabel(folder, [ADDED], None, None, None)
    except UserError:
        if {path: path.read_bytes() for path in folder.iterdir()} != damaged:
            told.append("relabel: changed what it refused")
    else:
        # A level is added without reading the shards, so a flipped bit in one stays for verify to find.
        if not damage.file.endswith(".tar") or damage.bit is None:
            told.append("relabel")
        if not is_found(folder):
            told.append("verify after relabel")
    for path in set(folder.iterdir()) - pristine.keys():
        path.unlink()
    for path, content in pristine.items():
        path.write_bytes(content)
    return told


def main() -> int:
    """Draw damages of a set written for it; return 1 if one was not told."""
    from tests.shards.conftest import make_request, write
    from tests.shards.small_sources import IMAGES, make_tar

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        names = ["n\u00e9", "b", "c"]
        make_tar(Path(name, "source.tar"), "cls", [names[number % 3] for number in range(len(IMAGES))])
        folder = Path(
            write(Path(name, "set"), make_request(f"webdataset:{name}/source.tar", "0", "0.25")).path
        )
        expected = read(folder)
        kinds: Counter[str] = Counter()
        wrong = []
        for damage in draw(folder, arguments.draws, arguments.seed):
            kinds[f"{damage.file}, {'cut short' if damage.bit is None else 'one bit flipped'}"] += 1
            wrong += [(damage, fault) for fault in faults(folder, damage, expected)]
    for kind, count in sorted(kinds.items()):
        print(f"{count:6,}  {kind}")
    for damage, fault in wrong:
        print(f"WRONG {damage}: {fault}")
    print(f"{len(wrong)} of {arguments.draws:,} damages were not told or gave another label")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
