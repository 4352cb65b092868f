"""What a report is made of, before anything is drawn or rendered."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

Scale = Literal["category", "ordered"]
Kind = Literal["line", "path", "curve", "ranks"]

SD_RUNS = "SD over runs"
SD_SEEDS = "SD over seeds"
INTERVAL = "Half of the 95 % interval"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One mark of a series.

    Attributes:
        x: Horizontal position, in the unit of the panel's axis.
        y: Vertical position, in the unit of the panel's axis.
        spread: Half length of the error bar over pre-training runs, in the unit of ``y``; None for one run.
        seed_spread: Standard deviation over seeds of the head, in the unit of ``y``; None for one seed.
        runs: The value of each pre-training run behind ``y``.
        seeds: Fewest and most seeds of the head that a run has.
        label: Text beside the mark; empty for none.
    """

    x: float
    y: float
    spread: float | None = None
    seed_spread: float | None = None
    runs: tuple[float, ...] = ()
    seeds: tuple[int, int] = (1, 1)
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together, drawn in one colour.

    Attributes:
        label: Name beside its last point and in the table of values.
        points: The points, in order of ``x``.
        slot: Index into the palette; the same thing has the same slot in every figure.
        scale: ``category`` for things without an order (heads), ``ordered`` for levels and fractions.
        of: How many ordered slots the figure uses, so that their colours spread over the ramp.
    """

    label: str
    points: tuple[Point, ...]
    slot: int = 0
    scale: Scale = "category"
    of: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: What is shown, for example ``In-domain``.
        x_label: Quantity and unit.
        y_label: Quantity and unit.
        series: What is drawn.
        kind: ``line`` joins and marks points along the horizontal axis, ``path`` wherever they lie,
            ``curve`` joins many points without marks, ``ranks`` is a critical-difference diagram: a series a
            head, its one point at its mean rank.
        x_ticks: Positions to label; empty to let the axis choose.
        log_y: Whether the vertical axis is logarithmic.
        differences: Whether heights are differences: a line marks zero, and series stand side by side.
        p_values: Of ``ranks``: the p value of every pair of series, [S, S]; pairs above 5 % are joined.
        group: Panels of one group share their vertical range.
        alt: What is seen, for a reader who cannot see it.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Kind = "line"
    x_ticks: tuple[float, ...] = ()
    log_y: bool = False
    differences: bool = False
    p_values: tuple[tuple[float, ...], ...] = ()
    group: str = ""
    alt: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels that are read together.

    Attributes:
        name: File name without suffix, also the anchor in the page.
        title: What the figure shows, one line.
        paper: The paper's figures that it follows, for example ``Fig. 1 and 2``; may be empty.
        caption: What is drawn and under which conditions.
        panels: The panels, left to right, top to bottom.
        columns: Panels in a row of the image files.
        bars: What the error bars are, as a column head; deviations of runs and of seeds do not stand in one
            figure.
    """

    name: str
    title: str
    paper: str = ""
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 2

    bars: str = ""

    def __post_init__(self) -> None:
        if not self.bars:
            # Without two runs anywhere there is only the spread of the heads to show, under its own name.
            over = SD_RUNS if any(point.spread is not None for _, _, point in self.marks()) else SD_SEEDS
            object.__setattr__(self, "bars", over)

    @property
    def alt(self) -> str:
        """What is seen, panel by panel."""
        return " ".join(f"{panel.title}: {panel.alt}" for panel in self.panels)

    def marks(self) -> list[tuple[Panel, Series, Point]]:
        """Return every mark with its panel and series."""
        return [
            (panel, series, point)
            for panel in self.panels
            for series in panel.series
            for point in series.points
        ]

    def bar(self, point: Point) -> float | None:
        """Return half the length of a mark's error bar."""
        return point.seed_spread if self.bars == SD_SEEDS else point.spread

    def values(self) -> list[Table]:
        """Return what is drawn as a table; none for curves, which have too many points to read."""
        found = [mark for mark in self.marks() if mark[0].kind != "curve"]
        return [self._table(found)] if found else []

    def data(self) -> Table:
        """Return every point that is drawn, those of curves too, in full precision."""
        return self._table(self.marks())

    def _table(self, found: Sequence[tuple[Panel, Series, Point]]) -> Table:
        first = self.panels[0]
        rows = []
        for panel, series, point in found:
            bar = self.bar(point)
            rows.append(
                cells(
                    panel.title,
                    series.label,
                    Cell(point.label or f"{point.x:g}", numbers=(("", point.x),)),
                    Cell(f"{point.y:.4g}", numbers=(("", point.y),)),
                    Cell("–" if bar is None else f"{bar:.2g}", numbers=(("", bar),)),
                    Cell(
                        " ".join(f"{run:.4g}" for run in point.runs),
                        numbers=tuple((str(number), run) for number, run in enumerate(point.runs, 1)),
                    ),
                    _span(point.seeds),
                )
            )
        # Panels of one figure may have axes of their own: then no name holds for all.
        labels = [
            name if all(getattr(panel, axis) == name for panel in self.panels) else axis[0]
            for axis, name in (("x_label", first.x_label), ("y_label", first.y_label))
        ]
        return Table(
            name=f"{self.name}-values",
            title=f"Values of: {self.title}",
            caption="",
            header=("Panel", "Series", *labels, self.bars, "Each run", "Seeds"),
            rows=tuple(rows),
            text_columns=2,
            grouped=True,
        )


