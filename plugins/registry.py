"""The registry of heads. Listing them imports neither a head nor torch."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, get_args

from nml.labels import Target
from nml.registry import Registry

FIT_KEYWORDS = ("validation", "num_classes", "seed", "device")
# What only heads are given whose class says so.
ASKED = "class_embeddings"
METHODS = ("fit", "transform", "predict_logits", "state_dict", "load_state_dict")


def contract_fault(head: Any) -> str | None:
    """Return what keeps an object from being a head class, or None; nothing is called.

    Only the shape of the class is looked at. How it behaves is for ``plugins.testing``.
    """
    if not inspect.isclass(head):
        return f"it is a {type(head).__name__}, not a class"
    methods: dict[str, Any] = {name: getattr(head, name, None) for name in METHODS}
    missing = [name for name, method in methods.items() if not callable(method)]
    if missing:
        return f"it lacks {', '.join(name + '()' for name in missing)}"
    abstract = sorted(getattr(head, "__abstractmethods__", ()))
    if abstract:
        return f"it lacks {', '.join(name + '()' for name in abstract)}, which its base leaves open"
    if hasattr(head, "targets") and (fault := _targets_fault(head.targets)):
        return fault
    try:
        parameters = inspect.signature(methods["fit"]).parameters
        settings = inspect.signature(head).parameters
    except ValueError as error:
        return f"its methods cannot be looked at: {error}"
    swallows = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    asked = (ASKED,) if getattr(head, f"uses_{ASKED}", False) else ()
    refused = [name for name in (*FIT_KEYWORDS, *asked) if name not in parameters and not swallows]
    if refused:
        return f"its fit() takes no {', '.join(refused)}"
    for name, parameter in settings.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            return f"its __init__ takes *{name}, which would swallow a misspelt hyper-parameter"
        if parameter.default is parameter.empty:
            return f"its hyper-parameter {name} has no default"
    return None


def _targets_fault(targets: Any) -> str | None:
    """Return what is wrong with which labels a class says that it takes, or None."""
    known = get_args(Target)
    # A text would be taken for the set of its letters.
    names = targets if isinstance(targets, Collection) and not isinstance(targets, str) else None
    if names and all(name in known for name in names):
        return None
    return f"its targets are {targets!r}; possible: a set of {', '.join(known)}"


HEADS = Registry(
    "nml.heads",
    kind="head",
    where="--plugin",
    listing="python -m plugins list",
    fault=contract_fault,
)
