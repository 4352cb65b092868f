"""Writes a row file a head, and which rows they are; skips rows that exist.

As in the room itself, a row names its task and its run in its own way, not as they were typed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--plugin")
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--encoder", type=Path)
parser.add_argument("--task", nargs="+")
parser.add_argument("--results", type=Path)
parser.add_argument("--receipt", type=Path)
parser.add_argument("--seeds", type=int, default=1)
options, rest = parser.parse_known_args()
if "--print_config" in rest:
    told = {"fractions": [1.0], "seeds": options.seeds, "steps": []}
    print(json.dumps({**told, "downstream_noise": [0.0], "downstream_model": ["symmetric"]}))
    sys.exit(0)
tasks = " ".join(options.task)
# Whatever is given has weights.
probed = options.checkpoint or options.encoder
weights = (probed / "export" / "model.safetensors").read_text() if options.checkpoint else str(probed)
(options.results / "rows").mkdir(parents=True, exist_ok=True)
task = tasks.replace("/", "_")
receipt = {}
for head in options.plugin.split(","):
    row_id = hashlib.sha256(f"{weights} {tasks} {head}".encode()).hexdigest()[:16]
    receipt[head] = [row_id]
    row = {
        "run_path": str(probed.resolve()),
        "task": f"the task {task}",
        "head": head,
        "row_id": row_id,
    }
    file = options.results / "rows" / f"{probed.name}-{task}-{head}.parquet"
    if not file.exists():
        pq.write_table(pa.Table.from_pylist([row]), file)
    with (options.results / "computed.txt").open("a") as log:
        log.write(f"{probed.name} {tasks} {head}\n")
if options.receipt:
    options.receipt.parent.mkdir(parents=True, exist_ok=True)
    options.receipt.write_text(json.dumps(receipt))
