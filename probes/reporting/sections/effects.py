"""What noise in pre-training changes: each level against the clean one, trends, and spectra with accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from probes.reporting.averages import Score
from probes.reporting.inference import Judged, holm, judge
from probes.reporting.ladders import (
    Correlation,
    Run,
    Trend,
    change,
    ladders,
    rank_correlation,
    runs_of,
    trend,
)
from probes.reporting.paired import BASELINE
from probes.reporting.records import INTERVAL, Cell, Figure, Gap, Point, Section, Series, Table, cells
from probes.reporting.sections.head_differences import difference_point, differences_panel
from probes.reporting.sections.noise import NOISE_COMMAND, no_ladder
from probes.reporting.study import DOMAINS, Study, in_domain, of_family
from probes.reporting.wording import NONE, behind, count, number_cell, probability, signed, with_interval
from probes.results.row import Domain


class Quantity(NamedTuple):
    """Something that noise may change.

    Attributes:
        name: What it is.
        domain: ``id`` or ``ood``.
        head: The head; empty for what is the encoder's own.
        runs: Its value for every pre-training run, by encoder hash.
        rising: The declared order: whether it rises with the noise.
    """

    name: str
    domain: Domain
    head: str
    runs: dict[str, Run]
    rising: bool

    @property
    def scale(self) -> float:
        """Units of the table in one of the value's: percentage points, or nats."""
        return 100.0 if self.head else 1.0

    @property
    def digits(self) -> int:
        """Decimals in the table."""
        return 1 if self.head else 2


def section(study: Study) -> Section:
    """Return the section."""
    items: list[Figure | Table | Gap] = []
    for family, levels in study.ladders.items():
        found = _quantities(study, family)
        if found:
            items += [
                _figure(study, family, levels, found),
                _changes(study, family, levels, found),
                _trends(study, family, levels, found),
                _correlations(study, family, found),
            ]
    return Section(
        name="effects",
        title="Effects of noise",
        intro=(
            "A ladder is one pre-training seed at every noise level, so that its runs share first weights "
            "and the order of the data; the seed is read from the encoder's name. The order of a trend was "
            f"declared before any result: {study.metric} falls with the noise, SVE and LSVR rise."
        ),
        items=tuple(items) or (no_ladder("Effects of pre-training noise"),),
    )


def _quantities(study: Study, family: str) -> list[Quantity]:
    found = of_family(study.known(study.main), family)
    quantities = []
    for domain, title in DOMAINS:
        for head in study.heads:
            of_head = [score for score in in_domain(found, domain) if score.head == head]
            name = f"{title} {study.metric}, {head}"
            runs = runs_of(of_head, lambda score: score.metric)
            quantities.append(Quantity(name, domain, head, runs, rising=False))
    spectra: tuple[tuple[str, Domain, Callable[[Score], float]], ...] = (
        ("Encoder SVE, in-domain", "id", lambda score: score.sve),
        ("Encoder LSVR, out-of-domain", "ood", lambda score: score.lsvr),
    )
    for name, domain, value in spectra:
        # The same whatever the head: those of one head are enough.
        within = in_domain(found, domain)
        present = {score.head for score in within}
        first = next((one for one in (BASELINE, *study.heads) if one in present), None)
        runs = runs_of([score for score in within if score.head == first], value)
        quantities.append(Quantity(name, domain, "", runs, rising=True))
    return [quantity for quantity in quantities if quantity.runs]


def _figure(study: Study, family: str, levels: Sequence[float], found: Sequence[Quantity]) -> Figure:
    panels = []
    for domain, title in DOMAINS:
        series = tuple(
            Series(label=one.head, points=_points(one, levels), slot=study.head_slot(one.head))
            for one in found
            if one.head and one.domain == domain and _points(one, levels)
        )
        if series:
            panels.append(differences_panel(study, title, f"that at {levels[0]:g} %", series, levels[1:]))
    return Figure(
        name=f"effects-{_place(study, family)}",
        title=study.title(family, f"Change of {study.metric} from {levels[0]:g} % noise, ladder by ladder"),
        caption=(
            "Small marks: one ladder each. Large mark and bar: their mean with its 95 % Student t interval; "
            "a bar that ends at the edge goes on beyond it, and one ladder has none. Without ladders, the "
            "difference of the means of two groups of runs with Welch's interval. "
            f"{behind(panels, 'ladder')}."
        ),
        panels=tuple(panels),
        bars=INTERVAL,
    )


def _points(quantity: Quantity, levels: Sequence[float]) -> tuple[Point, ...]:
    changes = ((level, change(quantity.runs.values(), [level], levels[0])) for level in levels[1:])
    return tuple(difference_point(level, found) for level, found in changes if found)


