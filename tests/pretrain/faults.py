"""Faults that a run is given, in the process of a rank: what breaks, where, and when.

A fault is ``NAME:RANK``; it strikes that rank once the file ``strike`` is in the current folder.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

STRIKE = Path("strike")
# There once the run is where the fault will find it.
READY = Path("ready")


def prepare(fault: str, rank: int) -> None:
    """Put a fault into this process; none where another rank is to be struck."""
    name, _, struck = fault.partition(":")
    if name in FAULTS:
        FAULTS[name](rank == int(struck))


def _fail_forward(here: bool, strike: Callable[[], bool] = STRIKE.exists) -> None:
    from pretrain import objective

    build = objective.build_network

    def hook(_: Any, inputs: tuple[Any, ...]) -> None:
        # What is tried before the run has no values.
        if not inputs[0].is_meta and strike():
            fail("forward pass")

    def built(*arguments: Any) -> Any:
        network = build(*arguments)
        network.register_forward_pre_hook(hook)
        return network

    if here:
        objective.build_network = built  # type: ignore[attr-defined]


def _fail_loading(here: bool, fault: Callable[[], Any] = lambda: fail("loading")) -> None:
    from shards.dataset import ShardDataset

    load = ShardDataset._load

    def load_or_fail(*arguments: Any) -> Any:
        return fault() if STRIKE.exists() else load(*arguments)

    if here:
        ShardDataset._load = load_or_fail  # type: ignore[method-assign]


def _be_stuck(here: bool) -> None:
    """Let the rank wait for storage that does not answer."""
    _fail_loading(here, lambda: wait_for(Path("never")))


def _hold_validation(here: bool) -> None:
    """Let validation, by worker processes however small it is, take for ever on this rank; then fail."""
    from pretrain import validation

    validation._WORTH_WORKERS = 0
    load = validation._CleanImages.__getitem__

    def get(self: Any, number: int) -> Any:
        # The first image is also looked at by the rank itself, for its shape.
        if number == 0:
            return load(self, number)
        READY.touch()
        wait_for(STRIKE)
        return fail("validation")

    if here:
        validation._CleanImages.__getitem__ = get  # type: ignore[method-assign]


def _fail_while_saving(here: bool) -> None:
    """Let no save end, and fail in the next step; deepspeed, which waits for its saves, fails in one."""
    from torch.distributed.checkpoint import FileSystemWriter

    from pretrain import checkpoints

    def write(*arguments: Any) -> Any:
        READY.touch()
        wait_for(Path("never"))

    def export(*arguments: Any) -> NoReturn:
        READY.touch()
        wait_for(STRIKE)
        fail("save")

    steps = itertools.count(1)

    def strike() -> bool:
        # The first step after the first save.
        if next(steps) == 3:
            wait_for(READY)
            wait_for(STRIKE)
            return True
        return False

    FileSystemWriter.write_data = write  # type: ignore[method-assign]
    checkpoints.write_export = export
    _fail_forward(here, strike)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def fail(where: str) -> NoReturn:
    raise RuntimeError(f"a fault in the {where}")


FAULTS: dict[str, Callable[[bool], None]] = {
    "forward": _fail_forward,
    "loading": _fail_loading,
    "stuck": _be_stuck,
    "validation": _hold_validation,
    "saving": _fail_while_saving,
}
