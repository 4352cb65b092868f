"""What a GPU machine without a network lacks of the project's packages, carried there as wheels.

    python -m benchmarks.gpu.packages collect     # here: build/gpu-wheels, for the other machine's Python
    python -m benchmarks.gpu.packages unpack      # there: build/gpu-packages, of those what its Python lacks

The machine has PyTorch and the others of ``THERE``. They are asked for nothing: it is their own matter what
they need. With ``build/gpu-packages`` and the checkout on PYTHONPATH, in this order, the project runs from
the checkout; its plugins are found by a description of it that ``unpack`` writes there.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
WHEELS, PACKAGES = ROOT / "build" / "gpu-wheels", ROOT / "build" / "gpu-packages"
THERE = ("torch", "torchvision", "timm", "transformers", "pyarrow", "scikit-learn")
# What the measurement runs, and the tests among it.
WANTED = ("noisy-model-learning[deepspeed]", "pytest", "pytest-timeout", "hypothesis", "cloudpickle")
# Only the report needs them, and none is made there.
LEFT_OUT = ("scikit-posthocs", "statsmodels")
# On the package index there is its source alone. No operator is built: none is used.
FROM_SOURCE = ("deepspeed",)
LIMIT_MB = 60
# pip takes a wheel for the platforms that it is told, and for no older one by itself.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)] + ["manylinux2014_x86_64"]


def collect(python: str) -> None:
    """Fill build/gpu-wheels for Python ``python``, at the versions of this environment.

    Raises:
        SystemExit: If pip fails, or the wheels are larger than what is meant to travel.
    """
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    lacking = lacked(python)
    pinned = [f"{name}=={version}" for name, version in lacking.items() if name not in FROM_SOURCE]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    tags = ["--python-version", python, "--implementation", "cp", *platforms]
    _pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(WHEELS), *tags, *pinned)
    for name in FROM_SOURCE:
        words = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(WHEELS)]
        _pip("wheel", *words, f"{name}=={lacking[name]}", DS_BUILD_OPS="0", DS_SKIP_CUDA_CHECK="1")
    size = sum(path.stat().st_size for path in WHEELS.iterdir()) / 1e6
    print(f"{WHEELS}: {len(lacking)} wheels for Python {python}, {size:.1f} MB")
    if size > LIMIT_MB:
        sys.exit(f"error: more than {LIMIT_MB} MB; name fewer packages in WANTED of {Path(__file__).name}")


def lacked(python: str) -> dict[str, str]:
    """Return versions by name of what WANTED needs, up to what is THERE or asked for by that."""
    from packaging.utils import canonicalize_name

    there = {canonicalize_name(name) for name in THERE}
    there |= {canonicalize_name(need.name) for name in THERE for need in _needs(name, python)}
    there |= set(LEFT_OUT)
    found: dict[str, str] = {}
    waiting, seen = list(WANTED), set()
    while waiting:
        text = waiting.pop()
        name, _, extras = text.rstrip("]").partition("[")
        if canonicalize_name(name) in there or text in seen:
            continue
        seen.add(text)
        found[canonicalize_name(name)] = metadata.version(name)
        for need in _needs(name, python, *filter(None, extras.split(","))):
            waiting.append(f"{need.name}[{','.join(sorted(need.extras))}]" if need.extras else need.name)
    # It runs from the checkout.
    del found["noisy-model-learning"]
    return dict(sorted(found.items()))


def _needs(name: str, python: str, *extras: str) -> list[Requirement]:
    """Return what a distribution asks for on another Python."""
    from packaging.requirements import Requirement

    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    chosen = [{**environment, "extra": extra} for extra in (*extras, "")]
    needs = [Requirement(text) for text in metadata.requires(name) or []]
    return [
        need for need in needs if need.marker is None or any(need.marker.evaluate(each) for each in chosen)
    ]


def unpack() -> None:
    """Fill build/gpu-packages with what this Python lacks of build/gpu-wheels.

    A wheel is an archive of what belongs on the path, so no pip is asked, which this Python may be without.
    What cannot be unpacked is told, and is the matter of the parts that need it.
    """
    shutil.rmtree(PACKAGES, ignore_errors=True)
    PACKAGES.mkdir(parents=True)
    wheels = sorted(WHEELS.glob("*.whl"))
    if not wheels:
        _warn(f"no wheels in {WHEELS}: where this Python lacks packages, `make gpu-wheels` collects them")
    lacking = [wheel for wheel in wheels if not _found(wheel.name.split("-")[0])]
    strange = [wheel.name for wheel in lacking if not _fits(wheel)]
    if strange:
        _warn(f"not for Python {platform.python_version()}: {', '.join(strange)}; see make gpu-wheels OF=")
    for wheel in lacking:
        try:
            if _fits(wheel):
                zipfile.ZipFile(wheel).extractall(PACKAGES)
        except (OSError, zipfile.BadZipFile) as error:
            _warn(f"{wheel.name}: {error}")
    for library in PACKAGES.glob("*.data/*lib"):
        shutil.copytree(library, PACKAGES, dirs_exist_ok=True)
    # Objectives and heads are found by it.
    setup = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet"]
    if subprocess.run([*setup, "egg_info", "--egg-base", str(PACKAGES)], cwd=ROOT, check=False).returncode:
        _warn("the project is not described: is setuptools there? Without it no objective is found")
    print(f"{PACKAGES}: {len(lacking) - len(strange)} packages")


def _fits(wheel: Path) -> bool:
    """Return whether a wheel is for this Python; its platform was chosen as it was collected."""
    python, abi, _ = wheel.stem.split("-")[-3:]
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return "py3" in python.split(".") or abi == "abi3" or here in python.split(".")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _found(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _pip(*words: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", words[0], "--quiet", *words[1:]]
    done = subprocess.run(command, env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(f"error: pip {words[0]} ended with status {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.packages", description=__doc__)
    parser.add_argument("what", choices=["collect", "unpack"])
    parser.add_argument("--python", default="3.12", help="of the other machine, for collect (default: 3.12)")
    options = parser.parse_args()
    if options.what == "collect":
        collect(options.python)
    else:
        unpack()


if __name__ == "__main__":
    main()
