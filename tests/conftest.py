"""The order of the files: those that take longest start first.

Workers take whole files. One of many minutes that starts last keeps one worker busy and the others idle.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# All others take less than half a minute.
LONGEST_FIRST = (
    "slurm/test_slurm_training.py",
    "pretrain/test_engine_parity.py",
    "pretrain/test_exact_resume.py",
    "test_readme.py",
    "slurm/test_slurm_sweep.py",
    "probes/test_probes_run.py",
    "pretrain/test_recipe_features.py",
    "plugins/test_heads_builtin.py",
    "pretrain/test_stop_and_damage.py",
    "probes/test_cifar10_study.py",
    "slurm/test_slurm_pretrain.py",
    "slurm/test_slurm_faults.py",
    "plugins/test_broken_plugins.py",
    "shards/test_shards_write.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
