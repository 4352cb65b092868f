"""The launcher takes what the trainer takes, and hands it on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from nml import cli
from nml.cli import flag_of
from nml.errors import UserError
from nml.run_options import RunOptions
from pretrain.options import build_parser, parse_options
from slurm import pretraining, sweep
from slurm.cluster import Resources
from slurm.cores import fit_loaders
from slurm.entry import main
from slurm.request import PretrainRequest
from slurm.study import OF_A_RUN

FIELDS = {option.name: option for option in dataclasses.fields(RunOptions)}


def own_options(parser: argparse.ArgumentParser) -> dict[str, tuple[object, str | None]]:
    """Return default and help of each option, the values of a recipe left out."""
    return {
        flag: (action.default, action.help)
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and not flag.startswith("--recipe.") and flag != "--recipe"
    }


@pytest.mark.parametrize(
    ("module", "of_its_own"), [(pretraining, ()), (sweep, ("--recipe", *map(flag_of, OF_A_RUN)))]
)
def test_the_launcher_takes_every_option_of_the_trainer(module, of_its_own) -> None:
    parser = cli.Parser("x", "x")
    module.add_options(parser)
    trainers, launchers = own_options(build_parser()), own_options(parser)
    missing = {flag: found for flag, found in trainers.items() if launchers.get(flag) != found}
    assert missing.keys() <= set(of_its_own)
    assert set(map(flag_of, FIELDS)) <= trainers.keys()


def other_value(name: str, folder: Path) -> str | bool:
    """Return a value that is not the default: a path that is relative, where a path is wanted."""
    kind = typing.get_type_hints(RunOptions)[name]
    if kind is bool:
        return True
    if typing.get_origin(kind) is typing.Literal:
        return str(typing.get_args(kind)[-1])
    if name in ("noise", "timeout", "probe"):
        return {"noise": "0.20", "timeout": "7m", "probe": "digits,lp"}[name]
    if not FIELDS[name].metadata.get("path"):
        return "7"
    (folder / name).mkdir()
    if name == "init_from":
        (folder / name / "model.safetensors").touch()
    (folder / name / "set.json").write_text(json.dumps({"format": "nml-shards/1", "levels": {"n20": {}}}))
    return f"{name}/set.json" if FIELDS[name].metadata.get("words") else name


@pytest.fixture
def planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[list[str]]]:
    """Return the words after ``pretrain.run`` of the runs that a dry run shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)

    def plan(*words: str) -> list[list[str]]:
        assert main([*words, "--cluster", "local", "--dry-run"]) == 0
        shown = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "pretrain.run" in line]
        return [line[line.index("pretrain.run") + 1 :] for line in shown]

    return plan


@pytest.mark.parametrize("command", ["pretrain", "sweep"])
def test_every_option_arrives_at_the_trainer_with_its_paths_absolute(planned, tmp_path, command) -> None:
    # What tells the runs of a sweep apart, it gives them itself.
    names = [name for name in FIELDS if command == "pretrain" or name not in OF_A_RUN]
    given = {name: other_value(name, tmp_path) for name in names}
    words = [word for name, value in given.items() for word in (flag_of(name), value) if word is not True]
    noise = ["--noise", "0.2"] if command == "sweep" else []
    (run,) = planned(command, *map(str, words), *noise)
    options, _ = parse_options(run)
    for name, value in given.items():
        found = options.recipe.epochs if name == "epochs" else getattr(options, name)
        if name == "noise":
            assert found == "0.2"
        elif name == "probe":
            assert found == (value,)
        elif name == "resume":
            # The launcher has looked; a job that is requeued finds what it has begun itself.
            assert (value, found) == ("never", "auto")
        elif FIELDS[name].metadata.get("path"):
            assert str(found) == str(tmp_path / str(value))
        else:
            assert str(found) == str(value)


def test_an_option_that_is_left_out_is_left_to_the_trainer(planned) -> None:
    ((*words,),) = planned("pretrain")
    flags = {word for word in words if word.startswith("--")}
    assert flags == {"--recipe", "--shards", "--noise", "--engine", "--seed", "--run-dir"}


