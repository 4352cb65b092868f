"""Curves of runs as a picture: no display, no state of matplotlib's shared with anyone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nml.curves import Curves, Value, thinned, time_shares
from nml.levels import is_ratio_name
from nml.palette import CATEGORIES, LEVELS, MARKERS, ROLES, SETTINGS, level_role

WIDTH, HEIGHT = 11.0, 6.8  # inches
DPI = 140
# Values of a line. What is between them is averaged into them.
_POINTS = 150
# Steps that are drawn one by one, faintly, behind the line of a loss.
_STEPS = 2000
# A quantity that falls or rises by more than this is drawn on a logarithmic axis.
_LOG_RATIO = 10.0
_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_USEFUL = "training"
_CAUSES_BESIDE = 3
_MUTED, _INK, _SURFACE = (ROLES[role].light for role in ("muted", "ink", "surface"))


class Look(NamedTuple):
    """How a run is drawn, alike in every panel."""

    colour: str
    dashes: Any
    marker: str


def draw(runs: Sequence[Curves]) -> Canvas:
    """Return the picture of one run or several."""
    with mpl.rc_context(SETTINGS | {"axes.titlesize": SETTINGS["font.size"]}):
        high = HEIGHT + _legend_rows(runs) * 0.21 + _cause_rows(runs) * 0.19
        canvas = Canvas(figsize=(WIDTH, high), dpi=DPI)
        top = 1 - (0.86 + _legend_rows(runs) * 0.21) / canvas.get_figheight()
        bottom = (0.54 + _cause_rows(runs) * 0.19) / canvas.get_figheight()
        grid = canvas.add_gridspec(
            2, 6, left=0.065, right=0.985, bottom=bottom, top=top, wspace=1.1, hspace=0.45
        )
        looks = looks_of(runs)
        panels: list[tuple[Any, Callable[[Axes, Sequence[Curves], Sequence[Look]], None]]] = [
            (grid[0, :3], _draw_loss),
            (grid[0, 3:], _draw_validation),
            (grid[1, :2], _draw_rate),
            (grid[1, 2:4], _draw_throughput),
            (grid[1, 4:], _draw_time_of_one if len(runs) == 1 else _draw_time_of_several),
        ]
        for place, panel in panels:
            panel(canvas.add_subplot(place), runs, looks)
        _name(canvas, runs, looks)
        return canvas


def looks_of(runs: Sequence[Curves]) -> list[Look]:
    """Return a look a run: colours in order where noise tells the runs apart, a line style each."""
    levels = sorted({run.noise for run in runs}, key=lambda noise: float(noise or 0))
    ordered = 1 < len(levels) <= LEVELS and all(levels)
    return [
        Look(
            ROLES[
                level_role(levels.index(run.noise), len(levels)) if ordered else f"c{number % CATEGORIES}"
            ].light,
            _DASHES[(number % CATEGORIES + number // CATEGORIES) % len(_DASHES)],
            MARKERS[number % len(MARKERS)],
        )
        for number, run in enumerate(runs)
    ]


def _line(axes: Axes, values: Sequence[Value], look: Look, **more: Any) -> None:
    style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.6, **more}
    axes.plot(*zip(*values, strict=True), **style)


def _open(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("Epoch")
    axes.margins(x=0.02)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic where that shows more than a line along its foot."""
    if values and min(values) > 0 and max(values) > _LOG_RATIO * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _draw_loss(axes: Axes, runs: Sequence[Curves], looks: Sequence[Look]) -> None:
    _open(axes, "Training loss")
    smooth = [thinned(run.loss, _POINTS) for run in runs]
    for run, look, line in zip(runs, looks, smooth, strict=True):
        if len(run.loss) > _POINTS:
            steps = thinned(run.loss, _STEPS)
            axes.plot(*zip(*steps, strict=True), color=look.colour, linewidth=0.6, alpha=0.22)
        if line:
            _line(axes, line, look)
        _mark_events(axes, run, look)
    _logarithmic(axes, [value.value for line in smooth for value in line])
    _say_events(axes, runs)


