"""What set.json says of the files beside it, held to it byte for byte before anything is made of them.

Whoever writes set.json anew vouches for what it names, so whoever does must have checked it: a flipped bit
of the manifest would otherwise come out with a hash that is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from nml.errors import UserError
from nml.files import json_bytes, sha256_file
from nml.set_file import DIGEST, MANIFEST_FILE, SET_FILE
from nml.untrusted import parse_json
from shards.manifest import Statistics, iter_manifest
from shards.set_info import INDEX_FILE, STATS_FILE, SetInfo


class Finding(NamedTuple):
    """One check and what it found.

    Attributes:
        name: What was checked.
        problem: What is wrong; empty if nothing is.
    """

    name: str
    problem: str


def check_files(folder: Path, info: SetInfo, set_bytes: bytes) -> Iterator[Finding]:
    """Hold set.json to the form it was written in, and the manifest and the index to their hashes in it."""
    yield Finding("set.json form", _form(folder / SET_FILE, set_bytes))
    yield Finding("manifest hash", _same_hash(folder / MANIFEST_FILE, info.manifest_sha256))
    yield Finding("index hash", _same_hash(folder / INDEX_FILE, info.index_sha256))


def check_statistics(folder: Path, info: SetInfo, tables: Iterable[pa.Table]) -> Finding:
    """Hold stats.json to what the manifest, given in ``tables``, counts anew."""
    path = folder / STATS_FILE
    if not path.is_file():
        return Finding("statistics", f"{path} is missing")
    statistics = Statistics.of(info)
    try:
        for table in tables:
            statistics.add(table)
    except (ValueError, IndexError) as error:
        return Finding("statistics", f"the manifest's labels cannot be counted: {error}")
    same = path.read_bytes() == json_bytes(statistics.as_json(info.classes))
    return Finding("statistics", "" if same else f"{path} is not what the manifest counts")


def refuse_damaged(folder: Path, info: SetInfo) -> None:
    """Raise a UserError if a file that describes the set is not what set.json says of it."""
    findings = check_files(folder, info, (folder / SET_FILE).read_bytes())
    problem = next((finding.problem for finding in findings if finding.problem), "")
    problem = problem or check_statistics(folder, info, iter_manifest(folder / MANIFEST_FILE)).problem
    if problem:
        raise UserError(
            f"{problem}: the set is damaged, and nothing is added to it",
            mend=f"restore the file from where the set was written, or write the set again; "
            f"python -m shards.verify {folder} tells what else is wrong",
        )


def _form(path: Path, content: bytes) -> str:
    """Tell of changes that leave the content as it is, such as a lost end of the last line."""
    stored = parse_json(content)
    # The first versions wrote no hash of the content, and may have been laid out in other ways.
    return "" if DIGEST not in stored or json_bytes(stored) == content else f"{path} is not as it was written"


def _same_hash(path: Path, expected: str) -> str:
    if not path.is_file():
        return f"{path} is missing"
    found = sha256_file(path)
    return (
        "" if found == expected else f"{path} has SHA-256 {found[:12]}..., set.json says {expected[:12]}..."
    )
