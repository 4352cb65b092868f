"""Writes the mark of a complete shard set."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--source")
parser.add_argument("--noise", nargs="+")
parser.add_argument("--out", type=Path)
options, rest = parser.parse_known_args()
if "--print_config" in rest:
    sys.exit(0)
levels = {f"n{round(float(ratio) * 100):02d}": {"asked": ratio} for ratio in options.noise if float(ratio)}
options.out.mkdir(parents=True, exist_ok=True)
(options.out / "set.json").write_text(
    json.dumps({"format": "nml-shards/1", "levels": levels, "num_samples": 100})
)
