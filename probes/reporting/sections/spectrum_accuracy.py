"""Spectra against accuracy: SVE in domain, LSVR out of domain (Fig. 3 for lp, Fig. 5 for all heads)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from probes.reporting.averages import Mean, Score, means, noise_key
from probes.reporting.records import Figure, Gap, Panel, Section, Series
from probes.reporting.sections.noise import no_ladder, point
from probes.reporting.study import Study, in_domain, of_family
from probes.reporting.wording import error_bars
from probes.results.row import Domain

BASELINE = "lp"


class Quantity(NamedTuple):
    """A quantity of the spectrum and the domain it is read against."""

    name: str
    domain: Domain
    domain_name: str
    encoder: Callable[[Score], float]
    head: Callable[[Score], float]


QUANTITIES = (
    Quantity("SVE", "id", "in-domain", lambda score: score.sve, lambda score: score.head_sve),
    Quantity("LSVR", "ood", "out-of-domain", lambda score: score.lsvr, lambda score: score.head_lsvr),
)


def section(study: Study) -> Section:
    """Return the section."""
    return Section(
        name="spectrum-accuracy",
        title="Spectra and accuracy",
        intro=(
            "SVE is the entropy of the singular values' shares of their sum: higher means a flatter "
            "spectrum. LSVR is minus the logarithm of the largest value's share: higher means that it "
            "dominates less. Both in nats, of test features; comparable only at equal N and dimension. "
            "Encoder SVE and LSVR are of the features as pre-trained, head SVE and LSVR of the features as "
            "the head's classifier sees them."
        ),
        items=(_of_encoders(study), _of_heads(study)),
    )


def _of_encoders(study: Study) -> Figure | Gap:
    title = f"Encoder SVE and LSVR against {study.metric} of linear probing"
    found = [score for score in study.known(study.main) if score.head == BASELINE]
    panels, behind = _panels(study, found, of_head=False)
    if not panels:
        return _gap(study, title, "Fig. 3", found)
    return Figure(
        name="encoder-spectra-accuracy",
        title=title,
        paper="Fig. 3",
        caption=(
            f"One mark a noise level, labelled with it; SVE and LSVR of the features as pre-trained, "
            f"{study.metric} of {BASELINE}. {error_bars(behind, shows_runs=False)}. A handful of "
            "encoders makes no trend."
        ),
        panels=tuple(panels),
    )


def _of_heads(study: Study) -> Figure | Gap:
    title = f"Head SVE and LSVR against {study.metric}, by head"
    found = study.known(study.main)
    panels, behind = _panels(study, found, of_head=True)
    if not panels:
        return _gap(study, title, "Fig. 5", found)
    return Figure(
        name="head-spectra-accuracy",
        title=title,
        paper="Fig. 5",
        caption=(
            f"One mark a head and noise level, joined in the order of the levels, the first and the last "
            f"labelled where there is room; SVE and LSVR of the features as the head's classifier sees them, "
            f"which lp leaves as pre-trained. {error_bars(behind, shows_runs=False)}."
        ),
        panels=tuple(panels),
    )


def _panels(study: Study, found: list[Score], *, of_head: bool) -> tuple[list[Panel], list[Mean]]:
    panels: list[Panel] = []
    behind: list[Mean] = []
    whose = "head" if of_head else "encoder"
    for family in study.ladders:
        for quantity in QUANTITIES:
            within = in_domain(of_family(found, family), quantity.domain)
            value = quantity.head if of_head else quantity.encoder
            # A spectrum of zeros has neither quantity.
            within = [score for score in within if math.isfinite(value(score))]
            x = means(within, _key, value)
            y = means(within, _key)
            if not x:
                continue
            behind += y.values()
            heads = [head for head in study.heads if any(key[0] == head for key in x)]
            series = tuple(
                Series(
                    label=head if of_head else "",
                    points=tuple(
                        point(x[key].value, y[key], label=f"{key[1]:g} %")
                        for key in sorted(x)
                        if key[0] == head
                    ),
                    slot=study.head_slot(head),
                )
                for head in heads
            )
            panels.append(_panel(study, family, quantity, series, whose))
    return panels, behind


def _panel(study: Study, family: str, quantity: Quantity, series: tuple[Series, ...], whose: str) -> Panel:
    return Panel(
        title=study.title(family, f"{whose.capitalize()} {quantity.name}, {quantity.domain_name}"),
        x_label=f"{whose.capitalize()} {quantity.name}, {quantity.domain_name} test features (nats)",
        y_label=f"{quantity.domain_name.capitalize()} {study.metric} (%)",
        series=series,
        kind="path",
        alt="; ".join(
            f"{one.label or BASELINE} at {mark.label} noise: "
            f"{whose} {quantity.name} {mark.x:.2f}, {mark.y:.1f} %"
            for one in series
            for mark in one.points
        )
        + ".",
    )


def _key(score: Score) -> tuple[str, float]:
    return score.head, noise_key(score)


def _gap(study: Study, title: str, paper: str, found: list[Score]) -> Gap:
    if study.ladders and not found:
        return Gap(
            title=title,
            paper=paper,
            reason=f"no results of {BASELINE}",
            command="python -m probes.run --plugin lp,mlp,nmtune",
        )
    return no_ladder(title, paper)
