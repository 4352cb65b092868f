"""Whether a run folder holds the run that is asked for, and whether it may."""

from __future__ import annotations

from pathlib import Path

import yaml

from nml.errors import UserError
from nml.run_config import first_difference
from pretrain import layout
from pretrain.checkpoints import step_folders
from pretrain.options import Resume


def check_same_run(run: Path, text: str) -> None:
    """Refuse to continue a run folder with another recipe, data, noise, seed or engine.

    Args:
        run: The run folder; nothing is wrong with one that is not there.
        text: The resolved command as YAML.

    Raises:
        UserError: Naming the first value that differs.
    """
    path = run / layout.CONFIG
    if not path.exists():
        return
    other = first_difference(yaml.safe_load(path.read_text()), yaml.safe_load(text))
    if other:
        raise UserError(
            f"{other.name} {other.now}: {run} holds a run with {other.before}",
            mend="name another --run-dir, or remove that one",
        )


def check_resume(run: Path, resume: Resume) -> None:
    """Refuse to begin what was to be continued, and to continue what was to be begun.

    Args:
        run: The run folder.
        resume: What ``--resume`` says.

    Raises:
        UserError: If the folder does not fit.
    """
    saved = any((folder / layout.MARKER).exists() for folder in step_folders(run))
    if resume == "must" and not saved:
        raise UserError(
            f"--resume must: {run} has no complete checkpoint",
            mend="name the run's own --run-dir, or use --resume auto to begin one",
        )
    if resume == "never" and (saved or (run / layout.CONFIG).exists()):
        raise UserError(
            f"--resume never: {run} holds a run",
            mend="name another --run-dir, or use --resume auto to continue it",
        )
