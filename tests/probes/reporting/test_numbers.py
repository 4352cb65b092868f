"""Means, spreads, paired differences, and which rows they are of."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable

import numpy as np
import pytest

from nml.errors import UserError
from plugins.spectra import singular_values
from probes.reporting.averages import means, noise_key, plain, scores
from probes.reporting.paired import difference
from probes.reporting.sections.method import CONVENTIONS
from probes.reporting.selection import select
from probes.reporting.wording import metric_label, percent
from probes.results import Row

MakeRow = Callable[..., Row]
MakeRows = Callable[..., list[Row]]


def with_metric(row: Row, metric: float) -> Row:
    return dataclasses.replace(row, accuracy=metric, metric=metric)


def test_repetitions_of_pre_training_and_seeds_of_heads_are_counted_apart(row: MakeRow) -> None:
    metrics = {0: (0.8, 0.9, 0.85), 1: (0.7, 0.72, 0.74)}
    rows = [
        with_metric(row(repetition=run, seed=seed), metric)
        for run, found in metrics.items()
        for seed, metric in enumerate(found)
    ]
    mean = means(scores(select(rows)), lambda score: score.head)["lp"]
    assert mean.value == pytest.approx((0.85 + 0.72) / 2)
    assert mean.runs == pytest.approx((0.85, 0.72))
    assert mean.sd == pytest.approx(statistics.stdev((0.85, 0.72)))
    assert mean.seed_sd == pytest.approx(((0.05**2 + 0.02**2) / 2) ** 0.5)
    assert (mean.n, mean.seeds, mean.tasks) == (2, (3, 3), ("digits",))


def test_of_a_result_computed_by_several_states_of_a_heads_code_the_last_counts(row: MakeRow) -> None:
    old = with_metric(row(created="2026-01-01"), 0.5)
    new = with_metric(row(created="2026-01-02", head_code="a"), 0.7)
    alone = with_metric(row(created="2026-01-01", seed=1), 0.6)
    selection = select([old, alone, new])
    assert set(selection.rows) == {alone, new}
    assert selection.notes == (
        "1 row of lp left out: the same was computed again after its code had changed.",
        "The results of lp are not all of the same code; run its commands again to have them so.",
    )
    assert select([new]).notes == select([old, alone]).notes == ()


def test_no_mean_mixes_accuracy_with_correlations_or_average_precision(row: MakeRow) -> None:
    classes = [row(), dataclasses.replace(row(task="glue-cola", dataset="glue-cola"), metric_name="matthews")]
    numbers = [
        dataclasses.replace(
            row(task=name, dataset=name, svd_convention=convention), accuracy=None, metric_name=name
        )
        for name, convention in (("spearman", "raw"), ("map", "row-centred"))
    ]
    selection = select([*numbers, *classes])
    assert set(selection.rows) == set(classes)
    assert [note.partition(",")[0] for note in selection.notes] == [
        "1 row of map on map left out",
        "1 row of spearman on spearman left out",
    ]
    assert select([*numbers, *classes], metric="spearman").rows == (numbers[0],)
    assert select([*numbers, *classes], metric="map").convention == "row-centred"
    assert metric_label(numbers[:1]) == "Spearman correlation"
    with pytest.raises(UserError, match="pearson: no result has it; possible: accuracy, map, spearman"):
        select([*numbers, *classes], metric="pearson")


def test_flips_drawn_in_another_way_are_no_other_result(row: MakeRow) -> None:
    old = with_metric(row(created="2026-01-01", downstream_noise=0.1, study='{"views": 1}'), 0.5)
    study = '{"flips": "exact", "views": 1}'
    new = with_metric(row(created="2026-01-02", downstream_noise=0.1, study=study), 0.7)
    other = with_metric(row(created="2026-01-01", downstream_noise=0.1, study='{"views": 2}'), 0.6)
    assert set(select([old, new, other]).rows) == {new, other}


def test_one_run_has_the_spread_of_its_seeds_only_and_says_so(row: MakeRow) -> None:
    rows = [with_metric(row(seed=seed), metric) for seed, metric in enumerate((0.8, 0.9, 0.85))]
    mean = means(scores(select(rows)), lambda score: score.head)["lp"]
    assert (mean.sd, mean.seed_sd) == (None, pytest.approx(0.05))
    assert percent(mean).text == "85.0 (5.0)"
    alone = means(scores(select(rows[:1])), lambda score: score.head)["lp"]
    assert (alone.sd, alone.seed_sd) == (None, None)


def test_shifted_test_sets_are_averaged_within_a_run_and_are_not_runs(row: MakeRow) -> None:
    rows = [
        with_metric(row(dataset="digits-thick"), 0.6),
        with_metric(row(dataset="digits-rotated"), 0.8),
    ]
    mean = means(scores(select(rows)), lambda score: score.head)["lp"]
    assert (mean.value, mean.sd, mean.n) == (pytest.approx(0.7), None, 1)


def test_means_compare_groups_over_the_same_tasks_only(row: MakeRow) -> None:
    easy, hard = {"task": "easy", "dataset": "easy"}, {"task": "hard", "dataset": "hard"}
    rows = [
        with_metric(row(noise=0.0, **easy), 0.9),
        with_metric(row(noise=0.0, **hard), 0.5),
        with_metric(row(noise=0.1, **easy), 0.88),
        with_metric(row(noise=0.1, **hard), 0.48),
        with_metric(row(noise=0.2, **easy), 0.86),
    ]
    found = means(scores(select(rows)), noise_key)
    assert {level: mean.value for level, mean in found.items()} == pytest.approx({0.0: 0.7, 10.0: 0.68})


def test_a_run_that_lacks_a_task_is_no_run_of_the_mean(row: MakeRow) -> None:
    rows = [
        with_metric(row(seed=seed, task=task, dataset=task), metric)
        for seed, task, metric in ((0, "a", 0.9), (0, "b", 0.5), (1, "a", 0.9))
    ]
    mean = means(scores(select(rows)), lambda score: score.head)["lp"]
    assert (mean.value, mean.n) == (pytest.approx(0.7), 1)


def test_main_scores_are_of_clean_labels_and_all_training_data(digits: MakeRows) -> None:
    rows = [*digits(fractions=(0.1, 1.0)), *digits(downstream_noise=0.3)]
    found = plain(scores(select(rows)))
    assert {(score.fraction, score.downstream_noise) for score in found} == {(1.0, 0.0)}


def test_main_scores_are_at_the_largest_share_that_each_task_has(row: MakeRow) -> None:
    rows = [row(task="a", dataset="a", fraction=share) for share in (0.1, 1.0)]
    rows += [row(task="b", dataset="b", fraction=share) for share in (0.1, 0.5)]
    found = plain(scores(select(rows)))
    assert [(score.task, score.fraction) for score in found] == [("a", 1.0), ("b", 0.5)]


def test_differences_are_paired_and_not_of_unpaired_means(row: MakeRow) -> None:
    # lp has a bad seed that mlp lacks: the means differ by 0.2, every pair by 0.01.
    rows = [with_metric(row(head="lp", seed=seed), value) for seed, value in enumerate((0.8, 0.82, 0.2))]
    rows += [with_metric(row(head="mlp", seed=seed), value) for seed, value in enumerate((0.81, 0.83))]
    found = difference(scores(select(rows)), "mlp")
    assert found is not None
    assert found.mean == pytest.approx(0.01)


def test_pairs_of_one_encoder_are_one_number(row: MakeRow) -> None:
    gains = {0: (0.01, 0.03), 1: (0.05, 0.05, 0.02)}
    rows = []
    for run, found in gains.items():
        for seed, gain in enumerate(found):
            rows.append(with_metric(row(repetition=run, seed=seed), 0.5))
            rows.append(with_metric(row(repetition=run, seed=seed, head="mlp"), 0.5 + gain))
    assert difference(scores(select(rows)), "mlp").values == pytest.approx((0.02, 0.04))


def test_every_run_of_a_difference_is_over_the_same_tasks(row: MakeRow) -> None:
    gains = {(0, "a"): 0.01, (0, "b"): 0.03, (1, "a"): 0.02, (1, "b"): 0.04, (2, "a"): 0.9}
    rows = []
    for (run, task), gain in gains.items():
        about = {"repetition": run, "task": task, "dataset": task}
        rows += [with_metric(row(**about), 0.1), with_metric(row(head="mlp", **about), 0.1 + gain)]
    assert difference(scores(select(rows)), "mlp").values == pytest.approx((0.02, 0.03))


def test_spectra_of_one_convention_are_reported_and_the_others_noted(digits: MakeRows) -> None:
    rows = [*digits(), *digits(svd_convention="row-centred")]
    selection = select(rows)
    assert selection.convention == "raw"
    assert len(selection.rows) == len(digits())
    assert any("row-centred" in note for note in selection.notes)
    assert select(rows, "row-centred").convention == "row-centred"


def test_the_words_for_a_convention_say_what_is_computed() -> None:
    features = np.array([[1.0, 2.0, 6.0], [3.0, -1.0, 0.5]])
    assert (
        CONVENTIONS["row-centred"] == "each sample divided by its norm, then minus its mean over the features"
    )
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    worded = np.linalg.svd(unit - unit.mean(axis=1, keepdims=True), compute_uv=False)
    assert singular_values(features, convention="row-centred") == pytest.approx(worded)


def test_only_the_last_step_of_a_run_counts(row: MakeRow) -> None:
    rows = [row(step=80, encoder_hash="early"), row(step=160)]
    selection = select(rows)
    assert [kept.step for kept in selection.rows] == [160]
    assert "earlier steps" in selection.notes[0]


def test_rows_of_an_older_split_are_left_out(row: MakeRow) -> None:
    old = row(split_hash="4" * 64, created="2025-01-01T00:00:00Z")
    selection = select([old, row(seed=1)])
    assert [kept.seed for kept in selection.rows] == [1]
    assert "older revision or split of digits" in selection.notes[0]


def test_a_metric_that_is_no_number_is_left_out_and_noted(row: MakeRow) -> None:
    selection = select([row(), with_metric(row(seed=1), float("nan"))])
    assert [kept.seed for kept in selection.rows] == [0]
    assert "not a number" in selection.notes[0]


def test_settings_of_a_head_are_told_apart_by_what_differs(digits: MakeRows) -> None:
    study = {"candidates": [{"layers": 2, "lr": 0.001}], "validation_carved": 179, "views": 0}
    other = {**study, "candidates": [{"layers": 4, "lr": 0.001}]}
    rows = digits(heads=("nmtune",), study=json.dumps(study))
    rows += digits(heads=("nmtune",), seeds=(0,), study=json.dumps(other))
    selection = select(rows)
    assert set(selection.head.values()) == {"nmtune", "nmtune (layers = 4)"}
    assert selection.main_heads == ("nmtune",)


def test_a_tasks_own_defaults_are_no_other_setting(digits: MakeRows) -> None:
    images = digits(heads=("lp",), study=json.dumps({"candidates": [{"lr": 0.1}], "validation_carved": 1}))
    texts = digits(heads=("lp",), task="sst2", study=json.dumps({"candidates": [{"lr": 0.01}]}))
    assert set(select([*images, *texts]).head.values()) == {"lp"}


def test_runs_that_differ_in_level_and_seed_make_a_family(row: MakeRow) -> None:
    rows = [row(noise=0.0), row(noise=0.2), row(encoder="cifar-n00-seed0", encoder_hash="c")]
    family = select(rows).family
    assert family[rows[0].encoder_hash] == family[rows[1].encoder_hash] == "quickstart"
    assert family["c"] == "cifar"


def test_runs_named_by_hand_are_taken_together(row: MakeRow) -> None:
    rows = [row(noise=0.0, encoder="clean"), row(noise=0.2, encoder="my-noisy-run")]
    assert len(set(select(rows).family.values())) == 1


def test_two_tuned_encoders_of_one_run_are_not_two_runs(row: MakeRow) -> None:
    run = {"run_path": "/runs/mine", "step": 80}
    frozen = [row(noise=0.0, encoder="clean"), row(noise=0.2, encoder="mine", **run)]
    tuned = [
        row(noise=0.2, encoder=f"tuned:{method}", encoder_kind="tuned", encoder_hash=method, **run)
        for method in ("full", "lora")
    ]
    # The run went on since.
    later = row(noise=0.2, encoder="mine", encoder_hash="later", **run | {"step": 160})
    found = select([*frozen, later, *tuned])
    assert set(found.rows) == {frozen[0], later, *tuned}
    assert [found.family[one.encoder_hash] for one in tuned] == ["tuned:full", "tuned:lora"]
    assert found.family["later"] == found.family[frozen[0].encoder_hash]
    # Along the training stand its own checkpoints alone.
    assert found.along is not None
    assert set(found.along.rows) == {frozen[1], later}


def test_named_levels_of_two_noise_models_are_two_families(row: MakeRow) -> None:
    levels = [("n00", 0.0, "clean"), ("n20", 0.2, "symmetric"), ("worst", 0.4, "symmetric")]
    levels += [("n20-pair-flip", 0.2, "pair-flip"), ("flipped", 0.4, "pair-flip")]
    rows = [
        row(
            encoder_hash=name,
            encoder=f"quickstart-{name}-seed0",
            noise_level=name,
            noise_ratio=ratio,
            noise_model=model,
        )
        for name, ratio, model in levels
    ]
    family = select(rows).family
    assert {family[name] for name in ("n00", "n20", "worst")} == {"quickstart, symmetric"}
    assert {family[name] for name in ("n20-pair-flip", "flipped")} == {"quickstart, pair-flip"}


def test_public_encoders_stand_alone(row: MakeRow) -> None:
    public = {"noise_ratio": None, "noise_level": None, "run_path": None}
    rows = [row(encoder=name, encoder_hash=name, **public) for name in ("timm:resnet18", "timm:resnet50")]
    assert set(select(rows).family.values()) == {"timm:resnet18", "timm:resnet50"}
