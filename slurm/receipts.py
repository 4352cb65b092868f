"""Which results a probe has written, and whether they are still there.

The rows of a results folder are shared by everything that ever wrote there. Which of them a probe stands
for only its command knows: it writes their ids, head by head, into a file. When it ends, a receipt a head
notes them; the head is complete as long as all of them exist and the run is the one that was measured. So
a deleted result is computed again, and nothing else.

A run whose folder is gone was measured by what the receipt notes of it, with the rows that it wrote while it
trained; rows and receipts are what is kept of a study. Beside them lies the command of that run, so that
another one is not taken for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nml import layout
from nml.files import sha256_file, write_bytes, write_json
from nml.untrusted import parse_yaml, read_object
from slurm.members import Probe
from slurm.rooms import probed

if TYPE_CHECKING:
    import pyarrow as pa


def read_ids(results: Path) -> set[str]:
    """Return the row ids of a results folder; damaged files hold nothing."""
    return {row_id for table in _tables(results, "row_id") for row_id in table["row_id"].to_pylist()}


def _tables(results: Path, *columns: str) -> Iterator[pa.Table]:
    import pyarrow as pa

    from nml.parquet import read_parquet

    for file in sorted((results / "rows").glob("[!.]*.parquet")):
        try:
            yield read_parquet(file, columns).select(columns)
        except (OSError, ValueError, KeyError, pa.ArrowException):
            continue


def told_ids(receipts: str) -> Path:
    """Return the file in which a probe's command is to write the ids of its rows."""
    # Beside the receipts: in their folder it might bear the name of a head.
    return Path(f"{receipts}.ids.json")


def write_receipts(probe: Probe) -> None:
    """Note which rows of the results folder a probe that has just ended stands for."""
    told = read_object(told_ids(probe.receipts))
    note: dict[str, Any] = {"run": _run_version(probe)}
    config = Path(probe.run) / layout.CONFIG
    if config.exists():
        write_bytes(measured_command(probe.receipts), config.read_bytes())
        if along := _ids_along(probe, parse_yaml(config.read_bytes())):
            note["along"] = along
    for head in probe.heads:
        write_json(_receipt(probe, head), {**note, "rows": told.get(head, [])})


def _ids_along(probe: Probe, command: Any) -> list[str]:
    """Return the rows that a run wrote while it trained, which nobody can measure once it is gone."""
    if not isinstance(command, dict) or not command.get("probe"):
        return []
    heads = {head for text in command["probe"] for head in probed(str(text))[1]}
    tables = _tables(Path(probe.results), "row_id", "run_path", "head")
    rows = [row for table in tables for row in table.to_pylist() if row["run_path"] and row["head"] in heads]
    return sorted(
        row["row_id"] for row in rows if Path(row["run_path"]).resolve() == Path(probe.run).resolve()
    )


def measured_command(receipts: str) -> Path:
    """Return the file that tells what the run was that receipts are of, as its own configuration did."""
    return Path(f"{receipts}.config.yaml")


def missing_heads(probe: Probe, there: set[str], *, lost: bool = False) -> tuple[str, ...]:
    """Return the heads of a probe that have to be measured.

    Args:
        probe: What is wanted.
        there: What :func:`read_ids` found in its results folder.
        lost: Whether nothing is left of the run, so that it cannot be another than was measured.
    """
    return tuple(head for head in probe.heads if not _is_complete(probe, head, there, lost=lost))


def missing_rows(probe: Probe, there: set[str]) -> set[str]:
    """Return the ids that receipts note of a run that is lost, and that are not there any more."""
    notes = filter(None, (_noted(probe, head) for head in probe.heads))
    return {row for note in notes for row in _rows(note, lost=True)} - there


def _is_complete(probe: Probe, head: str, there: set[str], *, lost: bool) -> bool:
    note = _noted(probe, head)
    if note is None:
        return False
    # A receipt for nothing says nothing.
    same = bool(note["run"]) if lost else note["run"] == _run_version(probe)
    return same and bool(note["rows"]) and _rows(note, lost=lost) <= there


def _noted(probe: Probe, head: str) -> dict[str, Any] | None:
    try:
        return read_object(_receipt(probe, head), rows=list, run=str)
    except (OSError, ValueError):
        return None


def _rows(note: Mapping[str, Any], *, lost: bool) -> set[str]:
    along = note.get("along") if lost else None
    return set(map(str, [*note["rows"], *(along if isinstance(along, list) else ())]))


def _receipt(probe: Probe, head: str) -> Path:
    return Path(probe.receipts) / f"{head}.json"


def _run_version(probe: Probe) -> str:
    """Return what tells one end of a run from another, or nothing before it has ended."""
    done = Path(probe.run) / layout.DONE
    return sha256_file(done) if done.exists() else ""
