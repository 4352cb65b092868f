"""The registry of heads. Listing them imports neither a head nor torch."""

from __future__ import annotations

import inspect
from typing import Any

from nml.registry import Registry

METHODS = ("fit", "transform", "predict_logits", "state_dict", "load_state_dict")


def contract_fault(head: Any) -> str | None:
    """Return what keeps an object from being a head class, or None; nothing is called.

    Only the shape of the class is looked at. How it behaves is for ``plugins.testing``.
    """
    if not inspect.isclass(head):
        return f"it is a {type(head).__name__}, not a class"
    missing = [name for name in METHODS if not callable(getattr(head, name, None))]
    if missing:
        return f"it lacks {', '.join(name + '()' for name in missing)}"
    for name, parameter in inspect.signature(head).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            return f"its __init__ takes *{name}, which would swallow a misspelt hyper-parameter"
        if parameter.default is parameter.empty:
            return f"its hyper-parameter {name} has no default"
    return None


HEADS = Registry(
    "nml.heads",
    kind="head",
    where="--plugin",
    listing="python -m plugins list",
    fault=contract_fault,
)
