"""Where every number comes from: encoders, noise manifests, tasks, heads and versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from nml.untrusted import parse_json
from probes.reporting.records import Section, Table, cells
from probes.reporting.study import Study
from probes.reporting.wording import NONE, several
from probes.results import Row

DIGITS = 12  # of a hash: enough to tell, short enough to compare by eye


def section(study: Study) -> Section:
    """Return the section."""
    return Section(
        name="provenance",
        title="Provenance",
        intro=(
            f"Hashes by their first {DIGITS} hex digits. The chain behind a single number: "
            f"python -m probes.results trace ROW, with a row id of python -m probes.results show."
        ),
        items=(_encoders(study.rows), _tasks(study.rows), _software(study.rows)),
    )


def _encoders(rows: Iterable[Row]) -> Table:
    encoders = {row.encoder_hash: row for row in rows}
    ordered = sorted(
        encoders.values(), key=lambda row: (row.noise_ratio is None, row.noise_ratio or 0, row.encoder)
    )
    return Table(
        name="provenance-encoders",
        title="Encoders",
        caption="Hash: of weights and preprocessing. Manifest: of the list of samples with their labels.",
        header=("Encoder", "Hash", "Objective", "Step", "Noise", "Noise model", "Manifest", "D"),
        rows=tuple(
            cells(
                row.encoder,
                _short(row.encoder_hash),
                row.objective or NONE,
                NONE if row.step is None else f"{row.step:,}",
                NONE if row.noise_ratio is None else f"{100 * row.noise_ratio:.3g} %",
                row.noise_model or NONE,
                _short(row.manifest_sha256),
                str(row.dim),
            )
            for row in ordered
        ),
        text_columns=8,
    )


def _tasks(rows: Iterable[Row]) -> Table:
    by_task: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task, row.task_revision, row.split_hash].append(row)
    entries = []
    for (task, revision, split), members in sorted(by_task.items()):
        tests = sorted({(row.dataset, row.n_test) for row in members})
        train = max(row.n_train for row in members)
        validation = max(row.n_validation for row in members)
        entries.append(
            cells(
                task,
                revision,
                _short(split),
                f"{train:,} / {validation:,}",
                several([f"{name} ({count:,})" for name, count in tests], limit=10),
            )
        )
    return Table(
        name="provenance-tasks",
        title="Tasks",
        caption="Split: hash of the sample names of every split.",
        header=("Task", "Revision", "Split", "Train / validation", "Test sets (samples)"),
        rows=tuple(entries),
        text_columns=5,
        prose=True,
    )


def _software(rows: Iterable[Row]) -> Table:
    found: dict[str, set[str]] = defaultdict(set)
    heads: dict[str, set[str]] = defaultdict(set)
    created: list[str] = []
    for row in rows:
        heads[f"{row.head_distribution} {row.head_version}"].add(row.head)
        if row.created:
            created.append(row.created)
        for name, version in parse_json(row.versions or "{}").items():
            found[name].add(str(version))
    entries = [
        (f"Heads of {owner}", several(sorted(names), limit=20)) for owner, names in sorted(heads.items())
    ]
    entries += [(name, several(sorted(versions))) for name, versions in sorted(found.items())]
    if created:
        first, last = (when[:16].replace("T", " ") for when in (min(created), max(created)))
        entries.append(("Results made", f"{first} UTC" if first == last else f"{first} to {last} UTC"))
    return Table(
        name="provenance-versions",
        title="Heads and versions",
        caption="",
        header=("What", "Version"),
        rows=tuple(cells(*entry) for entry in entries),
        text_columns=2,
        prose=True,
    )


def _short(digest: str | None) -> str:
    return digest[:DIGITS] if digest else NONE
