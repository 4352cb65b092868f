"""Results that are made up by a formula, as rows and in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from probes.results import Row, write_rows
from tests.probes.reporting.made_up import digits_rows, make_row


@pytest.fixture
def row() -> Callable[..., Row]:
    return make_row


@pytest.fixture
def digits() -> Callable[..., list[Row]]:
    return digits_rows


@pytest.fixture(scope="session")
def rows_of_the_quick_start() -> list[Row]:
    """2 noise levels x 3 heads x 3 seeds, in domain and out."""
    return digits_rows()


@pytest.fixture(scope="session")
def digits_of_two() -> list[Row]:
    """2 noise levels x 2 pre-training runs x 2 heads x 2 seeds, in domain and out."""
    return digits_rows(heads=("lp", "nmtune"), repetitions=(0, 1), seeds=(0, 1))


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, rows_of_the_quick_start: list[Row]) -> Path:
    """A results folder with the rows of the quick start; reports go elsewhere."""
    folder = tmp_path_factory.mktemp("study") / "results"
    write_rows(folder, rows_of_the_quick_start)
    return folder
