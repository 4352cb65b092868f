"""What the heads and the encoders cost (Table 14)."""

from __future__ import annotations

import statistics
from collections import defaultdict

from probes.reporting.paired import BASELINE
from probes.reporting.records import Gap, Section, Table, cells
from probes.reporting.study import Study
from probes.reporting.wording import NONE, several
from probes.results import Row


def section(study: Study) -> Section:
    """Return the section."""
    items: list[Table | Gap] = []
    fits = _fits(study)
    if any(row.fit_seconds > 0 for rows in fits.values() for row in rows):
        items.append(_heads(fits))
    else:
        items.append(
            Gap(
                title="Time to fit each head",
                paper="Table 14",
                reason="the results hold no times",
                command="python -m probes.run --plugin lp,mlp,nmtune --results new-results",
            )
        )
    measured = [row for row in study.rows if row.feature_seconds > 0]
    if measured:
        items.append(_encoders(measured))
    return Section(
        name="run-time",
        title="Run time",
        intro="As these runs took it, beside whatever else their machines were doing: not a benchmark.",
        items=tuple(items),
    )


def _fits(study: Study) -> dict[str, list[Row]]:
    """Return one row a fit, by head label: clean labels, largest fraction of each task."""
    clean = [row for row in study.rows if row.downstream_noise == 0]
    top: dict[str, float] = {}
    for row in clean:
        top[row.task] = max(row.fraction, top.get(row.task, 0.0))
    fits: dict[str, dict[tuple[str, str, int], Row]] = defaultdict(dict)
    for row in clean:
        label = study.selection.head[row.row_id]
        if row.fraction == top[row.task] and label in study.heads:
            fits[label].setdefault((row.encoder_hash, row.task, row.seed), row)
    return {head: list(fits[head].values()) for head in study.heads if head in fits}


def _heads(fits: dict[str, list[Row]]) -> Table:
    base = statistics.fmean(row.fit_seconds for row in fits[BASELINE]) if BASELINE in fits else 0.0
    rows = []
    for head, members in fits.items():
        seconds = [row.fit_seconds for row in members]
        mean = statistics.fmean(seconds)
        # As many decimals as say something: seconds of minutes, hundredths of seconds.
        digits = 3 if mean < 0.1 else 2 if mean < 10 else 1
        spread = f" ± {statistics.stdev(seconds):.{digits}f}" if len(seconds) > 1 else ""
        predictions = statistics.fmean(1e6 * row.predict_seconds / row.n_test for row in members)
        rows.append(
            cells(
                head,
                f"{mean:.{digits}f}{spread}",
                f"{mean / base:.2f}" if base else NONE,
                _figures(predictions) if predictions else NONE,
                str(len(members)),
            )
        )
    every = [row for members in fits.values() for row in members]
    return Table(
        name="run-time-heads",
        title="Time to fit and to predict, by head",
        paper="Table 14",
        caption=(
            f"Mean ± standard deviation over N fits (encoder x task x seed) on "
            f"{_range([row.n_train for row in every])} features of dimension "
            f"{several([str(dim) for dim in sorted({row.dim for row in every})])}, at the chosen "
            f"hyper-parameters; a head fitted in one pass with others counts its share. "
            f"Prediction is the head's alone."
        ),
        header=("Head", "Fit (s)", f"Fit, times {BASELINE}", "Predict (µs a sample)", "N"),
        rows=tuple(rows),
    )


def _encoders(measured: list[Row]) -> Table:
    passes: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in measured:
        passes[row.encoder].setdefault(row.dataset, row)
    rows = []
    for encoder, by_dataset in sorted(passes.items()):
        samples = sum(row.n_test for row in by_dataset.values())
        seconds = sum(row.feature_seconds for row in by_dataset.values())
        rows.append(cells(encoder, f"{samples:,}", _figures(seconds), _figures(samples / seconds)))
    return Table(
        name="run-time-features",
        title="Time to compute test features, by encoder",
        caption="Test sets of all tasks, when each was computed; features from the store cost nothing.",
        header=("Encoder", "Samples", "Time (s)", "Samples a second"),
        rows=tuple(rows),
    )


def _figures(value: float) -> str:
    """Return a value to three figures, in full where it has more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
