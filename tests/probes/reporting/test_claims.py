"""What the report says of the paper's claims, of which runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

import pytest

from probes.reporting.build import build
from probes.reporting.claims import Claim, Margins, claims
from probes.reporting.selection import select
from probes.reporting.study import Study
from probes.results import Row
from tests.probes.report_parts import table, text

MakeRow = Callable[..., Row]
# Small luck of a run, the same for all its heads, and of a run with a head; both differ from run to run.
LUCK = (0.011, -0.004, 0.007, -0.013, 0.002)
WHIM = (0.0004, -0.0003, 0.0001, -0.0005, 0.0002)


def judged(
    row: MakeRow,
    effect: Callable[[float, str, str], float] = lambda noise, head, domain: 0.0,
    *,
    runs: int = 4,
    levels: tuple[float, ...] = (0.0, 0.05, 0.2),
    heads: tuple[str, ...] = ("lp", "mlp", "nmtune"),
    spectra: Callable[[float], float] = lambda noise: noise,
    margins: Margins | None = None,
    **changes: object,
) -> dict[str, Claim]:
    """Return the claims of a study in which ``effect`` (of noise, head, domain) is all that differs."""
    rows = []
    for run in range(runs):
        for place, noise in enumerate(levels):
            for head in heads:
                for dataset, domain in (("digits", "id"), ("digits-thick", "ood")):
                    whim = WHIM[(run + 2 * len(head) + place + len(domain)) % len(WHIM)]
                    metric = 0.6 + LUCK[run] + whim + effect(noise, head, domain)
                    made = row(noise=noise, head=head, repetition=run, dataset=dataset, **changes)
                    shift = spectra(noise) + WHIM[(run + place) % len(WHIM)]
                    rows.append(dataclasses.replace(made, metric=metric, sve=4 + shift, lsvr=2 + shift))
    return {claim.name: claim for claim in claims(Study(select(rows)), margins or Margins())}


def verdicts(found: Mapping[str, Claim]) -> dict[str, str]:
    return {name: claim.verdict for name, claim in found.items()}


def as_in_the_paper(noise: float, head: str, domain: str) -> float:
    gain = {"lp": 0.0, "mlp": 0.01, "nmtune": 0.03}[head]
    if domain == "ood" or head == "nmtune":
        return gain - 0.2 * noise
    return gain + (0.005 if noise == 0.05 else -0.03 if noise else 0.0)


def test_a_study_with_all_the_effects_of_the_paper_supports_all_its_claims(row: MakeRow) -> None:
    found = judged(row, as_in_the_paper)
    noisy = {name for name in found if "downstream" in name}
    assert {name for name, verdict in verdicts(found).items() if verdict == "supported"} == set(found) - noisy
    assert {found[name].verdict for name in noisy} == {"too few runs"}
    assert {found[name].reason for name in noisy} == {
        "no results with downstream noise of both nmtune and lp"
    }


def test_effects_the_other_way_contradict(row: MakeRow) -> None:
    found = judged(row, lambda *of: -as_in_the_paper(*of), spectra=lambda noise: -noise)
    assert {claim.verdict for name, claim in found.items() if "downstream" not in name} == {"contradicted"}


def test_no_effect_is_said_only_within_the_margin_named_beforehand(row: MakeRow) -> None:
    head = "nmtune-over-mlp-id"
    wide, narrow = judged(row), judged(row, margins=Margins(points=0.01))
    assert wide[head].verdict == "contradicted"
    assert "no effect: the difference lies within ±0.5 points" in wide[head].reason
    assert narrow[head].verdict == "undecided"
    assert narrow[head].p_equivalence > 0.05


def test_undecided_comes_with_what_the_runs_could_have_shown(row: MakeRow) -> None:
    found = judged(row, margins=Margins(points=0.01), runs=3)["mlp-over-lp-ood"]
    assert found.verdict == "undecided"
    assert 0 < found.detectable < 1
    assert f"show a true difference of {found.detectable:.2g} points in 80 % of studies" in found.reason


def test_one_run_a_level_decides_nothing_however_large_the_effects(row: MakeRow) -> None:
    found = judged(row, as_in_the_paper, runs=1)
    assert set(verdicts(found).values()) == {"too few runs"}
    assert found["noise-hurts-ood"].reason == "one pre-training run a noise level"
    assert found["nmtune-over-mlp-id"].reason == "one pre-training run a noise level"
    assert found["noise-hurts-ood"].estimate == pytest.approx(-2.5, abs=0.2)


def test_levels_are_compared_within_ladders_that_share_a_seed(row: MakeRow) -> None:
    found = judged(row, as_in_the_paper)["noise-hurts-ood"]
    # The luck of a run, ten times its whim, would hide 2.5 points from four runs a level otherwise.
    assert found.runs == 4
    assert found.high - found.low < 0.3


def test_without_seeds_in_their_names_levels_are_groups_of_runs(row: MakeRow) -> None:
    rows = [
        dataclasses.replace(row(noise=noise, repetition=run), encoder=f"mine-{noise}-{run}", metric=metric)
        for noise, metrics in ((0.0, (0.8, 0.81, 0.79)), (0.1, (0.7, 0.69, 0.71)))
        for run, metric in enumerate(metrics)
    ]
    (found,) = [
        claim for claim in claims(Study(select(rows)), Margins()) if claim.name == "slight-noise-helps-id"
    ]
    assert (found.verdict, found.runs, found.estimate) == ("contradicted", 6, pytest.approx(-10))


def test_the_clean_encoder_is_the_best_only_if_it_beats_every_level(row: MakeRow) -> None:
    def one_level_ahead(noise: float, head: str, domain: str) -> float:
        return {0.0: 0.0, 0.05: 0.01, 0.2: -0.1}[noise]

    found = judged(row, one_level_ahead)["nmtune-makes-clean-best-id"]
    assert found.compared.endswith("0 % minus 5 %, the best other level")
    assert (found.verdict, found.estimate) == ("contradicted", pytest.approx(-1, abs=0.1))


def test_the_gain_of_nmtune_is_held_against_noisy_downstream_labels_too(row: MakeRow) -> None:
    found = judged(row, as_in_the_paper, downstream_noise=0.3)
    assert found["nmtune-over-lp-downstream-noise-ood"].verdict == "supported"
    assert found["nmtune-over-lp-downstream-noise-ood"].estimate == pytest.approx(3, abs=0.1)
    assert found["nmtune-over-mlp-id"].verdict == "too few runs"


def test_claims_stand_first_and_in_a_file_of_a_stable_format(row: MakeRow) -> None:
    rows = [row(noise=noise, repetition=run) for noise in (0.0, 0.2) for run in (0, 1)]
    report = build(rows, margins=Margins(points=1.0))
    assert report.sections[0].name == "claims"
    (content,) = [json.loads(text) for name, text in report.documents if name == "claims.json"]
    assert (content["format"], content["margins"]) == ("nml-claims/1", {"points": 1.0, "nats": 0.05})
    lines = text(table(report, "claims-table"))
    assert [claim["text"] for claim in content["claims"]] == [line[0] for line in lines]
    assert [claim["verdict"] for claim in content["claims"]] == [line[1] for line in lines]
    assert {"name", "estimate", "low", "high", "p_holm", "runs", "values", "detectable", "margin"} < set(
        content["claims"][0]
    )


def test_encoders_without_a_ladder_are_judged_together_on_heads_only(row: MakeRow) -> None:
    public = {"noise_ratio": None, "noise_level": None, "run_path": None}
    rows = [
        row(encoder=name, encoder_hash=name, head=head, **public)
        for name in ("timm:a", "timm:b")
        for head in ("lp", "mlp")
    ]
    found = claims(Study(select(rows)), Margins())
    assert {claim.encoders for claim in found} == {"all encoders"}
    assert {claim.verdict for claim in found} == {"too few runs"}


def test_encoders_that_differ_in_more_than_noise_are_not_compared_by_noise(row: MakeRow) -> None:
    rows = [
        row(
            noise=noise,
            encoder=f"{recipe}-n{100 * noise:02.0f}-seed{run}",
            encoder_hash=f"{recipe} {run}",
            dim=dim,
        )
        for recipe, noise, dim in (("small", 0.0, 64), ("large", 0.2, 2048))
        for run in (0, 1)
    ]
    found = {claim.name: claim for claim in claims(Study(select(rows)), Margins())}
    assert found["slight-noise-helps-id"].estimate is found["noise-raises-sve"].estimate is None
    assert found["noise-raises-sve"].reason.startswith("no encoders that differ in noise alone")
