"""How a stage's members become arrays that wait for the right parents."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nml.run_options import RunOptions
from slurm.cluster import Resources
from slurm.dag import PlannedJob, group_by_dependency, max_array_size, plan_jobs
from slurm.members import Member, Probe
from slurm.plan import Part, make_plan, say_too_late
from slurm.pretraining import run_member
from slurm.receipts import missing_heads, missing_rows, read_ids, told_ids, write_receipts
from slurm.study import Study, SweepRequest


def part(name: str, *parents: str, stage: str = "probes") -> Part:
    return Part(stage, Member(name=name, argv=("true",), record="r", cwd="/"), parents)


def groups(todo: list[Part], jobs: dict[str, str], longest: int = 1001) -> list[tuple[list[str], str]]:
    """Return each array as names, with the number where it is not the place, and what it waits for."""
    found = []
    for group in group_by_dependency(todo, jobs, longest):
        own = [one.member.name for one in group.parts]
        if group.indices not in ([], [*range(len(own))]):
            own = [f"{name} at {index}" for name, index in zip(own, group.indices, strict=True)]
        found.append((own, group.dependency))
    return found


def test_a_stage_that_fits_its_parents_waits_element_by_element() -> None:
    todo = [part(f"child {index}", f"parent {index}") for index in range(3)]
    jobs = {f"parent {index}": f"7_{index}" for index in range(3)}
    assert groups(todo, jobs) == [(["child 0", "child 1", "child 2"], "aftercorr:7")]


def test_each_recipe_waits_element_by_element_for_the_sets_it_shares() -> None:
    todo = [part(f"{recipe} {index}", f"set {index}") for recipe in "ab" for index in range(3)]
    jobs = {f"set {index}": f"7_{index}" for index in range(3)}
    assert groups(todo, jobs) == [
        (["a 0", "a 1", "a 2"], "aftercorr:7"),
        (["b 0", "b 1", "b 2"], "aftercorr:7"),
    ]


def test_many_children_of_few_parents_are_an_array_a_parent() -> None:
    todo = [part(f"{seed} {index}", f"set {index}") for seed in range(3) for index in range(2)]
    assert groups(todo, {"set 0": "7_0", "set 1": "7_1"}) == [
        (["0 0", "1 0", "2 0"], "afterok:7_0"),
        (["0 1", "1 1", "2 1"], "afterok:7_1"),
    ]


def test_parents_that_are_complete_are_not_waited_for() -> None:
    todo = [part(f"child {index}", f"parent {index}") for index in range(3)]
    assert groups(todo, {"parent 1": "9"}) == [(["child 0", "child 2"], ""), (["child 1"], "afterok:9")]


def test_children_of_a_part_of_an_array_take_the_numbers_of_their_elements() -> None:
    todo = [part("child 1", "parent 1"), part("child 4", "parent 4")]
    jobs = {f"parent {index}": f"7_{index}" for index in range(5)}
    assert groups(todo, jobs) == [(["child 1 at 1", "child 4 at 4"], "aftercorr:7")]


def test_children_of_one_parent_are_one_array() -> None:
    todo = [part("a", "set"), part("b", "set")]
    assert groups(todo, {"set": "3"}) == [(["a", "b"], "afterok:3")]


def test_the_report_waits_for_the_end_of_whole_arrays_good_or_bad() -> None:
    report = part("report", "a", "b", "c", stage="report")
    assert groups([report], {"a": "3_0", "b": "3_1", "c": "4"}) == [(["report"], "afterany:3:4")]


def test_an_array_is_no_longer_than_the_cluster_allows() -> None:
    todo = [part(f"child {index}") for index in range(5)]
    assert [len(names) for names, _ in groups(todo, {}, longest=2)] == [2, 2, 1]


@given(
    st.lists(st.sampled_from(["", "7_0", "7_1", "7_2", "8"]), min_size=1, max_size=8),
    st.integers(min_value=1, max_value=4),
)
def test_every_member_is_submitted_once_and_waits_for_its_own_parent(waits: list[str], longest: int) -> None:
    todo = [part(f"child {index}", f"parent {index}") for index in range(len(waits))]
    jobs = {f"parent {i}": job for i, job in enumerate(waits) if job}
    found = list(group_by_dependency(todo, jobs, longest))
    names = sorted(one.member.name for group in found for one in group.parts)
    assert names == sorted(one.member.name for one in todo)
    for parts, indices, words in found:
        assert len(parts) <= longest
        assert len(indices) == (len(parts) if len(parts) > 1 else 0)
        assert indices == sorted(set(indices))
        for position, one in enumerate(parts):
            wait = waits[int(one.member.name.split()[1])]
            assert words == (f"afterok:{wait}" if wait else "") or (
                words == "aftercorr:7" and wait == f"7_{indices[position]}"
            )


def planned(
    request: SweepRequest, *, done: Callable[[Part], bool] = lambda part: False, at_once: int = 64
) -> list[PlannedJob]:
    parts = [
        dataclasses.replace(one, complete=done(one)) for one in make_plan(Study(arms=(request,)), run_member)
    ]
    asked = Resources(array_parallelism=at_once)
    return plan_jobs(parts, {}, resources=lambda stage: asked, folder=Path("/s"), longest=1001)


def test_a_thousand_members_of_which_some_are_there_are_a_handful_of_jobs(tmp_path: Path) -> None:
    # Every second set is there.
    request = SweepRequest(noise=tuple(f"{n / 1000}" for n in range(335)), plugins=("lp",), base=tmp_path)
    jobs = planned(request, done=lambda part: part.member.name[-1] in "02468" and part.stage == "shards")
    assert sum(len(one.parts) for one in jobs) > 800
    assert len(jobs) == 6


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(1, 9), st.sets(st.integers(0, 30))
)
def test_no_more_members_than_allowed_can_run_at_once(
    levels: int, seeds: int, tasks: int, at_once: int, there: set[int]
) -> None:
    request = SweepRequest(
        noise=tuple(f"0.{level + 1}" for level in range(levels)),
        seeds=tuple(range(seeds)),
        tasks=("digits", "dtd")[:tasks],
        plugins=("lp",),
        base=Path("/work"),
    )
    jobs = planned(
        request, done=lambda part: zlib.crc32(part.member.name.encode()) % 30 in there, at_once=at_once
    )
    ended_before: dict[str, set[str]] = {}
    for one in jobs:
        words = [kind.split(":") for kind in one.dependency.split(",")]
        whole = {job for kind, *ids in words if kind == "afterany" for job in ids}
        ended_before[one.name] = whole.union(*(ended_before[job] for job in whole))
    for chosen in jobs:
        # All that may run beside it: neither has to end before the other.
        beside = [
            one
            for one in jobs
            if one.name not in ended_before[chosen.name] and chosen.name not in ended_before[one.name]
        ]
        assert sum(min(len(one.parts), at_once) for one in beside) <= at_once


def test_steps_of_a_set_wait_for_each_other() -> None:
    steps = [part("set", stage="shards"), part("draw 1", "set", stage="shards")]
    steps.append(part("draw 2", "draw 1", stage="shards"))
    asked = Resources()
    jobs = plan_jobs(steps, {}, resources=lambda stage: asked, folder=Path("/s"), longest=9)
    assert [(one.name, one.dependency) for one in jobs] == [
        *(("JOB1", ""), ("JOB2", "afterok:JOB1"), ("JOB3", "afterok:JOB2")),
    ]


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (
            "MaxArraySize            = 1001\nSchedulerParameters     = defer,max_array_tasks=50,bf_window=9",
            50,
        ),
        ("MaxArraySize            = 30\nSchedulerParameters     = max_array_tasks=50", 30),
        # Arrays are switched off.
        ("MaxArraySize            = 0", 1),
        ("no answer", 1001),
    ],
)
def test_the_lower_of_a_cluster_s_two_limits_of_arrays_counts(
    config: str, longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\ncat <<'END'\n{config}\nEND\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert max_array_size() == longest


def test_a_plan_has_a_set_a_run_and_probes_for_each_level(tmp_path: Path) -> None:
    request = SweepRequest(noise=("0", "0.2"), tasks=("digits",), plugins=("lp",), base=tmp_path)
    parts = {one.member.name: one for one in make_plan(Study(arms=(request,)), run_member)}
    assert list(parts) == [
        "shards n00",
        "shards n20",
        "pretrain quickstart-n00-seed0",
        "pretrain quickstart-n20-seed0",
        "probes quickstart-n00-seed0 digits",
        "probes quickstart-n20-seed0 digits",
        "report",
    ]
    assert parts["pretrain quickstart-n20-seed0"].parents == ("shards n20",)
    assert parts["probes quickstart-n20-seed0 digits"].parents == ("pretrain quickstart-n20-seed0",)


def test_levels_recipes_seeds_and_tasks_are_multiplied(tmp_path: Path) -> None:
    request = SweepRequest(
        noise=("0", "0.1", "0.2"),
        recipes=("quickstart", "clip_rn50_cc3m"),
        seeds=(0, 1),
        tasks=("digits", "dtd"),
        plugins=("lp", "mlp"),
        base=tmp_path,
    )
    parts = make_plan(Study(arms=(request,)), run_member)
    assert Counter(one.stage for one in parts) == {"shards": 3, "pretrain": 12, "probes": 24, "report": 1}
    probes = [one.member.probe for one in parts if one.member.probe]
    assert len({(probe.run, probe.task) for probe in probes}) == 24
    assert {probe.heads for probe in probes} == {("lp", "mlp")}
    assert len({one.member.record for one in parts}) == len(parts)


def test_a_setting_of_a_head_that_is_measured_is_none_of_an_unknown_head(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    request = SweepRequest(
        noise=("0",),
        plugins=("lp", "mlp"),
        probe_options=("--hyper", "mlp.layers=1"),
        base=tmp_path,
    )
    (run,) = request.runs()
    run.path.mkdir(parents=True)
    (run.path / "DONE.json").write_text("{}")
    rows = tmp_path / "results" / "rows"
    rows.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"row_id": "id-mlp"}]), rows / "mlp.parquet")

    def planned() -> Member:
        plan = make_plan(Study(arms=(request,)), run_member)
        return next(one.member for one in plan if one.stage == "probes")

    probe = planned().probe
    assert probe is not None
    told_ids(probe.receipts).parent.mkdir(parents=True)
    told_ids(probe.receipts).write_text(json.dumps({"mlp": ["id-mlp"]}))
    write_receipts(probe)
    left = planned()
    assert left.probe is not None
    assert left.probe.heads == ("lp",)
    assert left.argv[left.argv.index("--plugin") + 1] == "lp,mlp"


@pytest.fixture
def measured(tmp_path: Path) -> Probe:
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = tmp_path / "run"
    run.mkdir()
    (run / "DONE.json").write_text("{}")
    rows = tmp_path / "results" / "rows"
    rows.mkdir(parents=True)
    for head in ("lp", "mlp"):
        # What a row calls its run and its task is not what was typed.
        row = {"run_path": "elsewhere", "task": "a table", "head": head, "row_id": f"id-{head}"}
        pq.write_table(pa.Table.from_pylist([row]), rows / f"{head}.parquet")
    probe = Probe(
        results=str(tmp_path / "results"),
        run=str(run),
        task="parquet:train.parquet,test.parquet",
        heads=("lp", "mlp"),
        receipts=str(tmp_path / "receipts"),
    )
    told_ids(probe.receipts).write_text(json.dumps({"lp": ["id-lp"], "mlp": ["id-mlp"]}))
    write_receipts(probe)
    return probe


def missing_now(probe: Probe) -> tuple[str, ...]:
    return missing_heads(probe, read_ids(Path(probe.results)))


def test_what_was_measured_is_not_measured_again(measured: Probe) -> None:
    assert missing_now(measured) == ()


def test_a_head_whose_rows_are_gone_is_measured_again(measured: Probe) -> None:
    (Path(measured.results) / "rows" / "mlp.parquet").unlink()
    assert missing_now(measured) == ("mlp",)


def test_heads_of_a_run_that_was_trained_on_are_measured_again(measured: Probe) -> None:
    (Path(measured.run) / "DONE.json").write_text('{"epochs": 2}')
    assert missing_now(measured) == ("lp", "mlp")


def test_a_receipt_that_names_no_rows_completes_nothing(measured: Probe) -> None:
    told_ids(measured.receipts).write_text(json.dumps({"lp": ["id-lp"]}))
    write_receipts(measured)
    assert missing_now(measured) == ("mlp",)


def test_a_lost_run_is_wanted_again_for_rows_that_it_wrote_while_it_trained(measured: Probe) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (Path(measured.run) / "config.yaml").write_text("probe: [digits]")
    rows = Path(measured.results) / "rows"
    for run, step, head in ((measured.run, 3, "knn"), (measured.run, 6, "nmtune"), ("another", 3, "knn")):
        row = {"run_path": run, "row_id": f"{Path(run).name}-{step}", "head": head}
        pq.write_table(pa.Table.from_pylist([row]), rows / f"{row['row_id']}.parquet")
    write_receipts(measured)
    (rows / "another-3.parquet").unlink()
    there = read_ids(Path(measured.results))
    assert missing_heads(measured, there, lost=True) == ()
    # Its weights are there, but not those of that step: nobody can measure them.
    assert missing_heads(measured, there - {"run-3"}) == ()
    assert missing_heads(measured, there - {"run-3"}, lost=True) == ("lp", "mlp")
    assert missing_rows(measured, there) == set()
    assert missing_rows(measured, there - {"run-3"}) == {"run-3"}


def test_a_run_that_is_done_is_wanted_for_what_it_has_not_measured_yet(tmp_path: Path) -> None:
    asked = SweepRequest(noise=("0",), plugins=("lp",), options=RunOptions(probe=("digits",)), base=tmp_path)
    (run,) = asked.runs()
    mark = run.path / "probing" / "step-00000057"
    mark.parent.mkdir(parents=True)
    mark.touch()
    (run.path / "DONE.json").write_text("{}")

    def parts(request: SweepRequest) -> dict[str, Part]:
        return {one.stage: one for one in make_plan(Study(arms=(request,)), run_member)}

    assert not parts(asked)["pretrain"].complete
    # Without --probe it would stay as it is.
    assert parts(dataclasses.replace(asked, options=RunOptions()))["pretrain"].complete
    mark.unlink()
    assert parts(asked)["pretrain"].complete


def test_what_comes_too_late_for_a_run_that_is_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = SweepRequest(noise=("0", "0.2"), options=RunOptions(probe=("digits",)), base=tmp_path)
    for run, before in zip(asked.runs(), ("[digits]", "[]"), strict=True):
        run.path.mkdir(parents=True)
        (run.path / "DONE.json").write_text("{}")
        (run.path / "config.yaml").write_text(f"{{recipe: {{}}, probe: {before}}}")
    study = Study(arms=(asked,))
    say_too_late(study, make_plan(study, run_member))
    assert capsys.readouterr().out.startswith("--probe comes too late for 1 run that is done")
