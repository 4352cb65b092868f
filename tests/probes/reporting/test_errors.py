"""How often the report is wrong: differences that are none, and differences that it misses.

``benchmarks/report_errors.py`` has the figures of thousands of studies; these are enough to see a layer that
counts fits or tasks as runs, which marks a third of differences that are none.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).parents[3] / "benchmarks" / "report_errors.py"


@pytest.fixture(scope="module")
def errors() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("report_errors", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_errors"] = module
    spec.loader.exec_module(module)
    # statsmodels collects garbage with every adjustment: with all that a test run holds, that takes its time.
    gc.freeze()
    yield module
    gc.unfreeze()
    del sys.modules["report_errors"]


@pytest.mark.parametrize(("runs", "tasks"), [(2, 3), (3, 14)])
def test_heads_without_effect_are_hardly_ever_marked(errors: ModuleType, runs: int, tasks: int) -> None:
    luck = np.random.default_rng(1)
    made = [errors.judgements(errors.folder(errors.Design((0.0, 0.2), runs, tasks), luck)) for _ in range(40)]
    # 480 comparisons, four to a run with a head: 5 % due, 9 % is out of reach of chance.
    assert np.mean([one.clear for one in made]) < 0.09
    assert np.mean([one.marked for one in made]) < 0.05


def test_a_gain_of_twice_the_deviation_between_runs_is_found_with_eight(errors: ModuleType) -> None:
    luck, design = np.random.default_rng(1), errors.Design((0.2,), 8, 3)
    made = [errors.judgements(errors.folder(design, luck, 2 * errors.WHIM)).marked for _ in range(40)]
    assert np.mean([marked[2:] for marked in made]) > 0.8


def test_claims_on_studies_without_effects_are_hardly_ever_supported(errors: ModuleType) -> None:
    luck, design = np.random.default_rng(1), errors.Design((0.0, 0.05, 0.2), 3, 3)
    said = [verdict for _ in range(25) for verdict in errors.verdicts(errors.folder(design, luck))]
    assert len(said) == 25 * 10
    assert sum(verdict in ("supported", "wrong sign") for verdict in said) < 10