def test_the_probes_of_a_sweep_go_where_its_results_go(planned, tmp_path) -> None:
    runs = planned("sweep", "--noise", "0.2", "--results", "found", "--probe", "digits", "digits,lp")
    assert [parse_options(run)[0].probe for run in runs] == [("digits", "digits,lp")]
    assert [parse_options(run)[0].probe_results for run in runs] == [str(tmp_path / "found")]
    for command in ("pretrain", "sweep"):
        with pytest.raises(UserError, match="--probe: unknown name 'digit'"):
            planned(command, "--probe", "digit,lp")
    with pytest.raises(UserError, match="--probe-every 2: nothing is measured"):
        planned("pretrain", "--probe-every", "2")


def test_a_set_at_a_url_stays_there(planned, tmp_path) -> None:
    other_value("shards", tmp_path)
    url = f"file://{tmp_path}/shards"
    (run,) = planned("pretrain", "--shards", url, "--noise", "0.2")
    assert run[run.index("--shards") + 1] == url
    with pytest.raises(UserError, match="--shards memory://nowhere: no shard set there"):
        planned("pretrain", "--shards", "memory://nowhere")
    with pytest.raises(UserError, match="has no noise level n10"):
        planned("pretrain", "--shards", url, "--noise", "0.1")


def test_a_level_is_launched_by_its_name_and_a_ratio_that_several_have_is_not(planned, tmp_path) -> None:
    levels = {name: {"asked": "0.2"} for name in ("n20", "flipped")}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.json").write_text(json.dumps({"format": "nml-shards/1", "levels": levels}))
    runs = planned("sweep", "--shards", "set", "--noise", "0", "n20", "flipped")
    told = [(run[run.index("--noise") + 1], Path(run[run.index("--run-dir") + 1]).name) for run in runs]
    assert told == [
        ("0", "quickstart-n00-seed0"),
        ("n20", "quickstart-n20-seed0"),
        ("flipped", "quickstart-flipped-seed0"),
    ]
    for command in ("pretrain", "sweep"):
        with pytest.raises(UserError, match=r"2 of its levels have the ratio 0\.2; .*n20, flipped"):
            planned(command, "--shards", "set", "--noise", "0.2")
    # One that has begun goes on with the level that it has.
    begun = tmp_path / "runs" / "quickstart-n20-seed0"
    begun.mkdir(parents=True)
    (begun / "config.yaml").touch()
    PretrainRequest(options=RunOptions(shards="set", noise="0.2")).check()


def test_a_file_named_as_a_recipe_is_not_taken_for_it(planned, tmp_path) -> None:
    (tmp_path / "quickstart").write_text("epochs: 1\n")
    (tmp_path / "mine.yaml").write_text("epochs: 1\n")
    assert planned("pretrain")[0][:2] == ["--recipe", "quickstart"]
    assert planned("pretrain", "--recipe", "mine.yaml")[0][:2] == ["--recipe", f"{tmp_path}/mine.yaml"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--validation", "nowhere"), "--validation {here}/nowhere: no shard set there"),
        (("--class-names", "nowhere"), "--class-names {here}/nowhere: no such file; possible: a text file"),
        (("--init-from", "nowhere"), "--init-from {here}/nowhere: no such file or folder; possible: a file"),
        (("--resume", "must"), "--resume must: {here}/runs/quickstart-n00-seed0 has no complete checkpoint"),
        (("--profile", "-1"), "--profile -1: is negative"),
        (("--recipe-name", "x", "--recipe", "quickstrat"), "did you mean quickstart?"),
    ],
)
def test_what_a_job_would_refuse_hours_later_is_refused_at_once(refused, words, error) -> None:
    assert error.format(here=Path.cwd()) in refused("pretrain", *words)


def test_an_extra_that_is_missing_is_told_before_a_job_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'noisy-model-learning\[wandb\]'"):
        PretrainRequest(options=RunOptions(wandb=True), base=tmp_path).check()


