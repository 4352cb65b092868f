"""What the values of a recipe have to be, refused in one line that names the field."""

from __future__ import annotations

import re
from typing import Any

from nml.errors import UserError

_NUMBER = r"\d+(\.\d+)?"
_RANDOM_POLICY = rf"rand(-(m|n|p|mstd|mmax|inc){_NUMBER}|-t\w+)*"
_OTHER_POLICIES = rf"augmix(-(m|w|d|a|b|mstd){_NUMBER})*|(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"


def positive(where: str, config: Any, *names: str) -> None:
    """Refuse what is not above 0."""
    for name in names:
        if getattr(config, name) <= 0:
            raise UserError(f"{where}.{name} {getattr(config, name)}: is not positive", possible="above 0")


def not_negative(where: str, config: Any, *names: str) -> None:
    """Refuse what is below 0."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise UserError(f"{where}.{name} {getattr(config, name)}: is negative", possible="0 and more")


def policy(name: str, crop: str) -> None:
    """Refuse a policy that timm does not know: it would leave out, without a word, what it does not."""
    if not name or re.fullmatch(_RANDOM_POLICY, name):
        return
    possible = "rand-m7-mstd0.5-inc1 and the like"
    if crop == "rrc":
        if re.fullmatch(_OTHER_POLICIES, name):
            return
        possible += ", augmix-m3-w3, original, originalr, v0, v0r, 3a"
    raise UserError(
        f"recipe.data.auto_augment {name!r}: no policy of timm's for crop {crop}", possible=possible
    )


def share(where: str, config: Any, *names: str) -> None:
    """Refuse what is not from 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{where}.{name} {getattr(config, name)}: not a share", possible="0 to 1")
