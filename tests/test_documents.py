"""Every document opens with what it is for and a command that works, and no link in it is dead."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.commands import run_command
from tests.test_readme import ROOT, shown_commands

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"])
DOCUMENTS = [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "examples").glob("*/README.md")]
# Minutes, and a benchmark: what they take is read, and nothing is done.
READ_ONLY = {
    "pretrain.run": "--print_config",
    "probes.tune": "--print_config",
    "benchmarks/shards_plan.py": "--help",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(document: Path) -> str:
    """Return a document without its code: that of fences, of indented lines and of backticks."""
    text = re.sub(r"^ *```.*?^ *```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4,}(?![-*\d]).*$", "", text, flags=re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """Return what headings are called in links, as GitHub and the site call them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", prose(document)):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_page_opens_with_what_it_is_for_and_a_command_that_works(page: Path, tmp_path: Path) -> None:
    title, purpose, *rest = page.read_text().split("\n\n")
    assert re.fullmatch(r"# .+", title)
    opening = "\n".join([purpose, *rest[:2]])
    found = re.search(r"^(?:    |\$ |    \$ )((?:python|make|nml) .+?)(?:  +#.*)?$", opening, re.MULTILINE)
    assert found, "no command in its first lines"
    if page.name != "CONTRIBUTING.md":
        assert re.match(r"[A-Z`]", purpose), "opens with no sentence"
    command = found[1]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if command in shown_commands() or command in {f"make {target}" for target in targets}:
        return
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / words[3]).exists()
    elif words[:2] == ["python", "-m"]:
        done = run_command(*words[2:], *filter(None, [READ_ONLY.get(words[2])]), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        known = [sys.executable, str(ROOT / words[1]), READ_ONLY[words[1]]] if words[0] == "python" else words
        assert subprocess.run(known, cwd=tmp_path, capture_output=True).returncode == 0


def test_the_site_is_built_and_says_something_of_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "GradientHead" in (site / "reference" / "plugins" / "index.html").read_text()


def test_changes_that_nothing_can_notice_are_of_lines_that_are_there() -> None:
    listed = tomllib.loads((ROOT / "tests/equivalent_mutants.toml").read_text())["equivalent"]
    texts = {one["file"]: (ROOT / one["file"]).read_text() for one in listed}
    joined = {file: " ".join(line.strip() for line in text.splitlines()) for file, text in texts.items()}
    assert [one["was"] for one in listed if one["was"] not in joined[one["file"]]] == []
