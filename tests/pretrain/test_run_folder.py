"""A run folder that cannot be used is one line, before anything is built."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import pretrain
import shards
from nml.errors import UserError
from pretrain.options import build_parser, parse_options
from pretrain.run import main
from pretrain.same_run import check_can_be_written


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", "\0", "3"])
@pytest.mark.parametrize("name", ["config.yaml", "data.json", "DONE.json"])
def test_a_broken_file_of_a_run_is_one_line_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pretrain.assembly.assemble", lambda *_: pytest.fail("built"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(parse_options(["--run-dir", str(run)])[1])
    (run / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{run}: {name} ")):
        main(["--run-dir", str(run)])


def test_a_run_that_is_done_says_that_it_has_remembered_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(parse_options(["--run-dir", "run"])[1])
    Path("run/DONE.json").write_text('{"step": 2, "epochs": 1}')
    assert main(["--run-dir", "run", "--memorisation"]) == 0
    assert "--memorisation: it trained without" in capsys.readouterr().out
    Path("run/memorisation.parquet").touch()
    main(["--run-dir", "run", "--memorisation"])
    assert "--memorisation" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "a" * 300])
def test_a_run_folder_that_cannot_be_made_is_one_line_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pretrain.assembly.assemble", lambda *_: pytest.fail("built"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--run-dir "):
        main(["--run-dir", place])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_looking_at_a_run_folder_leaves_it_as_it_was(tmp_path: Path) -> None:
    check_can_be_written(tmp_path / "runs" / "one")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    check_can_be_written(tmp_path / "there")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def flags_in_errors(package: Any) -> dict[str, str]:
    """Return the options that a package's errors name, each with the file that does."""
    found: dict[str, str] = {}
    for file in Path(package.__path__[0]).rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "UserError":
                texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
                for text in texts:
                    words = re.findall(r"--[a-z][a-z.\w-]*\w", text) if isinstance(text, str) else []
                    found |= dict.fromkeys(words, file.name)
    return found


@pytest.mark.parametrize("package", [pretrain, shards])
def test_errors_name_options_that_there_are(package: Any) -> None:
    texts = " ".join(file.read_text() for file in Path(package.__path__[0]).rglob("*.py"))
    own = re.findall(r"\badd(?:_argument)?\(\s*\"(--[\w-]+)\"", texts)
    # Shards are read by training and by probes, and columns are options by a pattern.
    known = {*build_parser().flags(), *own, "--task", "--key-column"}
    assert {flag: file for flag, file in flags_in_errors(package).items() if flag not in known} == {}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", "--recipe.optimizer.lr"),
        ("--weight-decay", "--recipe.optimizer.weight_decay"),
        ("--weight-decy", "--recipe.optimizer.weight_decay"),
        ("--recipe.lr", "--recipe.optimizer.lr"),
        ("--smoothing=0.1", "--recipe.loss.smoothing"),
        ("--shard", "--shards"),
    ],
)
def test_an_option_without_its_dotted_name_is_pointed_to_it(
    capsys: pytest.CaptureFixture[str], word: str, meant: str
) -> None:
    with pytest.raises(SystemExit):
        parse_options([word, "0.1"])
    assert f"; did you mean {meant}?" in capsys.readouterr().err
