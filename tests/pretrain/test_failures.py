"""Whatever fails in a run ends all of it: no process is left, and the rank that met it says why."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

SECONDS = 15.0
TIMEOUT = 20.0
ENGINES = ["ddp", "fsdp", "deepspeed"]
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_workers = pytest.mark.parametrize("workers", [0, 2])
# Each fault under each engine, and each of both with workers and without, and on either rank.
PAIRED = [
    (fault, engine, (row + column) % 2 * 2, int(row == (column + 1) % 3))
    for row, fault in enumerate(["forward", "loading", "validation"])
    for column, engine in enumerate(ENGINES)
]
# Starts two ranks as the launcher does where there is no Slurm.
LAUNCHER = """
import sys
from pathlib import Path
from slurm.standin import run_ranks
command = [sys.executable, "-m", "pretrain.run", *sys.argv[1:]]
sys.exit(run_ranks(command, nodes=1, tasks=2, logs=Path("logs")))
"""


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

    def log(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}.log").read_text()

    def last_lines(self, rank: int) -> str:
        return "\n".join(self.log(rank).splitlines()[-3:])

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

    def begin(engine: str, workers: int, fault: str = "none", rank: int | None = None) -> Run:
        folder = tmp_path_factory.mktemp(f"{engine}-{workers}-{fault}")
        command = words(engine, workers, saves=fault == "saving", validates=fault == "validation")
        # Both ranks have their turn: rank 0 has the store, the saves and the records.
        rank = (ENGINES.index(engine) + workers // 2) % 2 if rank is None else rank
        ranks = start_ranks(2, ["whole", f"{fault}:{rank}", *command], cwd=folder)
        waits = fault in ("saving", "validation")
        ready = (folder / "ready").exists if waits else lambda: steps(folder / "run" / "metrics.jsonl") > 2
        wait_for(lambda: ready() or not ranks.running())
        return Run(folder, ranks, rank)

    return begin


@pytest.fixture(scope="module", autouse=True)
def frozen(start: Callable[..., Run]) -> dict[tuple[str, int], tuple[Run, threading.Thread]]:
    """Runs of which one rank is stopped for good, by engine and workers; they wait while other tests run.

    And one, ("worker", 2), of which a loader worker is, and two, ("stuck", RANK), of which a rank is stuck.
    """
    found = {}

    def watch(name: str, number: int, run: Run) -> None:
        watching = threading.Thread(target=run.wait, args=[4 * TIMEOUT])
        watching.start()
        found[name, number] = run, watching

    for rank in (0, 1):
        run = start("ddp", 0, "stuck", rank)
        run.fail()
        watch("stuck", rank, run)
    for engine, workers in itertools.product(ENGINES, (0, 2)):
        run = start(engine, workers)
        run.struck.suspend()
        watch(engine, workers, run)
    run = start("ddp", 2)
    run.workers[0].suspend()
    watch("worker", 2, run)
    return found


@pytest.fixture(scope="module", autouse=True)
def launched(
    tmp_path_factory: pytest.TempPathFactory, words: Callable[..., list[str]]
) -> Iterator[tuple[psutil.Popen, list[psutil.Process], Path]]:
    """The stand-in of the launcher with a rank that is stopped for good, all it started, what it says."""
    folder = tmp_path_factory.mktemp("launched")
    with (folder / "said").open("wb") as said:
        command = [sys.executable, "-c", LAUNCHER, *words("ddp", 2)]
        launcher = psutil.Popen(command, cwd=folder, stdout=said, stderr=said)
    wait_for(lambda: steps(folder / "run" / "metrics.jsonl") > 2 or launcher.poll() is not None)
    family = launcher.children(recursive=True)
    [rank] = [one for one in launcher.children() if one.environ().get("RANK") == "1"]
    rank.suspend()
    yield launcher, family, folder / "said"
    launcher.wait(TIMEOUT + SECONDS)


@pytest.mark.parametrize(("fault", "engine", "workers", "rank"), PAIRED)
def test_an_exception_ends_the_run_and_is_the_last_word_of_its_rank(
    fault: str, engine: str, workers: int, rank: int, start: Callable[..., Run]
) -> None:
    run = start(engine, workers, fault, rank)
    # The workers of validation come on top.
    assert len(run.workers) == workers * (2 if fault == "validation" else 1)
    run.fail()
    run.check_all_ended()
    said = run.last_lines(run.rank)
    assert f"rank {run.rank} of 2 on " in said
    assert "failed: RuntimeError: a fault in the " in said
    # Where rank 0 is gone, torch may have a word on its store after that.
    assert "another rank is gone" in run.log(1 - run.rank)


@pytest.mark.parametrize(("engine", "workers"), [("ddp", 0), ("fsdp", 2), ("deepspeed", 2)])
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
    # Without its number where it was handing a batch over.
    assert "worker " in said
    assert "is killed by signal: Killed" in said
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
    assert "another rank is gone" in run.log(1 - run.rank)


@each_engine
@each_workers
def test_a_rank_that_is_stopped_for_good_ends_the_run_within_the_timeout(
    engine: str, workers: int, frozen: dict[tuple[str, int], tuple[Run, threading.Thread]]
) -> None:
    run, watching = frozen[engine, workers]
    watching.join()
    assert -signal.SIGKILL in run.check_all_ended(TIMEOUT)
    assert f"process {run.struck.pid} was stopped (SIGSTOP) for 18 s" in run.last_lines(run.rank)
    assert "another rank is gone" in run.log(1 - run.rank)


def test_a_loader_worker_that_is_stopped_for_good_ends_the_run(
    frozen: dict[tuple[str, int], tuple[Run, threading.Thread]],
) -> None:
    run, watching = frozen["worker", 2]
    watching.join()
    run.check_all_ended(TIMEOUT + SECONDS)
    worker = run.workers[0].pid
    # Without its number where it was handing a batch over.
    assert "worker " in run.last_lines(run.rank)
    assert "is killed by signal: Killed" in run.last_lines(run.rank)
    assert f"process {worker} was stopped (SIGSTOP) for 18 s" in run.log(run.rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stuck_ends_once_the_others_have_given_it_up(
    rank: int, frozen: dict[tuple[str, int], tuple[Run, threading.Thread]]
) -> None:
    run, watching = frozen["stuck", rank]
    watching.join()
    run.check_all_ended(2 * TIMEOUT + SECONDS)
    said = run.log(rank)
    assert f"rank {rank} of 2 on " in said
    assert "failed: the other ranks are gone, and this one does not end. What it does:" in said
    assert "faults.py" in said


def test_the_stand_in_of_the_launcher_ends_all_and_names_the_rank_that_is_stopped(
    launched: tuple[psutil.Popen, list[psutil.Process], Path],
) -> None:
    launcher, family, said = launched
    assert launcher.wait(TIMEOUT + SECONDS) == 128 + signal.SIGKILL
    wait_for(lambda: not any(alive(process) for process in family))
    assert "rank 1 of the run ended with signal SIGKILL; the other ranks were stopped" in said.read_text()
    assert "was stopped (SIGSTOP) for 18 s" in said.read_text()
