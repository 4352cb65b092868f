"""Every command fails in one line that names the field, the value and the mend."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nml.cli import Parser
from nml.errors import UserError, unknown_name

COMMAND = """
import os
from pathlib import Path
from typing import Literal
from nml.cli import Parser, run
from nml.errors import UserError
from nml.files import write_bytes

def main():
    parser = Parser("python -m example", "An example.", epilog="Example:\\n  python -m example")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1], help="noise ratios")
    parser.add_argument("--engine", type=Literal["ddp", "fsdp"], default="ddp", help="engine")
    parser.add_argument("--form", type=str, choices=["csv", "text"], default="csv", help="form")
    parser.add_argument("--recipe.lr", type=float, default=0.1, help="learning rate")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs")
    parser.add_argument("--model", type=dict, default={}, help="of a config file")
    parser.add_argument("--models", type=str, nargs="+", default=[], help="names")
    parser.add_argument("--fail", type=str, default="", help="how to fail")
    arguments = parser.parse_args()
    if arguments.fail == "user":
        raise UserError("--fail user", possible="no failure", mend="leave\\nit out")
    if arguments.fail == "denied":
        # Nobody may write to it, nor may root.
        open("/proc/sys/kernel/ostype", "w")
    if arguments.fail == "file":
        os.makedirs(os.path.join(__file__, "below"))
    if arguments.fail == "place":
        write_bytes(Path("/proc/no"), b"")
    if arguments.fail == "bug":
        raise RuntimeError("a bug")
    if arguments.fail == "interrupt":
        raise KeyboardInterrupt
    print(arguments.noise, arguments.engine)

