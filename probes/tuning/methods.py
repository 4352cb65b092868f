"""How an encoder is fine-tuned: which of its parameters are trained, from which head, with which losses.

Whatever the method, the network stays in evaluation mode: batch norm uses the statistics of the pre-training,
dropout and stochastic depth are off. What a sample gives then does not depend on its batch, what is not
trained stays as it was to the last bit, and interpolated weights need no statistics of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from nml.errors import UserError
from nml.labels import TARGETS, Target
from plugins.gradient_head import STRONG_DECAY
from plugins.head import at_least, check_types
from plugins.lp import LinearProbe
from plugins.nmtune import NMTune
from plugins.schedule import Schedule
from plugins.trainable import Batch

Regulariser = Literal["none", "nmtune"]
REGULARISERS: tuple[Regulariser, ...] = ("none", "nmtune")


@dataclasses.dataclass(kw_only=True, eq=False)
class Tuning:
    """One way of fine-tuning: all parameters, from a new head.

    AdamW with the learning rate falling to zero along a cosine, on every parameter that is trained.

    Attributes:
        epochs: Passes over the training samples.
        lr: First learning rate.
        weight_decay: Decoupled weight decay.
        batch_size: Samples a step.
        regulariser: ``nmtune`` adds the terms of Eq. 3 to 5 of arXiv 2309.17002, with the features of the
            encoder as it was for F and those of the tuned one for Z, as in arXiv 2403.06869.
        weight: Their weight, lambda of Eq. 6; None is 0.01, or 0 without a regulariser.
        method: The name of the method.
        targets: Which labels it takes.
        libraries: What of the extra ``tune`` it needs.
    """

    epochs: int = 10
    lr: float = 1e-4
    weight_decay: float = 0.1
    batch_size: int = 64
    regulariser: Regulariser = "none"
    weight: float | None = None

    method: ClassVar[str] = "full"
    targets: ClassVar[frozenset[Target]] = TARGETS
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_types(self)
        if self.weight is None:
            self.weight = NMTune().weight if self.regulariser == "nmtune" else 0.0
        elif self.regulariser == "none" and self.weight:
            raise UserError(f"weight {self.weight:g}", possible="with --regulariser nmtune")
        at_least(self, 0, "weight")
        self.schedule()

    def schedule(self) -> Schedule:
        """Return the schedule in force.

        Raises:
            UserError: If a value is impossible.
        """
        return Schedule(
            epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay, batch_size=self.batch_size
        )

    def sweep(self) -> list[dict[str, Any]]:
        """Return the settings worth trying beside its own: a tenth of the learning rate, strong decay."""
        slow, strong = {"lr": self.lr / 10}, {"weight_decay": STRONG_DECAY}
        return [slow, strong, slow | strong]

    @property
    def begins_with_probe(self) -> bool:
        """Whether a linear probe of the frozen features has to be fitted first."""
        return False

    @property
    def starts_at_probe(self) -> bool:
        """Whether the head that is trained begins as that linear probe."""
        return False

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms whose sum is minimised, by name."""
        if self.regulariser == "nmtune" and self.weight is not None:
            return NMTune(weight=self.weight).terms(batch)
        return LinearProbe().terms(batch)

    def begin(self, module: nn.Module, used: Collection[str]) -> dict[str, nn.Parameter]:
        """Make a network ready for training and return what of it is trained, by name.

        Args:
            module: The network, all of it frozen.
            used: Names of the parameters that its features depend on.

        Raises:
            UserError: If the network has none such.
        """
        known = dict(module.named_parameters())
        trained = {name: known[name] for name in self.names(module, used)}
        for part in trained.values():
            part.requires_grad_()
        return trained

    def names(self, module: nn.Module, used: Collection[str]) -> list[str]:  # noqa: ARG002 - others look at it
        """Return the names of the network's own parameters that are trained."""
        return sorted(used)

    def end(self, module: nn.Module) -> None:
        """Take out of a network what :meth:`begin` put into it."""

    def put(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Give a frozen network what was trained of it."""
        known = dict(module.named_parameters())
        for name, value in state.items():
            known[name].data.copy_(value)


@dataclasses.dataclass(kw_only=True, eq=False)
class Full(Tuning):
    """All parameters, from a new head.

    Attributes:
        wise_ft: Share of the tuned weights in the network that is measured, 0 to 1; the others are those of
            the encoder as it was with a linear probe (WiSE-FT, arXiv 2109.01903). 1 is the tuned network.
        probe_epochs: Epochs of the linear probe; None is its own 30.
    """

    wise_ft: float = 1.0
    probe_epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.wise_ft <= 1:
            raise UserError(f"wise_ft {self.wise_ft:g}", possible="0 to 1")
        if self.probe_epochs is not None:
            at_least(self, 1, "probe_epochs")

    @property
    def begins_with_probe(self) -> bool:
        """Whether a linear probe has to be fitted first: to interpolate with."""
        return self.wise_ft < 1


@dataclasses.dataclass(kw_only=True, eq=False)
class LPFT(Full):
    """All parameters, from a head that is a linear probe of the frozen features (LP-FT, arXiv 2202.10054)."""

    method: ClassVar[str] = "lp-ft"

    @property
    def begins_with_probe(self) -> bool:
        """Always."""
        return True

    @property
    def starts_at_probe(self) -> bool:
        """Always."""
        return True


@dataclasses.dataclass(kw_only=True, eq=False)
class BitFit(Tuning):
    """Biases alone (BitFit, arXiv 2106.10199); where there is batch norm, the scales of all norms with them.

    Convolutions before a batch norm have no biases, so that of a ResNet hardly anything else would be left.
    """

    lr: float = 1e-3

    method: ClassVar[str] = "bitfit"

    def names(self, module: nn.Module, used: Collection[str]) -> list[str]:
        """Return the biases, and perhaps the scales of the norms."""
        norms = {name for name, part in module.named_modules() if "Norm" in type(part).__name__}
        batch_norm = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
        found = []
        for name in sorted(used):
            part, _, last = name.rpartition(".")
            if last == "bias" or last.endswith("_bias") or (batch_norm and part in norms):
                found.append(name)
        if not found:
            raise UserError("--method bitfit: the network has no biases", possible="full, lora, lp-ft")
        return found
