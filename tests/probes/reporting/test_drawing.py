"""Colours that can be seen, labels that do not touch, SVG that fits into a page."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure as Canvas
from matplotlib.transforms import Bbox

from nml.palette import LEVELS, ROLES
from probes.reporting.drawing import panel_svg
from probes.reporting.inline_svg import inline
from probes.reporting.labels import label_points, label_series
from probes.reporting.records import Figure, Kind, Panel, Point, Series
from probes.reporting.theme import colour_role, marker


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_page(theme: str) -> None:
    page = getattr(ROLES["surface"], theme)
    for name, role in ROLES.items():
        needed = {"surface": 0, "grid": 0, "ink": 7, "muted": 4.5}.get(name, 3)
        assert contrast(getattr(role, theme), page) >= needed, name


def test_light_colours_are_unique_since_pages_are_recoloured_by_them() -> None:
    assert len({role.light for role in ROLES.values()}) == len(ROLES)


def test_no_two_of_many_heads_look_alike() -> None:
    series = [Series(label="", points=(), slot=slot) for slot in range(30)]
    assert len({(colour_role(one), marker(one)) for one in series}) == 30


def test_ordered_levels_spread_over_the_ramp() -> None:
    def roles(count: int) -> list[str]:
        return [
            colour_role(Series(label="", points=(), slot=slot, scale="ordered", of=count))
            for slot in range(count)
        ]

    assert roles(2) == ["s0", "s6"]
    assert all(len(set(roles(count))) == count for count in range(1, LEVELS + 1))


@pytest.mark.parametrize("kind", ["line", "path", "curve"])
def test_names_of_series_stand_in_their_order_in_every_figure(kind: Kind) -> None:
    ends = {"lp": 1.0, "mlp": 3.0, "nmtune": 2.0}
    series = tuple(
        Series(label=head, points=(Point(x=0, y=0), Point(x=1, y=end)), slot=slot)
        for slot, (head, end) in enumerate(ends.items())
    )
    panel = Panel(title="t", x_label="x", y_label="y", series=series, kind=kind, alt="a.")
    drawn = panel_svg(Figure(name="f", title="t", caption="c", panels=(panel,)), panel)
    texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in ends] == list(ends)


def test_many_names_of_series_stay_beside_the_axes() -> None:
    axes = Canvas(figsize=(4, 3), dpi=72).subplots()
    label_series(
        axes, [Series(label=f"head {slot}", points=(), slot=slot) for slot in range(30)], kind="line"
    )
    heights = [text.get_position()[1] for text in axes.texts]
    assert heights == sorted(heights, reverse=True)
    assert min(heights) >= -1e-9


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=12))
def test_labels_of_marks_lie_on_no_mark_and_on_no_other_label(places: list[tuple[int, int]]) -> None:
    series = tuple(
        Series(label="", points=(Point(x=x, y=y, label="30 %"), Point(x=y, y=x, label="0 %")))
        for x, y in places
    )
    axes = Canvas(figsize=(4, 3), dpi=72).subplots()
    axes.set(xlim=(-0.5, 8.5), ylim=(-1, 9))
    label_points(axes, Panel(title="", x_label="", y_label="", series=series))
    boxes = [text.get_window_extent() for text in axes.texts]
    assert boxes
    # Beyond the axes are the numbers of its ticks.
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    # A pixel of slack: the width of a letter is estimated.
    boxes = [Bbox.from_extents(box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1) for box in boxes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    marks = [axes.transData.transform((point.x, point.y)) for one in series for point in one.points]
    assert not any(box.contains(*mark) for box in boxes for mark in marks)
    # Nor on a line: not one of its points lies in a label.
    for one in series:
        start, end = (axes.transData.transform((point.x, point.y)) for point in one.points)
        along = [start + share * (end - start) for share in np.linspace(0, 1, 200)]
        assert not any(box.contains(*place) for box in boxes for place in along)


@pytest.fixture(scope="module")
def svg() -> str:
    points = (Point(x=0, y=0.001), Point(x=1, y=10, spread=0.2, runs=(9.8, 10.2)))
    panel = Panel(
        title="A <b> & $x^2$",
        x_label="x",
        y_label="y",
        series=(Series(label="lp & co", points=points),),
        log_y=True,
        alt="what is seen.",
    )
    return panel_svg(Figure(name="f", title="t", caption="c", panels=(panel,)), panel)


def test_text_of_a_figure_stays_text_also_where_it_looks_like_mathematics(svg: str) -> None:
    texts = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"A <b> & $x^2$", "lp & co", "0.01"} <= set(texts)
    assert not any("mathdefault" in (text or "") for text in texts)


@pytest.mark.parametrize(
    ("least", "shown"), [(0.3, {"0.5", "1", "2"}), (0.0003, {"0.001", "0.01", "0.1", "1"})]
)
def test_an_axis_of_powers_has_numbers_over_any_span(least: float, shown: set[str]) -> None:
    series = Series(label="", points=(Point(x=0, y=3.0), Point(x=1, y=least)))
    panel = Panel(title="t", x_label="x", y_label="y", series=(series,), kind="curve", log_y=True, alt="a.")
    drawn = panel_svg(Figure(name="f", title="t", caption="c", panels=(panel,)), panel)
    texts = {element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert shown <= texts


def test_an_inline_figure_has_no_colour_of_its_own(svg: str) -> None:
    found = inline(svg, name="f-1", title="A <b>", description="what is seen.")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", re.sub(r'(?:id|href|clip-path)="[^"]*"', "", found))
    assert "var(--c0)" in found
    assert "font-family" not in found


def test_ids_of_two_inline_figures_do_not_meet_and_references_hold(svg: str) -> None:
    def ids(name: str) -> tuple[set[str], set[str]]:
        found = inline(svg, name=name, title="t", description="d")
        references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', found))
        return set(re.findall(r'\bid="([^"]+)"', found)), {one or other for one, other in references}

    first, used = ids("a-1")
    assert used
    assert used <= first
    assert not first & ids("b-1")[0]


def test_an_inline_figure_names_and_describes_itself(svg: str) -> None:
    root = ET.fromstring(inline(svg, name="f-1", title="A <b>", description="what is seen."))
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "f-1-title f-1-description"
    assert [child.text for child in list(root)[:2]] == ["A <b>", "what is seen."]
