"""Which results a probe has written, and whether they are still there.

The rows of a results folder are shared by everything that ever wrote there. When a probe ends, a
receipt a head notes which rows are its own; the head is complete as long as all of them exist and
the run is the one that was measured. So a deleted result is computed again, and nothing else.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from nml.files import sha256_file, write_json
from slurm.members import Probe

_COLUMNS = ["run_path", "task", "head", "row_id"]


def read_rows(results: Path) -> dict[tuple[str, str, str], set[str]]:
    """Return the row ids of a results folder by (run, task, head); damaged files hold nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for file in sorted((results / "rows").glob("[!.]*.parquet")):
        try:
            rows = pq.read_table(file, columns=_COLUMNS).to_pylist()
        except (OSError, pa.ArrowException):
            continue
        for row in rows:
            found[str(row["run_path"]), row["task"], row["head"]].add(row["row_id"])
    return found


def write_receipts(probe: Probe) -> None:
    """Note which rows of the results folder a probe that has just ended stands for."""
    rows = read_rows(Path(probe.results))
    for head in probe.heads:
        own = rows[probe.run, probe.task, head]
        write_json(_receipt(probe, head), {"rows": sorted(own), "run": _run_version(probe)})


def missing_heads(probe: Probe, rows: dict[tuple[str, str, str], set[str]]) -> tuple[str, ...]:
    """Return the heads of a probe that have to be measured.

    Args:
        probe: What is wanted.
        rows: What :func:`read_rows` found in its results folder.
    """
    there = {row for ids in rows.values() for row in ids}
    return tuple(head for head in probe.heads if not _is_complete(probe, head, there))


def _is_complete(probe: Probe, head: str, there: set[str]) -> bool:
    try:
        receipt = json.loads(_receipt(probe, head).read_text())
    except (OSError, ValueError):
        return False
    return receipt["run"] == _run_version(probe) and set(receipt["rows"]) <= there


def _receipt(probe: Probe, head: str) -> Path:
    return Path(probe.receipts) / f"{head}.json"


def _run_version(probe: Probe) -> str:
    """Return what tells one end of a run from another, or nothing before it has ended."""
    done = Path(probe.run) / "DONE.json"
    return sha256_file(done) if done.exists() else ""
