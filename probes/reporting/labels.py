"""Texts beside single marks, where they lie on nothing else, and the names of series beside the axes.

A reader need not look a colour up elsewhere, and finds the series in one order in all figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nml.palette import ROLES
from probes.reporting.records import Kind, Panel, Point, Series
from probes.reporting.theme import CHARACTER_WIDTH, colour, marker

TEXT_SIZE = 8.0  # points
MARK = 4.0  # half of a mark, points
TEXT_GAP = 7.0  # from the middle of a mark to its text, points
NAME_SIZE = 9.0  # points
NAME_LINE = 1.35  # line height over font size
NAME_GAP = 14.0  # points between the axes and the name of a series: room for a sample of the mark


class Box(NamedTuple):
    """A rectangle on the canvas, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether the two have a point in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def holds(self, other: Box) -> bool:
        """Whether the other lies within this one."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


class Line(NamedTuple):
    """A straight line on the canvas from one mark to the next, in points."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, box: Box) -> bool:
        """Whether a part of the line lies in the box (Liang and Barsky's clipping)."""
        first, last = 0.0, 1.0
        for step, room in (
            (self.x0 - self.x1, self.x0 - box.left),
            (self.x1 - self.x0, box.right - self.x0),
            (self.y0 - self.y1, self.y0 - box.bottom),
            (self.y1 - self.y0, box.top - self.y0),
        ):
            if step == 0:
                if room < 0:
                    return False
            elif step < 0:
                first = max(first, room / step)
            else:
                last = min(last, room / step)
        return first <= last


def label_points(axes: Axes, panel: Panel, bars: Callable[[Point], float | None] = lambda _: None) -> None:
    """Write the labels of marks beside them, within the axes.

    A label that would lie on a mark, a line, an error bar, another label or the numbers of an axis is left
    out. Of one series all marks are labelled; of several the ends only, which tell the direction.

    Args:
        axes: Where the marks are.
        panel: What was drawn.
        bars: Half the length of a mark's error bar.
    """
    if not _labelled(panel):
        return
    taken: list[Box | Line] = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in _places(axes, panel)]
    taken += _lines(axes, panel, bars)
    frame = _frame(axes)
    for series in panel.series:
        for point in series.points:
            if not point.label or (
                len(panel.series) > 1 and point not in (series.points[0], series.points[-1])
            ):
                continue
            x, y = _place(axes, point.x, point.y)
            for box in _around(x, y, point.label):
                if frame.holds(box) and not any(other.meets(box) for other in taken):
                    taken.append(box)
                    axes.annotate(
                        point.label,
                        (point.x, point.y),
                        xytext=(box.left - x, box.bottom - y),
                        textcoords="offset points",
                        fontsize=TEXT_SIZE,
                        color=ROLES["muted"].light,
                    )
                    break


def _places(axes: Axes, panel: Panel) -> list[tuple[float, float]]:
    return [_place(axes, point.x, point.y) for series in panel.series for point in series.points]


def _lines(axes: Axes, panel: Panel, bars: Callable[[Point], float | None]) -> Iterator[Line]:
    """Yield what is drawn beside the marks: the lines that join them, and their error bars."""
    for series in panel.series:
        places = [_place(axes, point.x, point.y) for point in series.points]
        for start, end in itertools.pairwise(places):
            yield Line(*start, *end)
        for point in series.points:
            bar = bars(point)
            if bar:
                ends = (_place(axes, point.x, point.y + sign * bar) for sign in (-1, 1))
                yield Line(*next(ends), *next(ends))


def _labelled(panel: Panel) -> bool:
    return any(point.label for series in panel.series for point in series.points)


def _frame(axes: Axes) -> Box:
    """Return the axes' own rectangle: beyond it are numbers and names."""
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)]) * 72 / _canvas(axes).dpi
    return Box(float(left), float(bottom), float(right), float(top))


def _place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Return where a position of the data lies on the canvas, in points."""
    across, up = axes.transData.transform((x, y)) * 72 / _canvas(axes).dpi
    return float(across), float(up)


def _canvas(axes: Axes) -> Figure:
    canvas = axes.get_figure(root=True)
    if canvas is None:
        raise ValueError("axes without a figure have no size to lay labels out in")
    return canvas


def _around(x: float, y: float, text: str) -> Iterator[Box]:
    """Yield the boxes that a text may take beside a mark, the usual one first."""
    width = len(text) * CHARACTER_WIDTH * TEXT_SIZE
    # Further away where the near places are taken, but never so far that it could be of another mark.
    for gap in (TEXT_GAP, 1.6 * TEXT_GAP):
        for left in (x + gap, x - gap - width):
            for bottom in (y - gap - 0.5 * TEXT_SIZE, y + gap - 0.5 * TEXT_SIZE, y - 0.4 * TEXT_SIZE):
                yield Box(left, bottom, left + width, bottom + TEXT_SIZE)
        for bottom in (y - gap - TEXT_SIZE, y + gap):
            yield Box(x - width / 2, bottom, x + width / 2, bottom + TEXT_SIZE)


def label_series(axes: Axes, series: Sequence[Series], *, kind: Kind) -> None:
    """Write the names to the right of ``axes``, which gives up width for them.

    They stand from the top in the order of the series, which is the same in every figure; each has a sample
    of its mark and colour in front. A name at the end of its line would stand in another order in every
    panel.
    """
    width, height = (72 * inches for inches in _canvas(axes).get_size_inches())
    box = axes.get_position()
    text_width = NAME_GAP + max(len(one.label) for one in series) * CHARACTER_WIDTH * NAME_SIZE
    box.x1 = max(box.x0 + 0.3 * (box.x1 - box.x0), box.x1 - text_width / width)
    axes.set_position(box)
    axes_width, axes_height = (box.x1 - box.x0) * width, (box.y1 - box.y0) * height
    # Many names stand closer rather than below the axes.
    line = min(NAME_SIZE * NAME_LINE, axes_height / max(1, len(series) - 1))

    is_curve = kind == "curve"
    for number, one in enumerate(series):
        place: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        sample = (1 + 5.5 / axes_width, 1 - number * line / axes_height)
        axes.plot(
            *([position] for position in sample),
            color=colour(one),
            marker="_" if is_curve else marker(one),
            markersize=7 if is_curve else 5,
            markeredgewidth=2 if is_curve else 0,
            linestyle="none",
            **place,
        )
        axes.text(
            1 + NAME_GAP / axes_width,
            sample[1],
            one.label,
            fontsize=NAME_SIZE,
            color=ROLES["ink"].light,
            va="center_baseline",
            **place,
        )
