"""Both heads of a pair were fitted and scored on the same: encoder, task, domain, share, noise and seed."""

from __future__ import annotations

import dataclasses
import itertools
from statistics import fmean

import pytest

from probes.reporting.averages import Score
from probes.reporting.inference import estimate
from probes.reporting.paired import Asked, compare, counted, difference, differences, marks, repeated

ENCODERS, TASKS, DOMAINS = ("e1", "e2"), ("digits", "dtd"), ("id", "ood")
FRACTIONS, NOISES, SEEDS = (0.1, 1.0), (0.0, 0.2), (0, 1, 2)
GRID = list(itertools.product(ENCODERS, TASKS, DOMAINS, FRACTIONS, NOISES, SEEDS))


def score(head: str, number: int, metric: float) -> Score:
    encoder, task, domain, fraction, noise, seed = GRID[number]
    return Score(
        family="f",
        encoder=encoder,
        encoder_hash=encoder,
        noise=0.1,
        head=head,
        task=task,
        domain=domain,  # type: ignore[arg-type]
        fraction=fraction,
        seed=seed,
        downstream_noise=noise,
        metric=metric,
        sve=1.0,
        lsvr=1.0,
        head_sve=1.0,
        head_lsvr=1.0,
        datasets=(task,),
    )


def test_nothing_that_a_pair_shares_is_left_out_of_its_key() -> None:
    # What a case is worth to any head varies far more than what the heads differ by in it.
    base = [(7 * number % 101) / 10 for number in range(len(GRID))]
    gain = [(3 * number % 17) / 1000 for number in range(len(GRID))]
    lp = [score("lp", number, base[number]) for number in range(len(GRID))]
    # In another order: pairs that are mixed up do not come right by chance.
    mlp = [score("mlp", number, base[number] + gain[number]) for number in reversed(range(len(GRID)))]
    other = [score("nmtune", number, 50.0) for number in range(len(GRID))]
    expected = {
        encoder: fmean(gain[number] for number, case in enumerate(GRID) if case[0] == encoder)
        for encoder in ENCODERS
    }
    found = differences([*lp, *mlp, *other], "mlp")
    assert found == {encoder: pytest.approx(value) for encoder, value in expected.items()}
    assert len(set(expected.values())) == len(ENCODERS)
    # A baseline that is the better one has the other sign.
    turned = differences([*lp, *mlp, *other], "lp", baseline="mlp")
    assert turned == {encoder: pytest.approx(-value) for encoder, value in expected.items()}


def run(name: str, head: str, metric: float, *, noise: float | None = 0.1, family: str = "f") -> Score:
    return dataclasses.replace(
        score(head, 0, metric), encoder=name, encoder_hash=name, noise=noise, family=family
    )


def test_the_difference_is_estimated_over_runs_and_there_is_none_without_a_pair() -> None:
    found = [run(f"e{n}", head, gain) for n, gains in enumerate(GAINS) for head, gain in gains.items()]
    assert difference(found, "mlp").values == pytest.approx((0.1, 0.2, 0.15))
    assert difference(found, "mlp", baseline="nmtune").values == pytest.approx((0.05, 0.1, 0.1))
    assert difference(found, "mlp") == estimate(difference(found, "mlp").values)
    assert difference(found, "knn") is None


GAINS = (
    {"lp": 0.5, "mlp": 0.6, "nmtune": 0.55},
    {"lp": 0.5, "mlp": 0.7, "nmtune": 0.6},
    {"lp": 0.5, "mlp": 0.65, "nmtune": 0.55},
)


def test_comparisons_of_a_table_are_adjusted_for_each_other_where_a_level_has_two_runs() -> None:
    found = [run(f"e{n}", head, gain) for n, gains in enumerate(GAINS) for head, gain in gains.items()]
    alone = difference(found, "mlp"), difference(found, "nmtune")
    judged = compare([Asked(found, "mlp"), Asked(found, "nmtune"), Asked(found, "knn")])
    ps = sorted(one.p for one in alone)
    adjusted = {ps[0]: 2 * ps[0], ps[1]: max(2 * ps[0], ps[1])}
    for one, estimated in zip(judged, alone, strict=False):
        assert one.found == estimated
        assert one.p_holm == pytest.approx(adjusted[estimated.p])
    assert judged[2] is None
    assert counted(judged) == 2
    # Runs of levels of their own: a difference may be the level's.
    spread = [dataclasses.replace(one, noise=int(one.encoder[1]) / 10) for one in found]
    [one] = compare([Asked(spread, "mlp")])
    assert (one.found, one.p_holm, one.marked) == (alone[0], None, False)
    assert counted([one]) == 0
    # Two runs of the baseline at a level are none of the head's.
    [one] = compare([Asked([*spread, run("e9", "lp", 0.5, noise=0.0)], "mlp")])
    assert one.p_holm is None


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], False),
        ([("a", 0.1, "f")], False),
        ([("a", 0.1, "f"), ("a", 0.1, "f")], False),
        ([("a", 0.1, "f"), ("b", 0.1, "f")], True),
        ([("a", 0.1, "f"), ("b", 0.2, "f")], False),
        ([("a", 0.1, "f"), ("b", 0.1, "g")], False),
        ([("a", None, "f"), ("b", None, "f")], True),
    ],
)
def test_a_level_is_repeated_by_two_runs_of_one_family(
    runs: list[tuple[str, float | None, str]], expected: bool
) -> None:
    scores = [run(name, "lp", 0.5, noise=noise, family=family) for name, noise, family in runs]
    assert repeated(scores) is expected


def test_bold_is_explained_by_how_many_comparisons_there_are() -> None:
    assert marks(0).startswith("Nothing is marked")
    assert "over the 3 comparisons" in marks(3)


def test_layers_of_one_network_are_no_runs_of_their_own() -> None:
    def layers(head: str, metric: float) -> list[Score]:
        return [
            dataclasses.replace(
                score(head, GRID.index((run, "digits", "id", 1.0, 0.0, 0)), metric + shift),
                encoder=f"{run}{layer}",
                encoder_hash=f"{run}{layer}",
                network=run,
            )
            for run, shift in (("e1", 0.0), ("e2", 0.25 * (head == "mlp")))
            for layer in ("", ",layer=layer3", ",layer=layer4")
        ]

    found = difference([*layers("lp", 0.5), *layers("mlp", 0.625)], "mlp")
    assert found is not None
    assert found.values == (0.125, 0.375)
