"""Names of series beside the axes: a reader need not look a colour up elsewhere, and finds one order in "
"all."""

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


def label_series(axes: Axes, series: Sequence[Series], *, kind: Kind) -> None:
    """Write the names to the right of ``axes``, which gives up width for them.

    They stand from the top in the order of the series, which is the same in every figure; each has a sample
    of its mark and colour in front. A name at the end of its line would stand in another order in every
    panel.
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
    # Many names stand closer rather than below the axes.
    line = min(SIZE * LINE, axes_height / max(1, len(series) - 1))

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
            1 + GAP / axes_width,
            sample[1],
            one.label,
            fontsize=SIZE,
            color=ROLES["ink"].light,
            va="center_baseline",
            **place,
        )
