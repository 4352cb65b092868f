"""Noise ratios and the names of levels.

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

A set may hold several draws of one ratio, of other models or seeds. Those after the first have names that
their user gave them (``n20-pair-flip``, ``worst``), and are asked for by these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Rational

from nml.errors import UserError

CLEAN_LEVEL = "n00"
# What a user asks for in place of a ratio where the noise model has one.
OWN_RATE = "own"

_NAME = re.compile(r"n(?P<whole>\d{2})(?:p(?P<rest>\d*[1-9]))?")
# What columns, run names and file names can all hold.
_GIVEN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
# A hundred billion digits would be a number, too, and take all memory.
_MOST_DIGITS = re.compile(r"(?!.*[eE][+-]?\d{4}).{0,60}", re.DOTALL)
_NO_NAMES = (OWN_RATE, "nan", "inf", "infinity")
_LIKE_A_RATIO = re.compile(r"(n\d[0-9p]*)(?:[_-].*)?", re.DOTALL)


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
        ratio = Fraction(text if _MOST_DIGITS.fullmatch(text := str(value).strip()) else "none")
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
    meant = f"{float(ratio / 100):g}"
    return f"for {float(ratio):g} percent write {meant}" if 1 < ratio < 100 and Fraction(meant) < 1 else ""


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


def is_level_name(text: str) -> bool:
    """Whether a text has the form of a level's name, which no ratio has."""
    return bool(_GIVEN.fullmatch(text)) and text.lower() not in _NO_NAMES


def is_ratio_name(name: str) -> bool:
    """Whether a level's name is that of a ratio, ``n20``."""
    return bool(_NAME.fullmatch(name))


def check_level_name(name: str, ratio: Rational, where: str = "--name") -> str:
    """Return a name that a level of ``ratio`` may have.

    Raises:
        UserError: If it is none, or begins like the name of another ratio.
    """
    if not is_level_name(name):
        raise UserError(
            f"{where} {name}: not a name of a level",
            possible="a letter, then up to 39 letters, digits, _ and -",
            mend=f"{where} {level_name(ratio)}-b",
        )
    like = _LIKE_A_RATIO.fullmatch(name)
    if like and like[1] != level_name(ratio):
        raise UserError(
            f"{where} {name}: reads like another ratio than {decimal_text(ratio)}",
            mend=f"begin it with {level_name(ratio)}, or with another letter than n",
        )
    return name


def level_of(noise: str | float | Rational) -> str:
    """Return the name of the level that ``--noise`` asks for: as it is named, or that of a ratio.

    Raises:
        UserError: If it is neither a name nor a ratio.
    """
    text = str(noise).strip()
    return text if is_level_name(text) else level_name(noise)


def find_level(
    noise: str | float | Rational, ratios: Mapping[str, str], what: str, *, location: str, strict: bool = True
) -> str:
    """Return the name of the level that is asked for among those of a set.

    Args:
        noise: A level's name, or a ratio.
        ratios: The ratio of each level of the set, as text, by its name.
        what: What a message calls the set.
        location: The set's folder, or a URL.
        strict: Whether a ratio that several levels have is refused; else it is the level named by it.

    Raises:
        UserError: If there is none, or the ratio is that of several.
    """
    name = level_of(noise)
    alike: list[str] = []
    if not is_level_name(str(noise).strip()):
        wanted = decimal_text(noise)
        alike = [each for each, ratio in ratios.items() if ratio == wanted]
    if name in ratios and (len(alike) < 2 or not strict):
        return name
    if alike:
        raise UserError(
            f"{what}: {len(alike)} of its levels {'has' if len(alike) == 1 else 'have'} the ratio "
            f"{decimal_text(noise)}",
            possible=", ".join(alike),
            mend=f"ask for it by its name, {alike[0]}",
        )
    raise UserError(
        f"{what}: has no noise level {name}",
        possible=", ".join(f"{ratio} ({each})" for each, ratio in ratios.items()),
        mend=_add(name, location),
    )


def _add(name: str, location: str) -> str:
    """Say how a level is added, as far as its name tells."""
    like = _LIKE_A_RATIO.fullmatch(name)
    if like and not is_ratio_name(like[1]):
        return "ask for one of these"
    ratio = decimal_text(level_ratio(like[1])) if like else "RATIO"
    named = "" if is_ratio_name(name) else f" --name {name}"
    if "://" in location:
        return (
            f"add it to a copy of the set in a folder: python -m shards.relabel FOLDER --noise {ratio}{named}"
        )
    return f"add it: python -m shards.relabel {location} --noise {ratio}{named}"
