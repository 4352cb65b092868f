"""Tells the size of the toy."""

import json

print(
    json.dumps({"parameters": 1_000_000, "dim": 50, "checkpoint_bytes": 8_000_000, "export_bytes": 4_000_000})
)
