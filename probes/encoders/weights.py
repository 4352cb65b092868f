"""Where the weights of a library's model come from, and what to say when they cannot be had."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nml.errors import UserError
from nml.hub import unreachable
from probes.hashing import hash_arrays

RANDOM_SEED = 0
DOWNLOAD_ELSEWHERE = (
    "download them on a machine with network and add weights=FILE, or weights=random to try things out"
)


class Weights(NamedTuple):
    """Where weights come from.

    Attributes:
        source: ``pretrained`` (the library's own download), ``random``, or ``file``.
        path: The local file or folder; None unless ``file``.
    """

    source: Literal["pretrained", "random", "file"]
    path: Path | None = None

    @classmethod
    def parse(cls, value: str, where: str) -> Weights:
        """Read the option ``weights``.

        Raises:
            UserError: If it names a file that does not exist.
        """
        if value in ("pretrained", "random"):
            return cls(value)  # type: ignore[arg-type]
        path = Path(value)
        if not path.exists():
            raise UserError(
                f"--encoder {where}: no weights at {value}", possible="pretrained, random, or a local file"
            )
        return cls("file", path)


@contextlib.contextmanager
def random_weights(where: str) -> Iterator[None]:
    """Seed PyTorch for a random initialisation, restore its state after, and say so loudly."""
    import torch

    print(
        f"warning: encoder {where} has RANDOM weights; its numbers say nothing about the pre-trained model",
        file=sys.stderr,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        yield


@contextlib.contextmanager
def weights_to_come() -> Iterator[None]:
    """Let a model be built that is given its weights afterwards, without the libraries' warnings of that."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def hash_model(model: Any) -> str:
    """Return the hex SHA-256 of all parameters and buffers, names, types and shapes included."""
    import torch

    return hash_arrays(
        {
            name: tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            for name, tensor in model.state_dict().items()
        }
    )


def not_loaded(where: str, error: Exception, *, mend: str = DOWNLOAD_ELSEWHERE) -> UserError:
    """Say that weights could not be downloaded, why, and what to do.

    Call :func:`nml.hub.unreachable` before the library is asked, so that it does not try for a minute.
    """
    reason = unreachable()
    if not reason:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return UserError(f"--encoder {where}: the pre-trained weights could not be loaded: {reason}", mend=mend)
