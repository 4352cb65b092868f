"""Colours, marks and settings of every picture that the project draws, for light and dark pages.

Categorical colours are Okabe and Ito's set, some darkened until they stand out from white; ordered
ones are a stretch of the plasma ramp, whose lightness falls evenly. Both can be told apart with the
common forms of colour blindness; marks and direct labels carry the same distinctions without colour.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


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
FONT_SIZE = 10.0

SETTINGS: dict[Any, Any] = {
    "font.family": list(FONTS),
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": ROLES["muted"].light,
    "axes.edgecolor": ROLES["grid"].light,
    "axes.titlecolor": ROLES["ink"].light,
    "axes.facecolor": ROLES["surface"].light,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": ROLES["surface"].light,
    "grid.color": ROLES["grid"].light,
    "grid.linewidth": 0.8,
    "text.color": ROLES["ink"].light,
    "text.parse_math": False,
    "xtick.color": ROLES["grid"].light,
    "ytick.color": ROLES["grid"].light,
    "xtick.labelcolor": ROLES["muted"].light,
    "ytick.labelcolor": ROLES["muted"].light,
    "ytick.left": False,
    "ytick.minor.left": False,
    # Text stays text: it can be searched and read aloud, and takes the reader's font.
    "svg.fonttype": "none",
    # Publishers refuse the fonts that PDF would get otherwise.
    "pdf.fonttype": 42,
    # Element ids are hashes of their content; without a fixed salt they differ from run to run.
    "svg.hashsalt": "nml-report",
}


def rendered(canvas: Figure, kind: str) -> bytes:
    """Return a picture as the bytes of a ``png``, ``svg`` or ``pdf`` file, the same for the same picture."""
    buffer, dpi = io.BytesIO(), canvas.dpi
    with mpl.rc_context(SETTINGS):
        # A date or a version in the file would make equal pictures differ. Figure.savefig would draw twice.
        if kind == "svg":
            FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None, "Creator": None})
        elif kind == "pdf":
            bare = dict.fromkeys(("CreationDate", "Creator", "Producer"))
            FigureCanvasPdf(canvas).print_pdf(buffer, metadata=bare)
        else:
            FigureCanvasAgg(canvas).print_png(buffer, metadata={"Software": None})
    # SVG and PDF count in points.
    canvas.set_dpi(dpi)
    return buffer.getvalue()


def level_role(slot: int, of: int) -> str:
    """Return the role of the colour of one of ``of`` things in an order, spread evenly over the ramp."""
    if of <= LEVELS:
        return f"s{round(slot * (LEVELS - 1) / max(1, of - 1))}"
    return f"s{slot % LEVELS}"
