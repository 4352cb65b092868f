"""Downstream labels are flipped by the noise models of shards: exact in every part, nested, and recorded."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from plugins.lp import LinearProbe
from plugins.registry import HEADS
from probes.downstream_noise import flip, open_model
from probes.fitting import fit_points
from probes.heads import HeadChoice
from probes.splits import Carving, flip_labels
from probes.study import study_of
from probes.training_data import Point, TrainingData
from shards.hashing import hash_keys
from shards.noise import Population
from shards.noise.pair_flip import PairFlip
from tests.probes.reporting.made_up import digits_rows

KEYS = [f"sample-{number}" for number in range(300)]
LABELS = np.random.default_rng(0).integers(0, 5, 300)
PARTS = [np.arange(0, 300, 2), np.arange(1, 90, 2)]
RATIOS = [Fraction(1, 10), Fraction(1, 5), Fraction(2, 5)]


def models(folder: Path) -> list[str]:
    """Return every kind of model that takes its ratio from the user."""
    np.savetxt(folder / "matrix.csv", 0.5 * np.eye(5) + 0.1, delimiter=",")
    features = np.random.default_rng(1).normal(size=(300, 4)) + np.eye(5)[LABELS][:, :4]
    pq.write_table(pa.table({"key": KEYS, "features": features.tolist()}), folder / "features.parquet")
    return [
        "pair-flip",
        f"transition-matrix:{folder / 'matrix.csv'}",
        f"instance-dependent:{folder / 'features.parquet'}",
    ]


def test_every_model_is_exact_in_every_part_and_nested(tmp_path: Path) -> None:
    for model in models(tmp_path):
        levels = [flip(KEYS, LABELS, ratio, 5, 3, PARTS, model=model) for ratio in RATIOS]
        for ratio, noisy in zip(RATIOS, levels, strict=True):
            for part in PARTS:
                assert (noisy[part] != LABELS[part]).sum() == round(ratio * len(part))
        outside = np.setdiff1d(np.arange(300), np.concatenate(PARTS))
        assert (levels[-1][outside] == LABELS[outside]).all()
        for lower, higher in itertools.pairwise(levels):
            changed = lower != LABELS
            assert (higher[changed] == lower[changed]).all(), model


def test_a_part_is_flipped_as_a_set_of_shards_with_its_samples() -> None:
    keys = [KEYS[row] for row in PARTS[1]]
    none = np.empty(0, np.uint64)
    [plan] = PairFlip().plan(
        Population("class", hash_keys(keys), LABELS[PARTS[1]], 5, none, keys=keys), RATIOS[1:2], 3
    )
    found = flip(KEYS, LABELS, RATIOS[1], 5, 3, PARTS[1:], model="pair-flip")
    assert np.flatnonzero(found != LABELS).tolist() == sorted(PARTS[1][plan.rows].tolist())
    assert (found[found != LABELS] == (LABELS[found != LABELS] + 1) % 5).all()


def test_symmetric_noise_is_what_it_was() -> None:
    expected = flip_labels(KEYS, LABELS, RATIOS[1], 5, 3, PARTS)
    assert flip(KEYS, LABELS, RATIOS[1], 5, 3, PARTS).tolist() == expected.tolist()


def test_labels_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    given = flip_labels(KEYS, LABELS, Fraction(1, 5), 5, 9)
    file = tmp_path / "human.csv"
    file.write_text("".join(f"{key},{label}\n" for key, label in zip(KEYS, given, strict=True)))
    found = flip(KEYS, LABELS, Fraction(1, 5), 5, 0, PARTS, model=f"from-file:{file}")
    inside = np.concatenate(PARTS)
    assert (found[inside] == given[inside]).all()
    assert (np.delete(found, inside) == np.delete(LABELS, inside)).all()
    with pytest.raises(UserError, match=r"--downstream-noise 0.4: of the labels in .*, 0.2000 are not"):
        flip(KEYS, LABELS, Fraction(2, 5), 5, 0, PARTS, model=f"from-file:{file}")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("pairflip", "^--downstream-model: unknown name .*did you mean pair-flip"),
        ("pair-flip:none.csv", "--downstream-model none.csv: not a map"),
        ("from-file", "needs the labels"),
        ("caption-swap", "is noise of captions"),
    ],
)
def test_a_model_that_does_not_do_is_refused(model: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_model(model)


def test_points_of_several_models_and_seeds_are_fitted_as_each_alone(tmp_path: Path) -> None:
    features = np.random.default_rng(2).normal(size=(300, 6)).astype(np.float32)
    data = TrainingData(
        keys=KEYS,
        features=features,
        labels=LABELS,
        validation_keys=None,
        validation_features=None,
        validation_labels=None,
        carving=Carving(PARTS[0], np.arange(1, 300, 2)),
        num_classes=5,
    )
    choice = HeadChoice(HEADS.find("lp"), LinearProbe, None, ({"epochs": 2}, {"epochs": 2, "lr": 0.01}))
    points = [Point(Fraction(1), seed, RATIOS[2], model) for model in models(tmp_path) for seed in (0, 1)]
    points.append(Point(Fraction(1), 0, Fraction(0)))
    together = fit_points(choice, data, points, "accuracy", "cpu")
    for point, fitted in zip(points, together, strict=True):
        [alone] = fit_points(choice, data, [point], "accuracy", "cpu")
        assert json.loads(fitted.selection) == json.loads(alone.selection)  # type: ignore[union-attr]


def test_a_study_names_the_model_and_keeps_the_ids_of_symmetric_noise(tmp_path: Path) -> None:
    choice = HeadChoice(HEADS.find("lp"), LinearProbe, None, ({},))
    carving = Carving(PARTS[0], PARTS[1])
    before: dict[str, Any] = json.loads(study_of(choice, carving, 0, RATIOS[0]))
    assert "noise_model" not in before
    matrix = models(tmp_path)[1]
    after = json.loads(study_of(choice, carving, 0, RATIOS[0], matrix))
    assert after.pop("noise_model").keys() == {"name", "file"}
    assert after == before


def test_a_report_has_a_figure_a_noise_model() -> None:
    from probes.reporting.build import build

    rows = digits_rows()
    for model in ("symmetric", "pair-flip"):
        study = json.dumps({"candidates": [], "noise_model": {"name": model}})
        rows += digits_rows(downstream_noise=0.3, downstream_model=model, study=study)
    names = {figure.name for figure in build(rows).figures}
    assert {"downstream-id", "downstream-ood", "downstream-id-pair-flip", "downstream-ood-pair-flip"} <= names
