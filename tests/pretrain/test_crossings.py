"""Any two features of training that may meet: a run with them ends as the plainest run of that result does.

The rows are those of tests/crossings.yaml. What a row is held to is computed by ddp, alone where the result
allows it, undisturbed, and watched by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from shards.cache import main as make_cache
from tests.crossings import Crossings, Refusal, Row, label
from tests.pretrain.ranks import Ranks

STEPS = 3
SAMPLES = 16
# Of losses relative, of weights absolute: float64, and what short types make of another order of sums.
BOUND, SHORT_BOUND = 1e-9, 1e-6
# One after another, as far as a run starts on the number of processes that it does not end on.
WORLDS = (1, 2, 1)

CROSSINGS = Crossings("training")
ROWS = CROSSINGS.rows


class Stage(NamedTuple):
    """Commands that run on a number of processes."""

    world: int
    commands: list[list[str]]


def is_short(row: Row) -> bool:
    return any(CROSSINGS.value(*item).get("short") for item in row.items())


def bound_of(row: Row) -> float:
    if not is_short(row):
        return BOUND
    return max(float(CROSSINGS.value(*item).get("short_bound", SHORT_BOUND)) for item in row.items())


def reference_of(row: Row) -> Row:
    kept = {name for item in row.items() for name in CROSSINGS.value(*item).get("keeps", [])}
    if "world" in kept and row["resume"] == "elastic":
        # Its first step was that of another number of processes, and so must be the reference's.
        kept.add("resume")
    reset = set(CROSSINGS.section["same_result"]) - kept
    return {name: CROSSINGS.features[name][0] if name in reset else value for name, value in row.items()}


@pytest.fixture(scope="module")
def stages_of(
    few_images: Path,
    few_captions: Path,
    make_recipe: Callable[..., Path],
    tiny_resnet: dict[str, Any],
    tiny_clip: dict[str, Any],
) -> Callable[[Row, Path], list[Stage]]:
    """Return the commands of a row, stage by stage."""
    over: dict[str, dict[str, object]] = {
        "classify": {"model": tiny_resnet},
        "mixed": {
            "model": {**tiny_resnet, "kwargs": tiny_resnet["kwargs"] | {"drop_path_rate": 0.2}},
            "loss": {"name": "bce", "mixup": 0.2, "cutmix": 1.0},
        },
        "clip": {"objective": "clip", "model": tiny_clip, "loss": {"name": "infonce"}},
        "siglip": {"objective": "clip", "model": tiny_clip, "loss": {"name": "siglip"}},
    }
    optimizer = {"lr": 1e-3, "weight_decay": 0.1, "clip": 1.0}
    sizes = {"epochs": STEPS, "global_batch": SAMPLES, "optimizer": optimizer}
    recipes = {name: make_recipe(f"crossing-{name}", **sizes, **values) for name, values in over.items()}
    for shards in (few_images, few_captions):
        make_cache([str(shards), "--size", "24", "--workers", "1"])

    def command(row: Row, run: Path, world: int) -> list[str]:
        shards = few_images if row["objective"] in ("classify", "mixed") else few_captions
        words = ["--recipe", str(recipes[row["objective"]]), "--shards", str(shards), "--run-dir", str(run)]
        return [*words, *CROSSINGS.words(row, validation=few_images, half=SAMPLES // world // 2)]

    def stages(row: Row, run: Path) -> list[Stage]:
        world = int(row["world"])
        if row["resume"] == "never":
            return [Stage(world, [command(row, run, world)])]
        first, begun = {"same": world, "elastic": 3 - world}[row["resume"]], run / "begun"
        cut = ["rewind", str(begun), str(run / "resumed"), "1"]
        return [
            Stage(first, [command(row, begun, first), cut]),
            Stage(world, [command(row, run / "resumed", world)]),
        ]

    return stages


def run_of(folder: Path, row: Row) -> Path:
    place = folder / ("-".join(row.values()))
    return place if row["resume"] == "never" else place / "resumed"


@pytest.fixture(scope="module")
def crossed(
    work: Path, stages_of: Callable[[Row, Path], list[Stage]], start_ranks: Callable[..., Ranks]
) -> Path:
    """All rows and their references, in one process group a number of processes and a precision."""
    folder = work / "crossings"
    everything = {label(row): row for found in ROWS for row in (found, reference_of(found))}
    phases: list[dict[bool, list[list[str]]]] = [{False: [], True: []} for _ in WORLDS]
    for row in everything.values():
        place = folder / "-".join(row.values())
        phase = 0
        for stage in stages_of(row, place):
            phase = WORLDS.index(stage.world, phase)
            phases[phase][not is_short(row)] += stage.commands
    for world, commands in zip(WORLDS, phases, strict=True):
        started = [
            start_ranks(world, *words, cwd=work, double=double) for double, words in commands.items() if words
        ]
        for ended, out in [ranks.end() for ranks in started]:
            assert ended == 0, out[-4000:]
    return folder


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_a_run_ends_as_the_plainest_run_of_its_result_does(
    crossed: Path, row: Row, losses: Callable[..., Any], weights: Callable[..., Any]
) -> None:
    run, plain = run_of(crossed, row), run_of(crossed, reference_of(row))
    expected, exported = losses(plain), weights(plain)
    assert len(expected) == STEPS
    assert is_short(row) or all(value.dtype != np.float32 for value in exported.values())
    bound = bound_of(row)
    np.testing.assert_allclose(losses(run), expected, rtol=bound)
    found = weights(run)
    assert found.keys() == exported.keys()
    for name in exported:
        np.testing.assert_allclose(found[name], exported[name], rtol=bound, atol=bound, err_msg=name)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = [line["step"] for line in lines if line["event"] == "validation"]
    assert validated == (list(range(1, STEPS + 1)) if row["watching"] == "everybody" else [])


@pytest.mark.parametrize("refusal", CROSSINGS.refused, ids=lambda refusal: label(refusal.values))
def test_what_cannot_meet_is_refused_in_one_line(
    refusal: Refusal,
    tmp_path: Path,
    stages_of: Callable[[Row, Path], list[Stage]],
    run_ranks: Callable[..., str],
) -> None:
    row = CROSSINGS.completed(refusal)
    *before, last = stages_of(row, tmp_path / "run")
    for stage in before:
        run_ranks(stage.world, *stage.commands, cwd=tmp_path)
    [command] = last.commands
    run_ranks(last.world, ["whole", "none:0", *command], cwd=tmp_path, status=2)
    told = "".join((tmp_path / f"rank-{rank}.log").read_text() for rank in range(last.world))
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, told
    assert refusal.says in errors[0]
    assert "Traceback" not in told
