"""Every command that the README tells a reader to type is run here, in its order, or by ``make demo``."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# These two run everything else, this test included.
MAKE = {"make demo", "make test"}
# The launch as shown trains a ResNet-50 for minutes; here a model of a few thousand weights stands in.
SMALL = ["--recipe.model.name", "test_resnet", "--epochs", "1"]


def shown_commands() -> list[str]:
    """Return the commands of the README's console blocks in order, comments cut off."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line[2:].split("  #")[0].strip() for line in lines]


def as_run(command: str) -> list[str]:
    """Turn a line of the README into arguments that work from any folder, with this interpreter."""
    words = shlex.split(command)
    assert words[0] == "python", f"neither make nor python: {command}"
    words[0] = sys.executable
    if words[1] == "slurm/launch.py":
        words = [words[0], str(ROOT / words[1]), *words[2:], "--cluster", "local", *SMALL]
    return words


def test_every_command_shown_works_as_written(tmp_path: Path) -> None:
    commands = [command for command in shown_commands() if command not in MAKE]
    assert len(commands) >= 8
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in commands:
        done = subprocess.run(as_run(command), cwd=tmp_path, env=environment, capture_output=True, text=True)
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
