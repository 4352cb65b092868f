"""Results: one typed, versioned row for every (encoder, task, dataset, head, fraction, seed).

A results folder holds any number of small Parquet files, written whole by any number of processes::

    results/
        rows/
            3f0c9a....parquet     one row or a batch; the name is the hash of what is inside

Nothing is ever overwritten: a row that exists is found by its identity and not computed again.
"""

from probes.results.row import SCHEMA_VERSION, Row
from probes.results.rowfiles import read_rows, write_rows

__all__ = ["SCHEMA_VERSION", "Row", "read_rows", "write_rows"]