run(main)
"""


@pytest.fixture
def command(tmp_path: Path) -> Path:
    file = tmp_path / "example.py"
    file.write_text(COMMAND)
    return file


def call(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(file), *arguments], cwd=file.parent, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--engine", "foo"], "--engine foo: not a possible value; possible: ddp, fsdp"),
        (["--noise", "0.1", "much"], "--noise much: not a possible value; possible: float"),
        (["--gpus-per-node", "two"], "--gpus-per-node two: not a possible value; possible: int"),
        (["--model", "vit"], "--model vit: not a possible value; possible: dict; did you mean --models?"),
        (["--nois", "0.1"], "did you mean --noise?"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--fail", "denied"], "; name a place that you may read and write"),
        (["--fail", "file"], "example.py/below: Not a directory; name another place"),
        (["--fail", "place"], "/proc/no: No such file or directory; name another place"),
        (["--fail", "user"], "--fail user; possible: no failure; leave it out"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(command: Path, arguments: list[str], expected: str) -> None:
    done = call(command, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("streams", "status", "said"),
    [
        (">/dev/full", 2, "error: No space left on device; make room and run the same command again\n"),
        (">/dev/full 2>&1", 1, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
    ],
)
def test_a_command_ends_where_it_cannot_write(command: Path, streams: str, status: int, said: str) -> None:
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(command))} {streams}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, said)


def test_a_bug_keeps_its_traceback(command: Path) -> None:
    done = call(command, "--fail", "bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_interrupt_says_how_to_go_on(command: Path) -> None:
    done = call(command, "--fail", "interrupt")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "same command again" in done.stderr


def test_a_config_file_sets_options_and_the_command_line_wins(command: Path) -> None:
    (command.parent / "study.yaml").write_text("noise: [0.2, 0.3]\nengine: fsdp\n")
    assert call(command, "--config", "study.yaml").stdout == "[0.2, 0.3] fsdp\n"
    assert call(command, "--config", "study.yaml", "--engine", "ddp").stdout == "[0.2, 0.3] ddp\n"
    assert call(command, "--engine", "ddp", "--config", "study.yaml").stdout == "[0.2, 0.3] ddp\n"
    (command.parent / "more.yaml").write_text("noise: 0.4\n")
    twice = call(command, "--config=study.yaml", "--engine=ddp", "--config", "more.yaml")
    assert twice.stdout == "[0.4] ddp\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("noise: 0.2\nengine: ddp\nnoise: 0.3\n", "'noise' twice, in line 1 and in line 3"),
        ('recipe:\n  lr: 1\n  "lr": 2\n', "'lr' twice, in line 2 and in line 3"),
        ("{recipe: {lr: 1, lr: 1}}\n", "'lr' twice, in line 1 and in line 1"),
        ("x: &x {lr: 1}\nrecipe: {<<: *x, lr: 2}\n", "unknown option x"),
    ],
)
def test_a_key_twice_in_a_config_file_is_told(command: Path, text: str, told: str) -> None:
    (command.parent / "study.yaml").write_text(text)
    done = call(command, "--config", "study.yaml")
    assert done.returncode == 2
    assert told in done.stderr
    assert ("--config study.yaml: it has the key" in done.stderr) == ("twice" in told)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("--noise 0.1 0.2 --engine fsdp --noise 0.3", "[0.1, 0.2, 0.3] fsdp"),
        ("--noise=0.1 --noise -0.2 --engine ddp", "[0.1, -0.2] ddp"),
    ],
)
def test_an_option_that_takes_several_keeps_those_of_all_its_places(
    command: Path, line: str, kept: str
) -> None:
    assert call(command, *line.split()).stdout == f"{kept}\n"


def test_an_option_given_again_without_a_value_is_told(command: Path) -> None:
    result = call(command, "--noise", "--noise", "0.1")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--noise" in result.stderr


def test_one_value_in_a_config_file_is_a_list_of_one(command: Path) -> None:
    (command.parent / "study.yaml").write_text("noise: 0.2\n")
    assert call(command, "--config", "study.yaml").stdout == "[0.2] ddp\n"


def test_a_switch_in_a_config_file_is_on_or_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, parser = tmp_path / "study.yaml", Parser("python -m example", "An example.")
    parser.add_argument("--dry-run", action="store_true", help="do nothing")
    for text, on in (("true", True), ("no", False)):
        file.write_text(f"dry_run: {text}\n")
        assert parser.parse_args(["--config", str(file)]).dry_run is on
    for text in ('"no"', "maybe", "0", "[true]"):
        file.write_text(f"dry_run: {text}\n")
        with pytest.raises(SystemExit):
            parser.parse_args(["--config", str(file)])
        assert "not a possible value; possible: true, false" in capsys.readouterr().err


def test_an_unknown_key_of_a_config_file_is_told_with_the_one_like_it(command: Path) -> None:
    (command.parent / "study.yaml").write_text("nois: [0.2]\n")
    done = call(command, "--config", "study.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown option nois; did you mean --noise?")


def test_the_printed_config_can_be_given_back(command: Path) -> None:
    printed = call(command, "--noise", "0.25", "--print_config")
    assert printed.returncode == 0
    (command.parent / "again.yaml").write_text(printed.stdout)
    assert call(command, "--config", "again.yaml").stdout == "[0.25] ddp\n"


def test_help_keeps_the_example(command: Path) -> None:
    assert "Example:\n  python -m example" in call(command, "--help").stdout


def test_help_says_choices_once_and_no_internals(command: Path) -> None:
    shown = " ".join(call(command, "--help").stdout.split())
    assert "--form {csv,text} form (default: csv)" in shown
    assert "--engine {ddp,fsdp} engine (default: ddp)" in shown


def test_usage_leaves_dotted_options_to_the_list(command: Path) -> None:
    usage, _, rest = call(command, "--help").stdout.partition("An example.")
    assert "--engine" in usage
    assert "--recipe.lr" not in usage
    assert "--recipe.lr LR" in rest


@pytest.mark.parametrize(
    "module", ["shards.write", "pretrain.run", "plugins.__main__", "probes.run", "probes.report"]
)
def test_help_does_not_wait_for_torch(module: str) -> None:
    code = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\n"
        f"except SystemExit:\n    sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_an_unknown_name_lists_near_matches_first() -> None:
    error = unknown_name("--plugin", "nmtun", ["lp", "mlp", "nmtune"], mend="see: python -m plugins list")
    assert isinstance(error, UserError)
    assert str(error) == (
        "--plugin: unknown name 'nmtun'; possible: lp, mlp, nmtune; "
        "did you mean nmtune?; see: python -m plugins list"
    )
