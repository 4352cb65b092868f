"""What heads give back, checked: a head is foreign code, and one that fails must not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.head import Head


class HeadFault(Exception):
    """A head raised, diverged or gave back something malformed; the message says so in one line."""


def asked(method: str, call: Callable[[], Any]) -> Any:
    """Return what a call of a head's method returns.

    Raises:
        HeadFault: If it raises.
    """
    try:
        return call()
    # sys.exit() in a head would end the command without a word.
    except (Exception, SystemExit) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise HeadFault(f"{method} raised {type(error).__name__}: {reason}") from error


def predict(head: Head, features: npt.NDArray[np.float32], num_classes: int) -> npt.NDArray[np.float32]:
    """Return the logits [N, K] of features [N, D].

    Raises:
        HeadFault: If the head gives no finite [N, ``num_classes``].
    """
    return _rows("predict_logits", head.predict_logits, features, num_classes)


def transform(head: Head, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return features [N, D] as the head's classifier sees them, [N, H].

    Raises:
        HeadFault: If the head gives no finite [N, H].
    """
    return _rows("transform", head.transform, features, None)


def _rows(
    method: str, call: Callable[[Any], Any], features: npt.NDArray[np.float32], width: int | None
) -> npt.NDArray[np.float32]:
    import torch

    found = asked(method, lambda: call(torch.from_numpy(features)))
    if not isinstance(found, torch.Tensor):
        raise HeadFault(f"{method} returned {type(found).__name__}, not a tensor")
    expected = f"[{len(features)}, {'H' if width is None else width}]"
    if found.ndim != 2 or len(found) != len(features) or width not in (None, found.shape[1]):
        raise HeadFault(f"{method} returned {list(found.shape)}; expected {expected}")
    rows: npt.NDArray[np.float32] = found.detach().cpu().float().numpy()
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise HeadFault(f"diverged: {method} gave NaN or infinity for {len(bad)} of {len(rows)} samples")
    return rows
