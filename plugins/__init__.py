"""The heads: what is trained on an encoder's frozen features, and how third parties add their own.

``plugins.head`` is the contract, ``plugins.registry`` finds heads, ``plugins.testing`` checks them.
Importing this package imports no torch.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from plugins.classifier import HeadClassifier
    from plugins.regressor import HeadRegressor

__all__ = ["HeadClassifier", "HeadRegressor"]


def __getattr__(name: str) -> object:
    """Return the estimators of scikit-learn, which are imported when they are asked for."""
    if name == "HeadClassifier":
        from plugins.classifier import HeadClassifier

        return HeadClassifier
    if name == "HeadRegressor":
        from plugins.regressor import HeadRegressor

        return HeadRegressor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
