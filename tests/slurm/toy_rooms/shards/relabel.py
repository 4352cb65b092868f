"""Adds a level to the mark of a complete shard set."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("set", type=Path)
parser.add_argument("--noise")
parser.add_argument("--model")
parser.add_argument("--name")
parser.add_argument("--print_config", action="store_true")
options = parser.parse_args()
if options.print_config:
    sys.exit(0)
file = options.set / "set.json"
record = json.loads(file.read_text())
record["levels"][options.name] = {"asked": options.noise, "model": options.model}
file.write_text(json.dumps(record))
