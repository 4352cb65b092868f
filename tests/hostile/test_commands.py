"""What a stranger sends ends a command with one line: nothing runs, grows, leaks or is written elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import signing_keys
from tests.commands import run_command
from tests.hostile import good
from tests.hostile.inputs import INPUTS


@pytest.fixture(scope="session")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    digits = good.digits_set(folder / "set")
    good.export(folder / "run")
    good.run_folder(folder / "trained", digits)
    good.launched(folder / "launched")
    good.head(folder / "head")
    good.rows(folder / "results")
    np.save(folder / "labels.npy", np.zeros(good.info_of(digits).num_samples, np.int64))
    if shutil.which("openssl"):
        signing_keys.make_keys(folder)
    return folder


@pytest.mark.parametrize("name", INPUTS)
def test_it_ends_in_one_line(name: str, goods: Path, tmp_path: Path) -> None:
    given = INPUTS[name]
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    commands = [command.format(goods=goods) for command in (*given.commands, *given.unmoved)]
    words = []
    for number, command in enumerate(commands):
        here = tmp_path / str(number)
        here.mkdir()
        given.make(here, goods)
        words += [str(here), command]
    done = run_command("tests.hostile.watched", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for number, command in enumerate(commands):
        out, err, status = (
            (tmp_path / f"{number}.{end}").read_text() for end in ("stdout", "stderr", "status")
        )
        assert "Traceback" not in err, f"{command}: {err}"
        assert not set(out + err) & {"\x1b", "\x07", "\x9b", "\0"}, f"{command}: {out + err!r}"
        if number < len(given.commands):
            assert int(status) == given.status, f"{command}: {out + err}"
        if status == "2":
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, f"{command}: {out + err}"
            assert len(errors[0]) < 1000
        else:
            # With status 1, those whose answer may be no.
            answers = ("shards.verify", "shards.audit", "probes.tasks check")
            assert status == "0" or (status == "1" and command.startswith(answers)), command
    assert victim.read_text() == "years of work"
