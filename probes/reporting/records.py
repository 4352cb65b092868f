"""What a report is made of, before anything is drawn or rendered."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

Scale = Literal["category", "ordered"]
Kind = Literal["line", "path", "curve"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One mark of a series.

    Attributes:
        x: Horizontal position, in the unit of the panel's axis.
        y: Vertical position, in the unit of the panel's axis.
        spread: Half length of the error bar, in the unit of ``y``; None where N is 1.
        n: Runs behind the mean.
        label: Text beside the mark; empty for none.
    """

    x: float
    y: float
    spread: float | None = None
    n: int = 1
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
            ``curve`` joins many points without marks.
        x_ticks: Positions to label; empty to let the axis choose.
        log_y: Whether the vertical axis is logarithmic.
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
    """

    name: str
    title: str
    paper: str = ""
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 2

    @property
    def alt(self) -> str:
        """What is seen, panel by panel."""
        return " ".join(f"{panel.title}: {panel.alt}" for panel in self.panels)

    def values(self) -> list[Table]:
        """Return what is drawn as a table; none for curves, which have too many points to read."""
        rows = [
            cells(
                [
                    panel.title,
                    series.label,
                    point.label or f"{point.x:g}",
                    f"{point.y:.4g}",
                    spread,
                    str(point.n),
                ]
            )
            for panel in self.panels
            if panel.kind != "curve"
            for series in panel.series
            for point in series.points
            for spread in ["–" if point.spread is None else f"{point.spread:.2g}"]
        ]
        if not rows:
            return []
        first = self.panels[0]
        header = ("Panel", "Series", first.x_label, first.y_label, "SD", "N")
        title = f"Values of: {self.title}"
        return [
            Table(
                name=f"{self.name}-values",
                title=title,
                caption="",
                header=header,
                rows=tuple(rows),
                text_columns=2,
                grouped=True,
            )
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of a table; ``strong`` sets it off, for the reason that the caption gives."""

    text: str
    strong: bool = False


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
    """

    title: str
    lead: str
    cautions: tuple[Caution, ...]
    sections: tuple[Section, ...]

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


def cells(texts: Sequence[str | Cell]) -> tuple[Cell, ...]:
    """Return a table row of plain texts and ready cells."""
    return tuple(text if isinstance(text, Cell) else Cell(text) for text in texts)
