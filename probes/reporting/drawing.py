"""Panels as matplotlib axes, and figures as PNG and SVG files of equal bytes for equal input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nml.files import write_bytes
from nml.palette import ROLES, SETTINGS, rendered
from probes.reporting.labels import label_points, label_series
from probes.reporting.records import INTERVAL, Figure, Panel, Point, Series
from probes.reporting.theme import colour, marker

FileKind = Literal["png", "svg", "pdf"]

WIDTH, HEIGHT = 4.6, 3.3  # inches a panel
LEFT, RIGHT, TOP, BOTTOM = 0.82, 0.12, 0.4, 0.6  # margins in inches a panel, the same in all
DPI = 160
RANKS_SIZE = 9.0  # points


def save_figure(figure: Figure, folder: Path, kinds: Sequence[FileKind] = ("png", "svg")) -> None:
    """Write ``figure`` to ``folder`` as NAME.png and the like, all panels on one light canvas."""
    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    with mpl.rc_context(SETTINGS):
        canvas = _canvas(columns, rows)
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(figure.panels) :]:
            axes.set_axis_off()
        for panel, axes in zip(figure.panels, grid.flat, strict=False):
            _draw(axes, figure, panel)
        for axes, panel in zip(grid.flat, figure.panels, strict=False):
            _label(axes, figure, panel)
        for kind in kinds:
            write_bytes(folder / f"{figure.name}.{kind}", rendered(canvas, kind))


def panel_svg(figure: Figure, panel: Panel) -> str:
    """Return one panel of ``figure`` as an SVG document, in the light theme's colours."""
    with mpl.rc_context(SETTINGS):
        canvas = _canvas(1, 1)
        axes = canvas.subplots()
        _draw(axes, figure, panel)
        _label(axes, figure, panel)
        return rendered(canvas, "svg").decode()


def shared_range(figure: Figure, panel: Panel) -> tuple[float, float] | None:
    """Return the vertical range of all panels of the panel's group; None for a panel of its own."""
    if not panel.group:
        return None
    values = [
        value
        for other in figure.panels
        if other.group == panel.group
        for series in other.series
        for point in series.points
        for value in _reach(figure, point)
    ]
    if panel.log_y:
        values = [value for value in values if value > 0]
        return (min(values) / 1.4, max(values) * 1.4) if values else None
    margin = 0.08 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _reach(figure: Figure, point: Point) -> tuple[float, ...]:
    """Return the heights that a mark takes up: its own, its runs' and the ends of its error bar."""
    bar = figure.bar(point) or 0.0
    if figure.bars != INTERVAL:
        return (point.y - bar, point.y + bar, *point.runs)
    # An interval of two runs is wider than all else together: it would leave nothing of the runs to see.
    reach = 2 * max((abs(run - point.y) for run in point.runs), default=0.0)
    return (point.y - min(bar, reach), point.y + min(bar, reach), *point.runs, 0.0)


def _canvas(columns: int, rows: int) -> Canvas:
    """Return an empty canvas whose axes all have the same size and lie in line."""
    canvas = Canvas(figsize=(columns * WIDTH, rows * HEIGHT), dpi=DPI)
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    canvas.subplots_adjust(
        left=LEFT / (columns * WIDTH),
        right=1 - RIGHT / (columns * WIDTH),
        bottom=BOTTOM / (rows * HEIGHT),
        top=1 - TOP / (rows * HEIGHT),
        wspace=(LEFT + RIGHT) / inner_width,
        hspace=(TOP + BOTTOM) / inner_height,
    )
    return canvas


def _draw(axes: Axes, figure: Figure, panel: Panel) -> None:
    axes.set_title(panel.title, pad=10)
    if panel.kind == "ranks":
        _draw_ranks(axes, panel)
        return
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=False, axis="x")
    if panel.log_y:
        axes.set_yscale("log")
        # The default writes powers as mathematics, which would be drawn and not be text.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        values = [point.y for series in panel.series for point in series.points if point.y > 0]
        if values and max(values) < 100 * min(values):
            # Powers of ten alone would leave one number on the axis, or none.
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if panel.differences:
        axes.axhline(0.0, color=ROLES["muted"].light, linewidth=1.0, zorder=1)
    for number, series in enumerate(panel.series):
        _draw_series(axes, figure, panel, series, aside=_aside(panel, number))
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks, [f"{tick:g}" for tick in panel.x_ticks])
        span = (max(panel.x_ticks) - min(panel.x_ticks)) or 1.0
        axes.set_xlim(min(panel.x_ticks) - 0.06 * span, max(panel.x_ticks) + 0.06 * span)
    elif panel.kind == "path":
        axes.margins(0.15)
    if not panel.log_y:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    if y_range := shared_range(figure, panel):
        axes.set_ylim(*y_range)


