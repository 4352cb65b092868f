"""Every command that the README tells a reader to type is run here, in its order, or by ``make demo``."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.commands import run_command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# These two run everything else, this test included.
MAKE = {"make demo", "make test"}
# The launch as shown trains a ResNet-50 on 8 ranks for minutes; here a model of a few thousand weights on 2
# stands in.
SMALL = ["--recipe.model.name", "test_resnet", "--epochs", "1", "--nodes", "2"]


def shown_commands() -> list[str]:
    """Return the commands of the README's console blocks in order, comments cut off."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line[2:].split("  #")[0].strip() for line in lines]


def run_shown(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of the README in ``folder``; the launcher as it stands there, which starts Python itself."""
    program, *words = shlex.split(command)
    assert program == "python", f"neither make nor python: {command}"
    if words[0] == "-m":
        return run_command(words[1], *words[2:], cwd=folder)
    assert words[0] == "slurm/launch.py", command
    argv = [sys.executable, str(ROOT / words[0]), *words[1:], "--cluster", "local", *SMALL]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_command_shown_works_as_written(tmp_path: Path) -> None:
    commands = [command for command in shown_commands() if command not in MAKE]
    assert len(commands) >= 8
    for command in commands:
        done = run_shown(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "results" / "report" / "report.html").is_file()


def test_the_demo_runs_no_command_that_the_readme_hides() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = {
        words[2] for line in done.stdout.splitlines() if (words := line.split())[:2] == ["python", "-m"]
    }
    assert modules - {"venv"} <= {
        shlex.split(command)[2] for command in shown_commands() if " -m " in command
    }


def test_the_head_shown_is_the_example() -> None:
    example = ROOT / "examples" / "third_party_head" / "prototype_head.py"
    assert f"```python\n{example.read_text()}```" in README
