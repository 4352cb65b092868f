"""What a long job would fail of, told by a short one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from slurm import node_checks
from slurm.entry import main
from slurm.node_checks import NOTE, OK, WRONG


def asked(folder: Path, **more: object) -> dict[str, object]:
    own = {"cwd": str(folder), "least_python": [3, 8], "packages": {}, "variables": [], "slurm": False}
    return {**own, "gpus": 0, "one_each": False, "inside": False, **more}


def test_a_machine_that_is_well_passes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status = main(["doctor", "--cluster", "local", "--json"])
    told = json.loads(capfd.readouterr().out)
    wrong = [check for check in told["checks"] if check["state"] == WRONG]
    # Whether this disk has room is its own business.
    assert [check for check in wrong if check["check"] != "disk"] == []
    assert status == bool(wrong)
    names = {check["check"] for check in told["checks"]}
    looked = {"python", "packages", "folder", "scontrol", "export", "clock", "disk", "locks", "gpus"}
    assert names == {*looked, "all-reduce"}
    assert not list(tmp_path.iterdir())


def test_each_trap_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"no-such-package": "1.0", "pytest": "0.1"}
    found = node_checks.check_packages(asked(tmp_path, packages=packages))
    assert found[1:] == (WRONG, "not installed: no-such-package")
    found = node_checks.check_packages(asked(tmp_path, packages={"pytest": "0.1"}))
    assert found.state == NOTE
    assert found.text.startswith("other versions: pytest ")
    assert node_checks.check_python(asked(tmp_path, least_python=[9, 0])).state == WRONG
    found = node_checks.check_folder(asked(tmp_path / "gone"), tmp_path)
    assert found[1:] == (WRONG, f"{tmp_path}/gone: No such file or directory")
    found = node_checks.check_export(asked(tmp_path, variables=["NCCL_NO_SUCH"]))
    assert (found.state, "NCCL_NO_SUCH" in found.text) == (NOTE, True)
    assert node_checks.check_locks(tmp_path).state == OK
    monkeypatch.setattr(node_checks, "_TAKE", "")
    assert node_checks.check_locks(tmp_path)[1:] == (WRONG, "two processes hold the same lock at once")
    monkeypatch.setattr(node_checks.time, "time", lambda: 0.0)
    assert node_checks.check_clock(tmp_path).state == WRONG
    monkeypatch.setenv("PATH", str(tmp_path))
    found = node_checks.check_scontrol(asked(tmp_path, slurm=True))
    assert found[1:] == (WRONG, f"not on the PATH: scontrol, srun ({tmp_path})")


def test_a_full_disk_is_told(full_disk: Path) -> None:
    found = node_checks.check_disk(asked(full_disk), full_disk)
    assert found[1:] == (WRONG, f"{full_disk}: No space left on device")
    assert not list(full_disk.iterdir())


def test_a_python_that_prints_as_it_starts_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('welcome')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = node_checks.check_python(asked(tmp_path))
    assert (found.state, "welcome" in found.text) == (NOTE, True)


@pytest.mark.slurm
def test_traps_of_a_cluster_are_named_before_a_long_job_is_submitted(project, cluster) -> None:
    words = ("doctor", "--nodes", "2", "--partition", "cheap")
    said = project.launch(*words, SBATCH_EXPORT="NONE", SBATCH_WCKEY="x", NCCL_DEBUG="WARN")
    lines = {line.split()[1]: line for line in said.splitlines() if line.split()[0] in (OK, NOTE)}
    assert "SBATCH_EXPORT=NONE" in said
    assert "SBATCH_WCKEY=x overrules" in lines["sbatch"]
    assert "jobs lack NCCL_DEBUG" in lines["export"]
    assert "partition cheap cancels jobs" in lines["preemption"]
    assert "the controller answers" in lines["scontrol"]
    assert "gloo, world size 2" in lines["all-reduce"]
    assert all("n0, n1" in lines[name] for name in ("clock", "locks", "python", "folder"))
    (project.work / "cluster.yaml").write_text(f"python: {sys.prefix}/bin/no-such-python\n")
    said = project.launch("doctor", "--cluster-file", "cluster.yaml", status=1)
    [wrong] = [line for line in said.splitlines() if line.startswith(WRONG)]
    assert "no-such-python" in wrong


def test_it_waits_for_some_time(refused) -> None:
    assert "--wait-minutes -1: not a possible value" in refused("doctor", "--wait-minutes", "-1")
