"""What an encoder is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from probes.hashing import hash_value
from probes.samples import Content, Modality


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run an encoder.

    Attributes:
        device: ``cpu``, ``cuda`` or ``auto``.
        batch_size: Samples a forward pass.
        keys: What may be sent where, as ``VARIABLE@HOST``, besides what
            :mod:`probes.encoders.api_keys` knows; None for whatever the
            specifications say, where they are the caller's own words.
        signed_by: Public key that exports must be signed with; None: they need no signature.
    """

    device: str = "auto"
    batch_size: int = 64
    keys: frozenset[str] | None = None
    signed_by: str | None = None

    def torch_device(self) -> str:
        """Return the device to use; ``auto`` takes the first CUDA device if there is one."""
        import torch

        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """The pre-training that an encoder came from; all None where it is not known.

    Attributes:
        run_path: Folder of the run.
        step: Step of the exported checkpoint.
        epoch: The same in passes over the set.
        objective: ``classify`` or ``clip``.
        noise_ratio: Realised share of noisy labels, 0 to 1.
        noise_level: Name of the level, ``n20``.
        noise_model: Name of the noise model.
        manifest_sha256: Hash of the manifest that holds every flip.
        set_fingerprint: Fingerprint of the shard set.
        set_path: Where the set lay.
    """

    run_path: str | None = None
    step: int | None = None
    epoch: float | None = None
    objective: str | None = None
    noise_ratio: float | None = None
    noise_level: str | None = None
    noise_model: str | None = None
    manifest_sha256: str | None = None
    set_fingerprint: str | None = None
    set_path: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What an encoder is made of.

    Attributes:
        name: Display name.
        kind: Registered name of the encoder's kind.
        modality: What it reads; ``any`` for features that were computed elsewhere.
        identity: Everything its features depend on, JSON-like: hashes of weights, preprocessing, pooling.
        provenance: The pre-training it came from.
        versions: Libraries that compute the features; recorded, no part of the identity.
    """

    name: str
    kind: str
    modality: Modality | Literal["any"]
    identity: Mapping[str, Any]
    provenance: Provenance = Provenance()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hex SHA-256 of the identity."""
        return hash_value(self.identity)


class Encoder(Protocol):
    """A frozen model behind two calls.

    One with a text tower may also have ``class_embeddings(names)``, which returns a unit vector for each
    class, float32 [K, D], in the space of its features, and ``texts``, JSON-like: all that these depend on
    besides the names. Heads that ask for class text embeddings get them.

    One that is a network of torch may also have ``module``, the network, and
    ``run(prepared) -> (features, pool)``: features as a tensor [B, D], and a function that makes such of what
    any of its layers gave meanwhile. Then ``layer=NAME`` works (:mod:`probes.encoders.layers`).

    Attributes:
        info: What it is made of.
        batch_size: Prepared samples that one :meth:`encode` call should get.
    """

    @property
    def info(self) -> EncoderInfo:
        """What it is made of."""
        ...

    @property
    def batch_size(self) -> int:
        """Prepared samples that one :meth:`encode` call should get."""
        ...

    def prepare(self, content: Content) -> Any:
        """Turn one sample into model input. Called from several threads."""
        ...

    def encode(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return features, float32 [len(prepared), D], one row a sample, independent of the other rows."""
        ...
