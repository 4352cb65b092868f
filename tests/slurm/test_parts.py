"""The launcher's small parts, each by itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import slurm
from nml.errors import UserError
from slurm.entry import split_overrides, split_rest
from slurm.executor import outside_of_any_job
from slurm.machine import detect_slurm, gpus_of_ranks, visible_gpus
from slurm.partitions import read_partitions
from slurm.rendezvous import choose_port, interface_towards, node_address
from slurm.shard_jobs import Steps

ROOM = Path(slurm.__file__).parent


def test_no_module_shadows_the_standard_library_or_a_dependency() -> None:
    # A script's folder comes first on the search path, so a `logging.py` here would be everybody's.
    names = {file.stem for file in ROOM.glob("*.py")} - {"__init__", "launch"}
    installed = set(metadata.packages_distributions()) - {"slurm"}
    assert not names & (set(sys.stdlib_module_names) | installed)


def test_features_of_an_encoder_are_computed_by_as_many_before_the_plan_is_made() -> None:
    words = ["--source", "digits", "--noise", "0.2", "--out", "set", "--workers", "3"]
    assert {*Steps(words, 2).stages()} == {"plan", "pack", "finish"}
    asked = [*words, "--encoder", "timm:resnet18"]
    stages = {name: [argv[2:] for argv in each] for name, each in Steps(asked, 2).stages().items()}
    assert [*stages] == ["begin", "encode", "plan", "pack", "finish"]
    (planned,) = stages["plan"]
    assert stages["begin"] == [[*planned, "--encode-by-parts"]]
    assert stages["encode"] == [["shards.encode", "set", "--part", f"{number}/2"] for number in (1, 2)]


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        script(tmp_path, name, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_without_tools_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_slurm()[:2] == (False, "sbatch is not on PATH")


def test_tools_without_a_controller_are_no_slurm(tools: Path) -> None:
    script(tools, "scontrol", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")
    assert detect_slurm()[:2] == (False, "its client tools are installed, but no controller answers")


def test_a_controller_that_does_not_answer_is_no_slurm(tools: Path) -> None:
    script(tools, "scontrol", "exec sleep 60")
    assert detect_slurm(seconds=0.2)[:2] == (False, "its controller did not answer within 0.2 s")


def test_a_backup_controller_is_enough(tools: Path) -> None:
    script(tools, "scontrol", "echo 'Slurmctld(primary) at a is DOWN'; echo 'Slurmctld(backup) at b is UP'")
    assert detect_slurm().found


def test_a_port_is_free_and_below_the_ephemeral_range() -> None:
    first = choose_port("12-000")
    assert 12000 <= first < 32768
    with socket.create_server(("", first)):
        assert choose_port("12-000") != first


def test_a_node_is_met_at_its_address_also_where_its_name_does_not_resolve(tools: Path) -> None:
    script(tools, "scontrol", "echo 'NodeName=n7 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=n7'")
    assert node_address("n7") == "127.0.0.1"


def test_without_scontrol_the_own_address_has_to_do(tools: Path) -> None:
    script(tools, "scontrol", "exit 1")
    assert socket.inet_aton(node_address("no-such-node.invalid"))


def test_loopback_is_reached_over_the_loopback_interface() -> None:
    assert interface_towards("127.0.0.1") == "lo"


def test_recipe_overrides_are_taken_out_of_the_words() -> None:
    words = ["pretrain", "--recipe.a.b", "-1", "--noise", "0.2", "--recipe.c=d e", "--recipe", "mine.yaml"]
    assert split_overrides(words) == (
        ["pretrain", "--noise", "0.2", "--recipe", "mine.yaml"],
        ("--recipe.a.b", "-1", "--recipe.c=d e"),
    )


def test_what_stands_behind_two_dashes_is_the_rooms() -> None:
    assert split_rest(["shards", "--nodes", "1", "--", "--source", "x"]) == (
        ["shards", "--nodes", "1"],
        ("--source", "x"),
    )


def test_gpus_are_found_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == ["0", "2", "10"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert visible_gpus(tmp_path) == ["3", "5"]


def test_two_local_ranks_never_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpus_of_ranks(2, wanted=False) == ["3", "5"]
    assert gpus_of_ranks(3, wanted=False) == []
    with pytest.raises(UserError, match="3 ranks, but this machine has 2 GPUs"):
        gpus_of_ranks(3, wanted=True)


def test_partitions_are_read_from_scontrol() -> None:
    shown = (
        "PartitionName=main AllocNodes=ALL Default=YES MaxNodes=4 MaxTime=1-00:00:00 TotalNodes=8\n"
        "PartitionName=long Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED TotalNodes=8\n"
    )
    assert read_partitions(shown) == [("main", True, 4, 1440, False), ("long", False, 8, None, False)]


def test_a_job_inside_a_job_inherits_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "8",
        "SBATCH_PARTITION": "p",
        "RANK": "3",
        "SLURM_CONF": "/c",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with outside_of_any_job():
        assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION", "RANK"} & os.environ.keys()
        assert os.environ["SLURM_CONF"] == "/c"
    assert os.environ["RANK"] == "3"


def test_a_users_own_defaults_of_sbatch_are_kept_outside_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    with outside_of_any_job():
        assert os.environ["SBATCH_ACCOUNT"] == "mine"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--noise", "1.2"), "--noise 1.2"),
        (("--nodes", "0"), "--nodes 0"),
        (("--engine", "foo"), "--engine foo"),
        (("--recipe", "quickstrat"), "did you mean quickstart?"),
        (("--recipe", "no/such.yaml"), "no such file"),
        (("--shards", "nowhere"), "no shard set there"),
        (("--epochs", "0"), "--epochs 0"),
        (("--time", "soon"), "--time soon"),
        (("--cluster-file", "nope"), "unknown name 'nope'"),
        (("--gpus-per-node", "-1"), "--gpus-per-node -1"),
        (("--gpus-per-node", "a100:x"), "--gpus-per-node a100:x"),
        (("--sbatch", "licenses=a", "time=90"), "sbatch: time: the launcher sets it"),
        (("--sbatch", "=x"), "--sbatch =x: it names no option"),
        (("--after", "x"), "--after x: no job ids"),
        (("--cluster", "slurm"), "--cluster slurm"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(refused, words, error) -> None:
    assert error in refused("pretrain", *words)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "no command given; possible: pretrain, sweep"),
        (("pretrian",), "did you mean pretrain?"),
        (("status", "--recipe.x", "1"), "status: unknown option --recipe.x"),
        (("pretrain", "--", "x"), "pretrain: unknown words after --: x"),
        (("probes", "--", "--task", "digits", "--plugin", "lp,nmtun"), "did you mean nmtune"),
        (("probes", "--", "--plugin=lp", "--task", "digit"), "did you mean digits?"),
        (("shards", "--nodes", "2", "--", "--noise", "0.2"), "--nodes 2: several processes need a place"),
        (("shards", "--", "--outt", "x"), "did you mean --out?"),
    ],
)
def test_a_mistaken_command_is_one_line_before_any_work(refused, words, error) -> None:
    assert error in refused(*words)


def test_launch_py_itself_refuses_in_one_line(project) -> None:
    said = project.launch("pretrain", "--noise", "1.2", status=2)
    assert said.startswith("error: --noise 1.2: not a noise ratio")
    assert len(said.splitlines()) == 1


def test_without_slurm_one_line_says_what_stands_in(project, no_controller) -> None:
    said = project.launch("pretrain", "--noise", "0.2", "--nodes", "2", SLURM_CONF=no_controller)
    lines = said.splitlines()
    assert lines[0].startswith("no Slurm found (")
    assert lines[0].endswith("2 local processes stand in")
    assert lines[-1] == f"run: {project.work}/runs/quickstart-n20-seed0"


def test_a_dry_run_without_slurm_does_nothing(project, no_controller) -> None:
    said = project.launch("pretrain", "--dry-run", SLURM_CONF=no_controller)
    assert "-m pretrain.run --recipe quickstart" in said
    assert not list(project.work.iterdir())


def test_a_python_that_prints_as_it_starts_is_not_taken_for_the_options(
    project, no_controller, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('recipe: welcome')")
    said = project.launch("pretrain", "--dry-run", SLURM_CONF=no_controller, PYTHONPATH=str(tmp_path))
    assert "-m pretrain.run --recipe quickstart" in said


def test_code_in_a_path_with_a_colon_is_what_runs(
    project, no_controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A search path would be cut in two there, and what is installed would run.
    code = tmp_path / "at 12:30:00"
    shutil.copytree(project.code, code)
    monkeypatch.setenv("SLURM_CONF", no_controller)
    argv = [sys.executable, str(code / "slurm" / "launch.py"), "pretrain"]
    done = subprocess.run(argv, cwd=project.work, capture_output=True, text=True, timeout=120)
    assert f"v1 from {code / 'pretrain'} at step 0" in done.stdout, done.stderr


def test_a_run_that_its_room_refuses_leaves_nothing(project) -> None:
    said = project.launch("pretrain", "--cluster", "local", "--recipe.refuse", "1", status=2)
    assert said.splitlines()[-1] == "error: the toy was told to refuse"
    assert [path.name for path in project.work.iterdir()] == ["data"]


@pytest.mark.parametrize("words", [("pretrain",), ("sweep", "--noise", "0", "--plugins", "lp")])
def test_what_sbatch_refuses_leaves_no_folder(project, stand_in, words: tuple[str, ...]) -> None:
    for program, script in (
        ("squeue", ""),
        ("srun", ""),
        ("scontrol", "echo 'Slurmctld(primary) at a is UP'\n"),
        ("sbatch", "echo 'sbatch: error: Invalid feature specification' >&2\nexit 1\n"),
    ):
        folder = stand_in(program, script)
    said = project.launch(*words, status=2, PATH=f"{folder}:{os.environ['PATH']}")
    assert "Invalid feature specification" in said.strip().splitlines()[-1]
    # The set that pretrain writes first is another command's work.
    assert {path.name for path in project.work.iterdir()} <= {"data"}


def test_a_refused_command_does_not_change_what_resume_says(project) -> None:
    project.launch("pretrain", "--cluster", "local")
    project.launch("pretrain", "--cluster", "local", "--recipe.refuse", "1", status=2)
    said = project.launch("resume", "runs/quickstart-n00-seed0")
    assert said.splitlines()[0] == "python slurm/launch.py pretrain --cluster local"
