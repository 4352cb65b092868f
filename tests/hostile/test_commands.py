"""What a stranger sends ends a command with one line: nothing runs, grows, leaks or is written elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.hostile import good
from tests.hostile.inputs import INPUTS


@pytest.fixture(scope="session")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    good.digits_set(folder / "set")
    good.export(folder / "run")
    good.head(folder / "head")
    good.rows(folder / "results")
    return folder


@pytest.mark.parametrize("name", INPUTS)
def test_it_ends_in_one_line(name: str, goods: Path, tmp_path: Path) -> None:
    given = INPUTS[name]
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    for number, command in enumerate(given.commands):
        here = tmp_path / str(number)
        here.mkdir()
        given.make(here, goods)
        home = {"HOME": str(here / "home"), "XDG_CACHE_HOME": str(here / "cache"), "TMPDIR": str(here)}
        done = run_command(
            "tests.hostile.watched", *command.split(), cwd=here, **home, MPLCONFIGDIR=str(here)
        )
        said = done.stdout + done.stderr
        assert done.returncode == given.status, f"{command}: {said}"
        assert not set(said) & {"\x1b", "\x07", "\x9b", "\0"}, f"{command}: {said!r}"
        assert "Traceback" not in said
        if given.status == 2:
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, f"{command}: {said}"
            assert len(errors[0]) < 1000
        shutil.rmtree(here)
    assert victim.read_text() == "years of work"
