"""Read a numeric table that a user names: CSV or npy, never anything that could run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from nml.files import check_regular


def read_array(path: Path, what: str) -> npt.NDArray[Any]:
    """Return the numbers of a ``.npy`` (object arrays refused) or of a CSV without a header.

    Raises:
        UserError: If the file cannot be read as numbers.
    """
    try:
        check_regular(path)
        if path.suffix == ".npy":
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if path.suffix in (".csv", ".txt"):
            return np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"--model-file {path}: {what} cannot be read: {error}") from error
    raise UserError(f"--model-file {path}: not a kind of file that holds {what}", possible=".npy, .csv")
