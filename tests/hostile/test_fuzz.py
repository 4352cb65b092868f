"""A few hundred mutated files of a fixed seed: each is read as it was written, or told in one line."""

from __future__ import annotations

import time
from pathlib import Path

from tests.hostile.fuzz import fuzz, make_targets

CASES = 480


def test_no_mutated_file_is_a_traceback_a_signal_or_a_wrong_label(tmp_path: Path) -> None:
    found = fuzz(make_targets(tmp_path), seed=14, cases=CASES, until=time.monotonic() + 600)
    assert found.failures == []
    assert sum(found.cases.values()) == CASES