def _span(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: What a reader sees.
        strong: Sets it off, for the reason that the caption gives.
        numbers: What ``text`` rounds, in its unit, each under a name; the first one's is empty, since the
            column's own name is enough. None where it was not measured. Empty for what is no number.
    """

    text: str
    strong: bool = False
    numbers: tuple[tuple[str, float | None], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text.

    Attributes:
        name: The anchor in the page.
        title: What the table shows, one line.
        paper: The paper's tables that it follows; may be empty.
        caption: Conditions, units, and what N counts.
        header: Column heads.
        rows: Entries, each row as long as ``header``.
        text_columns: How many columns from the left are text; the others are numbers.
        grouped: Whether rows with the same first entry are set together under it.
        prose: Whether entries are sentences, which break over lines.
    """

    name: str
    title: str
    paper: str = ""
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    text_columns: int = 1
    grouped: bool = False
    prose: bool = False

    @property
    def groups(self) -> list[list[tuple[Cell, ...]]]:
        """The rows in groups that share their first entry; each row alone if not ``grouped``."""
        if not self.grouped:
            return [[row] for row in self.rows]
        return [list(rows) for _, rows in itertools.groupby(self.rows, key=lambda row: row[0])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """A figure or table that these results cannot fill.

    Attributes:
        title: What is missing.
        paper: The paper's figures or tables that it would follow; may be empty.
        reason: What the results lack.
        command: What to run to get it, a line a command.
    """

    title: str
    paper: str = ""
    reason: str
    command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report under one heading."""

    name: str
    title: str
    intro: str = ""
    items: tuple[Figure | Table | Gap, ...] = ()


@dataclasses.dataclass(frozen=True)
class Caution:
    """Something that keeps the numbers from meaning more than they do: a short title, then why."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a reader gets.

    Attributes:
        title: The heading of the page.
        lead: What was measured, in a sentence or two.
        cautions: What to know before reading any number.
        sections: The parts, in reading order.
        documents: Names and texts of files to write beside the page.
        left_out: A sentence for every group of results that are not reported.
    """

    title: str
    lead: str
    cautions: tuple[Caution, ...]
    sections: tuple[Section, ...]
    documents: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def figures(self) -> list[Figure]:
        """Every figure, in reading order."""
        return [item for item in self.items if isinstance(item, Figure)]

    @property
    def tables(self) -> list[Table]:
        """Every table, in reading order."""
        return [item for item in self.items if isinstance(item, Table)]

    @property
    def gaps(self) -> list[Gap]:
        """Every named gap, in reading order."""
        return [item for item in self.items if isinstance(item, Gap)]

    @property
    def items(self) -> list[Figure | Table | Gap]:
        """Every item, in reading order."""
        return [item for section in self.sections for item in section.items]


def cells(*texts: str | Cell) -> tuple[Cell, ...]:
    """Return a table row of plain texts and ready cells."""
    return tuple(text if isinstance(text, Cell) else Cell(text) for text in texts)
