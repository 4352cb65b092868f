"""What all tests share: the order of the files, how many examples hypothesis draws, the time of each room.

Workers take whole files. One of many minutes that starts last keeps one worker busy and the others idle, so
those that take longest start first.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

# Where people work, examples are drawn anew each time and failing ones are remembered in .hypothesis; where
# machines judge a change (CI=true), the same few are drawn each time: another change must not fail for it.
# A test asks for fewer by itself where an example is dear. Another profile: pytest --hypothesis-profile=ci
hypothesis.settings.register_profile("local", deadline=None, max_examples=100, print_blob=True)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=20, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

# A shell has what it starts in the background ignore Ctrl-C, and so would all commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
# Those that wait come first: others compute meanwhile. `make quick` leaves all of them out.
LONGEST_FIRST = (
    "slurm/test_training.py",
    "slurm/test_in_place.py",
    "slurm/test_frozen.py",
    "pretrain/test_failures.py",
    "pretrain/test_self_supervision.py",
    "pretrain/test_crossings.py",
    "slurm/test_sweep.py",
    "slurm/test_faults.py",
    "pretrain/test_exact_resume.py",
    "slurm/test_pretrain.py",
    "test_readme.py",
    "test_secrets_in_urls.py",
    "pretrain/test_stop_and_damage.py",
    "pretrain/test_engine_parity.py",
    "pretrain/test_not_finite.py",
    "benchmarks/test_gpu.py",
    "pretrain/test_goodput.py",
    "probes/test_run.py",
    "pretrain/test_watching.py",
    "pretrain/test_recipe_features.py",
    "pretrain/test_backbones.py",
    "pretrain/test_engines.py",
    "pretrain/test_objectives.py",
    "pretrain/test_engine_precision.py",
    "plugins/test_heads_builtin.py",
    "probes/test_crossings.py",
    "probes/test_cifar10_study.py",
    "probes/test_third_party_head.py",
    "plugins/test_broken_plugins.py",
    "shards/test_write.py",
    "shards/test_destination.py",
    "shards/test_compatibility.py",
    "hostile/test_commands.py",
    "probes/test_api.py",
    "slurm/test_install.py",
    "shards/test_resume_grid.py",
    "shards/test_damage_in_workers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for item in items:
        if item.path in places:
            item.add_marker("long")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long the tests of each room took, all workers together."""
    seconds: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            path = Path(report.nodeid.partition("::")[0])
            seconds[path.parts[1] if len(path.parts) > 2 else "all rooms"] += report.duration
    if not seconds:
        return
    shown = ", ".join(f"{room} {spent:.0f} s" for room, spent in sorted(seconds.items()))
    terminalreporter.write_line(f"time by room: {shown}")
