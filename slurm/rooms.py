"""The other rooms' commands, from the code beside this room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nml.errors import UserError

CODE = Path(__file__).resolve().parents[1]
_CHECK_SECONDS = 300


def code_environment() -> dict[str, str]:
    """Return the variables by which ``python -m`` runs the rooms beside this one, in any folder."""
    path = os.pathsep.join(part for part in (str(CODE), os.environ.get("PYTHONPATH", "")) if part)
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def check_command(argv: Sequence[str]) -> str:
    """Have a room check its own options, before a job that would do so only hours later.

    Returns:
        The resolved options, as YAML.

    Raises:
        UserError: In the room's own words.
    """
    checked = subprocess.run(
        [*argv, "--print_config"],
        env=os.environ | code_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_CHECK_SECONDS,
    )
    if checked.returncode:
        said = checked.stderr.strip().splitlines() or [f"exit status {checked.returncode}"]
        raise UserError(said[-1].removeprefix("error: "))
    return checked.stdout
