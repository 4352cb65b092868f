"""The page as a reader meets it: in a browser, without network, in light and dark, wide and narrow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from probes import report
from probes.reporting.build import build
from probes.results import Row, read_rows, write_rows
from tests.probes.chromium import Browser, check_everything_is_shown


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, rows_of_the_quick_start: list[Row]) -> Path:
    folder = tmp_path_factory.mktemp("results with space & <angle>")
    write_rows(folder, rows_of_the_quick_start)
    report.main([str(folder)])
    return folder / "report" / "report.html"


def test_every_picture_and_table_is_there_without_network_or_script(browser: Browser, page: Path) -> None:
    expected = build(read_rows(page.parents[1]))
    assert sum(len(figure.panels) for figure in expected.figures) > 15
    check_everything_is_shown(browser, page, expected)


@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_does_not_scroll_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    assert browser.ask("document.documentElement.scrollWidth") == width


def test_a_narrow_screen_shows_the_first_numbers_beside_long_names(
    browser: Browser, tmp_path: Path, rows_of_the_quick_start: list[Row]
) -> None:
    # Several families, so that the first column names encoders.
    public = {"encoder": "timm:a_model_of_some_long_name,weights=random", "noise_ratio": None}
    rows = [
        dataclasses.replace(row, row_id="", encoder_hash="public", run_path=None, **public)
        for row in rows_of_the_quick_start
        if row.noise_ratio == 0
    ]
    write_rows(tmp_path, [*rows_of_the_quick_start, *rows])
    report.main([str(tmp_path)])
    browser.open(tmp_path / "report" / "report.html", width=390)
    edge = browser.ask("document.querySelector('#summary tbody td.number').getBoundingClientRect().right")
    assert edge < 390


def test_figures_and_text_follow_the_colour_scheme(browser: Browser, page: Path) -> None:
    colours: Callable[[], list[str]] = lambda: browser.ask(  # noqa: E731
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " getComputedStyle(document.querySelector('.panel svg text')).fill]"
    )
    browser.open(page, scheme="light")
    light = colours()
    browser.open(page, scheme="dark")
    assert all(one != other for one, other in zip(light, colours(), strict=True))


def test_everything_that_scrolls_or_opens_is_reached_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.ask("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")
    ids = browser.ask("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert browser.ask(
        "[...document.querySelectorAll('a')].every(a => document.getElementById(a.hash.slice(1)))"
    )
