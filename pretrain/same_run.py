"""Whether a run folder holds the run that is asked for, and whether it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nml.errors import UserError
from nml.levels import level_name
from pretrain import layout
from pretrain.checkpoints import step_folders
from pretrain.options import Resume

# What fits a run to a machine, or only says where it came from, may differ when it continues.
_FREE = (
    "engine.micro_batch",
    "engine.compile",
    "checkpoints.",
    "data.workers",
    "data.skip_budget",
    "source",
    "expect",
)


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
    before, now = yaml.safe_load(path.read_text()), yaml.safe_load(text)
    for name in ("noise", "seed", "engine"):
        if _comparable(name, before.get(name)) != _comparable(name, now.get(name)):
            raise _differs(run, f"--{name}", now.get(name), before.get(name))
    old, new = _flat(before["recipe"]), _flat(now["recipe"])
    for name in sorted(old | new):
        if old.get(name) != new.get(name) and not name.startswith(_FREE):
            raise _differs(run, f"recipe.{name}", new.get(name), old.get(name))


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


def _differs(run: Path, name: str, now: Any, before: Any) -> UserError:
    return UserError(
        f"{name} {now}: {run} holds a run with {before}", mend="name another --run-dir, or remove that one"
    )


def _comparable(name: str, value: Any) -> Any:
    return level_name(value) if name == "noise" else value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
