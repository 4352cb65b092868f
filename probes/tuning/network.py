"""An encoder whose weights change while it is tuned, and are put back after."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nml.errors import UserError
from probes.encoders.encoder import Encoder
from probes.encoders.torch_images import TorchImageEncoder
from probes.features.computing import prepared_batches
from probes.samples import SampleSet
from probes.tuning.methods import Tuning


class Network:
    """The network of an encoder, frozen but for the time that it is tuned.

    Args:
        encoder: The encoder, see :func:`check_encoder`.
    """

    def __init__(self, encoder: TorchImageEncoder) -> None:
        self.encoder = encoder
        self._weights = {name: part.detach().clone() for name, part in encoder.module.named_parameters()}

    def weight(self, name: str) -> Tensor:
        """Return a parameter as it was before any tuning."""
        return self._weights[name]

    def used(self, sample: Sequence[object]) -> list[str]:
        """Return the names of the parameters that features depend on; exports have a classifier, too.

        Args:
            sample: A prepared sample or several.
        """
        module = self.encoder.module
        module.requires_grad_()
        try:
            self.encoder.features(sample).sum().backward()
            return [name for name, part in module.named_parameters() if part.grad is not None]
        finally:
            self._restore()

    @contextlib.contextmanager
    def tuning(self, method: Tuning, used: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
        """Make the network ready for training, yield what is trained of it, and put all back."""
        try:
            yield method.begin(self.encoder.module, used)
        finally:
            method.end(self.encoder.module)
            self._restore()

    @contextlib.contextmanager
    def tuned(self, method: Tuning, state: Mapping[str, Tensor]) -> Iterator[TorchImageEncoder]:
        """Give the network what was trained of it, yield the encoder that it then is, and put all back."""
        try:
            with torch.random.fork_rng(devices=[]):
                method.put(self.encoder.module, state)
            yield self.encoder
        finally:
            self._restore()

    def encode(
        self, samples: SampleSet, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return features of samples by the network as it is now, float32 [N, D].

        Args:
            samples: The samples.
            rows: Which of them, int64 [N]; None is all.
        """
        wanted = range(len(samples.keys)) if rows is None else rows.tolist()
        size = self.encoder.batch_size
        batches = [
            [(row, 0) for row in wanted[start : start + size]] for start in range(0, len(wanted), size)
        ]
        return np.concatenate(
            [self.encoder.encode(batch) for batch in prepared_batches(self.encoder, samples, batches)]
        )

    def _restore(self) -> None:
        module = self.encoder.module
        module.requires_grad_(False)
        for name, part in module.named_parameters():
            part.grad = None
            part.data.copy_(self._weights[name])


def check_encoder(encoder: Encoder) -> TorchImageEncoder:
    """Return an encoder that can be tuned.

    Raises:
        UserError: If it is no network of images that runs here.
    """
    if not isinstance(encoder, TorchImageEncoder):
        raise UserError(
            f"encoder {encoder.info.name}: no whole network of images that could be trained here",
            possible="--checkpoint RUN, --encoder timm:NAME, open_clip:NAME/TAG or transformers:NAME, "
            "without layer=",
        )
    return encoder
