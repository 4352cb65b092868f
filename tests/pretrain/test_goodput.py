"""Goodput is that of the run: whatever its slowest rank did is booked, on that rank's name, and said."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nml.curves import metrics_lines, read_curves
from nml.errors import UserError
from nml.lifeline import BEATS
from pretrain import liveness
from pretrain.goodput import Ledger
from pretrain.liveness import Beat, Liveness, Pulse, awaited
from pretrain.recording import Metrics
from pretrain.stragglers import OwnTime, divide
from pretrain.world import World

HOST = socket.gethostname()


def own(reading: float = 0.0, frozen: float = 0.0, computing: float = 0.0) -> OwnTime:
    return OwnTime(reading, frozen, computing)


def ranks(*times: OwnTime) -> np.ndarray:
    return np.array(times)


@pytest.mark.parametrize(
    ("told", "useful", "data_wait", "waiting", "rank", "why"),
    [
        (ranks(own(computing=1.0), own(computing=1.0)), 4.0, 0.0, 0.0, 0, "computing"),
        (
            ranks(own(reading=0.5, computing=1.0), own(reading=2.5, computing=1.0)),
            1.5,
            2.5,
            0.0,
            1,
            "reading data",
        ),
        (ranks(own(computing=1.0), own(computing=1.0, frozen=3.0)), 1.0, 0.0, 3.0, 1, "frozen"),
        (ranks(own(computing=1.0), own(computing=4.0), own(computing=1.5)), 1.5, 0.0, 2.5, 1, "computing"),
        # A rank that reads while another computes for longer costs nothing.
        (ranks(own(reading=1.0, computing=1.0), own(computing=4.0)), 1.0, 0.0, 3.0, 1, "computing"),
        # More than the step lasted cannot be lost in it.
        (ranks(own(reading=3.0, frozen=9.0)), 0.0, 3.0, 1.0, 0, "frozen"),
    ],
)
def test_a_step_is_divided_by_what_its_slowest_rank_did(
    told: np.ndarray, useful: float, data_wait: float, waiting: float, rank: int, why: str
) -> None:
    found = divide(4.0, told)
    assert (found.useful, found.data_wait, found.waiting) == pytest.approx((useful, data_wait, waiting))
    assert (found.rank, found.why) == (rank, why)


def aged(seconds: float) -> Ledger:
    """Return a ledger of a run that began so long ago, on two hosts."""
    ledger = Ledger(time.perf_counter() - seconds)
    ledger.hosts = ["node06", "node07"]
    return ledger


def test_a_standstill_found_late_is_taken_back_from_what_it_was_booked_as() -> None:
    ledger = aged(40.0)
    ledger.step(10.0, ranks(own(), own()))
    ledger.lost["validation"] += 20.0
    ledger._recent["validation"] = 20.0
    assert ledger.step(1.0, ranks(own(), own(frozen=18.0))).waiting == pytest.approx(18.0)
    assert ledger.useful == pytest.approx(10.0)
    assert ledger.lost["validation"] == pytest.approx(3.0)
    assert ledger.lost["waiting"] == pytest.approx(18.0)
    books = ledger.as_json()
    assert books["useful_s"] + sum(books["lost_s"].values()) == pytest.approx(ledger.wall, abs=0.01)


def test_the_closing_words_name_the_ranks_that_cost_most() -> None:
    ledger = aged(30.0)
    ledger.step(20.0, ranks(own(), own(frozen=15.0)))
    ledger.step(9.0, ranks(own(), own(reading=9.0)))
    assert "waiting for rank 1 on node07 15.0 s, data wait of rank 1 on node07 9.0 s" in ledger.in_words()


def test_a_resumed_run_keeps_whom_it_waited_for(tmp_path: Path) -> None:
    path, ledger = tmp_path / "metrics.jsonl", aged(40.0)
    metrics = Metrics(path, 0, ledger)
    ledger.step(10.0, ranks(own(), own()))
    metrics.write("step", 1, {})
    # Of what the line above calls useful, this takes something back.
    ledger.step(1.0, ranks(own(), own(frozen=8.0)))
    metrics.write("step", 2, {})
    metrics.close()

    resumed = Ledger(time.perf_counter())
    Metrics(path, 1, resumed).close()
    assert resumed.useful == pytest.approx(3.0, abs=0.01)
    assert min(resumed.lost.values()) >= 0
    assert resumed.as_json()["waited_for"] == [{"cause": "waiting", "rank": 1, "host": "node07", "s": 8.0}]
    assert resumed.useful + sum(resumed.lost.values()) == pytest.approx(resumed.wall, abs=0.1)


@pytest.mark.parametrize("whole", [0, 1])
def test_what_is_written_after_half_a_line_reads(tmp_path: Path, whole: int) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(whole + 1):
        metrics = Metrics(path, whole, aged(1.0))
        metrics.write("step", 1, {})
        metrics.close()
    path.write_text(path.read_text()[:-9])
    metrics = Metrics(path, 1, aged(1.0))
    metrics.write("step", 2, {})
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*[1] * whole, 2]


def test_metrics_of_runs_that_named_no_rank_are_resumed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lost = {"startup": 1.0, "data_wait": 2.0, "validation": 0.0, "checkpoint": 0.0, "redone": 0.0}
    line = {"event": "step", "step": 1, "useful_s": 5.0, "lost_s": lost, "time": time.time()}
    path.write_text(json.dumps(line) + "\n")
    ledger = Ledger(time.perf_counter())
    Metrics(path, 1, ledger).close()
    ledger.step(1.0, ranks(own(frozen=0.5)))
    assert ledger.useful == pytest.approx(5.5)
    assert ledger.lost["waiting"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "line",
    ["3", "null", "[1]", '{"a": 1}', '{"step": 1}', '{"step": 1, "useful_s": "x", "lost_s": {}, "time": 0}'],
)
def test_a_line_that_no_run_wrote_is_one_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0, aged(1.0))
    metrics.write("step", 1, {})
    metrics.close()
    path.write_text(path.read_text() + line + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match=re.escape(str(path))):
        Metrics(path, 1, Ledger(time.perf_counter()))
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_curves(tmp_path)
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_count_as_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n')
    assert list(metrics_lines(path)) == [{"step": 1}]


BUSY, IDLE = Beat(7, 19.5, True, "computing"), Beat(7, 19.5, False, "computing")
WAITS, READS = Beat(7, 19.5, False, "waiting"), Beat(7, 19.5, False, "reading data")
SAVES, STOPPED = Beat(7, 19.5, False, "saving"), Beat(7, 2.0, True, "computing")


@pytest.mark.parametrize(
    ("beats", "said"),
    [
        ([WAITS, STOPPED], "waiting for rank 1 on b (frozen: no sign of life for 18 s)"),
        (
            [WAITS, Beat(6, 3.0, True, "waiting")],
            "waiting for rank 1 on b (frozen: no sign of life for 20 s)",
        ),
        ([WAITS, None, IDLE], "waiting for rank 1 on b (frozen: no sign of life for 20 s)"),
        ([SAVES, STOPPED], "saving, waiting for rank 1 on b (frozen: no sign of life for 18 s)"),
        ([IDLE, READS, READS], "waiting for rank 1 on b and 1 more (reading data)"),
        ([IDLE, WAITS, BUSY], "waiting for rank 2 on c (computing)"),
        ([SAVES, SAVES], "saving"),
        ([BUSY, BUSY], "all ranks computing"),
        ([WAITS, IDLE], "every rank waits for the others: the network between them, or a device"),
        ([READS], "waiting for data"),
    ],
)
def test_what_a_run_waits_for_is_said_in_words(beats: list[Beat | None], said: str) -> None:
    assert awaited(20.0, 7, beats, ["a", "b", "c"], silence=3.0) == said


def test_a_loader_that_gives_nothing_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(liveness, "_BEAT", 0.05)
    monkeypatch.setattr(liveness, "PATIENCE", 0.1)
    monkeypatch.setattr(liveness, "LONG_PATIENCE", 0.2)
    alone, said = Liveness(World()), ""
    alone.start()
    with alone.phase(liveness.READING):
        deadline = time.monotonic() + 60
        while "\n" not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capfd.readouterr().err
        # Many times as long as it had patience for.
        time.sleep(0.3)
    alone.stop()
    assert re.fullmatch(r"no step for \d s: waiting for data\n", said + capfd.readouterr().err)


def test_an_agent_is_told_how_long_a_step_has_been_due_and_that_validation_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "_BEAT", 0.05)
    reader, writer = os.pipe()
    monkeypatch.setenv(BEATS, str(writer))
    alone = Liveness(World())
    alone.start()

    def next_beat(phase: str) -> dict[str, Any]:
        while (beat := json.loads(told.readline()))["phase"] != phase:
            pass
        return beat

    with os.fdopen(reader) as told:
        with alone.phase(liveness.READING):
            first = next_beat(liveness.READING)["since"]
            assert next_beat(liveness.READING)["since"] > first
        with alone.phase(liveness.VALIDATING):
            assert next_beat(liveness.VALIDATING)["since"] == 0
        alone.stop()
        # From here on it tells of nothing by which it could be found silent.
        assert next_beat("ending") == {"phase": "ending"}
    os.close(writer)


def test_a_rank_that_computes_without_a_tick_does_not_stand_still() -> None:
    pulse = Pulse()
    start = time.perf_counter()
    while time.perf_counter() - start < 1:
        pass
    pulse.check()
    assert pulse.frozen < 0.3


def wait_for_steps(run: Path, number: int, ranks: Any) -> None:
    deadline = time.monotonic() + 200
    while ranks.running() and time.monotonic() < deadline:
        lines = metrics_lines(run / "metrics.jsonl")
        if sum(line["event"] == "step" for line in lines) >= number:
            return
        time.sleep(0.01)
    raise AssertionError("the run did not get that far")


def words(recipe: Path, shards: Path, run: Path, *more: str) -> list[str]:
    return ["--recipe", str(recipe), "--shards", str(shards), "--noise", "0.25", "--run-dir", str(run), *more]


def cost(run: Path, cause: str) -> dict[int, float]:
    """Return the seconds that a finished run lost to ranks, and see that its books balance."""
    done = json.loads((run / "DONE.json").read_text())
    useful = list(metrics_lines(run / "metrics.jsonl"))[-1]["useful_s"]
    assert useful + sum(done["lost_s"].values()) == pytest.approx(done["seconds"], abs=0.2)
    assert min(useful, *done["lost_s"].values()) >= 0
    return {found["rank"]: found["s"] for found in done["waited_for"] if found["cause"] == cause}


@pytest.mark.parametrize(
    "engine",
    [["ddp"], ["fsdp"], ["deepspeed", "--recipe.engine.zero_stage", "3"]],
    ids=lambda words: words[0],
)
def test_a_stopped_rank_is_named_while_it_stands_and_in_the_books(
    engine: list[str],
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    start_ranks: Callable[..., Any],
) -> None:
    run = work / f"stalled-{engine[0]}"
    recipe = make_recipe("stalled", epochs=4, checkpoints={"every_epochs": 0})
    short = ["set", "pretrain.liveness", "PATIENCE", "3"]
    ranks = start_ranks(2, short, words(recipe, image_set, run, "--engine", *engine), cwd=work)
    # The middle of an epoch of ten.
    wait_for_steps(run, 15, ranks)
    os.kill(ranks.pids[1], signal.SIGSTOP)
    stopped = time.monotonic()
    # On a busy machine there may be others from before, which are read at once.
    notice = next(line for line in ranks.output if "frozen" in line and time.monotonic() - stopped > 1)
    # For it to be said again, if it were.
    time.sleep(1.5)
    stood = time.monotonic() - stopped
    os.kill(ranks.pids[1], signal.SIGCONT)
    status, out = ranks.end()
    assert status == 0, out
    assert re.fullmatch(
        # The signal may arrive as late as between two epochs.
        rf"no step for \d+ s: (validating, )?waiting for rank 1 on {HOST} "
        r"\(frozen: no sign of life for \d+ s\)\n",
        notice,
    )
    assert "frozen" not in out
    # Where it stood as it was reading, that is the cause.
    reading = cost(run, "data_wait").get(1, 0.0) > stood / 2
    cause, said, field, why = (
        ("data_wait", "data wait of", "data_wait_s", "reading data")
        if reading
        else ("waiting", "waiting for", "waited_s", "frozen")
    )
    seconds = cost(run, cause)[1]
    # On a busy machine it stops later than it is told to.
    assert seconds > stood / 2
    assert f"{said} rank 1 on {HOST} {seconds:.1f} s" in out
    steps = [line for line in metrics_lines(run / "metrics.jsonl") if line["event"] == "step"]
    longest = max(steps, key=lambda line: line[field])
    assert stood / 2 < longest[field] < stood + 3
    assert (longest["slowest_rank"], longest["slowest_host"], longest["slowest_why"]) == (1, HOST, why)


def test_a_rank_that_is_always_slow_bears_what_it_costs(
    work: Path, image_set: Path, make_recipe: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    recipe = make_recipe("slow", epochs=2, checkpoints={"every_epochs": 0})
    commands = []
    for doing, engine in (("reading", "ddp"), ("computing", "fsdp")):
        command = words(recipe, image_set, work / f"slow-{doing}", "--engine", engine)
        commands += [["slow", "1", doing, "0.1"], command]
    out = run_ranks(2, *commands, cwd=work)
    # 20 steps of a tenth of a second.
    for doing, cause in (("reading", "data_wait"), ("computing", "waiting")):
        costs = cost(work / f"slow-{doing}", cause)
        assert costs[1] > 1.4
        assert costs.get(0, 0.0) < costs[1] / 2
    assert f"data wait of rank 1 on {HOST}" in out
