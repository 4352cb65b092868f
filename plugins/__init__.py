"""The heads: what is trained on an encoder's frozen features, and how third parties add their own.

``plugins.head`` is the contract, ``plugins.registry`` finds heads, ``plugins.testing`` checks them.
Importing this package imports no torch.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from plugins.classifier import HeadClassifier

__all__ = ["HeadClassifier"]


def __getattr__(name: str) -> object:
    """Return the classifier, which is imported when it is asked for."""
    if name != "HeadClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from plugins.classifier import HeadClassifier

    return HeadClassifier
