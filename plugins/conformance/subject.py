"""The head class under check, the small problem it is given, and what its answers must be."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from nml.conformance import promise
from plugins.head import Labelled
from plugins.registry import contract_fault

CLASSES = 3
# Wide enough that also a deep head with few steps a fit learns it, and few enough samples that a fit of 30
# epochs takes a fraction of a second; both sets have more samples than features.
WIDTH = 64
TRAIN = 120
TEST = 72
# The same features in another batch go through other kernels; that is all that may differ.
TOLERANCE = 1e-4


class Subject:
    """A head class under check, and its defaults fitted once for the checks that only look.

    Args:
        head: The class.
        device: Where it computes.
    """

    def __init__(self, head: type[Any], device: str = "cpu") -> None:
        self.head = head
        self.device = device
        self.train = separable(TRAIN, seed=0)
        self.test = separable(TEST, seed=1)

    @functools.cached_property
    def fault(self) -> str | None:
        """What keeps the class from being a head, or None."""
        return contract_fault(self.head)

    @functools.cached_property
    def fitted(self) -> Any:
        """A head fitted on the training data with seed 0; checks must not fit it again."""
        return self.fit()

    def fit(self, data: Labelled | None = None, *, head: Any = None, seed: int = 0, **more: Any) -> Any:
        """Return a head, a fresh one unless given, fitted.

        It sees a copy of the data, so that what one check's fault does to them stays in that check.
        """
        head = self.fresh() if head is None else head
        features, labels = (part.clone() for part in data or self.train)
        more = {"num_classes": CLASSES, **more}
        asked = self.asked(features, more["num_classes"])
        head.fit(features, labels, seed=seed, device=self.device, **asked, **more)
        return head

    def asked(self, features: Tensor, num_classes: int = CLASSES) -> dict[str, Tensor]:
        """Return the keywords of ``fit`` that the class asks for: a text embedding near each cluster."""
        if not getattr(self.head, "uses_class_embeddings", False):
            return {}
        return {"class_embeddings": torch.eye(num_classes, features.shape[1])}

    def fresh(self) -> Any:
        """Return a head with its defaults, but without a least number of steps: dozens are fitted."""
        known = inspect.signature(self.head).parameters
        return self.head(**({"least_steps": 0} if "least_steps" in known else {}))

    def logits(self, head: Any) -> Tensor:
        """Return a head's scores of the test data."""
        scores: Tensor = head.predict_logits(self.test.features.clone())
        return scores

    def classes(self, head: Any) -> Tensor:
        """Return the classes that a head names in the test data."""
        return self.logits(head).argmax(dim=1)


def separable(samples: int, *, seed: int, classes: int = CLASSES, width: int = WIDTH) -> Labelled:
    """Return one tight cluster a class, far from the others, in equal numbers."""
    generator = torch.Generator().manual_seed(seed)
    centres = 12 * torch.eye(classes, width)
    labels = torch.arange(samples) % classes
    return Labelled(centres[labels] + 0.5 * torch.randn(samples, width, generator=generator), labels)


def promise_scores(scores: Tensor, rows: int, columns: int) -> None:
    """Fail the running check unless the scores are finite and [``rows``, ``columns``]."""
    promise_finite_rows("predict_logits", scores, rows)
    promise(
        scores.shape[1:] == (columns,),
        f"predict_logits returned {list(scores.shape)}; expected [{rows}, {columns}]",
    )


def promise_finite_rows(method: str, result: Tensor, rows: int) -> None:
    """Fail the running check unless the result has ``rows`` rows, all finite."""
    promise(isinstance(result, Tensor), f"{method} returned {type(result).__name__}, not a tensor")
    promise(result.shape[:1] == (rows,), f"{method} returned {list(result.shape)} for {rows} samples")
    promise(bool(result.isfinite().all()), f"{method} returned nan or infinity")


def same(first: Tensor, second: Tensor, tolerance: float = 0.0) -> bool:
    """Whether two tensors have one shape and differ by no more than the tolerance, relative to their size."""
    if first.shape != second.shape:
        return False
    size = float(second.abs().max().clamp(1))
    return bool(torch.allclose(first, second, rtol=tolerance, atol=tolerance * size))
