"""How many settings each head was tried with: a head that was tried more often is ahead for that alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence

from nml.untrusted import parse_json
from probes.reporting.records import Caution, Cell, Table, cells
from probes.reporting.study import Study
from probes.reporting.wording import several
from probes.results import Row


def table(study: Study) -> Table:
    """Return the table of tries: a row a head and task, with what was tried and what was chosen."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in study.rows:
        groups[study.selection.head[row.row_id], row.task].append(row)
    order = {head: place for place, head in enumerate(study.selection.main_heads)}
    rows = []
    for head, task in sorted(groups, key=lambda key: (order.get(key[0], len(order)), key)):
        members = groups[head, task]
        counts = sorted({tries(row) for row in members})
        chosen, times = Counter(_chosen(row) for row in members).most_common(1)[0]
        share = f"{chosen} ({100 * times / len(members):.0f} %)" if chosen else "\N{EN DASH}"
        number = Cell(several(list(map(str, counts))), numbers=(("", float(counts[-1])),))
        rows.append(cells(head, task, _tried(members), share, number))
    return Table(
        name="tries",
        title="Settings that each head was tried with",
        caption=(
            "Validation data chose among them, for every encoder, share of the training data and seed anew. "
            "Chosen: the most frequent choice, with its share of the results."
        ),
        header=("Head", "Task", "Tried", "Chosen", "Tries"),
        rows=tuple(rows),
        text_columns=4,
        prose=True,
    )


def statement(study: Study) -> str:
    """Return in a sentence how many settings the compared heads were tried with."""
    by_head = _by_head(study)
    numbers = {number for counts in by_head.values() for number in counts}
    if len(numbers) == 1:
        [number] = numbers
        if number == 1:
            return "Every head was run with one setting, none was swept."
        return f"Every head had the same budget: {number} settings, of which validation data chose."
    parts = [f"{head} {several(list(map(str, sorted(counts))))}" for head, counts in by_head.items()]
    return f"Heads were tried with unlike numbers of settings: {several(parts, limit=20)}."


def caution(study: Study) -> Caution | None:
    """Return what to know where heads did not have the same number of tries."""
    numbers = {number for counts in _by_head(study).values() for number in counts}
    if len(numbers) < 2:
        return None
    return Caution(
        "Heads had unlike numbers of tries.",
        f"{statement(study)} One that was tried more often is ahead for that alone; without --tries and "
        "--hyper, python -m probes.run gives each the same number.",
    )


def tries(row: Row) -> int:
    """Return how many settings a result's head was chosen from."""
    selection = parse_json(row.selection or "{}")
    # Rows from before the number was recorded have a validation score a candidate.
    return int(selection.get("tries", max(1, len(selection.get("validation", [])))))


def _by_head(study: Study) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    labels = study.selection.head
    for head in study.heads:
        counts = {tries(row) for row in study.rows if labels[row.row_id] == head}
        if counts:
            found[head] = counts
    return found


def _tried(rows: Sequence[Row]) -> str:
    """Name the hyper-parameters of which several values were tried."""
    values: dict[str, list[str]] = {}
    for study in dict.fromkeys(row.study for row in rows):
        for candidate in parse_json(study or "{}").get("candidates", []):
            for name, value in candidate.items():
                seen = values.setdefault(name, [])
                if (text := _text(value)) not in seen:
                    seen.append(text)
    swept = [f"{name} {' or '.join(seen)}" for name, seen in values.items() if len(seen) > 1]
    return ", ".join(swept) or "the defaults"


def _chosen(row: Row) -> str:
    """Return what the chosen candidate has of that which was tried."""
    candidates = parse_json(row.study or "{}").get("candidates", [])
    chosen = parse_json(row.hyper_parameters or "{}")
    names = [
        name for name in chosen if len({json.dumps(candidate.get(name)) for candidate in candidates}) > 1
    ]
    return ", ".join(f"{name} {_text(chosen[name])}" for name in names)


def _text(value: object) -> str:
    return "its own" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
