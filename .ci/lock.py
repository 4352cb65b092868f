"""Write pip's report of an installation as requirements with hashes: ``python .ci/lock.py REPORT > FILE``.

The report is that of ``pip install --dry-run --report``; ``make lock`` calls both. A hash is that of a file,
wherever it comes from; where it came from is not written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def locked(report: Path) -> str:
    """Return a line for each package but the project itself, sorted by name."""
    lines = []
    for package in json.loads(report.read_text())["install"]:
        if "dir_info" in package["download_info"]:
            continue
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    return "".join(sorted(lines, key=str.lower))


if __name__ == "__main__":
    print("# Made by `make lock`: what continuous integration installs, for Python 3.11 on Linux x86-64.")
    print(locked(Path(sys.argv[1])), end="")
