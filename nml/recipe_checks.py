"""What the values of a recipe have to be, refused in one line that names the field."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from nml.errors import UserError

_NUMBER = r"\d+(\.\d+)?"
_RANDOM_POLICY = rf"rand(-(m|n|mmax|inc)\d+|-(p|mstd){_NUMBER}|-t\w+)*"
_MIXED_POLICY = rf"augmix(-(m|w|d|b)\d+|-(a|mstd){_NUMBER})*"
_LEARNT_POLICY = rf"(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"
# Weights are fp32, which ends at 3.4e38; an optimizer also multiplies and divides what it is given.
_LARGEST = 1e30


def in_range(where: str, config: Any) -> None:
    """Refuse numbers that are not numbers, or that no step of training could hold."""
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not abs(number) <= _LARGEST:
                raise UserError(
                    f"{where}.{field.name} {value}: out of the range of fp32 training",
                    possible=f"up to {_LARGEST:g}",
                )


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
    settings = re.findall(r"-([a-z]+)", name)
    if len(settings) > len(set(settings)):
        raise UserError(f"recipe.data.auto_augment {name!r}: names one setting twice")
    if not name or re.fullmatch(_RANDOM_POLICY, name):
        return
    possible = "rand-m7-mstd0.5-inc1 and the like"
    if crop == "rrc":
        if re.fullmatch(f"{_MIXED_POLICY}|{_LEARNT_POLICY}", name):
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


def below_one(where: str, config: Any, *names: str) -> None:
    """Refuse what is not from 0 to below 1."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{where}.{name} {getattr(config, name)}: not below 1", possible="0 to below 1")
