"""Colours and marks of the report's series."""

from __future__ import annotations

from nml.palette import CATEGORIES, MARKERS, ROLES, level_role
from probes.reporting.records import Series

CHARACTER_WIDTH = 0.6  # of the font size: an upper estimate for sans-serif digits and lower case


def colour_role(series: Series) -> str:
    """Return the role of a series' colour: evenly over the ramp if ordered, by slot otherwise."""
    if series.scale == "category":
        return f"c{series.slot % CATEGORIES}"
    return level_role(series.slot, series.of)


def colour(series: Series) -> str:
    """Return the light-theme colour of a series."""
    return ROLES[colour_role(series)].light


def marker(series: Series) -> str:
    """Return the mark of a series: where colours begin again, marks go on from another one."""
    return MARKERS[(series.slot + series.slot // CATEGORIES) % len(MARKERS)]


def css_variables(theme: str) -> str:
    """Return the CSS declarations of every role, ``--c0: #0072b2; ...``.

    Args:
        theme: ``light`` or ``dark``.
    """
    return " ".join(f"--{name}: {getattr(role, theme)};" for name, role in ROLES.items())
