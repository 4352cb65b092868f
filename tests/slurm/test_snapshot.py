"""The copy of the code that jobs run: what is in it, how open it is, and that nothing else is run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nml.errors import UserError
from slurm.snapshot import check_running_from, check_snapshot, take_snapshot


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    for room in ("slurm", "pretrain"):
        (code / room / "__pycache__").mkdir(parents=True)
        (code / room / "__init__.py").write_text("")
        (code / room / "__pycache__" / "old.pyc").write_text("")
    (code / "elsewhere.bin").write_text("")
    return code


def test_a_snapshot_is_the_code_and_no_more(code: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "snapshots", code)
    names = sorted(str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file())
    assert names == ["SNAPSHOT.json", "pretrain/__init__.py", "slurm/__init__.py"]


def test_the_same_code_shares_a_snapshot_and_other_code_does_not(code: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "snapshots", code)
    assert take_snapshot(tmp_path / "snapshots", code) == first
    (code / "pretrain" / "__init__.py").write_text("changed = True")
    assert take_snapshot(tmp_path / "snapshots", code) != first


def test_a_snapshot_names_its_commit_and_what_was_not_committed(code: Path, tmp_path: Path) -> None:
    git = ["git", "-C", str(code), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "slurm"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    record = json.loads((take_snapshot(tmp_path / "snapshots", code) / "SNAPSHOT.json").read_text())
    assert len(record["commit"]) == 40
    assert record["uncommitted"] == ["pretrain/"]


def test_a_snapshot_leaves_out_what_git_ignores_and_what_looks_secret(
    code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q", str(code)], check=True)
    (code / ".gitignore").write_text("*.bin\n")
    secrets = [".env", ".envrc", "api_key.json", "credentials.json", "hf_token", "id_rsa", "password.txt"]
    secrets += ["server.pem", "token.txt"]
    kept = {"credentials.py", "new.py", "special_tokens_map.json", "token_counts.npy", "tokenizer.json"}
    for name in (*secrets, *kept, "data.bin"):
        (code / "slurm" / name).write_text("x")
    snapshot = take_snapshot(tmp_path / "snapshots", code)
    assert {file.name for file in (snapshot / "slurm").iterdir()} == {"__init__.py", *kept}
    said = capsys.readouterr().out
    left_out = ", ".join(f"slurm/{name}" for name in secrets[:5])
    assert f"code: left out, as by their names they hold secrets: {left_out} and 4 more\n" in said
    assert f"code: 7 files, 0.0 MB: {snapshot}\n" in said


def test_a_repository_inside_of_the_code_has_its_own_rules_of_what_is_ignored(
    code: Path, tmp_path: Path
) -> None:
    inner = code / "slurm" / "mine"
    inner.mkdir()
    for repository in (code, inner):
        subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (inner / ".gitignore").write_text("*.bin\n")
    for name in ("kept.py", "weights.bin"):
        (inner / name).write_text("x")
    snapshot = take_snapshot(tmp_path / "snapshots", code)
    assert {file.name for file in (snapshot / "slurm" / "mine").iterdir()} == {".gitignore", "kept.py"}


def test_a_link_that_leads_nowhere_is_told_in_a_line(
    code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code / "slurm" / "old.py").symlink_to("gone.py")
    check_snapshot(take_snapshot(tmp_path / "snapshots", code))
    assert "code: slurm/old.py is a link that leads nowhere (gone.py)\n" in capsys.readouterr().out


def test_a_snapshot_says_which_file_makes_it_large(
    code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (code / "slurm" / "weights.npy").open("wb") as file:
        file.truncate(21 << 20)
    take_snapshot(tmp_path / "snapshots", code)
    assert "the largest is slurm/weights.npy (22.0 MB)" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["/etc/hostname", "../../elsewhere", "../../snapshots", "__init__.py"])
def test_a_snapshot_follows_no_link(code: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").write_text("secret")
    (tmp_path / "snapshots").mkdir()
    link = code / "pretrain" / "link"
    link.symlink_to(target)
    if target == "__init__.py":
        snapshot = take_snapshot(tmp_path / "snapshots", code)
        assert (snapshot / "pretrain" / "link").readlink() == Path(target)
        return
    with pytest.raises(UserError, match=f"pretrain/link: a link out of the code .{target}"):
        take_snapshot(tmp_path / "snapshots", code)


def test_a_name_that_is_no_text_is_refused_in_one_line(code: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(code)], check=True)
    (code / "slurm" / "\udcff.py").write_text("")
    with pytest.raises(UserError, match="no UTF-8"):
        take_snapshot(tmp_path / "snapshots", code)


def test_nothing_of_a_snapshot_is_more_open_than_the_code(code: Path, tmp_path: Path) -> None:
    private = {"slurm/__init__.py": 0o600, "pretrain/__init__.py": 0o640, "pretrain": 0o750, ".": 0o700}
    for name, mode in private.items():
        (code / name).chmod(mode)
    snapshot = take_snapshot(tmp_path / "snapshots", code)
    assert {name: (snapshot / name).stat().st_mode & 0o777 for name in private} == private


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "pretrain" / "__init__.py").write_text("#"), "pretrain/__init__.py is changed"),
        (lambda root: (root / "slurm" / "__init__.py").unlink(), "slurm/__init__.py is missing"),
        (lambda root: (root / "torch.py").write_text(""), "torch.py was not there"),
        (lambda root: (root / "SNAPSHOT.json").write_text("{}"), "SNAPSHOT.json does not read"),
    ],
)
def test_a_changed_snapshot_is_told_and_made_anew(
    code: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], object],
    told: str,
) -> None:
    snapshot = take_snapshot(tmp_path / "snapshots", code)
    check_snapshot(snapshot)
    # What Python leaves there as it runs, and a file that is no code, are no change.
    (snapshot / "slurm" / "__pycache__").mkdir()
    (snapshot / "slurm" / "__pycache__" / "x.cpython-311.pyc").write_text("")
    (snapshot / "core.12").write_text("")
    check_snapshot(snapshot)
    change(snapshot)
    with pytest.raises(RuntimeError, match=told):
        check_snapshot(snapshot)
    capsys.readouterr()
    assert take_snapshot(tmp_path / "snapshots", code) == snapshot
    assert f"{snapshot} is made anew, as it was changed: {told}" in capsys.readouterr().out
    check_snapshot(snapshot)


def test_a_job_refuses_code_that_is_not_its_snapshot(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not from the snapshot"):
        check_running_from(tmp_path, "pretrain.run")
