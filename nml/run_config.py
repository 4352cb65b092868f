"""Which values make a pre-training run the run it is, told from its resolved command (``config.yaml``).

Pre-training refuses to continue a folder with other values, and the launcher refuses to take a run with
other values for the one that is asked for: both have to mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nml.errors import UserError
from nml.levels import level_of
from nml.objectives import all_options
from nml.recipe import MAY_DIFFER, Recipe, plain
from nml.untrusted import parse_json, parse_yaml, read_file

_FRESH = "fresh weights"


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


def read_command(path: Path, *, mend: str) -> dict[str, Any] | None:
    """Return the resolved command of a run, or None where there is none.

    Args:
        path: ``config.yaml`` of a run folder.
        mend: What its user can do about a broken one.

    Raises:
        UserError: If it does not read, or is no command.
    """
    command = _read(path, parse_yaml, mend)
    if command is not None and not (isinstance(command, dict) and isinstance(command.get("recipe"), dict)):
        raise UserError(f"{path.parent}: {path.name} holds no command of a run", mend=mend)
    return command


def read_record(path: Path, *, mend: str, **kinds: type) -> dict[str, Any] | None:
    """Return a JSON record of a run, or None where there is none.

    Args:
        path: A file of a run folder.
        mend: What its user can do about a broken one.
        kinds: What it has to hold, and of which type each is.

    Raises:
        UserError: If it does not read, or lacks one of ``kinds``.
    """
    record = _read(path, parse_json, mend)
    missing = [
        name
        for name, kind in kinds.items()
        if not isinstance(record, dict) or not isinstance(record.get(name), kind)
    ]
    if record is not None and missing:
        raise UserError(f"{path.parent}: {path.name} holds no {', '.join(missing)}", mend=mend)
    return record


def _read(path: Path, parse: Callable[[str], Any], mend: str) -> Any:
    text = "?"
    try:
        text = read_file(path).decode()
        value = parse(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = "it is empty" if isinstance(error, ValueError) and not text.strip() else error
        raise UserError(f"{path.parent}: {path.name} does not read: {reason}", mend=mend) from error
    if value is None:
        raise UserError(f"{path.parent}: {path.name} does not read: it is empty", mend=mend)
    return value


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> Difference | None:
    """Return the first value by which two resolved commands ask for different runs, if there is one.

    A value that one of them does not know has its default there: the run is from before there was such a
    value, and was trained as it says.

    Args:
        before: The command of the run that is there.
        now: The command that is given.
    """
    for name in ("noise", "seed", "engine"):
        if _comparable(name, before.get(name)) != _comparable(name, now.get(name)):
            return Difference(f"--{name}", before.get(name), now.get(name))
    old_start, new_start = before.get("init_from"), now.get("init_from")
    # Whether two files are the same weights is for who can compare their hashes.
    if (old_start is None) != (new_start is None):
        return Difference("--init-from", old_start or _FRESH, new_start or _FRESH)
    defaults = _flat(plain({field.name: _default(field) for field in fields(Recipe)}))
    old, new = _flat(before["recipe"]), _flat(now["recipe"])
    if any(name.startswith("options.") for name in old.keys() ^ new.keys()):
        defaults |= _flat({"options": all_options(now["recipe"].get("objective", defaults["objective"]), {})})
    old, new = defaults | old, defaults | new
    free = set(_free_names(Recipe))
    for name in sorted(old | new):
        if old.get(name) != new.get(name) and name not in free:
            return Difference(f"recipe.{name}", old.get(name), new.get(name))
    return None


def _default(field: Field[Any]) -> Any:
    """Return a field's value by default. (A whole recipe would import its objective to be checked.)"""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _comparable(name: str, value: Any) -> Any:
    return level_of(value) if name == "noise" else value


def _free_names(group: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the values of which a recipe's fields say that they may differ."""
    for field in fields(group):
        name = prefix + field.name
        is_group = is_dataclass(field.default_factory)
        if field.metadata == MAY_DIFFER:
            yield from _flat({name: _default(field)})
        elif is_group:
            yield from _free_names(field.default_factory, f"{name}.")  # type: ignore[arg-type]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
