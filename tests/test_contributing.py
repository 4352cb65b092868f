"""CONTRIBUTING.md and docs/architecture.md name files and what is in them; all of it is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("CONTRIBUTING.md", "docs/architecture.md")
# The first words of an item, and every line until the next item or an empty line.
ITEM = re.compile(r"^(?:-|\d+\.) `([^`\n]+/[^`\n]+|setup\.cfg)`: (.*(?:\n {2,}.*)*)", re.MULTILINE)
ROOMS = ("nml", "shards", "pretrain", "plugins", "probes", "slurm")


def items() -> list[tuple[str, str, str]]:
    return [(name, *item) for name in DOCUMENTS for item in ITEM.findall((ROOT / name).read_text())]


def is_path(word: str) -> bool:
    return "/" in word and " " not in word


@pytest.mark.parametrize(("document", "file", "said"), items(), ids=lambda word: word[:60])
def test_a_file_that_is_named_is_there_and_holds_what_is_said_of_it(
    document: str, file: str, said: str
) -> None:
    words = re.findall(r"`([^`]+)`", said)
    others = [word for word in words if is_path(word)]
    for path in (file, *others):
        # NAME is the file that the reader writes; the one that it is like is named beside it.
        found = (ROOT / path).parent if "NAME" in path else ROOT / path
        assert found.exists(), f"{document} names {path}"
    text = (ROOT / (others[0] if "NAME" in file else file)).read_text()
    for word in words:
        # Commands and classes of another package are no part of the file.
        if not is_path(word) and " " not in word and word != "UserError":
            assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), f"{document}: {file} has no {word}"


def test_the_five_usual_changes_and_the_three_ways_are_lists_of_files() -> None:
    sections = [part for name in DOCUMENTS for part in (ROOT / name).read_text().split("\n### ")[1:]]
    assert len(sections) == 5 + 3
    for section in sections:
        assert len(ITEM.findall(section)) >= 4, section.partition("\n")[0]


def test_every_room_is_in_the_table_with_the_command_that_tests_it() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for room in ROOMS:
        assert f"| `{room}` |" in text
        assert f"`python -m pytest tests/{room}`" in text
        assert (ROOT / "tests" / room).is_dir()


def test_a_test_file_is_called_after_what_it_tests_and_not_after_its_room() -> None:
    files = [file for room in ROOMS for file in (ROOT / "tests" / room).rglob("test_*.py")]
    named_twice = [
        str(file.relative_to(ROOT))
        for file in files
        if re.match(f"test_({'|'.join([*file.parts[-3:-1], 'report'])})_", file.name)
    ]
    assert files
    assert named_twice == []


def test_continuous_integration_is_one_command() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    commands = re.findall(r"^\s*(?:- )?run: (.+)$", workflow, re.MULTILINE)
    # What is asked of a service beyond the index is a job of its own.
    assert commands == [".ci/run ${{ matrix.make }}", "make audit"]
