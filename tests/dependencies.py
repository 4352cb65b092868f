"""Install one set of dependencies into an environment of its own, and run the README and a short suite on it.

usage: python -m tests.dependencies SET [--python 3.12] [--resolve] [PYTEST_ARGUMENT ...]

SET is ``lowest`` (the lowest bounds of setup.cfg), ``pair`` (torch 2.11 and torchvision 0.26, as GPU machines
have them) or ``newest`` (what the index has today, whatever constraints.txt says). ``--resolve`` stops once
the wheels are found, and needs no interpreter of that version. The environment is ``.venv-SET``, made anew
each time: about 6 GB, most of it for CUDA, until ``make clean``.
"""

from __future__ import annotations

import argparse
import configparser
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What users of the project do not install.
OURS = {"dependencies", "docs", "lint", "mutants"}
RESOLUTION = {"lowest": "lowest-direct", "pair": "highest", "newest": "highest"}
CONSTRAINTS = {"pair": "torch==2.11.*\ntorchvision==0.26.*\n"}

# All commands of the README in their order, and of each library what the project asks of it.
SHORT = (
    "tests/test_readme.py",
    "tests/test_signatures.py",
    "tests/nml/test_cli.py",
    "tests/shards/test_by_definition.py",
    "tests/shards/test_decode.py",
    "tests/shards/test_sources.py",
    "tests/pretrain/test_recipe_features.py",
    "tests/pretrain/test_engines.py",
    "tests/plugins/test_onnx_export.py",
    "tests/plugins/test_saved.py",
    "tests/probes/test_api.py::test_a_disturbed_endpoint_gives_the_features_of_an_undisturbed_one",
    "tests/probes/test_encoders.py",
    "tests/probes/test_results.py",
    "tests/probes/test_tasks.py",
    "tests/probes/reporting/test_drawing.py",
    "tests/probes/reporting/test_inference.py",
)


def uv(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], cwd=ROOT, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.dependencies")
    parser.add_argument("set", choices=RESOLUTION)
    parser.add_argument("--python", default="3.11", metavar="VERSION", help="default: 3.11")
    parser.add_argument("--resolve", action="store_true", help="install and run nothing")
    options, more = parser.parse_known_args()

    environment = ROOT / f".venv-{options.set}"
    constraints, found = Path(f"{environment}.in"), Path(f"{environment}.txt")
    constraints.write_text(CONSTRAINTS.get(options.set, ""))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [word for extra in {*setup["options.extras_require"]} - OURS for word in ("--extra", extra)]
    # What uv finds in the file that it is to write it would keep.
    found.unlink(missing_ok=True)
    resolution = ("--resolution", RESOLUTION[options.set], "--constraints", constraints)
    version = ("--python-version", options.python)
    uv("pip", "compile", "setup.cfg", *extras, *resolution, *version, "--no-annotate", "--output-file", found)
    print(f"resolved for Python {options.python}: {found}", flush=True)
    if options.resolve:
        return 0

    uv("venv", "--clear", "--python", options.python, environment)
    python = environment / "bin" / "python"
    uv("pip", "sync", "--python", python, found)
    uv("pip", "install", "--python", python, "--no-deps", "--editable", ".")
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "VIRTUAL_ENV": str(environment), "OMP_NUM_THREADS": "1"}
    variables.pop("PYTHONPATH", None)
    tests = [python, "-m", "pytest", *SHORT, *more]
    return subprocess.run(tests, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
