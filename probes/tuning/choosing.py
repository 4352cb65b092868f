"""What is fine-tuned how: the methods that a user names, and the settings each is tried with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from nml.errors import UserError, import_extra, unknown_name
from plugins.head import Head
from plugins.lp import LinearProbe
from plugins.nmtune import NMTune
from plugins.registry import HEADS
from probes.hashing import hash_value
from probes.head_code import DIGITS, head_code
from probes.heads import HeadChoice, settings_to_try
from probes.tuning.low_rank import NEEDS, LoRA
from probes.tuning.methods import LPFT, REGULARISERS, BitFit, Full, Regulariser, Tuning

METHODS: dict[str, type[Tuning]] = {make.method: make for make in (Full, LoRA, BitFit, LPFT)}
"""The methods by name."""
_FLAGS = {"regulariser": "--regulariser", "wise_ft": "--wise-ft"}
# What of this folder a result follows from; the rest carries it out.
_FILES = ("methods.py", "low_rank.py", "network.py", "training.py")


def choose_methods(
    methods: str,
    regularisers: str,
    hyper: Sequence[str],
    shares: Sequence[float],
    *,
    tries: int,
) -> list[HeadChoice]:
    """Return the methods that a user named, each with each regulariser and share of tuned weights.

    Args:
        methods: Names, comma-separated.
        regularisers: Names, comma-separated.
        hyper: Settings, see :func:`probes.heads.choose_heads`; ``METHOD.NAME=...`` for one alone.
        shares: Shares of the tuned weights, see :attr:`probes.tuning.methods.Full.wise_ft`.
        tries: Settings to try of each.

    Raises:
        UserError: If a name or a hyper-parameter is unknown, or a value impossible.
    """
    asked = _names("--method", methods, METHODS)
    added = _names("--regulariser", regularisers, REGULARISERS)
    for text in hyper:
        name = text.partition("=")[0].rpartition(".")[2]
        if name in _FLAGS:
            raise UserError(f"--hyper {text}: has an option of its own", mend=f"say it with {_FLAGS[name]}")
    classes: dict[str, type[Tuning]] = {name: METHODS[name] for name in asked}
    for make in classes.values():
        # Before any of the slow work.
        for library in make.libraries:
            import_extra(library, *NEEDS)
    found = []
    for regulariser in cast(list[Regulariser], added):
        bound = {
            name: cast(Any, functools.partial(make, regulariser=regulariser))
            for name, make in classes.items()
        }
        for (name, make), candidates in zip(
            classes.items(), settings_to_try(bound, hyper, "image", tries=tries), strict=True
        ):
            ending = "" if regulariser == "none" else f"-{regulariser}"
            # Of this project, as its linear probe is.
            plugin = HEADS.find("lp")._replace(
                name=f"tune-{name}{ending}", value=f"{make.__module__}:{make.__qualname__}"
            )
            for share in dict.fromkeys(shares or [1.0]):
                if share != 1 and not issubclass(make, Full):
                    raise UserError(
                        f"--wise-ft {share:g}: {name} does not tune the weights themselves",
                        possible="with full, lp-ft",
                    )
                settings = tuple(
                    {**candidate, **({"wise_ft": float(share)} if issubclass(make, Full) else {})}
                    for candidate in candidates
                )
                found.append(HeadChoice(plugin, cast("type[Head]", make), _code(), settings))
    return found


def same_training(choices: Sequence[HeadChoice]) -> list[list[HeadChoice]]:
    """Return the choices in groups of one training each, whose networks differ in interpolation alone."""
    groups: dict[str, list[HeadChoice]] = {}
    for choice in choices:
        settings = [{**one, "wise_ft": None} for one in choice.candidates]
        groups.setdefault(repr([choice.plugin.name, settings]), []).append(choice)
    return list(groups.values())


@functools.cache
def _code() -> str:
    folder = Path(__file__).parent
    own = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES}
    return hash_value([own, head_code(NMTune), head_code(LinearProbe)])[:DIGITS]


def _names(flag: str, text: str, known: Sequence[str] | dict[str, Any]) -> list[str]:
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in found:
        if name not in known:
            raise unknown_name(flag, name, known)
    if not found:
        raise UserError(f"{flag}: names none", possible=", ".join(known))
    return found
