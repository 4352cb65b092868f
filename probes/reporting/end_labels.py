"""Names of series beside their last points: a reader need not look a colour up in a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from nml.palette import ROLES
from probes.reporting.records import Kind, Series
from probes.reporting.theme import CHARACTER_WIDTH, colour, marker

SIZE = 9.0  # points
LINE = 1.35  # line height over font size
GAP = 14.0  # points between the axes and the text: room for a sample of the mark


def spread_labels(axes: Axes, series: Sequence[Series], *, kind: Kind) -> None:
    """Write the labels to the right of ``axes``, which gives up width for them.

    Each sits at the height of its series' last point, moved as little as needed to stay clear of
    the others, with a sample of its mark and colour in front.
    """
    canvas = axes.get_figure(root=True)
    if canvas is None:
        raise ValueError("axes without a figure have no size to lay labels out in")
    width, height = (72 * inches for inches in canvas.get_size_inches())
    box = axes.get_position()
    text_width = GAP + max(len(one.label) for one in series) * CHARACTER_WIDTH * SIZE
    box.x1 = max(box.x0 + 0.3 * (box.x1 - box.x0), box.x1 - text_width / width)
    axes.set_position(box)
    axes_width, axes_height = (box.x1 - box.x0) * width, (box.y1 - box.y0) * height

    is_curve = kind == "curve"
    # A path ends anywhere: its labels are a list at the top.
    wanted = [axes_height if kind == "path" else _height(axes, one) * axes_height for one in series]
    # Many curves run into one another at their ends: which is higher by a hair says nothing.
    tie = SIZE * LINE if is_curve else 1e-6
    for one, y in zip(series, apart(wanted, SIZE * LINE, axes_height, tie), strict=True):
        place: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        sample = (1 + 5.5 / axes_width, y / axes_height)
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
            1 + GAP / axes_width,
            y / axes_height,
            one.label,
            fontsize=SIZE,
            color=ROLES["ink"].light,
            va="center_baseline",
            **place,
        )


def _height(axes: Axes, series: Series) -> float:
    """Return the height of the last point as a share of the axes, 0 to 1."""
    last = series.points[-1]
    _, pixel = axes.transData.transform((last.x, last.y))
    return min(1.0, max(0.0, float(axes.transAxes.inverted().transform((0, pixel))[1])))


def apart(wanted: Sequence[float], distance: float, top: float, tie: float = 1e-6) -> list[float]:
    """Return positions near ``wanted``, in its order, ``distance`` apart, within 0 to ``top`` if they fit.

    Labels that touch form a block centred on the mean of what its members want, so that no label
    moves further than its neighbours force it to (pool adjacent violators). Labels that want the same
    place to within ``tie`` keep their order from top to bottom.
    """
    order = sorted(range(len(wanted)), key=lambda index: (round(wanted[index] / tie), -index))
    blocks: list[tuple[float, int]] = []  # wanted position of the block's first label, labels in it
    for index in order:
        start, size = wanted[index], 1
        while blocks and start < blocks[-1][0] + blocks[-1][1] * distance:
            before, count = blocks.pop()
            start = (before * count + (start - count * distance) * size) / (count + size)
            size += count
        blocks.append((start, size))
    positions = [start + step * distance for start, size in blocks for step in range(size)]
    positions = _within(positions, distance, top)
    placed = dict(zip(order, positions, strict=True))
    return [placed[index] for index in range(len(wanted))]


def _within(positions: list[float], distance: float, top: float) -> list[float]:
    """Push ascending positions below ``top``, then above 0, keeping their distance."""
    limit = top
    for index in reversed(range(len(positions))):
        positions[index] = min(positions[index], limit)
        limit = positions[index] - distance
    limit = 0.0
    for index in range(len(positions)):
        positions[index] = max(positions[index], limit)
        limit = positions[index] + distance
    return positions