def _say_events(axes: Axes, runs: Sequence[Curves]) -> None:
    """Say what the marks of :func:`_mark_events` are, where nothing is drawn."""
    counts = (
        (sum(len(run.restarts) for run in runs), "⁞ {} x started again"),
        (sum(len(run.left_out) for run in runs), "× {} x left out, not finite"),
    )
    said = "    ".join(text.format(count) for count, text in counts if count)
    axes.set_title(said, loc="right", color=_MUTED, size=8.5, weight="normal")


def _mark_events(axes: Axes, run: Curves, look: Look) -> None:
    """Mark where a run was started again, and the steps that were left out."""
    for epoch in run.restarts:
        axes.axvline(epoch, color=look.colour, linewidth=0.8, linestyle=":", alpha=0.8)
    if run.left_out:
        foot = [0.03] * len(run.left_out)
        axes.plot(
            run.left_out, foot, "x", color=look.colour, markersize=5, transform=axes.get_xaxis_transform()
        )


def _draw_validation(axes: Axes, runs: Sequence[Curves], looks: Sequence[Look]) -> None:
    _open(axes, "Validation accuracy (%)")
    if not any(run.top1 for run in runs):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("")
        _say(axes, "no validation: --validation names a set", 0.5, 0.5, ha="center")
        return
    for run, look in zip(runs, looks, strict=True):
        for name, found, size in (("top-1", run.top1, 4.5), ("top-5", run.top5, 3)):
            if not found or (name == "top-5" and len(runs) > 1):
                continue
            values = [Value(value.epoch, 100 * value.value) for value in found]
            second: dict[str, Any] = (
                {"linestyle": _DASHES[1], "linewidth": 1.0, "alpha": 0.75} if name == "top-5" else {}
            )
            # A mark a validation, as far as they can be told apart.
            every = max(1, len(values) // (30 if len(runs) == 1 else 12))
            _line(axes, values, look, marker=look.marker, markersize=size, markevery=every, **second)
            if len(runs) == 1:
                axes.annotate(
                    f"{name} {values[-1].value:.1f}",
                    values[-1],
                    # Apart also where the two are almost one.
                    xytext=(7, -1 if name == "top-1" else 1),
                    textcoords="offset points",
                    color=_INK,
                    va="top" if name == "top-1" else "bottom",
                )
        for epoch in run.restarts:
            axes.axvline(epoch, color=look.colour, linewidth=0.8, linestyle=":", alpha=0.8)
    last = max(run.top1[-1].epoch for run in runs if run.top1)
    axes.set_xlim(0, last * (1.22 if len(runs) == 1 else 1.03))
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= last])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if len(runs) > 1:
        axes.set_title("Validation accuracy, top-1 (%)")


def _draw_rate(axes: Axes, runs: Sequence[Curves], looks: Sequence[Look]) -> None:
    _open(axes, "Learning rate")
    for run, look in zip(runs, looks, strict=True):
        if run.lr:
            _line(axes, thinned(run.lr, 2 * _POINTS), look)
    # Schedules end at almost nothing, which a logarithmic axis would be about.
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_throughput(axes: Axes, runs: Sequence[Curves], looks: Sequence[Look]) -> None:
    _open(axes, "Samples per second")
    for run, look in zip(runs, looks, strict=True):
        if run.samples_per_s:
            _line(axes, thinned(run.samples_per_s, _POINTS), look)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_time_of_one(axes: Axes, runs: Sequence[Curves], looks: Sequence[Look]) -> None:
    """Draw a bar a cause, each with its seconds and its share."""
    (run,), (look,) = runs, looks
    shares = time_shares(runs)
    axes.set_title(f"Where {_duration(run.wall_s)} went")
    for place, (cause, (share,)) in enumerate(shares.items()):
        axes.barh(place, share, color=look.colour if cause == _USEFUL else _MUTED, height=0.62)
        text = f"{_duration(share * run.wall_s)}, {100 * share:.{0 if share >= 0.095 else 1}f} %"
        axes.annotate(text, (share, place), xytext=(4, 0), textcoords="offset points", va="center", size=8.5)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set_ylim(max(5.5, len(shares) - 0.5), -0.5)
    axes.set_xlim(0, 1.75 * max(share for (share,) in shares.values()))
    axes.tick_params(axis="y", labelcolor=_INK, length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)