def _changes(study: Study, family: str, levels: Sequence[float], found: Sequence[Quantity]) -> Table:
    estimates = [change(one.runs.values(), [level], levels[0]) for one in found for level in levels[1:]]
    judged: list[Judged | None] = judge([(one, one is not None and one.p is not None) for one in estimates])
    counted = sum(one is not None and one.p_holm is not None for one in judged)
    changes = iter(judged)
    rows = [
        cells(
            one.name,
            *(signed(next(changes), one.scale, one.digits) for _ in levels[1:]),
            _behind(one, levels),
        )
        for one in found
    ]
    marked = (
        f"Bold: p < 0.05 after Holm's adjustment over the {counted} comparisons of the table."
        if counted
        else "Nothing is marked and there are no intervals: no noise level has two pre-training runs."
    )
    return Table(
        name=f"effects-{_place(study, family)}-changes",
        title=study.title(family, f"Change from {levels[0]:g} % noise"),
        caption=(
            f"Percentage points of {study.metric}; nats of SVE and LSVR. Brackets: 95 % Student t interval "
            f"over ladders, df = ladders − 1; where the names tell no ladders, Welch's interval of two "
            f"groups of runs. {marked}"
        ),
        header=("Quantity", *(f"{level:g} %" for level in levels[1:]), "Runs"),
        rows=tuple(rows),
    )


def _behind(quantity: Quantity, levels: Sequence[float]) -> str:
    rows = ladders(quantity.runs.values(), levels)
    return count(len(rows), "ladder") if rows else count(len(quantity.runs), "run")


def _trends(study: Study, family: str, levels: Sequence[float], found: Sequence[Quantity]) -> Table | Gap:
    trends = [trend(one.runs.values(), levels, rising=one.rising) for one in found]
    title = study.title(family, "Monotone trends with the noise")
    if not any(one.slope for one in trends):
        return Gap(
            title=title,
            reason="a trend needs three noise levels of one pre-training seed, and the names tell of none",
            command=NOISE_COMMAND,
        )
    adjusted = holm([one.p for one in trends])
    slopes = judge([(one.slope, one.slope is not None and one.slope.p is not None) for one in trends])
    rows = [
        cells(quantity.name, *_trend(quantity, one, slope, p))
        for quantity, one, slope, p in zip(found, trends, slopes, adjusted, strict=True)
    ]
    return Table(
        name=f"effects-{_place(study, family)}-trends",
        title=title,
        caption=(
            "Page's test of the declared order over ladders that have every level, one-sided, p after Holm's "
            "adjustment over the table; it needs two ladders. Beside it the least-squares slope for 10 "
            "percentage points of noise, one a ladder, with its 95 % Student t interval and t. A curve that "
            "rises and then falls has no trend."
        ),
        header=("Quantity", "Declared", "Page's L", "p, Holm", "Slope for 10 % noise", "t", "Ladders"),
        rows=tuple(rows),
        text_columns=2,
    )


def _trend(quantity: Quantity, one: Trend, slope: Judged | None, p: float | None) -> list[str | Cell]:
    probable = probability(p)
    ends = slope.found if slope else None
    return [
        "rises" if quantity.rising else "falls",
        number_cell(one.statistic, 1),
        Cell(probable.text, strong=p is not None and p < 0.05, numbers=probable.numbers),
        # Slopes are for one percentage point.
        signed(slope, 10 * quantity.scale, quantity.digits),
        number_cell(ends.t if ends else None, 2),
        str(ends.n) if ends else NONE,
    ]


def _correlations(study: Study, family: str, found: Sequence[Quantity]) -> Table:
    spectra = {one.domain: one for one in found if not one.head}
    pairs = [(spectra[one.domain], one) for one in found if one.head and one.domain in spectra]
    names = {"id": "Encoder SVE, in-domain", "ood": "Encoder LSVR, out-of-domain"}
    rows = []
    for spectrum, accuracy in pairs:
        both = sorted(spectrum.runs.keys() & accuracy.runs.keys())
        values = [[of.runs[encoder].value for encoder in both] for of in (spectrum, accuracy)]
        one = rank_correlation(*values)
        rows.append(cells(names[accuracy.domain], accuracy.name, *_correlation(one), str(len(both))))
    return Table(
        name=f"effects-{_place(study, family)}-spectra",
        title=study.title(family, f"Spectra and {study.metric} over runs"),
        paper="Fig. 3",
        caption=(
            "Spearman's rank correlation over pre-training runs of all noise levels, with the 95 % interval "
            "of Fisher's transformation; it needs four runs. Noise moves both quantities, so that a "
            "correlation here is none at a given noise level, and no cause."
        ),
        header=("Spectrum", study.metric.capitalize(), "Spearman's ρ", "p", "Runs"),
        rows=tuple(rows),
        text_columns=2,
    )


def _correlation(one: Correlation | None) -> list[Cell]:
    if one is None:
        return [Cell(NONE), Cell(NONE)]
    text = with_interval(one.rho, one.low, one.high, 2)
    numbers = (("", one.rho), ("low", one.low), ("high", one.high))
    return [Cell(text, numbers=numbers), probability(one.p)]


def _place(study: Study, family: str) -> int:
    """Number a family: its name may hold what no anchor or file name does."""
    return list(study.ladders).index(family)
