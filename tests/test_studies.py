"""Every study of the project: its options are taken by the rooms that they are for, and it can be planned."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from pretrain.options import parse_options as pretrain_options
from probes.options import parse_options as probe_options
from probes.report import main as make_report
from probes.results import read_rows
from shards.write import build_parser as shards_parser
from slurm.entry import build_parser
from slurm.invocation import Invocation
from slurm.plan import make_plan
from slurm.pretraining import run_member
from slurm.rooms import check_encoders, check_heads, check_tasks
from slurm.study import Study, check_level_is_planned
from slurm.sweep import study_of

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.yaml"))
RESULTS = sorted((Path(__file__).parents[1] / "studies").glob("*/results"))
# PNGs are left out: the page has the same figures.
TEXTS = (".html", ".md", ".json", ".csv", ".svg")


def read_study(file: Path) -> Study:
    options = build_parser().parse_args(["sweep", "--config", str(file)])["sweep"]
    return study_of(Invocation(options, (), ()))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_is_resolved_and_planned(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = read_study(file)
    assert study.arms[0].name == file.stem
    for planned in study.sets:
        shards_parser().parse_args([*planned.words, "--out", planned.out])
    for arm in study.arms:
        check_heads(arm.plugins)
        check_tasks(arm.tasks)
        check_encoders(arm.encoders)
        for run in arm.runs():
            trained_on = study.set_of(run.shard_set)
            assert trained_on, f"{run.path.name} trains on a set that the study does not write"
            check_level_is_planned(trained_on, run.options.noise)
    parts = make_plan(study, run_member)
    names = {part.member.name for part in parts}
    assert len(names) == len(parts)
    assert all(names.issuperset(part.parents) for part in parts)
    for command in {(one.recipe, one.overrides): one for one in study.runs()}.values():
        pretrain_options(command.argv()[3:])
    for words, tasks in {(arm.probe_words, arm.tasks) for arm in study.arms}:
        probe_options([*words, "--task", *tasks])
    # Every run is measured, and every encoder that is given.
    measured = Counter(part.member.probe.run for part in parts if part.member.probe)
    given = {encoder for arm in study.arms for encoder in arm.encoders}
    assert measured.keys() == {str(run.path) for run in study.runs()} | given


@pytest.mark.parametrize("results", RESULTS, ids=lambda folder: folder.parent.name)
def test_the_published_report_is_what_the_published_rows_give(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From a folder without runs, whose curves would join the report.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").symlink_to(results.parents[1])
    make_report([str(results.relative_to(results.parents[2])), "--out", "made"])
    published = results / "report"
    files = sorted(file.relative_to(published) for file in published.rglob("*") if file.suffix in TEXTS)
    assert {*map(str, files)} >= {"report.html", "report.md", "claims.json"}
    assert [
        file for file in files if (published / file).read_bytes() != Path("made", file).read_bytes()
    ] == []
    assert sum(file.stat().st_size for file in (results / "rows").iterdir()) < 5e6
    rows = read_rows(results)
    places = {place for row in rows for place in (row.run_path, row.set_path) if place}
    assert not [place for place in places if Path(place).is_absolute()]


LADDER = STUDIES[0].parent / "cifar100_ladder"


def test_what_is_said_of_the_ladder_is_what_its_report_says() -> None:
    text = (LADDER / "README.md").read_text()
    report = (LADDER / "results/report/report.md").read_text()
    claims = report.partition("### Claims\n")[2].partition("\n\n\n")[0].strip().splitlines()
    assert len(claims) > 10
    assert "\n".join(claims) in text
    # Whatever else a table of the page has is a line of the report, too.
    found = text.partition("## What was found")[2].partition("\n## ")[0]
    assert {line for line in found.splitlines() if line.startswith("|")} <= {*report.splitlines()}
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*results/report/figures/[^)]*)\)", text)
    assert pictures
    assert all((LADDER / picture).exists() for picture in pictures)


def test_the_first_page_says_of_the_ladder_what_its_report_says() -> None:
    section = (LADDER.parents[1] / "README.md").read_text().partition("## What it has found so far")[2]
    section = section.partition("\n## ")[0]
    told = json.loads((LADDER / "results/report/claims.json").read_text())["claims"]
    found: dict[str, list[str]] = {}
    for claim in told:
        if claim["runs"]:
            digits = 1 if claim["unit"] == "points" else 2
            values = [f"{claim[name]:+.{digits}f}".replace("-", "−") for name in ("estimate", "low", "high")]
            estimate, low, high = values
            verdict = (
                claim["verdict"]
                .replace("supported", "**supported**")
                .replace("contradicted", "**contradicted**")
            )
            cell = f"{verdict}: {estimate} \\[{low}, {high}\\] {claim['unit']}"
            found.setdefault(claim["text"], []).append(cell)
    lines = [f"| {text} | {' | '.join(cells)} |" for text, cells in found.items()]
    assert len(lines) == 10
    assert [line for line in section.splitlines() if line.startswith("|")][2:] == lines
    assert re.findall(r"!\[[^]]*\]\(([^)]*)\)", section) == [
        "studies/cifar100_ladder/results/report/figures/accuracy-noise.png"
    ]
