"""Ranks of two jobs that took the same port at the same moment, of which one has to try again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from nml.errors import UserError
from pretrain.same_run import check_same_command
from pretrain.world import World, join, leave, world_from_environment
from slurm.rendezvous import choose_port
from tests.commands import WARM

WAIT_SECONDS = 60


def be_rank(rank: int, job: str, port: int, told: Any) -> None:
    """Join as a rank of a job, and tell who has come."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NML_MEETING=job, GLOO_SOCKET_IFNAME="lo"
    )
    join(World(rank, 2, rank, timedelta(seconds=30)))
    names = [""] * 2
    dist.all_gather_object(names, job)
    told.send(names)
    leave()


def waits_for_the_others(pid: int | None) -> bool:
    """Whether a rank has reached the store, and listens for those that it believes to be its others."""
    with contextlib.suppress(psutil.Error):
        return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(pid).net_connections("tcp"))
    return False


@pytest.mark.parametrize("port", ["0", "65536", "-1", "", "master"])
def test_a_port_that_is_none_is_refused_before_anybody_waits_there(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"MASTER_PORT '{port}': no port; possible: 1 to 65535"):
        world_from_environment()


def _given_its_own_learning_rate(rank: int, size: int, rates: list[float]) -> str:
    text = f"noise: '0'\nseed: 0\nengine: ddp\nrecipe: {{optimizer: {{lr: {rates[rank]}}}}}\n"
    try:
        check_same_command(World(rank, size), text)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([0.2, 0.2], ""),
        ([0.2, 0.3], "recipe.optimizer.lr 0.3 on rank 1: rank 0 was started with 0.2; start all ranks by"),
    ],
)
def test_ranks_that_were_given_different_runs_all_refuse_to_train(
    on_ranks: Callable[..., list[str]], tmp_path: Path, rates: list[float], said: str
) -> None:
    answers = on_ranks(2, _given_its_own_learning_rate, tmp_path / "store", rates)
    assert answers[0] == answers[1]
    assert answers[0].startswith(said)
    assert bool(answers[0]) == bool(said)


def test_a_rank_of_another_job_is_not_taken_for_one_of_the_run() -> None:
    port = choose_port(str(os.getpid()))
    hears, told = WARM.Pipe(duplex=False)
    stranger = WARM.Process(target=be_rank, args=(1, "theirs", port, told))
    ours = [WARM.Process(target=be_rank, args=(rank, "ours", port, told)) for rank in range(2)]
    started = [stranger, ours[0]]
    try:
        for process in started:
            process.start()

        deadline = time.monotonic() + WAIT_SECONDS
        while not waits_for_the_others(stranger.pid):
            assert time.monotonic() < deadline, "the rank of another job does not come"
            time.sleep(0.05)
        started.append(ours[1])
        ours[1].start()
        assert hears.poll(WAIT_SECONDS), "the ranks do not meet"
        assert hears.recv() == ["ours", "ours"]
    finally:
        for process in started:
            process.kill()
            process.join()


def be_rank_by_hand(
    rank: int, size: int, run: str, port: int, told: Any, seconds: float = WAIT_SECONDS
) -> None:
    """Join as a rank that no launcher has started; tell what is said against it, or nothing."""
    import torch

    torch.set_num_threads(1)
    os.environ.pop("NML_MEETING", None)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    try:
        join(World(rank, size, rank, timedelta(seconds=seconds)), run)
        told.send((run, rank, ""))
        leave()
    except UserError as error:
        told.send((run, rank, str(error)))


def test_ranks_by_hand_refuse_the_port_of_another_job_and_leave_that_alone() -> None:
    port = choose_port(f"{os.getpid()} by hand")
    hears, told = WARM.Pipe(duplex=False)

    def rank(number: int, size: int, run: str) -> Any:
        process = WARM.Process(target=be_rank_by_hand, args=(number, size, run, port, told))
        process.start()
        started.append(process)
        return process

    started: list[Any] = []
    try:
        ours = rank(0, 2, "ours")
        deadline = time.monotonic() + WAIT_SECONDS
        while not waits_for_the_others(ours.pid):
            assert time.monotonic() < deadline, "rank 0 does not listen"
            time.sleep(0.05)
        for number in range(3):
            rank(number, 3, "theirs")
        said = {}
        for _ in range(3):
            assert hears.poll(WAIT_SECONDS), "a rank of the other job waits"
            run, number, error = hears.recv()
            said[run, number] = error
        assert f"MASTER_PORT {port}: another process listens there" in said["theirs", 0]
        for number in (1, 2):
            told_of = "2 processes of ours meet there, and this is one of 3 processes of theirs"
            assert told_of in said["theirs", number]
        rank(1, 2, "ours")
        assert hears.poll(WAIT_SECONDS), "the ranks of the first job do not meet"
        assert hears.recv()[::2] == ("ours", "")
    finally:
        for process in started:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    ("ranks", "seconds", "said"),
    [
        ([0], 0.5, "of WORLD_SIZE 3 did not come to 127.0.0.1:{} within 0 s (--timeout)"),
        ([0, 1, 1], WAIT_SECONDS, "RANK 1: a process with that one has come already"),
    ],
)
def test_ranks_by_hand_say_in_a_line_who_is_missing_or_there_twice(
    ranks: list[int], seconds: float, said: str
) -> None:
    hears, told = WARM.Pipe(duplex=False)
    port = choose_port(f"{os.getpid()} {ranks}")
    started = [
        WARM.Process(target=be_rank_by_hand, args=(rank, 3, "ours", port, told, seconds)) for rank in ranks
    ]
    try:
        for process in started:
            process.start()
        assert hears.poll(WAIT_SECONDS), "nobody says anything"
        assert said.format(port) in hears.recv()[2]
    finally:
        for process in started:
            process.kill()
            process.join()
