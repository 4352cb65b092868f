"""Which code a head is made of: a version tells it of a release, not of a package that is being written."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import plugins
from probes.hashing import hash_value
from probes.results import Row, read_rows
from probes.results.row import IDENTITY, identify
from probes.results.rowfiles import row_files

# Their versions are recorded with every result.
RELEASED = {"torch", "numpy", *sys.stdlib_module_names}
# Heads are trained and given their losses by the modules of this project's room, inherited from or called.
SHARED = plugins.__name__
DIGITS = 16


def head_code(head: type) -> str | None:
    """Return the hash of the source that a head's result follows from, 16 hex digits.

    That is the files of its class and of its bases, and what they import of the head's own package and
    of ``plugins``, wherever in the file they do. Files are found by name, so that the hash does not depend
    on what else has been imported. Other libraries count as far as the head inherits from them.

    Returns:
        The hash; None where no source is there to read.
    """
    files = _own_files(head)
    if not files:
        return None
    content = {name: file.read_text(encoding="utf-8", errors="replace") for name, file in files.items()}
    return hash_value(content)[:DIGITS]


def _own_files(head: type) -> dict[str, Path]:
    """Return the source files by module name."""
    found: dict[str, Path] = {}
    roots = {SHARED: Path(plugins.__file__).parent.parent}
    flat: Path | None = None
    for base in reversed(head.__mro__):
        name, file = base.__module__, _file_of(base)
        if file is None or name.partition(".")[0] in RELEASED:
            continue
        found[name] = file
        if base is head:
            depth = name.count(".") + (file.name == "__init__.py")
            roots[name.partition(".")[0]] = file.parents[depth]
            flat = file.parent if depth == 0 else None
    own = [name for name in found if name.partition(".")[0] in roots]
    while own:
        name = own.pop()
        for imported in _imports(name, found[name]):
            top = imported.partition(".")[0]
            # A head in a single file may have others beside it, as modules of the same distribution.
            root = roots.get(top) or (flat if top not in RELEASED else None)
            file = _locate(root, imported, package=top in roots) if root else None
            if file is not None and imported not in found:
                found[imported] = file
                own.append(imported)
    return found


def _file_of(base: type) -> Path | None:
    try:
        source = inspect.getsourcefile(base)
    # A class of C has none, nor has one whose module is gone.
    except (TypeError, OSError):
        return None
    return Path(source) if source and Path(source).is_file() else None


def _locate(root: Path, module: str, *, package: bool) -> Path | None:
    place = root.joinpath(*module.split("."))
    candidates = [place.with_name(place.name + ".py"), *([place / "__init__.py"] if package else [])]
    return next((file for file in candidates if file.is_file()), None)


def _imports(name: str, file: Path) -> Iterator[str]:
    """Yield the modules that a file may import; of ``from a import b``, both ``a`` and ``a.b``."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def earlier_code(identities: Iterable[Mapping[str, Any]], results: Path) -> Iterator[str]:
    """Yield a line on every head that is measured anew because its results are of other code: those stay.

    Args:
        identities: What identifies each row that is asked for, see :data:`probes.results.row.IDENTITY`.
        results: The results folder.
    """
    if not row_files(results):
        return
    rows = read_rows(results)
    there = {row.row_id for row in rows}
    # Rows come oldest first, so the newest of each stays.
    newest = {_whatever_code(row): row for row in rows}
    told: set[str] = set()
    for identity in identities:
        earlier = newest.get(identify(**{**identity, "head_code": None}))
        head = identity["head"]
        if earlier is not None and head not in told and identify(**identity) not in there:
            told.add(head)
            what = "of other code than now" if earlier.head_code else "from before their code was recorded"
            yield (
                f"{head}: its results of {earlier.created[:10]} in {results} are {what}; "
                "they stay, and it is measured anew"
            )


def _whatever_code(row: Row) -> str:
    return identify(**({name: getattr(row, name) for name in IDENTITY} | {"head_code": None}))