@pytest.mark.parametrize(
    ("wanted", "given", "node", "words", "cores", "workers", "said"),
    [
        (8, None, 16, (), 9, None, ""),
        (8, None, None, (), 9, None, ""),
        (0, None, 16, (), 1, None, ""),
        (1, None, 1, (), 1, None, ""),
        (8, None, 4, (), 4, 3, "r: a rank has 4 cores, so its loader gets 3 of the recipe's 8 workers"),
        (8, 2, 16, (), 2, 1, "otherwise: --cpus-per-task 9 or --recipe.data.workers N"),
        (
            8,
            2,
            16,
            ("--recipe.data.workers=8",),
            2,
            None,
            "--cpus-per-task 9 or --recipe.data.workers 1 fits",
        ),
        (8, 12, 16, (), 12, None, ""),
    ],
)
def test_cores_and_loader_workers_fit_each_other(
    monkeypatch, capsys, wanted, given, node, words, cores, workers, said
) -> None:
    monkeypatch.setattr("slurm.cores.most_cores", lambda *args, **more: node)
    resources, changed = fit_loaders(
        {"r": wanted},
        words,
        on_slurm=True,
        ask=lambda chosen: Resources(cpus_per_task=given or chosen or 1),
    )
    assert resources.cpus_per_task == cores
    assert changed.get("r") == workers
    shown = capsys.readouterr().out
    assert said in shown
    assert bool(shown) == bool(said)


def test_local_processes_share_the_cores_of_this_machine(monkeypatch, planned) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (run,) = planned("pretrain", "--recipe", "rsb_a3", "--nodes", "2")
    assert run[-2:] == ["--recipe.data.workers", "3"]
    (run,) = planned("pretrain", "--recipe", "rsb_a3", "--nodes", "2", "--recipe.data.workers", "5")
    assert run[-2:] == ["--recipe.data.workers", "5"]
    two = planned("sweep", "--recipes", "rsb_a3", "quickstart", "--noise", "0", "--nodes", "2")
    assert ["--recipe.data.workers" in run for run in two] == [True, False]


@pytest.mark.slurm
def test_a_job_asks_for_no_more_cores_than_a_node_has(project, cluster) -> None:
    shown = project.launch("pretrain", "--recipe.data.workers", "1", "--dry-run")
    assert "#SBATCH --cpus-per-task=2\n" in shown
    shown = project.launch("pretrain", "--recipe.data.workers", "7", "--dry-run")
    assert "#SBATCH --cpus-per-task=2\n" in shown
    assert "a rank has 2 cores for itself and 7 loader workers" in shown


def test_a_run_that_was_not_to_be_there_yet_is_resumed(project) -> None:
    words = ("pretrain", "--cluster", "local", "--resume", "never")
    project.launch(*words)
    run = project.work / "runs" / "quickstart-n00-seed0"
    assert f"--resume never: {run} holds a run" in project.launch(*words, status=2)
    said = project.launch("resume", str(run)).splitlines()
    assert said[0] == "python slurm/launch.py pretrain --cluster local"
    assert said[-1] == f"run: {run}"


def test_the_sweep_of_an_earlier_version_is_still_told(tmp_path: Path) -> None:
    stored = {"noise": ["0", "0.2"], "recipes": ["quickstart"], "plugins": ["lp"], "tasks": ["digits"]}
    stored |= {"seeds": [0], "engine": "fsdp", "shards": None, "epochs": 3, "overrides": []}
    stored |= {"name": "sweep", "results": "results", "probe_options": [], "base": str(tmp_path)}
    (tmp_path / "sweep.json").write_text(json.dumps(stored))
    study = sweep.load_study(tmp_path)
    assert [run.path.name for run in study.runs()] == [
        "quickstart-n00-seed0-fsdp",
        "quickstart-n20-seed0-fsdp",
    ]
    assert study.arms[0].options.epochs == 3
