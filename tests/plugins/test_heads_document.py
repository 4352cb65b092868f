"""docs/heads.md shows the example package as it is, and a gradient head that keeps the contract."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from plugins.conformance import run_checks
from plugins.registry import HEADS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "third_party_head"
DOCUMENT = (ROOT / "docs" / "heads.md").read_text()


@pytest.mark.parametrize("file", ["prototype_head.py", "pyproject.toml", "tests/test_prototype_head.py"])
def test_the_example_is_the_text_of_the_document(file: str) -> None:
    assert f"\n{(EXAMPLE / file).read_text()}```" in DOCUMENT


def test_the_gradient_head_shown_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "GradientHead" in block
    )
    module = types.ModuleType("shown_head")
    # dataclasses look their module up.
    monkeypatch.setitem(sys.modules, "shown_head", module)
    exec(code, module.__dict__)
    failed = [outcome for outcome in run_checks(module.StandardisedProbe) if outcome.status == "FAIL"]
    assert failed == []


def test_every_built_in_head_is_in_the_table() -> None:
    ours = [plugin for plugin in HEADS.discover() if plugin.distribution == "noisy-model-learning"]
    for name in (plugin.name for plugin in ours):
        assert f"`{name}`" in DOCUMENT or f"`{name.removeprefix('nmtune')}`" in DOCUMENT, name
