"""Both heads of a pair were fitted and scored on the same: encoder, task, domain, share, noise and seed."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest

from probes.reporting.averages import Score
from probes.reporting.paired import differences

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
