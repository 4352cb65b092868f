"""Names inside a run folder."""

from __future__ import annotations

CONFIG = "config.yaml"
DATA = "data.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
LOGS = "logs"
DONE = "DONE.json"
MARKER = "COMPLETE.json"
STATE = "state"
WEIGHTS = "model.safetensors"
META = "meta.json"
CHECKPOINT_FORMAT = "nml-checkpoint/1"
EXPORT_FORMAT = "nml-export/1"


def step_name(step: int) -> str:
    """Return the folder name of a checkpoint; names sort as steps do."""
    return f"step-{step:08d}"
