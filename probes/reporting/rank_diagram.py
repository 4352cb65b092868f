"""Mean ranks of heads on a line, those that are not told apart joined by a bar (Demšar, JMLR 7, 2006)."""

from __future__ import annotations

from matplotlib.axes import Axes

from nml.palette import ROLES
from probes.reporting.records import Panel
from probes.reporting.theme import colour

SIZE = 9.0  # points


def draw_ranks(axes: Axes, panel: Panel) -> None:
    """Draw a critical-difference diagram into ``axes``; the best head is on the left."""
    # They take a second to import, and few reports have so many tasks.
    import pandas as pd
    import scikit_posthocs

    names = [series.label for series in panel.series]
    axes.grid(visible=False)
    scikit_posthocs.critical_difference_diagram(
        {series.label: series.points[0].x for series in panel.series},
        pd.DataFrame(panel.p_values, index=names, columns=names),
        ax=axes,
        color_palette={series.label: colour(series) for series in panel.series},
        label_fmt_left="{label} ({rank:.2f}) ",
        label_fmt_right=" ({rank:.2f}) {label}",
        label_props={"fontsize": SIZE},
        crossbar_props={"color": ROLES["ink"].light, "linewidth": 2.5},
        elbow_props={"linewidth": 1.2},
        text_h_margin=0.1,
    )
    ranks = [series.points[0].x for series in panel.series]
    # Room for the names on both sides.
    span = (max(ranks) - min(ranks)) or 1.0
    axes.set_xlim(min(ranks) - 0.7 * span, max(ranks) + 0.7 * span)
    axes.set_xticks(range(1, len(ranks) + 1))
    axes.tick_params(labelsize=SIZE)
