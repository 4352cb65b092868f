"""Whatever fails in a run ends all of it: no process is left, and the rank that met it says why."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

SECONDS = 15.0
TIMEOUT = 20.0
ENGINES = ["ddp", "fsdp", "deepspeed"]
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_workers = pytest.mark.parametrize("workers", [0, 2])
# Ranks, workers and wardens; none of what a run started, wherever it is, may be missed.
Processes = list[psutil.Process]


class Run:
    """A run of two ranks that is where it is to be struck.

    Args:
        folder: Where it runs.
        ranks: Its ranks.
        rank: The one to be struck.
    """

    def __init__(self, folder: Path, ranks: Any, rank: int) -> None:
        self.folder, self.ranks, self.rank = folder, ranks, rank
        self.struck = psutil.Process(ranks.pids[rank])
        children = self.struck.children()
        self.workers = [one for one in children if not any("lifeline" in word for word in one.cmdline())]
        both = [psutil.Process(pid) for pid in ranks.pids]
        self.processes = both + [child for one in both for child in one.children(recursive=True)]
        self.ended: float | None = None

    def fail(self) -> None:
        """Let the fault in the struck rank happen."""
        (self.folder / "strike").touch()

    def last_lines(self, rank: int) -> str:
        return "\n".join((self.folder / f"rank-{rank}.log").read_text().splitlines()[-3:])

    def wait(self, seconds: float) -> None:
        """Wait until every process is gone, and note how long that took."""
        start = time.monotonic()
        while any(alive(process) for process in self.processes) and time.monotonic() < start + seconds:
            time.sleep(0.02)
        self.ended = time.monotonic() - start

    def check_all_ended(self, seconds: float = SECONDS) -> list[int]:
        """Check that every process was gone in time; return the exit statuses of the ranks, none 0."""
        if self.ended is None:
            self.wait(seconds)
        left = [process for process in self.processes if alive(process)]
        if left:
            self.ranks.kill()
        assert not left, f"{self.last_lines(0)}\n{self.last_lines(1)}"
        assert self.ended is not None
        assert self.ended < seconds
        _, out = self.ranks.end()
        statuses = [
            int(line.split()[-1]) for rank in (0, 1) for line in out.splitlines() if f"rank {rank} e" in line
        ]
        assert len(statuses) == 2
        assert 0 not in statuses
        return statuses


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def steps(metrics: Path) -> int:
    return metrics.read_text().count('"event": "step"') if metrics.exists() else 0


@pytest.fixture(scope="module")
def words(
    make_recipe: Callable[..., Path], tiny_data: dict[str, Any], image_set: Path
) -> Callable[..., list[str]]:
    """The arguments of a run that does not end by itself."""

    def make(engine: str, workers: int, *, saves: bool = False, validates: bool = False) -> list[str]:
        recipe = make_recipe(
            f"failing-{workers}-{saves}-{validates}",
            epochs=9000,
            data={**tiny_data, "workers": workers},
            checkpoints={"every_epochs": 0, "every_steps": 2 if saves else 0},
            validate_every=1 if validates else 9000,
        )
        more = ["--noise", "0.25", "--run-dir", "run", "--timeout", f"{TIMEOUT:.0f}s", "--engine", engine]
        return ["--recipe", str(recipe), "--shards", str(image_set), "--validation", str(image_set), *more]

    return make


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory,
    start_ranks: Callable[..., Any],
    words: Callable[..., list[str]],
) -> Callable[..., Run]:
    """Start a run, and return it once it is where the fault will find it."""

    def begin(engine: str, workers: int, fault: str = "none") -> Run:
        folder = tmp_path_factory.mktemp(f"{engine}-{workers}-{fault}")
        command = words(engine, workers, saves=fault == "saving", validates=fault == "validation")
        # Both ranks have their turn: rank 0 has the store, the saves and the records.
        rank = (ENGINES.index(engine) + workers // 2) % 2
        ranks = start_ranks(2, ["whole", f"{fault}:{rank}", *command], cwd=folder)
        waits = fault in ("saving", "validation")
        ready = (folder / "ready").exists if waits else lambda: steps(folder / "run" / "metrics.jsonl") > 2
        wait_for(lambda: ready() or not ranks.running())
        return Run(folder, ranks, rank)

    return begin


@pytest.fixture(scope="module", autouse=True)
def frozen(start: Callable[..., Run]) -> dict[tuple[str, int], tuple[Run, threading.Thread]]:
    """Runs of which one rank is stopped for good; they wait while the other tests run."""
    found = {}
    for engine in ENGINES:
        for workers in (0, 2):
            run = start(engine, workers)
            run.struck.suspend()
            watching = threading.Thread(target=run.wait, args=[2 * TIMEOUT])
            watching.start()
            found[engine, workers] = run, watching
    return found


@each_engine
@each_workers
@pytest.mark.parametrize("fault", ["forward", "loading", "validation"])
def test_an_exception_ends_the_run_and_is_the_last_word_of_its_rank(
    fault: str, engine: str, workers: int, start: Callable[..., Run]
) -> None:
    run = start(engine, workers, fault)
    # The workers of validation come on top.
    assert len(run.workers) == workers * (2 if fault == "validation" else 1)
    run.fail()
    run.check_all_ended()
    said = run.last_lines(run.rank)
    assert f"rank {run.rank} of 2 on " in said
    assert "failed: RuntimeError: a fault in the " in said
    assert "another rank is gone" in run.last_lines(1 - run.rank)


@each_engine
@each_workers
def test_an_exception_during_a_save_ends_the_run(
    engine: str, workers: int, start: Callable[..., Run]
) -> None:
    run = start(engine, workers, "saving")
    run.fail()
    run.check_all_ended()
    assert "a fault in the " in run.last_lines(run.rank)
    assert not list(run.folder.glob("run/checkpoints/*/COMPLETE.json"))


@each_engine
@pytest.mark.parametrize("fault", ["none", "validation"])
def test_a_killed_loader_worker_ends_the_run(fault: str, engine: str, start: Callable[..., Run]) -> None:
    run = start(engine, 2, fault)
    run.workers[-1].kill()
    run.check_all_ended()
    said = run.last_lines(run.rank)
    assert f"DataLoader worker (pid {run.workers[-1].pid}) is killed by signal: Killed" in said
    assert "--recipe.data.workers" in said


@each_engine
@pytest.mark.parametrize(("fault", "workers"), [("none", 0), ("none", 2), ("validation", 2)])
def test_a_killed_rank_takes_its_workers_and_the_run_with_it(
    fault: str, workers: int, engine: str, start: Callable[..., Run]
) -> None:
    run = start(engine, workers, fault)
    run.struck.kill()
    assert -signal.SIGKILL in run.check_all_ended()
    assert f"process {run.struck.pid} ended without a word" in run.last_lines(run.rank)
    assert "another rank is gone" in run.last_lines(1 - run.rank)


@each_engine
@each_workers
def test_a_rank_that_is_stopped_for_good_ends_the_run_within_the_timeout(
    engine: str, workers: int, frozen: dict[tuple[str, int], tuple[Run, threading.Thread]]
) -> None:
    run, watching = frozen[engine, workers]
    watching.join()
    assert -signal.SIGKILL in run.check_all_ended(TIMEOUT)
    assert f"process {run.struck.pid} was stopped (SIGSTOP) for 18 s" in run.last_lines(run.rank)
    assert "another rank is gone" in run.last_lines(1 - run.rank)
