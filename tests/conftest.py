"""How the suite is spread over processes: tests that share expensive things stay together."""

from __future__ import annotations

from pathlib import Path

import pytest

# One Slurm cluster for all of its tests, one set of trained runs for all that look at them.
TOGETHER = ("slurm", "pretrain")


# Before xdist reads the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by file, and those of a room in TOGETHER by room, for ``--dist loadgroup``."""
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here)
        room = place.parts[0]
        item.add_marker(pytest.mark.xdist_group(room if room in TOGETHER else str(place)))
