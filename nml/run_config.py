"""Which values make a pre-training run the run it is, told from its resolved command (``config.yaml``).

Pre-training refuses to continue a folder with other values, and the launcher refuses to take a run with
other values for the one that is asked for: both have to mean the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nml.levels import level_name

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


class Difference(NamedTuple):
    """One value that differs.

    Attributes:
        name: What a user calls it, for example ``--noise`` or ``recipe.epochs``.
        before: The run's value.
        now: The value asked for.
    """

    name: str
    before: Any
    now: Any


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> Difference | None:
    """Return the first value by which two resolved commands ask for different runs, if there is one.

    Args:
        before: The command of the run that is there.
        now: The command that is given.
    """
    for name in ("noise", "seed", "engine"):
        if _comparable(name, before.get(name)) != _comparable(name, now.get(name)):
            return Difference(f"--{name}", before.get(name), now.get(name))
    old, new = _flat(before["recipe"]), _flat(now["recipe"])
    for name in sorted(old | new):
        if old.get(name) != new.get(name) and not name.startswith(_FREE):
            return Difference(f"recipe.{name}", old.get(name), new.get(name))
    return None


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
