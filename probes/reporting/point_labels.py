"""Texts beside single marks, where they lie on nothing else."""

from __future__ import annotations

from collections.abc import Iterator
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


def label_points(axes: Axes, panel: Panel) -> None:
    """Write the labels of marks beside them, within the axes.

    A label that would lie on a mark, another label or the numbers of an axis is left out.
    Of one series all marks are labelled; of several the ends only, which tell the direction.
    """
    marks = [_place(axes, point) for series in panel.series for point in series.points]
    taken = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in marks] if _labelled(panel) else []
    frame = _frame(axes)
    for series in panel.series:
        for point in series.points:
            if not point.label or (
                len(panel.series) > 1 and point not in (series.points[0], series.points[-1])
            ):
                continue
            x, y = _place(axes, point)
            for box in _around(x, y, point.label):
                if frame.holds(box) and not any(box.meets(other) for other in taken):
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


def _labelled(panel: Panel) -> bool:
    return any(point.label for series in panel.series for point in series.points)


def _frame(axes: Axes) -> Box:
    """Return the axes' own rectangle: beyond it are numbers and names."""
    canvas = axes.get_figure(root=True)
    if canvas is None:
        raise ValueError("axes without a figure have no size to lay labels out in")
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)]) * 72 / canvas.dpi
    return Box(float(left), float(bottom), float(right), float(top))


def _place(axes: Axes, point: Point) -> tuple[float, float]:
    """Return where a mark lies on the canvas, in points."""
    canvas = axes.get_figure(root=True)
    if canvas is None:
        raise ValueError("axes without a figure have no size to lay labels out in")
    x, y = axes.transData.transform((point.x, point.y))
    return 72 * float(x) / canvas.dpi, 72 * float(y) / canvas.dpi


def _around(x: float, y: float, text: str) -> Iterator[Box]:
    """Yield the boxes that a text may take beside a mark, the usual one first."""
    width = len(text) * CHARACTER_WIDTH * SIZE
    for left in (x + GAP, x - GAP - width):
        for bottom in (y - GAP - 0.5 * SIZE, y + 0.5 * SIZE, y - 0.4 * SIZE):
            yield Box(left, bottom, left + width, bottom + SIZE)
