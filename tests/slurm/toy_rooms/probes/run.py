"""Writes a row file a head, with the columns that the launcher reads; skips rows that exist."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--plugin")
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--task")
parser.add_argument("--results", type=Path)
options, rest = parser.parse_known_args()
if "--print_config" in rest:
    sys.exit(0)
weights = (options.checkpoint / "export" / "model.safetensors").read_text()
(options.results / "rows").mkdir(parents=True, exist_ok=True)
for head in options.plugin.split(","):
    row_id = hashlib.sha256(f"{weights} {options.task} {head}".encode()).hexdigest()[:16]
    row = {"run_path": str(options.checkpoint), "task": options.task, "head": head, "row_id": row_id}
    file = options.results / "rows" / f"{options.checkpoint.name}-{options.task}-{head}.parquet"
    if not file.exists():
        pq.write_table(pa.Table.from_pylist([row]), file)
    with (options.results / "computed.txt").open("a") as log:
        log.write(f"{options.checkpoint.name} {options.task} {head}\n")
