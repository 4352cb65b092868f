"""Results of a head from before its code was changed: they stay, and are told apart from those asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from probes.results import Row, read_rows
from probes.results.row import IDENTITY, identify
from probes.results.rowfiles import row_files
from probes.study import Probe


def earlier_code(probes: Sequence[Probe], results: Path) -> Iterator[str]:
    """Yield a line on every head that is measured anew because its results are of other code."""
    if not row_files(results):
        return
    rows = read_rows(results)
    there = {row.row_id for row in rows}
    # Rows come oldest first, so the newest of each stays.
    newest = {_whatever_code(row): row for row in rows}
    told: set[str] = set()
    for identity in (identity for probe in probes for identity in probe.identities()):
        earlier = newest.get(identify(**(identity | {"head_code": None})))
        head = identity["head"]
        if earlier is not None and head not in told and identify(**identity) not in there:
            told.add(head)
            what = "of other code than now" if earlier.head_code else "from before their code was recorded"
            yield (
                f"{head}: its results of {earlier.created[:10]} in {results} are {what}; "
                "they stay, and it is measured anew"
            )


def _whatever_code(row: Row) -> str:
    return identify(**({name: getattr(row, name) for name in IDENTITY} | {"head_code": None}))
