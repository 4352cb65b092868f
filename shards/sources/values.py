"""What may stand where a class or a caption is expected; anything else is refused rather than made to fit."""

from __future__ import annotations

import numbers

import numpy as np

# Classes are stored as 32-bit integers.
_MOST = 2**31


def class_value(value: object) -> int | str:
    """Return a class as a number or a name.

    Raises:
        ValueError: If it is neither: 2.5 is no class, and must not become class 2.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, numbers.Real) and float(value).is_integer():
        number = int(float(value))
        if abs(number) < _MOST:
            return number
        raise ValueError(f"the class {_shown(value)}, which is too large a number")
    raise ValueError(f"the class {_shown(value)}, which is neither a whole number nor a name")


def caption_value(value: object) -> str:
    """Return a caption.

    Raises:
        ValueError: If it is no text: a list of captions would be stored with its brackets.
    """
    if isinstance(value, str):
        return value
    raise ValueError(f"the caption {_shown(value)}, which is no text")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
