"""Writes the mark of a complete shard set beside all its parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
parts = sorted(path.name for path in out.iterdir())
if len(parts) != int(parts[0].split()[-1]):
    sys.exit(f"only {parts}")
(out / "set.json").write_text(json.dumps({"format": "nml-shards/1", "levels": {}}))
