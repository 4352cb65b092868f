"""The singular values themselves, in three stretches (Fig. 11 to 14)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from probes.reporting.averages import percentage
from probes.reporting.records import Figure, Gap, Panel, Point, Scale, Section, Series
from probes.reporting.study import DOMAINS, Study
from probes.reporting.wording import several
from probes.results import Row
from probes.results.row import Domain

ORDERED: Scale = "ordered"
CATEGORY: Scale = "category"
POINTS = 120  # drawn a curve and stretch; more would not show at this size


class Stretch(NamedTuple):
    """A range of singular values by rank, first included, last excluded; rank 1 is the largest."""

    title: str
    first: int
    last: int | None


STRETCHES = (
    Stretch("the 20 largest", 1, 21),
    Stretch("20 to 500", 20, 501),
    Stretch("from 500 on", 500, None),
)


class Curve(NamedTuple):
    """The spectrum of one noise level's features, or of an encoder's whose noise is not known.

    Attributes:
        label: The level or the encoder.
        known: Whether it is a level.
        shares: Singular values as shares of their sum, in percent, descending; the mean over encoders.
        shape: N and D of the features.
        encoders: Encoders behind the mean.
    """

    label: str
    known: bool
    shares: npt.NDArray[np.float64]
    shape: tuple[int, int]
    encoders: int


def section(study: Study) -> Section:
    """Return the section."""
    items = [
        _figure(study, dataset, domain, title)
        for domain, title in DOMAINS
        for dataset in sorted(
            {row.dataset for row in study.rows if row.domain == domain and _has_spectrum(row)}
        )
    ]
    gap = Gap(
        title="Singular value spectra",
        paper="Fig. 11 to 14",
        reason="the results hold no singular values",
        command="python -m probes.run --plugin lp --results new-results",
    )
    return Section(
        name="spectra",
        title="Singular value spectra",
        intro=(
            f"Of the encoders' test features; SVD convention: {study.selection.convention}. Each value is "
            f"shown as its share of the sum of all, from which SVE and LSVR follow."
        ),
        items=tuple(items) or (gap,),
    )


def _figure(study: Study, dataset: str, domain: Domain, title: str) -> Figure | Gap:
    curves = _curves(study, dataset, domain)
    panels = tuple(panel for stretch in STRETCHES if (panel := _panel(dataset, stretch, curves)).series)
    single = [curve.label for curve in curves if _values(curve) < 2]
    if not panels:
        return Gap(
            title=f"Spectrum on {dataset} ({title.lower()})",
            paper="Fig. 11 to 14",
            reason=f"{several(single)}: a single singular value is not zero, and one value is no curve",
            command="python -m probes.run --plugin lp --encoder NAME --task NAME",
        )
    shapes = sorted({curve.shape for curve in curves})
    sizes = " and ".join(f"N = {n}, D = {dimension}" for n, dimension in shapes)
    absent = [stretch.title for stretch in STRETCHES[len(panels) :]]
    caption = f"Test features of {dataset} ({title.lower()}): {sizes}. At most min(N, D) values are not zero."
    if any(curve.encoders > 1 for curve in curves):
        caption += " Of several encoders of one level, the mean."
    if single:
        caption += f" Not drawn, since one value is no curve: {several(single)}."
    if absent:
        caption += f" The stretch {' and '.join(absent)} is empty: there are too few values."
    return Figure(
        name=f"spectrum-{domain}-{_file_name(dataset)}",
        title=f"Spectrum on {dataset}",
        paper="Fig. 11 to 14",
        caption=caption,
        panels=panels,
        columns=3,
    )


def _curves(study: Study, dataset: str, domain: Domain) -> list[Curve]:
    """Return one curve a noise level of each family, levels ascending, then those of unknown noise."""
    rows: dict[str, Row] = {}
    for row in study.rows:
        if (row.dataset, row.domain) == (dataset, domain) and _has_spectrum(row):
            rows.setdefault(row.encoder_hash, row)
    known = [row.encoder_hash for row in rows.values() if row.noise_ratio is not None]
    families = {study.selection.family[encoder] for encoder in known}
    groups: dict[tuple[str, tuple[int, int]], list[Row]] = defaultdict(list)
    for row in sorted(
        rows.values(), key=lambda row: (row.noise_ratio is None, row.noise_ratio or 0, row.encoder)
    ):
        label = row.encoder
        if row.noise_ratio is not None:
            level = f"{percentage(row.noise_ratio):g} %"
            label = level if len(families) == 1 else f"{study.selection.family[row.encoder_hash]}, {level}"
        # Spectra of other shapes have other lengths: no mean over them.
        groups[label, (row.n_test, row.dim)].append(row)
    return [_curve(label, shape, members) for (label, shape), members in groups.items()]


def _has_spectrum(row: Row) -> bool:
    # Features that are all zero have singular values, but no shares.
    return bool(row.singular_values) and row.singular_values[0] > 0


def _curve(label: str, shape: tuple[int, int], rows: Sequence[Row]) -> Curve:
    values = np.array([row.singular_values for row in rows], dtype=np.float64)
    shares = 100 * values / values.sum(axis=1, keepdims=True)
    return Curve(label, rows[0].noise_ratio is not None, shares.mean(axis=0), shape, len(rows))


def _values(curve: Curve) -> int:
    """Count the values that are not zero, up to rounding."""
    return int(np.count_nonzero(curve.shares > 1e-12))


def _panel(dataset: str, stretch: Stretch, curves: Sequence[Curve]) -> Panel:
    series = []
    levels = [curve.label for curve in curves if curve.known]
    others = [curve.label for curve in curves if not curve.known]
    for curve in curves:
        ranks = _ranks(stretch, _values(curve))
        points = tuple(Point(x=float(rank), y=float(curve.shares[rank - 1])) for rank in ranks)
        if not points:
            continue
        if curve.known:
            slot, scale, of = levels.index(curve.label), ORDERED, len(levels)
        else:
            slot, scale, of = others.index(curve.label), CATEGORY, 1
        series.append(Series(label=curve.label, points=points, slot=slot, scale=scale, of=of))
    return Panel(
        title=_panel_title(dataset, stretch, series),
        x_label="Rank of the singular value",
        y_label="Share of the sum (%)",
        series=tuple(series),
        kind="curve",
        log_y=stretch.first > 1,
        alt="; ".join(
            f"{one.label}: {one.points[0].y:.3g} % at rank {one.points[0].x:g} to {one.points[-1].y:.3g} % "
            f"at rank {one.points[-1].x:g}"
            for one in series
        )
        + ".",
    )


def _panel_title(dataset: str, stretch: Stretch, series: Sequence[Series]) -> str:
    """Name the ranks that there are: a spectrum may end before its stretch does."""
    if not series or stretch.first == 1:
        return f"{dataset}, {stretch.title}"
    return f"{dataset}, ranks {stretch.first} to {max(one.points[-1].x for one in series):g}"


def _ranks(stretch: Stretch, available: int) -> list[int]:
    """Return the ranks to draw: all of them where few, else spread evenly with both ends."""
    last = min(available + 1, stretch.last or available + 1)
    count = last - stretch.first
    # One value is no curve.
    if count < 2:
        return []
    picked = np.linspace(stretch.first, last - 1, min(count, POINTS))
    return sorted({round(float(rank)) for rank in picked})


def _file_name(dataset: str) -> str:
    """Return a name that is safe for files and anchors, and differs where ``dataset`` differs."""
    name = "".join(
        letter if (letter.isascii() and letter.isalnum()) or letter == "-" else "_" for letter in dataset
    )
    return name if name == dataset else f"{name[:40]}-{hashlib.sha256(dataset.encode()).hexdigest()[:6]}"
