"""The registry over installed metadata: broken, doubled and missing plugins are named with their owner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nml.errors import UserError
from nml.registry import Registry


def install(folder: Path, distribution: str, entry_points: str, version: str = "1.0") -> None:
    """Write what pip leaves of a distribution: its metadata."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[nml.heads]\n{entry_points}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def heads() -> Registry:
    return Registry("nml.heads", kind="head", where="--plugin", listing="python -m plugins list")


def test_discovery_imports_nothing(site: Path, heads: Registry) -> None:
    (site / "explosive.py").write_text("raise RuntimeError('imported')")
    install(site, "bad-heads", "explosive = explosive:Head")
    found = {plugin.name: plugin for plugin in heads.discover()}
    assert found["explosive"].owner == "bad-heads 1.0"
    assert heads.names() == sorted(found)


def test_plugin_that_raises_on_import_is_named_with_its_owner(site: Path, heads: Registry) -> None:
    (site / "raising.py").write_text("raise RuntimeError('no GPU here')")
    install(site, "raising-heads", "raising = raising:Head", "2.3")
    with pytest.raises(
        UserError, match=r"'raising' of raising-heads 2\.3.*RuntimeError: no GPU here.*still works"
    ):
        heads.load("raising")
    assert heads.load("lp").__name__ == "LinearProbe"


def test_two_owners_of_a_name_are_both_named(site: Path, heads: Registry) -> None:
    install(site, "first-heads", "twin = first:Head")
    install(site, "second-heads", "twin = second:Head", "2.0")
    with pytest.raises(UserError, match=r"first-heads 1\.0.*second-heads 2\.0"):
        heads.find("twin")
    assert any("first-heads" in line and "second-heads" in line for line in heads.faults())
    assert heads.find("lp")


def test_the_same_registration_seen_twice_counts_once(
    site: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, heads: Registry
) -> None:
    other = tmp_path_factory.mktemp("again")
    monkeypatch.syspath_prepend(str(other))
    for folder in (site, other):
        install(folder, "seen-twice", "seen = seen:Head")
    assert heads.find("seen").distribution == "seen-twice"


def test_plugin_whose_distribution_is_gone_is_named(site: Path, heads: Registry) -> None:
    install(site, "gone-heads", "gone = package_that_is_gone.heads:Head")
    assert any("gone-heads 1.0 is gone" in line for line in heads.faults())
    with pytest.raises(UserError, match=r"gone-heads 1\.0.*ModuleNotFoundError"):
        heads.load("gone")


def test_what_an_interrupted_uninstall_left_breaks_nothing(site: Path, heads: Registry) -> None:
    (site / "empty-1.0.dist-info").mkdir()
    torn = site / "torn-1.0.dist-info"
    torn.mkdir()
    (torn / "entry_points.txt").write_text("[nml.heads\nnot an entry point")
    assert "lp" in heads.names()


def test_unknown_name_is_answered_with_near_ones(heads: Registry) -> None:
    with pytest.raises(UserError, match="did you mean nmtune"):
        heads.find("nmtun")


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("class Head:\n    def fit(self): ...", r"lacks transform\(\), predict_logits\(\)"),
        ("Head = 3", "not a class"),
        (
            "from plugins.lp import LinearProbe\nclass Head(LinearProbe):\n    def __init__(self, **x): ...",
            "misspelt",
        ),
    ],
    ids=["method missing", "no class", "swallows keywords"],
)
def test_object_that_is_no_head_is_refused_on_loading(site: Path, code: str, fault: str) -> None:
    from plugins.registry import HEADS

    name = f"shape_{abs(hash(code)) % 10**8}"
    (site / f"{name}.py").write_text(code)
    install(site, "odd-heads", f"odd = {name}:Head")
    with pytest.raises(UserError, match=rf"'odd' of odd-heads 1\.0.*{fault}"):
        HEADS.load("odd")


def test_listing_survives_every_broken_plugin(tmp_path: Path) -> None:
    install(tmp_path, "gone-heads", "gone = package_that_is_gone:Head")
    install(tmp_path, "first-heads", "twin = first:Head")
    install(tmp_path, "second-heads", "twin = second:Head")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from plugins.__main__ import main; main(['list'])\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    lines = done.stdout.splitlines()
    assert any(line.startswith("lp ") and "noisy-model-learning" in line for line in lines)
    assert sum(line.startswith("warning:") for line in lines) >= 2


def test_command_lines_answer_a_misspelt_head_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plugins", "check", "nmtun"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "nmtune" in done.stderr
