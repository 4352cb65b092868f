"""From a signed set behind a password to a report: the password is in no file and in no output."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nml import urls
from tests.commands import run_command
from tests.served import PASSWORD, SIGNATURE, USER, served
from tests.signing_keys import make_keys

ROOT = Path(__file__).resolve().parents[1]
SIGNED = ["--require-signature", "mine.pub"]
RUN = ["--noise", "0.2", "--epochs", "1", "--run-dir", "runs/r"]
SMALL = ["--recipe.model.name", "resnet18", "--recipe.model.kwargs", "{channels: [8, 8, 8, 8]}"]
SECRETS = [
    PASSWORD.encode(),
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).rstrip(b"="),
    SIGNATURE.encode(),
]


@pytest.mark.timeout(400)
def test_a_password_is_in_no_file_and_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(urls.VARIABLE, raising=False)
    source = ["--source", "digits", "--noise", "0.2", "--out", str(tmp_path / "served" / "set")]
    said = [run_command("shards.write", *source, cwd=tmp_path)]
    make_keys(tmp_path)
    said += [run_command("shards.sign", "served/set", "--key", "mine.pem", cwd=tmp_path)]
    with served(tmp_path / "served") as server:
        url = f"http://{USER}:{PASSWORD}@{server.place}/set"
        said += [run_command("shards.info", url, cwd=tmp_path)]
        # A real one, from the launcher down to its rank.
        launched = [sys.executable, str(ROOT / "slurm" / "launch.py"), "pretrain", "--cluster", "local"]
        said += [
            subprocess.run(
                [*launched, *RUN, *SMALL, *SIGNED, "--shards", url, "--validation", url],
                cwd=tmp_path,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
        ]
        # The same run, though it is asked for with what it was not begun with.
        signed = f"--shards=http://{server.place}/set?{SIGNATURE}"
        said += [run_command("pretrain.run", *RUN, *SMALL, signed, cwd=tmp_path)]
        assert "already done" in said[-1].stdout
        (tmp_path / "other.yaml").write_text(f"shards: http://{server.place}/set\n")
        words = ["--config", "other.yaml", *RUN[:-1], "runs/other", *SMALL]
        refused = run_command("pretrain.run", *words, cwd=tmp_path)
        assert refused.returncode == 2
        assert "401" in refused.stderr
    export = ["runs/r", "--out", "export", "--sign", "mine.pem"]
    said += [run_command("pretrain.export", *export, cwd=tmp_path)]
    probe = ["--plugin", "lp", "--checkpoint", "export", *SIGNED]
    said += [run_command("probes.run", *probe, cwd=tmp_path)]
    said += [run_command("probes.report", "results", cwd=tmp_path)]
    for command in said:
        assert command.returncode == 0, command.stderr
        assert not any(secret in (command.stdout + command.stderr).encode() for secret in SECRETS)
    assert (tmp_path / "results" / "report" / "report.html").exists()
    assert f"http://{server.place}/set" in (tmp_path / "runs" / "r" / "config.yaml").read_text()
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(secret in content for secret in SECRETS), file


def test_a_config_file_that_holds_a_password_is_shown_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(urls.VARIABLE, raising=False)
    (tmp_path / "run.yaml").write_text(f"shards: http://{USER}:{PASSWORD}@127.0.0.1:9/set\n")
    shown = run_command("pretrain.run", "--config", "run.yaml", "--print_config", cwd=tmp_path)
    assert "shards: http://127.0.0.1:9/set\n" in shown.stdout
    assert PASSWORD not in shown.stdout + shown.stderr
