"""Data flows one way: shards -> pretrain -> (exported files) -> probes -> report."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from nml import layout, set_file

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "nml": set(),
    "plugins": {"nml"},
    "shards": {"nml"},
    "pretrain": {"nml", "shards"},
    "probes": {"nml", "plugins"},
    "slurm": {"nml"},
}
# Noise models are a part that both rooms use: a second implementation would be another noise of one name.
CROSSINGS = {"probes/downstream_noise.py": {"shards"}}
OPTIONAL = (
    "aiohttp",
    "model_signing",
    "deepspeed",
    "httpx",
    "onnx",
    "onnxruntime",
    "datasets",
    "simplejpeg",
    "tensorboard",
    "wandb",
    "hypothesis",
    "pytest",
    "peft",
)


def imported_packages(file: Path) -> set[str]:
    """Return the top-level names a file imports, also inside functions and for type checking."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        allowed = ALLOWED[room] | CROSSINGS.get(str(file.relative_to(ROOT)), set())
        foreign = (imported_packages(file) & ALLOWED.keys()) - allowed - {room}
        assert not foreign, f"{file.relative_to(ROOT)} imports {sorted(foreign)}"


def test_the_report_is_made_of_result_rows_and_of_nothing_else_of_probes() -> None:
    files = sorted((ROOT / "probes" / "reporting").rglob("*.py"))
    assert files
    for file in files:
        names = {
            node.module
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("probes")
        }
        foreign = {name for name in names if name.split(".")[1:2] not in (["reporting"], ["results"])}
        assert not foreign, f"{file.relative_to(ROOT)} imports {sorted(foreign)}"


def test_every_folder_of_code_is_a_room() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == ALLOWED.keys()


def modules(room: str) -> list[str]:
    """Return the dotted names of a room's modules, commands left out: importing those would run them."""
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted((ROOT / room).rglob("*.py"))
        if file.stem != "__main__"
    ]


def test_a_file_that_crosses_a_wall_has_its_name_in_one_place() -> None:
    names = {
        *(layout.CONFIG, layout.DATA, layout.METRICS, layout.CHECKPOINTS, layout.DONE, layout.MARKER),
        *(layout.WEIGHTS, layout.META, layout.EXPORT_FORMAT, layout.CHECKPOINT_FORMAT),
        *(set_file.SET_FORMAT, set_file.SET_FILE, set_file.MANIFEST_FILE),
    }
    # The feature store marks its own entries as complete by the same word, and a recipe has a section of one.
    own = {("probes/features/store.py", layout.DONE), ("slurm/cost.py", layout.CHECKPOINTS)}
    places: dict[str, list[str]] = {name: [] for name in names}
    for file in sorted(path for room in ALLOWED for path in (ROOT / room).rglob("*.py")):
        where = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in names and (where, node.value) not in own:
                places[node.value].append(where)
    assert {name: found for name, found in places.items() if len(found) != 1} == {}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_without_any_extra(room: str) -> None:
    # Conformance kits are written for a test runner; they alone may need it.
    names = [name for name in modules(room) if name != "plugins.testing"]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_foundation_and_the_head_listing_import_no_torch() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {[*modules('nml'), 'plugins', 'plugins.registry']!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'numpy.random', 'sklearn'} & sys.modules.keys() - {'numpy.random'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
