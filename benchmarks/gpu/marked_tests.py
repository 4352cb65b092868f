"""The tests that only a GPU can run, by the files that have them: no other file is even read."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.packages import ROOT
from benchmarks.gpu.running import Tell
from benchmarks.gpu.sizes import Sizes


class _Outcomes:
    """Tells of each test as it ends."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: object) -> None:
        outcome, name = report.outcome, report.nodeid  # type: ignore[attr-defined]
        # Told of its set-up, itself and what comes after; a failure of any is one.
        if self.found.get(name) != "failed" and (outcome != "passed" or report.when == "call"):  # type: ignore[attr-defined]
            self.found[name] = outcome
            self._tell("tests", self.found)


def run(sizes: Sizes, folder: Path, tell: Tell) -> None:  # noqa: ARG001 - as all parts
    """Run them and tell how each ended.

    Raises:
        RuntimeError: If one failed.
    """
    import pytest

    tests = ROOT / "tests"
    marked = [path for path in sorted(tests.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    chosen = [tests / name for name in sizes.tests] or marked
    outcomes = _Outcomes(tell)
    words = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *map(str, chosen)]
    status = pytest.main(words, plugins=[outcomes])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(status).name}")
