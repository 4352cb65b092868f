from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from plugins.registry import HEADS
from probes.head_code import head_code

FILES = {
    "heads_by_me/__init__.py": "import json\n",
    "heads_by_me/mine.py": "from . import losses\nfrom plugins.mlp import MLP\n\nclass Mine(MLP): ...\n",
    "heads_by_me/losses.py": "def spread():\n    import heads_by_me.deep.numbers\n",
    "heads_by_me/deep/numbers.py": "ONE = 1\n",
    "heads_by_me/unused.py": "TWO = 2\n",
    "lone_head.py": "import lone_terms\n\nclass Lone:\n    pass\n",
    "lone_terms.py": "THREE = 3\n",
    "lone_other.py": "FOUR = 4\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def load(module: str, name: str) -> type:
    found: type = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize(
    ("module", "name", "own", "others"),
    [
        (
            "heads_by_me.mine",
            "Mine",
            ["heads_by_me/mine.py", "heads_by_me/losses.py", "heads_by_me/deep/numbers.py"],
            ["heads_by_me/unused.py", "lone_head.py"],
        ),
        ("lone_head", "Lone", ["lone_head.py", "lone_terms.py"], ["lone_other.py", "heads_by_me/mine.py"]),
    ],
)
def test_a_change_of_any_file_a_head_is_made_of_changes_its_code(
    folder: Path, module: str, name: str, own: list[str], others: list[str]
) -> None:
    head = load(module, name)
    before = head_code(head)
    assert before is not None
    for file in own:
        (folder / file).write_text(FILES[file] + "# another\n")
        assert head_code(head) != before, file
        (folder / file).write_text(FILES[file])
    for file in others:
        (folder / file).write_text(FILES[file] + "# another\n")
    assert head_code(head) == before


def test_the_trainer_belongs_to_a_head_that_it_trains_and_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lp, knn = HEADS.load("lp"), HEADS.load("knn")
    before = head_code(lp), head_code(knn)
    read = Path.read_text

    def changed(file: Path, *args: str, **more: str) -> str:
        text = read(file, *args, **more)
        return f"{text}# another" if file.name == "trainer.py" else text

    monkeypatch.setattr(Path, "read_text", changed)
    assert head_code(lp) != before[0]
    assert head_code(knn) == before[1]


def test_a_class_without_source_has_no_code() -> None:
    assert head_code(type("Made", (), {"__module__": "nowhere"})) is None
