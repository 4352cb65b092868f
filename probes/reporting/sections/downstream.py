"""Accuracy when labels of the downstream task are noisy too (Fig. 15 and 16)."""

from __future__ import annotations

from probes.reporting.averages import Mean, Score, means, noise_key
from probes.reporting.records import Figure, Gap, Panel, Section
from probes.reporting.sections.noise import describe, head_lines
from probes.reporting.study import DOMAINS, Study, in_domain
from probes.reporting.wording import error_bars, unique
from probes.results.row import Domain

COMMAND = "python -m probes.run --plugin lp,mlp,nmtune --downstream-noise 0 0.1 0.2 0.3 0.4 0.5"


def section(study: Study) -> Section:
    """Return the section."""
    found = study.of_main_heads(study.scores)
    models = sorted({score.downstream_model for score in found} - {""})
    figures = [_figure(study, found, domain, title, model) for model in models for domain, title in DOMAINS]
    figures = [figure for figure in figures if figure.panels]
    gap = Gap(
        title="Accuracy against noise in the downstream training labels",
        paper="Fig. 15 and 16",
        reason="no head was fitted on two levels of downstream noise",
        command=COMMAND,
    )
    return Section(name="downstream", title="Noise in the downstream labels", items=tuple(figures) or (gap,))


def _figure(study: Study, found: list[Score], domain: Domain, title: str, model: str) -> Figure:
    # Clean labels are the first point of every model.
    within = [score for score in in_domain(found, domain) if score.downstream_model in ("", model)]
    noisy = {(score.encoder_hash, score.task, score.fraction) for score in within if score.downstream_noise}
    within = [score for score in within if (score.encoder_hash, score.task, score.fraction) in noisy]
    panels: list[Panel] = []
    behind: list[Mean] = []
    for name, members in _encoders(study, within):
        by = means(members, lambda score: (score.head, round(100 * score.downstream_noise, 1)))
        levels = unique(key[1] for key in by)
        series = head_lines(study, by, levels, least=2)
        if not series:
            continue
        behind += by.values()
        panels.append(
            Panel(
                title=name,
                x_label="Downstream noise (% of training labels)",
                y_label=f"{title} {study.metric} (%)",
                series=series,
                x_ticks=tuple(levels),
                group=domain,
                alt=describe(series, "downstream noise"),
            )
        )
    return Figure(
        name=f"downstream-{domain}" + ("" if model == "symmetric" else f"-{model}"),
        title=f"{title} {study.metric} against {model} noise in the downstream training labels",
        paper="Fig. 15 and 16",
        caption=(
            f"One panel a level of pre-training noise. Test labels are clean; how many training labels "
            f"changed is counted. {error_bars(behind)}."
        ),
        panels=tuple(panels),
    )


def _encoders(study: Study, found: list[Score]) -> list[tuple[str, list[Score]]]:
    """Return the scores by family and noise level, levels ascending."""
    ordered = sorted(found, key=lambda score: (score.family, score.noise or 0.0))
    groups: dict[str, list[Score]] = {}
    for score in ordered:
        level = f"{noise_key(score):g} % pre-training noise"
        name = score.family if score.noise is None else study.title(score.family, level)
        groups.setdefault(name, []).append(score)
    return list(groups.items())
