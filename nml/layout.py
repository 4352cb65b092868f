"""Names inside a run folder, and what they tell: for pre-training, which writes it, and for all who look.

::

    runs/quickstart-n20-seed0/
      config.yaml                 the resolved command, usable with --config
      data.json                   which samples and which noise it trains on
      metrics.jsonl               a line a step
      checkpoints/step-00000040/  complete once COMPLETE.json is there; state/, and its own export/
      export/                     the newest encoder: model.safetensors and meta.json
      logs/
      curves.svg, curves.png      its curves; drawn once it is done
      memorisation.parquet        with --memorisation: what was remembered of each sample
      probing/                    with --probe: a mark for each checkpoint that is still to be measured
      DONE.json                   written when the last step is done
"""

from __future__ import annotations

import re
from pathlib import Path

# Where runs and shard sets lie unless told otherwise, and the set of the bundled digits among them.
RUNS = "runs"
SETS = "data/shards"
CONFIG = "config.yaml"
DATA = "data.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
LOGS = "logs"
# With the suffixes .svg and .png.
CURVES = "curves"
MEMORISATION = "memorisation.parquet"
PROBING = "probing"
DONE = "DONE.json"
MARKER = "COMPLETE.json"
STATE = "state"
WEIGHTS = "model.safetensors"
META = "meta.json"
# What stands beside an export that is signed, and what of it is covered: all of it.
SIGNATURE = "model.sig"
SIGNED = (META, WEIGHTS)
CHECKPOINT_FORMAT = "nml-checkpoint/1"
EXPORT_FORMAT = "nml-export/1"

_STEP = re.compile(r"step-(\d{8,})")


def digits_set(level: str) -> str:
    """Return the folder name of the bundled digits at a noise level, where no set is named."""
    return f"digits-{level}"


def step_name(step: int) -> str:
    """Return the folder name of a checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """Return the folders of all checkpoints, complete or not, newest first.

    What a user put beside them, a copy for instance, is none.
    """
    found = (run / CHECKPOINTS).glob("step-*")
    return sorted((folder for folder in found if _STEP.fullmatch(folder.name)), reverse=True)


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint's folder carries the marker, which is written last."""
    return (checkpoint / MARKER).exists()


def kept_steps(run: Path) -> dict[int, Path]:
    """Return the folders of a run's complete checkpoints by their steps, oldest first."""
    folders = [folder for folder in reversed(step_folders(run)) if is_complete(folder)]
    return {int(folder.name.removeprefix("step-")): folder for folder in folders}


def newest_step(run: Path) -> int:
    """Return the step of the newest complete checkpoint of a run, 0 where there is none."""
    return max(kept_steps(run), default=0)


def marked_steps(run: Path) -> set[int]:
    """Return the steps of a run that are to be measured, and are not yet."""
    marks = (run / PROBING).glob("step-*")
    return {int(mark.name.removeprefix("step-")) for mark in marks if _STEP.fullmatch(mark.name)}


def is_done(run: Path) -> bool:
    """Return whether a run has done its last step."""
    return (run / DONE).exists()


def is_export(folder: Path) -> bool:
    """Return whether a folder holds an exported encoder."""
    return (folder / META).is_file() and (folder / WEIGHTS).is_file()


def run_of_export(export: Path) -> tuple[Path, bool]:
    """Return the folder that an export belongs to, and whether that is a checkpoint of a run.

    Args:
        export: The folder of a run, of a checkpoint or of a user's own.
    """
    folder = (export.parent if export.name == EXPORT else export).resolve()
    return folder, folder.parent.name == CHECKPOINTS
