"""Start ranks cheaply: import everything once, fork once a rank, run several commands in one process group.

usage: zygote.py WORLD JSON-LIST-OF-ARGV-LISTS [--double]

Each rank runs ``python -m pretrain.run`` with each list of arguments in turn. A list that begins with
``rewind`` copies a run instead, as if it had been killed at a step: ``rewind RUN COPY STEP``. The exit
status is the first one that is not 0, whichever rank and command it came from.

``--double`` computes everything in float64, by calling float64 what libraries know as float32. Engines
add in different orders; in double precision what that changes is below 1e-12, and a difference that is
none of rounding stands out.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
import traceback
from pathlib import Path

from nml.errors import UserError
from pretrain import run, world


def warm(*, deepspeed: bool, double: bool) -> None:
    """Import what the ranks will: forked children share it."""
    import open_clip  # noqa: F401
    import safetensors.torch  # noqa: F401 - it must see the real types
    import timm  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.fsdp

    import pretrain.assembly
    import pretrain.engines.ddp  # noqa: F401

    torch.set_num_threads(1)
    if double:
        # Files name the types of their tensors by tables that are made of the names replaced below.
        names, types = torch.storage._dtype_to_storage_type_map(), torch.storage._storage_type_to_dtype_map()
        torch.storage._dtype_to_storage_type_map = lambda: names
        torch.storage._storage_type_to_dtype_map = lambda: types
        torch._weights_only_unpickler._get_allowed_globals()
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
        torch.float32 = torch.float = torch.float64  # type: ignore[misc,assignment]
    if deepspeed:
        from pretrain.engines.deepspeed import import_deepspeed

        import_deepspeed()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rewind(source: Path, copy: Path, step: int) -> None:
    """Copy a finished run as it was when it had saved ``step`` and was killed some steps later."""
    shutil.copytree(source, copy)
    (copy / "DONE.json").unlink()
    for folder in (copy / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


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
        if command[0] == "rewind":
            source, copy, step = command[1:]
            world.decided_by_main(me, lambda: rewind(Path(source), Path(copy), int(step)))  # noqa: B023
            continue
        try:
            options, text = run.parse_options(command)
            run.check_same_run(options.run_dir, text)
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
    warm(deepspeed="deepspeed" in sys.argv[2], double="--double" in sys.argv[3:])
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
    for _ in range(size):
        child, ended = os.wait()
        code = os.waitstatus_to_exitcode(ended)
        print(f"rank {children[child]} ended with {code}", flush=True)
        status = status or code
    return status


if __name__ == "__main__":
    sys.exit(main())
