"""Heads by label: one label a head, more where it was run in several settings."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from nml.untrusted import parse_json
from probes.results import Row

FIRST = ("lp", "mlp", "nmtune")

# Heads that exist to take nmtune apart: single loss terms (Table 15), another network (Table 16). They are
# compared with nmtune in a section of their own and would only crowd every other one.
TERMS = re.compile(r"(?:^|[-_ ])(mse|cov|svd|cosine|kl)(?:$|[-_ ])")
NETWORK = re.compile(r"layers|depth|activation|linear|relu|gelu")
_TAKEN_APART = "nmtune-"


class Setting(NamedTuple):
    """What a user decided about a head before any fit.

    Attributes:
        owner: Distribution and version that register the head.
        values: Hyper-parameters with all their candidate values, sorted by name.
        views: Augmented views of the training data.
    """

    owner: str
    values: tuple[tuple[str, str], ...]
    views: int


def variants(rows: Sequence[Row]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Label the head of every row.

    A head that ran on a task in several settings has one main setting there, the one with most rows
    (of equals, the one run first); its other settings carry what sets them apart in their label.
    Settings may differ between tasks: a head has defaults of its own for images and for text.

    Returns:
        Row id -> label, and the labels of the main settings: lp, mlp and nmtune first, then by name;
        without nmtune's ablations, unless there is nothing else.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.head, row.task].append(row)
    labels: dict[str, str] = {}
    for (head, _), members in groups.items():
        settings = {row.row_id: _setting(row) for row in members}
        counts = Counter(settings.values())
        started = {key: min(row.created for row in members if settings[row.row_id] == key) for key in counts}
        main = min(counts, key=lambda key: (-counts[key], started[key], key))
        for row in members:
            setting = settings[row.row_id]
            labels[row.row_id] = head if setting == main else f"{head} ({_difference(main, setting)})"
    heads = {row.head for row in rows}
    heads = {head for head in heads if not is_ablation(head)} or heads
    return labels, (*(head for head in FIRST if head in heads), *sorted(heads - set(FIRST)))


def is_ablation(head: str) -> bool:
    """Whether a head is nmtune with a part of its loss or another network."""
    part = head.removeprefix(_TAKEN_APART)
    return part != head and bool(TERMS.search(part) or NETWORK.search(part))


def _setting(row: Row) -> Setting:
    study = parse_json(row.study or "{}")
    values: dict[str, set[str]] = defaultdict(set)
    for candidate in study.get("candidates", []):
        for name, value in candidate.items():
            values[name].add(value if isinstance(value, str) else json.dumps(value))
    return Setting(
        owner=f"{row.head_distribution} {row.head_version}",
        values=tuple((name, " or ".join(sorted(found))) for name, found in sorted(values.items())),
        views=int(study.get("views", 0)),
    )


def _difference(main: Setting, other: Setting) -> str:
    """Name what sets a setting apart from the main one."""
    first, second = dict(main.values), dict(other.values)
    changed = [
        f"{name} = {second.get(name, 'default')}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]
    if main.views != other.views:
        changed.append(f"views = {other.views}")
    if main.owner != other.owner:
        changed.append(other.owner)
    return ", ".join(changed)
