"""Start ranks cheaply: import everything once, fork once a rank, run several commands in one process group.

usage: zygote.py WORLD JSON-LIST-OF-ARGV-LISTS

Each rank runs ``python -m pretrain.run`` with each list of arguments in turn. The exit status is the
first one that is not 0, whichever rank and command it came from.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback

from nml.errors import UserError
from pretrain import run, world


def warm() -> None:
    """Import what the ranks will: forked children share it."""
    import timm  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.fsdp

    import pretrain.assembly
    import pretrain.engines.ddp  # noqa: F401

    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_main(rank: int, size: int, port: int, commands: list[list[str]]) -> int:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    me = world.world_from_environment()
    world.join(me)
    for command in commands:
        options, text = run.parse_options(command)
        run.check_same_run(options.run_dir, text)
        try:
            status = run.train(options, text, me, time.perf_counter())
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = 2
        if status:
            return status
    world.leave()
    return 0


def main() -> int:
    size, commands = int(sys.argv[1]), json.loads(sys.argv[2])
    warm()
    port = free_port()
    children = {}
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                status = rank_main(rank, size, port, commands)
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        children[child] = rank
        print(f"rank {rank} is {child}", flush=True)
    status = 0
    for child in children:
        _, ended = os.waitpid(child, 0)
        status = status or os.waitstatus_to_exitcode(ended)
    return status


if __name__ == "__main__":
    sys.exit(main())
