"""Start ranks cheaply: import everything once, fork once a rank, run several commands in one process group.

Each message on the socket of :func:`serve` is a JSON object and the descriptor of a pipe. The answer is the
process that leads the ranks, in a session of its own; the pipe gets all that they print. Each rank runs
``python -m pretrain.run`` with each list of arguments in turn. A list that begins with ``rewind`` copies a
run instead, as if it had been killed at a step: ``rewind RUN COPY STEP``. ``set MODULE NAME NUMBER`` sets a
constant, ``lag STEPS`` has the host hear of steps late, and ``slow RANK DOING SECONDS`` makes a rank slow in
the runs that follow: in ``reading`` it sleeps over each batch, in ``computing`` it computes in vain in each
step. ``strike WAY`` is that of struck.py, for the last rank. ``whole FAULT ...`` is all that the ranks do,
from joining to their very end, with a fault of faults.py and the output of each rank in rank-N.log. The last
line, ``status N``, has the first exit status that is not 0, whichever rank and command it came from.

``double`` computes everything in float64, by calling float64 what libraries know as float32. Engines
add in different orders; in double precision what that changes is below 1e-12, and a difference that is
none of rounding stands out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nml.errors import UserError
from pretrain import agreement, ending, run, world
from pretrain.probing import Probing
from tests.pretrain import faults, struck


def warm(*, double: bool) -> None:
    """Import what the ranks will: forked children share it."""
    import open_clip
    import safetensors.torch  # noqa: F401 - it must see the real types
    import timm  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.fsdp

    import pretrain.assembly
    import pretrain.engines.ddp  # noqa: F401

    torch.set_num_threads(1)
    # Reading its words takes each rank longer than a small run.
    open_clip.get_tokenizer = functools.cache(open_clip.get_tokenizer)
    open_clip.get_tokenizer("RN50", context_length=12)
    if double:
        from pretrain.objectives.small_runs import compute_in_double

        compute_in_double()


def warm_deepspeed() -> None:
    from pretrain.engines.deepspeed import import_deepspeed

    import_deepspeed()


def kept_port() -> socket.socket:
    """Return a socket that keeps a port from others, but not from a rank that is to listen on it."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept


def rewind(source: Path, copy: Path, step: int) -> None:
    """Copy a finished run as it was when it had saved ``step`` and was killed some steps later."""
    shutil.copytree(source, copy)
    (copy / "DONE.json").unlink()
    for folder in (copy / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def slow_down(doing: str, seconds: float) -> None:
    """Make this rank slow in reading or in computing, and no longer in the other."""
    from pretrain import classify, loading

    def slowed(function: Callable[..., Any], delay: Callable[[], None]) -> Callable[..., Any]:
        # What an earlier command slowed down is taken as it was.
        function = getattr(function, "as_it_was", function)

        def call(*arguments: Any) -> Any:
            delay()
            return function(*arguments)

        call.as_it_was = function  # type: ignore[attr-defined]
        return call

    sleeping, spinning = (seconds, 0.0) if doing == "reading" else (0.0, seconds)
    loading.collate = slowed(loading.collate, lambda: time.sleep(sleeping))
    backward = slowed(classify.Classify.backward, lambda: spin(spinning))
    classify.Classify.backward = backward  # type: ignore[method-assign]


def rank_main(rank: int, size: int, port: int, commands: list[list[str]]) -> int:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import torch

    # torch makes its pool of threads anew after a fork, and fails where two threads come to do so at once.
    torch.set_num_threads(1)
    if commands[0][0] == "whole":
        whole_run(rank, commands[0][1], commands[0][2:])
    me = world.world_from_environment()
    world.join(me)
    for command in commands:
        if command[0] == "rewind":
            source, copy, step = command[1:]
            world.decided_by_main(me, lambda: rewind(Path(source), Path(copy), int(step)))  # noqa: B023
            continue
        if command[0] == "set":
            setattr(importlib.import_module(command[1]), command[2], float(command[3]))
            continue
        if command[0] == "lag":
            agreement.LAG["cpu"] = int(command[1])
            continue
        if command[0] == "strike":
            struck.strike(command[1], here=rank == size - 1)
            continue
        if command[0] == "slow":
            if int(command[1]) == rank:
                slow_down(command[2], float(command[3]))
            continue
        try:
            options, text = run.parse_options(command)
            run.check_same_run(options.run_dir, text)
            probing = Probing(options, me) if options.probe else None
            with contextlib.ExitStack() as closing:
                status = run.train(options, text, me, time.perf_counter(), closing, probing)
            if probing is not None and status == 0:
                probing.finish()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = 2
        if status:
            return status
    world.leave()
    return 0


def whole_run(rank: int, fault: str, words: list[str]) -> NoReturn:
    """Be what the command line is, from its start to its end, with a log of its own and a fault in it."""
    log = os.open(f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faults.prepare(fault, rank)
    ending.run(lambda: run.main(words))


def lead(size: int, commands: list[list[str]]) -> int:
    """Fork the ranks and wait for them."""
    kept = kept_port()
    port = int(kept.getsockname()[1])
    children = {}
    for rank in range(size):
        child = os.fork()
        if child == 0:
            end_with(lambda rank=rank: rank_main(rank, size, port, commands))
        children[child] = rank
        print(f"rank {rank} is {child}", flush=True)
    status = 0
    for _ in range(size):
        child, ended = os.wait()
        code = os.waitstatus_to_exitcode(ended)
        print(f"rank {children[child]} ended with {code}", flush=True)
        status = status or code
    print(f"status {status}", flush=True)
    return status


def end_with(work: Callable[[], int]) -> NoReturn:
    """Do the work of a forked child and end it, whatever comes."""
    status = 1
    try:
        status = work()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def answer(request: dict[str, Any], pipe: int, ours: socket.socket) -> int:
    """Fork the process that leads the ranks of a request, and return it."""
    child = os.fork()
    if child:
        return child
    ours.close()
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    os.close(pipe)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    end_with(lambda: lead(request["size"], request["commands"]))


def serve(ours: socket.socket, double: bool) -> None:
    """Fork what leads the ranks of each message, until the other end is closed."""
    warm(double=double)
    # Nobody waits here for those that lead.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, pipes, _, _ = socket.recv_fds(ours, 1 << 20, 1)
        if not message:
            return
        if b"deepspeed" in message:
            warm_deepspeed()
        child = answer(json.loads(message), pipes[0], ours)
        os.close(pipes[0])
        ours.send(str(child).encode())
