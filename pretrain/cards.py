"""What a published folder says of itself: model cards, the card of a ladder, the card of a set's noise."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import jinja2
import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from nml import layout
from nml.delimited import read_lines
from nml.errors import UserError
from nml.files import write_bytes
from shards.set_info import Level
from shards.shardset import ShardSet

if TYPE_CHECKING:
    from pretrain.publish import Published
    from pretrain.published_noise import Noise

CARD = "README.md"
TAGS = ["noisy-model-learning", "label-noise"]
# As the Hub calls a licence that it has no name for, or that nobody named.
NO_LICENCE = "other"
_COLUMNS = ("encoder", "task", "dataset", "domain", "head", "metric_name", "metric", "fraction")
CITATION = """\
```bibtex
@inproceedings{chen2024understanding,
  title     = {Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks},
  author    = {Chen, Hao and Wang, Jindong and Shah, Ankit and Tao, Ran and Wei, Hongxin and Xie, Xing and
               Sugiyama, Masashi and Raj, Bhiksha},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  url       = {https://arxiv.org/abs/2309.17002}
}
```"""


class Probe(NamedTuple):
    """A number of a head on a published encoder, the mean over its seeds.

    Attributes:
        task, dataset, domain, head, metric: As in the results.
        value: The mean.
        seeds: How many it is of.
    """

    task: str
    dataset: str
    domain: str
    head: str
    metric: str
    value: float
    seeds: int


def probes_of(file: str) -> dict[str, list[Probe]]:
    """Return what a file of ``probes.results export`` says of each encoder, on all of its task's data.

    Raises:
        UserError: If it lacks a column, or a number is none.
    """
    header, *lines = [line.values for line in read_lines(Path(file), "csv")] or [[]]
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"--results {file}: has no column {', '.join(missing)}",
            possible="a file of python -m probes.results export results --out probes.csv",
        )
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for values in lines:
        row = dict(zip(header, values, strict=True))
        try:
            clean = float(row.get("downstream_noise") or 0.0) == 0.0
            if clean and float(row["fraction"]) == 1.0:
                found[tuple(row[name] for name in _COLUMNS[:6])].append(float(row["metric"]))
        except ValueError as error:
            raise UserError(f"--results {file}: {error}") from error
    probes: dict[str, list[Probe]] = defaultdict(list)
    for (encoder, task, dataset, domain, head, metric), numbers in sorted(found.items()):
        probe = Probe(task, dataset, domain, head, metric, fmean(numbers), len(numbers))
        probes[encoder].append(probe)
    return dict(probes)


def write_model_card(
    run: Published,
    folder: Path,
    *,
    licence: str | None,
    noise: Mapping[str, Noise],
    probes: Sequence[Probe],
) -> None:
    """Write the card of one run."""
    level = run.meta["noise"]
    tasks = {"classify": "image-classification", "clip": "zero-shot-image-classification"}
    data = ModelCardData(
        license=licence or NO_LICENCE,
        library_name=run.meta["library"],
        pipeline_tag=tasks.get(run.meta["objective"], "image-feature-extraction"),
        tags=[*TAGS, f"noise-{level['level']}"],
        model_name=run.name,
        eval_results=[_evaluated(probe) for probe in probes] or None,
    )
    _write(
        folder,
        "model.md.j2",
        front=data.to_yaml(),
        run=run,
        meta=run.meta,
        noise=level,
        shape=run.meta["preprocessing"],
        where=_where(noise[level["set_fingerprint"]], "../"),
        # A line a value: none begins with what would end its block.
        recipe=yaml.safe_dump(
            run.meta["recipe"]["resolved"], sort_keys=False, allow_unicode=True, width=float("inf")
        ).strip(),
        curves=(folder / f"{layout.CURVES}.png").exists(),
        step_name=layout.step_name,
        probes=probes,
        licence=licence,
    )


def write_ladder_card(
    runs: Sequence[Published],
    folder: Path,
    *,
    noise: Mapping[str, Noise],
    probes: Mapping[str, Sequence[Probe]],
) -> None:
    """Write the card of several runs: what each is, and where."""

    def place(run: Published) -> tuple[str, float, str]:
        return run.meta["recipe"]["name"], run.meta["noise"]["realised"], run.name

    def mean(run: Published, domain: str) -> str:
        found = [one.value for one in probes.get(run.name, ()) if (one.head, one.domain) == ("lp", domain)]
        return f"{100 * fmean(found):.1f}" if found else ""

    rows = [
        {"run": run, "meta": run.meta, **{domain: mean(run, domain) for domain in ("id", "ood")}}
        for run in sorted(runs, key=place)
    ]
    _write(folder, "ladder.md.j2", rows=rows, sets={one.fingerprint: _where(one) for one in noise.values()})


def write_noise_card(
    shard_set: ShardSet, levels: Mapping[str, Level], folder: Path, licence: str | None
) -> None:
    """Write the card of a set's labels."""
    data = DatasetCardData(
        license=licence or NO_LICENCE,
        tags=[*TAGS, "croissant"],
        pretty_name=folder.name,
        configs=[{"config_name": name, "data_files": f"{name}.parquet"} for name in levels],
    )
    _write(
        folder,
        "noise.md.j2",
        front=data.to_yaml(),
        name=folder.name,
        samples=shard_set.num_samples,
        wrong="label" if shard_set.kind == "class" else "caption",
        levels=levels,
        fingerprint=shard_set.fingerprint,
        manifest=shard_set.manifest_sha256,
        classes=shard_set.classes,
        licence=licence,
    )


def _evaluated(probe: Probe) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=probe.dataset,
        dataset_name=f"{probe.task}: {probe.dataset} ({probe.domain})",
        metric_type=probe.metric,
        metric_name=f"{probe.metric} of {probe.head} on frozen features",
        metric_value=round(probe.value, 6),
    )


def _where(noise: Noise, above: str = "") -> str:
    if noise.reason:
        return f"The labels sample by sample are not published with it: {noise.reason}."
    return (
        "The labels sample by sample, as training saw them and as the source has them, are in "
        f"[{noise.folder}]({above}{quote(noise.folder)})."
    )


def _code(text: str) -> str:
    """Return a name as Markdown shows it letter by letter, whatever is in it."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    edge = " " if "`" in line else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def _write(folder: Path, template: str, **values: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pretrain"),
        undefined=jinja2.StrictUndefined,
        # Markdown for the Hub, which takes out what could act on a reader.
        autoescape=False,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    text = environment.get_template(template).render(citation=CITATION, **values)
    write_bytes(folder / CARD, text.encode())
