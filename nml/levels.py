"""Noise ratios and the names of their levels.

A ratio is what a user asks for (``--noise 0.05``); its level name (``n05``) is what files, columns
and run names carry: ``n`` and the percentage, at least two digits before a ``p`` for the point.

====== =======
ratio  level
====== =======
0      n00
0.05   n05
0.125  n12p5
0.3    n30
====== =======
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from numbers import Rational

from nml.errors import UserError

CLEAN_LEVEL = "n00"
# What a user asks for in place of a ratio where the noise model has one.
OWN_RATE = "own"

_NAME = re.compile(r"n(?P<whole>\d{2})(?:p(?P<rest>\d*[1-9]))?")


def parse_ratio(value: str | float | Rational, *, where: str = "--noise") -> Fraction:
    """Return a noise ratio as the exact fraction of its decimal text.

    0.1 is one tenth, not the binary number nearest to it: counts such as round(0.1 * N) must not
    depend on how a machine rounds.

    Args:
        value: A number, or its text. A float stands for its shortest decimal text.
        where: The flag or field, named in the error.

    Raises:
        UserError: If the value is no number, or outside 0 <= ratio < 1.
    """
    try:
        ratio = Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(-1)
    if not 0 <= ratio < 1:
        raise UserError(
            f"{where} {value}: not a noise ratio",
            possible="a number from 0 (clean) to below 1, for example 0.2",
            mend=_mend(ratio),
        )
    return ratio


def _mend(ratio: Fraction) -> str:
    """Suggest the ratio of a percentage, the most likely slip."""
    return f"for {float(ratio):g} percent write {float(ratio / 100):g}" if 1 < ratio < 100 else ""


def decimal_text(ratio: str | float | Rational) -> str:
    """Return a ratio as its plain decimal text, ``0.2``, the form that files store.

    Raises:
        UserError: If the value is no ratio, or has no finite decimal text (1/3).
    """
    exact = parse_ratio(ratio)
    text = format((Decimal(exact.numerator) / Decimal(exact.denominator)).normalize(), "f")
    if Fraction(text) != exact:
        raise UserError(f"--noise {ratio}: has no finite decimal text", mend="write it as a decimal, 0.333")
    return text


def level_name(ratio: str | float | Rational) -> str:
    """Return the name of a ratio's level: 0 is ``n00``, 0.05 ``n05``, 0.125 ``n12p5``."""
    percent = format((Decimal(decimal_text(ratio)) * 100).normalize(), "f")
    whole, _, rest = percent.partition(".")
    return f"n{whole.zfill(2)}" + (f"p{rest}" if rest else "")


def level_ratio(name: str) -> Fraction:
    """Return the ratio of a level's name, the inverse of :func:`level_name`.

    Raises:
        UserError: If ``name`` is no level name.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"level {name!r}: not a level name", possible="n00, n05, n12p5 and the like")
    rest = match["rest"] or ""
    return Fraction(int(match["whole"] + rest), 100 * 10 ** len(rest))