def _aside(panel: Panel, number: int) -> float:
    """Return how far a series is moved along the horizontal axis, so that its bars cover no other's."""
    if not panel.differences:
        return 0.0
    span = (max(panel.x_ticks) - min(panel.x_ticks)) or 1.0
    return 0.02 * span * (number - (len(panel.series) - 1) / 2)


def _draw_series(axes: Axes, figure: Figure, panel: Panel, series: Series, aside: float) -> None:
    x = [point.x + aside for point in series.points]
    y = [point.y for point in series.points]
    if panel.kind == "curve":
        axes.plot(x, y, color=colour(series), linewidth=1.6)
        return
    # Without runs to tell a spread from, the bar has no length and its caps do not show.
    spread = [figure.bar(point) or 0.0 for point in series.points]
    axes.errorbar(
        x,
        y,
        yerr=spread if any(spread) else None,
        color=colour(series),
        marker=marker(series),
        markersize=6.5,
        markeredgecolor=ROLES["surface"].light,
        markeredgewidth=0.8,
        linestyle="none" if panel.differences else "-",
        linewidth=0.8 if panel.kind == "path" else 1.8,
        elinewidth=1.0,
        capsize=2.5,
    )
    runs = [(point.x + aside, run) for point in series.points if len(point.runs) > 1 for run in point.runs]
    if runs and panel.kind == "line":
        axes.plot(
            *zip(*runs, strict=True),
            color=colour(series),
            marker=marker(series),
            markersize=4,
            # Apart from the bar that they lie on.
            markeredgecolor=ROLES["surface"].light,
            markeredgewidth=0.6,
            linestyle="none",
            zorder=2.5,
        )


def _label(axes: Axes, figure: Figure, panel: Panel) -> None:
    """Name every series on room made at the right, then the marks that have names."""
    named = [series for series in panel.series if series.points and series.label]
    # The diagram of ranks names its heads itself.
    if named and panel.kind != "ranks":
        label_series(axes, named, kind=panel.kind)
    # Only now: where marks lie depends on the width that is left. Limits are worked out when asked for; the
    # transformations do not ask.
    axes.get_xlim(), axes.get_ylim()
    label_points(axes, panel, figure.bar)


def _draw_ranks(axes: Axes, panel: Panel) -> None:
    """Draw a critical-difference diagram into ``axes``; the best head is on the left.

    Mean ranks of heads on a line, those that are not told apart joined by a bar (Demšar, JMLR 7, 2006).
    """
    # They take a second to import, and few reports have so many tasks.
    import pandas as pd
    import scikit_posthocs

    names = [series.label for series in panel.series]
    axes.grid(visible=False)
    drawn = scikit_posthocs.critical_difference_diagram(
        {series.label: series.points[0].x for series in panel.series},
        pd.DataFrame(panel.p_values, index=names, columns=names),
        ax=axes,
        color_palette={series.label: colour(series) for series in panel.series},
        label_fmt_left="{label} ({rank:.2f}) ",
        label_fmt_right=" ({rank:.2f}) {label}",
        label_props={"fontsize": RANKS_SIZE},
        crossbar_props={"color": ROLES["ink"].light, "linewidth": 2.5},
        elbow_props={"linewidth": 1.2},
        text_h_margin=0.1,
    )
    # Each bar visits its heads in the order of a set of names, which differs from process to process.
    for line in itertools.chain.from_iterable(drawn["crossbars"]):
        line.set_xdata(sorted(line.get_xdata()))
    ranks = [series.points[0].x for series in panel.series]
    # Room for the names on both sides.
    span = (max(ranks) - min(ranks)) or 1.0
    axes.set_xlim(min(ranks) - 0.7 * span, max(ranks) + 0.7 * span)
    axes.set_xticks(range(1, len(ranks) + 1))
    axes.tick_params(labelsize=RANKS_SIZE)
