"""Texts beside single marks, where they lie on nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from matplotlib.axes import Axes

from nml.palette import ROLES
from probes.reporting.records import Panel, Point
from probes.reporting.theme import CHARACTER_WIDTH

SIZE = 8.0  # points
MARK = 4.0  # half of a mark, points
GAP = 7.0  # from the middle of a mark to its text, points


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
                        fontsize=SIZE,
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
    canvas = axes.get_figure(root=True)
    if canvas is None:
        raise ValueError("axes without a figure have no size to lay labels out in")
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)]) * 72 / canvas.dpi
    return Box(float(left), float(bottom), float(right), float(top))


def _place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Return where a position of the data lies on the canvas, in points."""
    canvas = axes.get_figure(root=True)
    if canvas is None:
        raise ValueError("axes without a figure have no size to lay labels out in")
    across, up = axes.transData.transform((x, y))
    return 72 * float(across) / canvas.dpi, 72 * float(up) / canvas.dpi


def _around(x: float, y: float, text: str) -> Iterator[Box]:
    """Yield the boxes that a text may take beside a mark, the usual one first."""
    width = len(text) * CHARACTER_WIDTH * SIZE
    # Further away where the near places are taken, but never so far that it could be of another mark.
    for gap in (GAP, 1.6 * GAP):
        for left in (x + gap, x - gap - width):
            for bottom in (y - gap - 0.5 * SIZE, y + gap - 0.5 * SIZE, y - 0.4 * SIZE):
                yield Box(left, bottom, left + width, bottom + SIZE)
        for bottom in (y - gap - SIZE, y + gap):
            yield Box(x - width / 2, bottom, x + width / 2, bottom + SIZE)