def _draw_time_of_several(axes: Axes, runs: Sequence[Curves], looks: Sequence[Look]) -> None:
    """Draw a bar a run, divided by cause."""
    axes.set_title("Where the time went (%)")
    shares = time_shares(runs)
    ends = [0.0] * len(runs)
    for number, (cause, parts) in enumerate(shares.items()):
        colour = ROLES["grid"].light if cause == _USEFUL else ROLES[f"c{number % CATEGORIES}"].light
        widths = [100 * part for part in parts]
        axes.barh(
            range(len(runs)), widths, left=ends, color=colour, height=0.7, label=cause, edgecolor=_SURFACE
        )
        for place, (left, width) in enumerate(zip(ends, widths, strict=True)):
            if width >= 9:
                ink = _INK if cause == _USEFUL else _SURFACE
                axes.text(
                    left + width / 2, place, f"{width:.0f}", color=ink, size=8, ha="center", va="center"
                )
        ends = [left + width for left, width in zip(ends, widths, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_yticks(range(len(runs)), ["\N{BLACK SQUARE}"] * len(runs))
    for label, look in zip(axes.get_yticklabels(), looks, strict=True):
        label.set_color(look.colour)
    axes.tick_params(axis="y", length=0, pad=1)
    axes.grid(visible=False)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=_CAUSES_BESIDE,
        fontsize=8,
        frameon=False,
        handlelength=1.0,
        handletextpad=0.5,
        columnspacing=1.0,
    )


def _say(axes: Axes, text: str, x: float, y: float, *, ha: str = "right") -> None:
    axes.text(x, y, text, color=_MUTED, size=8.5, ha=ha, va="center", transform=axes.transAxes)


def _cause_rows(runs: Sequence[Curves]) -> int:
    return 0 if len(runs) == 1 else -(-len(time_shares(runs)) // _CAUSES_BESIDE)


def _legend_rows(runs: Sequence[Curves]) -> int:
    return 0 if len(runs) == 1 else -(-len(runs) // _columns(runs))


def _columns(runs: Sequence[Curves]) -> int:
    """Return how many names of runs fit beside each other."""
    return max(1, int(WIDTH / (0.75 + 0.085 * max(len(run.name) for run in runs))))


def _name(canvas: Canvas, runs: Sequence[Curves], looks: Sequence[Look]) -> None:
    """Write what is seen above the panels: of one run what it is, of several a name each."""
    high = canvas.get_figheight()
    if len(runs) > 1:
        title, below = f"{len(runs)} pre-training runs", ""
    else:
        title, below = runs[0].name, _in_words(runs[0])
    canvas.text(0.012, 1 - 0.22 / high, title, weight="bold", size=13, va="center")
    canvas.text(0.012, 1 - 0.47 / high, below, color=_MUTED, va="center")
    if len(runs) == 1:
        return
    lines = [
        Line2D([], [], color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=5)
        for look in looks
    ]
    names = [run.name if run.complete else f"{run.name} (step {run.steps})" for run in runs]
    canvas.legend(
        lines,
        names,
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.36 / high),
        ncols=_columns(runs),
        frameon=False,
        fontsize=9,
        handlelength=3.2,
        borderpad=0.2,
        labelspacing=0.35,
    )


def _in_words(run: Curves) -> str:
    about = run.about
    noise = f"noise {100 * float(run.noise):g} %" if run.noise else ""
    if not is_ratio_name(run.level):
        noise = f"{noise} ({run.level})" if noise else run.level
    steps = f"{run.steps:,} steps in {_duration(run.wall_s)}"
    parts = [
        *(f"recipe {about['recipe_name']}" if about.get("recipe_name") else "", noise),
        *(str(about.get("engine") or ""), steps if run.complete else f"{steps}, not finished"),
        f"goodput {run.goodput:.2f}",
    ]
    return "  ·  ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    """Return a duration as people say it: ``0.3 s``, ``42 s``, ``3.2 min``, ``5.0 h``, ``2.1 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
