"""Small runs in processes that are forked from this one, for the conformance kit of objectives.

Starting Python and importing torch takes a hundred times longer than four steps of a small network.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nml.conformance import promise
from nml.objectives import Takes

STEPS = 4
SAMPLES = 16
# The step before which a run is killed, and how often it saves: a step is lost, and done again.
DIES_BEFORE, SAVES_EVERY = 3, 2
# What processes may take to end by themselves once one has failed.
GRACE_SECONDS = 10.0
_LOOK_SECONDS = 0.01


def small_set(folder: Path, takes: Takes) -> Path:
    """Write 16 images of four classes, or with captions, and return the shard set."""
    import numpy as np
    from PIL import Image

    from shards.write import main as write_shards

    generator = np.random.default_rng(0)
    kind = "captions" if takes == "caption" else "classes"
    source, out = folder / f"{kind}-source", folder / kind
    for number in range(SAMPLES):
        pixels = generator.integers(0, 256, (8, 8, 3), np.uint8) // 2 + 32 * (number % 4)
        image = source / f"class{number % 4}" / f"{number:02d}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(image)
    words = [f"imagefolder:{source}"]
    if takes == "caption":
        table = folder / "captions.csv"
        rows = [f"{image},picture number {image.stem}" for image in sorted(source.rglob("*.png"))]
        table.write_text("\n".join(["image,caption", *rows]) + "\n")
        words = [f"csv:{table}"]
    with contextlib.redirect_stdout(io.StringIO()):
        write_shards(["--source", *words, "--out", str(out), "--workers", "1"])
    return out


def compute_in_double() -> None:
    """Let this process compute in float64 what libraries know as float32; there is no way back."""
    import torch

    # Files name the types of their tensors by tables that are made of the names replaced below.
    library: Any = torch
    names, types = library.storage._dtype_to_storage_type_map(), library.storage._storage_type_to_dtype_map()
    library.storage._dtype_to_storage_type_map = lambda: names
    library.storage._storage_type_to_dtype_map = lambda: types
    library._weights_only_unpickler._get_allowed_globals()
    library.set_default_dtype(torch.float64)
    library.Tensor.float = torch.Tensor.double
    library.float32 = library.float = torch.float64


def warm(engine: str) -> None:
    """Import what the processes will."""
    import open_clip  # noqa: F401
    import safetensors.torch  # noqa: F401 - it must see the real types
    import timm  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.fsdp

    import pretrain.assembly
    import pretrain.engines.ddp  # noqa: F401

    torch.set_num_threads(1)
    if engine == "deepspeed":
        from pretrain.engines.deepspeed import import_deepspeed

        import_deepspeed()


def train(folder: Path, size: int, *commands: list[str], killed: bool = False) -> None:
    """Train each command of ``pretrain.run`` in turn in one group of ``size`` processes, in float64.

    Args:
        folder: Where their output goes.
        size: Number of processes.
        commands: Arguments of ``python -m pretrain.run``.
        killed: Whether all of them are to kill themselves (SIGKILL) in the middle of the first.

    Raises:
        CheckFailed: If one fails; with the last line that it wrote.
    """
    in_children(folder, size, lambda rank, port: _train(rank, size, port, commands, killed), killed=killed)


def in_children(folder: Path, size: int, work: Callable[[int, int], object], *, killed: bool = False) -> None:
    """Call ``work(rank, port)`` in ``size`` forked processes.

    Raises:
        CheckFailed: If one fails; with the last line that it wrote.
    """
    children: dict[int, Path] = {}
    with socket.socket() as kept:
        # Nobody else gets the port, on which rank 0 may listen all the same.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = int(kept.getsockname()[1])
        for rank in range(size):
            log = folder / f"rank-{rank}.log"
            child = os.fork()
            if child == 0:
                _end_with(lambda rank=rank: work(rank, port), log)  # type: ignore[misc]
            children[child] = log
        ended = {children[child]: status for child, status in _ends(children, GRACE_SECONDS).items()}
    # Of those that are to be killed, one may meanwhile wait for another, and end because that one is gone.
    right = (
        -signal.SIGKILL in ended.values() and 0 not in ended.values() if killed else not any(ended.values())
    )
    failed = [
        f"ended with {status}: {_last_words(log)}" for log, status in ended.items() if status not in (0, None)
    ]
    promise(right, "; ".join(failed) or "ended as if nothing had happened")


def _ends(children: dict[int, Path], grace: float) -> dict[int, int | None]:
    """Wait for children; return their statuses, the first to end first, None of those that had to be ended.

    Where one fails, those that wait for it may take minutes to find out, and say nothing of the cause.
    """
    ended: dict[int, int | None] = {}
    failed: float | None = None
    while len(ended) < len(children):
        for child in children.keys() - ended.keys():
            late = failed is not None and time.monotonic() - failed > grace
            if late:
                os.kill(child, signal.SIGKILL)
            found, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if found:
                ended[child] = None if late else os.waitstatus_to_exitcode(status)
                if status and failed is None:
                    failed = time.monotonic()
        time.sleep(_LOOK_SECONDS)
    return ended


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text().strip().splitlines()]
    # Behind the message of an exception in C++ come its frames.
    message = [line for line in lines if line.startswith("what():")]
    return (message or lines or ["without a word"])[-1]


def _end_with(work: Callable[[], object], log: Path) -> NoReturn:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Under a test runner they may be something else than the descriptors.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    status = 1
    try:
        import torch

        # torch makes its pool of threads anew after a fork. Where two threads come to do so at once, one of
        # them finds none: that of a backward pass then ends the process (SIGABRT).
        torch.set_num_threads(1)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _train(rank: int, size: int, port: int, commands: tuple[list[str], ...], killed: bool) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    from pretrain import run, training, world

    compute_in_double()
    if killed:
        training.Trainer.train_step = _dying(training.Trainer.train_step)  # type: ignore[method-assign]
    me = world.world_from_environment()
    world.join(me)
    for words in commands:
        options, text = run.parse_options(words)
        with contextlib.ExitStack() as closing:
            run.train(options, text, me, time.perf_counter(), closing)
    world.leave()


def _dying(step: Callable[..., None]) -> Callable[..., None]:
    def dying(trainer: Any, *arguments: Any) -> None:
        if trainer.state.step == DIES_BEFORE:
            # What was saved before is whole; the step since then is not.
            trainer.state.saver.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        step(trainer, *arguments)

    return dying
