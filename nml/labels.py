"""What a class and a caption are: one meaning for every format, and refusal instead of making things fit.

- A class is a whole number from 0, or a name. Where some classes of a source are names, the numbers
  among them are names too.
- Text has no types. In a text table a class is a number where it is written as one is: ``7`` is,
  ``007`` is a name.
- Nothing, or blanks alone, is no class, and neither is -1, which marks hidden labels.

Where a task says that its labels are numbers or several classes a sample, nothing is guessed either.
"""

from __future__ import annotations

import math
import numbers
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

from nml.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Target = Literal["classification", "multilabel", "regression"]
"""What the labels of a task are: one class a sample, any number of classes a sample, or a number a sample."""
TARGETS: frozenset[Target] = frozenset(get_args(Target))
"""Every target."""

LARGEST, LEAST_SPREAD, LEAST_SHARE = 1e15, 1e-30, 1e-5
"""Of numbers to learn from: the largest, the least standard deviation, and that as a share of the largest."""

# Classes are stored as 32-bit integers.
_MOST = 2**31
# As pandas writes a column of whole numbers in which some are missing.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")


def class_value(value: object) -> int | str:
    """Return a class as a number or a name.

    Raises:
        ValueError: If it is neither: 2.5 is no class, and must not become class 2.
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"the class {value!r}, which is empty")
        return _encodable("class", value)
    # NumPy's truth value is no number to Python.
    if isinstance(value, numbers.Real) or type(value).__name__ in ("bool", "bool_"):
        number = float(value)  # type: ignore[arg-type]
        if not number.is_integer():
            raise ValueError(f"the class {_shown(value)}, which is neither a whole number nor a name")
        if number < 0:
            raise ValueError(f"the class {int(number)}, below 0, which marks hidden labels")
        if number >= _MOST:
            raise ValueError(f"the class {_shown(value)}, which is too large a number")
        return int(number)
    raise ValueError(f"the class {_shown(value)}, which is neither a whole number nor a name")


def class_of_text(text: str) -> int | str:
    """Return a class that stands in a text table, where nothing says whether it is a number.

    Raises:
        ValueError: As :func:`class_value`.
    """
    return class_value(float(text) if _NUMBER.fullmatch(text) else text)


def number_value(value: object) -> float:
    """Return a number that is predicted.

    Raises:
        ValueError: If it is none, or not finite.
    """
    try:
        # Python reads 1_5 as 15.
        number = math.nan if isinstance(value, str) and "_" in value else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"the label {_shown(value)}, which is no finite number")
    return number


def check_numbers(labels: npt.NDArray[np.floating], where: str) -> None:
    """Refuse numbers to learn from that single precision, in which heads answer, cannot tell apart or hold.

    Args:
        labels: [N]; that all are alike is not looked at.
        where: What an error begins with.

    Raises:
        UserError: Says from where to where they go.
    """
    low, high = float(labels.min()), float(labels.max())
    largest = max(abs(low), abs(high))
    # Scaled first: the square of 1e200 is infinite, and that of 1e-200 is 0.
    share = float((labels / largest).std()) if largest else 0.0
    if low < high and (largest > LARGEST or share < LEAST_SHARE or share * largest < LEAST_SPREAD):
        raise UserError(
            f"{where}: labels from {low:.10g} to {high:.10g}",
            possible=f"up to {LARGEST:.0e}, with a standard deviation of at least {LEAST_SPREAD:.0e} and "
            f"{LEAST_SHARE:.0e} of the largest, which single precision holds",
            mend="subtract a constant from them, or take another unit",
        )


def label_names(value: object, separator: str) -> tuple[str, ...]:
    """Return the classes of a sample that may have any number: a list of them, or a text with separators.

    Raises:
        ValueError: If it is a text and no separator is known, or a name occurs twice.
    """
    if isinstance(value, str) and separator:
        parts: list[Any] = [part.strip() for part in value.split(separator)]
        parts = [] if parts == [""] else parts
    elif isinstance(value, list):
        parts = value
    else:
        raise ValueError(f"the labels {_shown(value)}, which are no list, and no separator is named")
    names = tuple(str(class_value(part)) for part in parts)
    if len(set(names)) < len(names):
        raise ValueError(f"the labels {_shown(value)}, one of them twice")
    return names


def label_applies(value: object) -> bool:
    """Return what a class's own column says of a sample: 1 or true, 0 or false.

    Raises:
        ValueError: If it says neither: nothing and -1 are not known to mean no.
    """
    text = str(value).strip().lower()
    if text in ("1", "1.0", "true"):
        return True
    if text in ("0", "0.0", "false"):
        return False
    raise ValueError(f"the label {_shown(value)}, which is neither 0 nor 1")


def caption_value(value: object) -> str:
    """Return a caption.

    Raises:
        ValueError: If it is no text: a list of captions would be stored with its brackets.
    """
    if isinstance(value, str):
        return _encodable("caption", value)
    raise ValueError(f"the caption {_shown(value)}, which is no text")


def captions_value(value: object) -> tuple[str, ...]:
    """Return the captions of a sample that may have several.

    Raises:
        ValueError: If it has none, or one of them is no text.
    """
    captions = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not captions:
        raise ValueError("no caption")
    return tuple(map(caption_value, captions))


def _encodable(what: str, value: str) -> str:
    """Return a text that can be stored: JSON may hold one half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {what} {_shown(value)}, which holds half a character") from error
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
