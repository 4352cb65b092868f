"""Colours and marks of the report, for light and dark pages.

Categorical colours are Okabe and Ito's set, some darkened until they stand out from white; ordered
ones are a stretch of the plasma ramp, whose lightness falls evenly. Both can be told apart with the
common forms of colour blindness; marks and direct labels carry the same distinctions without colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from probes.reporting.records import Series


class Role(NamedTuple):
    """A colour by what it is for, in both themes, as ``#rrggbb``."""

    light: str
    dark: str


# Every light colour is unique: inline figures are recoloured by looking the light value up.
ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "surface": Role("#ffffff", "#15181c"),
        "ink": Role("#1c1f23", "#e8eaed"),
        "muted": Role("#5b626b", "#a3abb5"),
        "grid": Role("#e3e6e9", "#2c3239"),
        "c0": Role("#0072b2", "#57aee8"),
        "c1": Role("#d55e00", "#ff9350"),
        "c2": Role("#008f68", "#2fc79a"),
        "c3": Role("#b5558c", "#e39ac4"),
        "c4": Role("#9a6b00", "#e3b341"),
        "c5": Role("#2b8cc4", "#8fd0f7"),
        "c6": Role("#6b6f75", "#b3b9c0"),
        "s0": Role("#0d0887", "#f5e626"),
        "s1": Role("#4b03a1", "#fdc229"),
        "s2": Role("#7d03a8", "#fba238"),
        "s3": Role("#a82296", "#f1844b"),
        "s4": Role("#cb4679", "#e16a5f"),
        "s5": Role("#d9586a", "#d3527a"),
        "s6": Role("#e06461", "#c0509a"),
    }
)
CATEGORIES = 7
LEVELS = 7

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FONTS = ("DejaVu Sans", "sans-serif")
CHARACTER_WIDTH = 0.6  # of the font size: an upper estimate for sans-serif digits and lower case


def colour_role(series: Series) -> str:
    """Return the role of a series' colour: evenly over the ramp if ordered, by slot otherwise."""
    if series.scale == "category":
        return f"c{series.slot % CATEGORIES}"
    if series.of <= LEVELS:
        return f"s{round(series.slot * (LEVELS - 1) / max(1, series.of - 1))}"
    return f"s{series.slot % LEVELS}"


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
