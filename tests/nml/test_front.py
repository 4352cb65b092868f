"""``nml``: every command by one name, nothing taken from the working folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nml import front
from nml.errors import UserError

DOOR = "import sys; sys.argv[0] = 'nml'; from nml.front import console; console()"


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``nml`` as its console script does: the working folder is not on the search path."""
    command = [sys.executable, "-P", "-c", DOOR, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_help_shows_every_command_in_a_screen(tmp_path: Path) -> None:
    shown = call(tmp_path, "--help").stdout
    assert len(shown.splitlines()) <= 50
    assert max(map(len, shown.splitlines())) <= 100
    assert all(f"  {name} " in shown for name in front.COMMANDS)


def test_help_reads_no_command_and_no_argument_parser() -> None:
    code = f"{DOOR}; print(sorted({{'jsonargparse', 'shards', 'plugins'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_name_stands_for_a_module(name: str) -> None:
    assert importlib.util.find_spec(front.COMMANDS[name].module)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shard", "write"], "unknown name 'shard'"),
        (["shards", "wirte"], "did you mean write?"),
        (
            ["shards", "--out", "x"],
            "possible: write, plan, encode, pack, finish, info, verify, sign, relabel, audit, cache, index",
        ),
    ],
)
def test_a_mistyped_command_is_told_what_there_is(words: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        front.find(words)


def test_a_command_is_given_its_own_words_and_tells_them_as_they_were_typed(tmp_path: Path) -> None:
    done = call(tmp_path, "shards", "info", "--no-such")
    assert done.returncode == 2
    assert done.stderr == "error: unknown option --no-such; see: nml shards info --help\n"
    assert call(tmp_path, "plugins", "list").stdout.startswith("bss ")
    assert call(tmp_path, "pretrain", "--help").stdout.startswith("usage: nml launch pretrain ")


def test_completion_offers_commands_and_a_commands_options(tmp_path: Path) -> None:
    script = call(tmp_path, "completion", "bash").stdout
    (tmp_path / "nml").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -c "{DOOR}" "$@"\n')
    (tmp_path / "nml").chmod(0o755)

    def offered(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("nml", *words))
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _nml; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", script + ask], capture_output=True, text=True, check=True, env=os.environ | path
        )
        return done.stdout.split()

    assert offered("sh") == ["shards"]
    assert offered("shards", "re") == ["relabel"]
    assert offered("plugins", "list", "--lo") == ["--load"]


@pytest.mark.parametrize("namesake", ["plugins/__init__.py", "plugins/mine.txt", "plugins.py"])
def test_a_users_own_file_of_a_rooms_name_is_told_and_not_used(tmp_path: Path, namesake: str) -> None:
    (tmp_path / namesake).parent.mkdir(exist_ok=True)
    (tmp_path / namesake).write_text("raise RuntimeError('taken for the project')\n")
    by_module = subprocess.run(
        [sys.executable, "-m", "probes.encoders", "list"], cwd=tmp_path, capture_output=True, text=True
    )
    assert by_module.returncode == 0, by_module.stderr
    assert by_module.stderr.startswith("note: plugins in this folder has the name of a package")
    by_door = call(tmp_path, "probes", "encoders", "list")
    assert (by_door.stdout, by_door.stderr) == (by_module.stdout, "")
