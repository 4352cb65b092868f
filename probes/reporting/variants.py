"""Heads by label: one label a head, more where it was run in several settings."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from probes.results import Row

FIRST = ("lp", "mlp", "nmtune")


def variants(rows: Sequence[Row]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Label the head of every row.

    A head that was searched or set in several ways has one main setting, the one with most rows
    (of equals, the one run first); its other settings carry what sets them apart in their label.

    Returns:
        Row id -> label, and the labels of the main settings: lp, mlp and nmtune first, then by name.
    """
    by_head: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_head[row.head].append(row)
    labels: dict[str, str] = {}
    for head, members in by_head.items():
        counts = Counter(_setting(row) for row in members)
        started = {key: min(row.created for row in members if _setting(row) == key) for key in counts}
        main = min(counts, key=lambda key: (-counts[key], started[key], key))
        for row in members:
            setting = _setting(row)
            labels[row.row_id] = head if setting == main else f"{head} ({_difference(main, setting)})"
    order = [head for head in FIRST if head in by_head] + sorted(by_head.keys() - set(FIRST))
    return labels, tuple(order)


def _setting(row: Row) -> tuple[str, str, str]:
    return row.head_distribution, row.head_version, row.study


def _difference(main: tuple[str, str, str], other: tuple[str, str, str]) -> str:
    """Name what sets a setting apart from the main one."""
    if main[:2] != other[:2]:
        return f"{other[0]} {other[1]}"
    first, second = _flat(main[2]), _flat(other[2])
    changed = [
        f"{name} = {second.get(name, 'default')}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]
    return ", ".join(changed) or "another setting"


def _flat(study: str) -> dict[str, str]:
    """Return a study's leaves by the last part of their name that tells them apart."""
    leaves: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            leaves[prefix] = json.dumps(value) if not isinstance(value, str) else value

    walk("", json.loads(study or "{}"))
    return leaves
