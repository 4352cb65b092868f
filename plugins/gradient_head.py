"""The base of every head that is trained by gradient descent: say what the module and its loss are.

A subclass gives :meth:`GradientHead.build_transform` and, where cross-entropy is not all, named terms::

    @dataclass(kw_only=True, eq=False)
    class Narrow(GradientHead):
        width: int = 64

        def build_transform(self, in_features):
            return nn.Sequential(nn.Linear(in_features, self.width), nn.Tanh())

Training, seeds, devices, saving and the batched pass over many copies are done here and in ``trainer``.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from nml.errors import UserError
from nml.labels import TARGETS, Target
from plugins.head import CLASSES_ALONE, check_data, check_types
from plugins.schedule import TEXT, VISION, Modality, Schedule
from plugins.trainable import Batch, HeadModule
from plugins.trainer import Copy, fit_many

STRONG_DECAY = 1.0
"""Weight decay that is tried beside the schedule's. AdamW takes off lr times it a step, so over a fit of some
hundred steps it matters from about 1 on."""
_LOSS = ("terms", "label_terms", "build_classifier", "fit")
"""Methods that a subclass may write for classes alone."""
PREDICT_ROWS = 8192
"""Rows a forward pass without gradients takes at once; bounds the memory of wide heads."""


@dataclasses.dataclass(kw_only=True, eq=False)
class GradientHead(abc.ABC):
    """A transformation, a linear classifier on it, and a loss of named terms.

    Attributes:
        modality: Whose schedule of the paper fills in what is None below: ``vision`` (30 epochs, cosine
            decay) or ``text`` (10 epochs, linear decay).
        epochs: Passes over the training features.
        lr: AdamW's first learning rate.
        weight_decay: AdamW's weight decay.
        batch_size: Samples a step.
        least_steps: Steps of a fit on however few samples. None is 600, and 0 where ``epochs`` is given. The
            paper knows epochs only: 0.
        rescale: Whether features are divided by one number fitted on the training features
            (:func:`plugins.trainable.feature_scales`), so that their unit does not matter; it is kept with
            the weights. Of the terms of Eq. 3 to 5 it changes L_COV alone, which is computed on the Z of the
            divided features. The paper takes features as the encoder gives them: False.
        schedules: The paper's schedule of each modality.
        stackable: Whether copies train in one batched pass; a module that draws random numbers as it
            trains (dropout) has to be trained alone.
        uses_validation: Whether :meth:`fit` looks at validation data.
        targets: Which labels the head takes. A subclass with a loss, a classifier or a ``fit`` of its own
            takes classes alone, unless it says otherwise.
    """

    modality: Modality = "vision"
    epochs: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    batch_size: int = 64
    rescale: bool = True
    least_steps: int | None = None

    schedules: ClassVar[Mapping[str, Schedule]] = {"vision": VISION, "text": TEXT}
    stackable: ClassVar[bool] = True
    uses_validation: ClassVar[bool] = False
    targets: ClassVar[frozenset[Target]] = TARGETS

    _module: HeadModule | None = dataclasses.field(default=None, init=False, repr=False)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "targets" not in vars(cls) and any(name in vars(cls) for name in _LOSS):
            cls.targets = CLASSES_ALONE

    def __post_init__(self) -> None:
        check_types(self)
        if self.modality not in self.schedules:
            raise UserError(f"modality {self.modality!r}", possible=" or ".join(self.schedules))
        self.schedule()

    @abc.abstractmethod
    def build_transform(self, in_features: int) -> nn.Module:
        """Return the untrained module that maps [M, ``in_features``] to Z [M, H]."""

    def build_classifier(self, in_features: int, num_classes: int) -> nn.Module:
        """Return the untrained module that maps Z [M, ``in_features``] to scores [M, ``num_classes``]."""
        return nn.Linear(in_features, num_classes)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms whose sum is minimised, already weighted, by name; the labels' is the first.

        The batch is that of one copy, whatever the number of copies in training.
        """
        return self.label_terms(batch)

    def label_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return how scores are held to labels: cross-entropy, or what withstands wrong ones better.

        Of several labels a sample it is binary cross-entropy, the mean over samples and labels; of numbers
        the squared error, in units of their deviation over the training samples.
        """
        logits, labels = batch.logits.float(), batch.labels
        if labels.dtype == torch.bool:
            return {"cross_entropy": functional.binary_cross_entropy_with_logits(logits, labels.float())}
        if labels.is_floating_point():
            return {"squared_error": functional.mse_loss(logits.squeeze(1), labels)}
        return {"cross_entropy": functional.cross_entropy(logits, labels)}

    def build_memory(self, samples: int, num_classes: int) -> dict[str, Tensor]:  # noqa: ARG002 - most have none
        """Return what a fit remembers from step to step, by name, as it is before the first.

        A head that overrides this finds it in ``Batch.memory`` and may change it there in place, for
        example a row of every training sample by ``Batch.samples``.

        Args:
            samples: N, the samples of the training set; ``Batch.samples`` are below it.
            num_classes: K.
        """
        return {}

    def prepare(  # noqa: B027 - most heads need nothing
        self,
        copies: Sequence[Copy],
        features: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        device: str,
    ) -> None:
        """Find out what heads need before they are trained, for many at once; each is told its own.

        Args:
            copies: Copies of one kind, of which this head's is one.
            features: The training set, [N, D].
            labels: Its labels, int64 [N].
            num_classes: K.
            device: Where to compute.
        """

    def schedule(self) -> Schedule:
        """Return the schedule in force.

        Raises:
            UserError: If a value is impossible.
        """
        given = {
            name: getattr(self, name)
            for name in ("epochs", "lr", "weight_decay", "batch_size", "least_steps")
            if getattr(self, name) is not None
        }
        if self.epochs is not None:
            given = {"least_steps": 0} | given
        return dataclasses.replace(self.schedules[self.modality], **given)

    def sweep(self) -> list[dict[str, Any]]:
        """Return the settings worth trying beside the head's own: learning rate and weight decay."""
        rate, strong = self.tried_rate(), {"weight_decay": STRONG_DECAY}
        return [strong, {"lr": rate}, {"lr": rate} | strong]

    def tried_rate(self) -> float:
        """Return the learning rate that is tried beside the schedule's: ten times it."""
        return 10 * self.schedule().lr

    def build(self, in_features: int, num_classes: int, *, seed: int = 0) -> HeadModule:
        """Return the untrained module, the same for the same seed; global random states stay as they were."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            transform = self.build_transform(in_features)
            with torch.no_grad():
                width = transform.eval()(torch.zeros(1, in_features)).shape[1]
            return HeadModule(transform, self.build_classifier(width, num_classes), in_features)

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> Self:
        """Train on features [N, D] and labels [N]; see :meth:`plugins.head.Head.fit`."""
        num_classes = check_data(features, labels, validation, num_classes, targets=self.targets)
        fit_many([Copy(self, seed=seed)], features, labels, num_classes=num_classes, device=device)
        return self

    def adopt(self, module: HeadModule) -> None:
        """Take over a trained module."""
        self._module = module.eval().requires_grad_(False)

    def transform(self, features: Tensor) -> Tensor:
        """Return Z, float32 [N, H] on the CPU, in the unit of the features."""
        return self._forward(features, self._transformed)

    def predict_logits(self, features: Tensor) -> Tensor:
        """Return class scores, float32 [N, K] on the CPU."""
        return self._forward(features, lambda module, rows: module(rows)[2])

    def inference_module(self) -> nn.Module:
        """Return the fitted module; of what it returns, the class scores are exported."""
        return self._fitted()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights, the number of features as ``in_features``, and their ``scale``."""
        state = self._fitted().state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a head with the same hyper-parameters."""
        # A head from before there was a scale has none.
        state = {"scale": torch.tensor(1.0), **state}
        weights = [value for name, value in state.items() if re.fullmatch(r"classifier\..*weight", name)]
        num_classes = weights[-1].shape[0]
        module = self.build(int(state["in_features"]), num_classes)
        module.load_state_dict(state)
        self.adopt(module)

    def _fitted(self) -> HeadModule:
        if self._module is None:
            raise UserError(f"{type(self).__name__} is not fitted", mend="call fit or load_state_dict first")
        return self._module

    @staticmethod
    def _transformed(module: HeadModule, rows: Tensor) -> Tensor:
        scaled, transformed, _ = module(rows)
        # Features that are left as they are come back to the last bit.
        return rows if transformed is scaled else transformed * module.scale

    @torch.no_grad()
    def _forward(self, features: Tensor, output: Callable[[HeadModule, Tensor], Tensor]) -> Tensor:
        module = self._fitted()
        device = module.in_features.device
        parts = features.split(PREDICT_ROWS)
        return torch.cat([output(module, rows.to(device, torch.float32)).float().cpu() for rows in parts])
