"""Features of a source's images by a named encoder, for noise that depends on the instance.

``--encoder timm:resnet18,weights=FILE`` computes them when the noise is planned. Features that
another program computed are named with ``--model-file`` instead.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nml.cli import is_interactive
from nml.errors import UserError
from nml.files import json_bytes, sha256_file
from nml.hub import unreachable
from nml.weight_files import load_weights
from shards.decode import BadImage, decode_rgb

FOR_MODEL = "instance-dependent"
BATCH = 64


class EncoderSpec(NamedTuple):
    """What ``--encoder`` names.

    Attributes:
        text: As typed.
        model: A model of timm.
        weights: A local file; None for timm's own pre-trained weights.
    """

    text: str
    model: str
    weights: Path | None


def parse_encoder(text: str) -> EncoderSpec:
    """Read ``timm:NAME`` or ``timm:NAME,weights=FILE``.

    Raises:
        UserError: If it is neither, timm has no such model, or there is no such file.
    """
    kind, _, rest = text.partition(":")
    name, *options = rest.split(",")
    if kind != "timm" or not name or any(not option.startswith("weights=") for option in options):
        raise UserError(
            f"--encoder {text}: not an encoder of this command",
            possible="timm:resnet18, or timm:resnet18,weights=FILE",
            mend="compute the features of any other encoder yourself and name them with --model-file",
        )
    import timm

    if not timm.is_model(name):
        # Not the names of all: timm has more than a thousand.
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"--encoder {text}: timm has no model {name}",
            possible=" or ".join(near) or "what timm.list_models() returns",
        )
    weights = Path(options[-1].removeprefix("weights=")) if options else None
    if weights is not None and not weights.is_file():
        raise UserError(f"--encoder {text}: there is no file {weights}", mend="name a file of weights")
    return EncoderSpec(text, name, weights)


def open_encoder(text: str | None, model: str | None, model_file: str | None) -> Encoder | None:
    """Return the encoder that computes what the noise model reads; None if none was asked for.

    Args:
        text: ``--encoder``.
        model: ``--model``.
        model_file: ``--model-file``.

    Raises:
        UserError: If it cannot be had, or nothing would read its features.
    """
    if not text:
        return None
    if model != FOR_MODEL:
        raise UserError(
            f"--encoder {text}: --model {model or 'was not given, and the default one'} reads no features",
            mend=f"choose --model {FOR_MODEL}, or leave the encoder out",
        )
    if model_file:
        raise UserError(
            f"--encoder {text}, --model-file {model_file}: both give features", mend="name one of them"
        )
    return Encoder(parse_encoder(text))


def describe_input(model_file: str | None, encoder: Encoder | None) -> dict[str, Any] | None:
    """Return what set.json records of what a noise model read; None if it read nothing.

    Args:
        model_file: The file, or ``FILE.pt:NAME`` for one entry of it.
        encoder: What computed it, if something did.
    """
    if not model_file:
        return None
    path = Path(model_file)
    if not path.is_file():
        path = Path(model_file.rpartition(":")[0])
    recorded = {"file_sha256": sha256_file(path)} if path.is_file() else {}
    return recorded | (encoder.identity if encoder else {})


class Encoder:
    """A frozen timm model without its classifier.

    Attributes:
        identity: Its name, the SHA-256 of its parameters and its preprocessing, for set.json.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        import timm
        import torch

        self._spec = spec
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = _load(spec).train(False).requires_grad_(False)
        config = timm.data.resolve_model_data_config(self._model)
        self._transform = timm.data.create_transform(**config, is_training=False)
        self.identity = {
            "encoder": spec.text,
            "weights_sha256": _hash(self._model),
            "preprocessing": {name: config[name] for name in sorted(config)},
        }
        self._model.to(self._device)

    def is_the_one(self, identity: dict[str, Any]) -> bool:
        """Whether an identity that was written down is this encoder's."""
        return json_bytes(identity) == json_bytes(self.identity)

    def features(
        self, read: Callable[[int], bytes], numbers: Sequence[int], done: Callable[[int], object]
    ) -> Any:
        """Return the features of some samples, float32 [len(numbers), D].

        Args:
            read: Returns the encoded image of a sample; called from several threads.
            numbers: The samples, which pass through the model ``BATCH`` at a time.
            done: Told how many more are done.

        Raises:
            UserError: If an image cannot be decoded.
        """
        import torch

        parts = []
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, torch.inference_mode():
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                images = torch.stack(list(pool.map(lambda number: self._prepared(read, number), batch)))
                parts.append(self._model(images.to(self._device)).float().flatten(1).cpu().numpy())
                done(len(batch))
        return np.concatenate(parts)

    def write_features(self, path: Path, read: Callable[[int], bytes], samples: int) -> None:
        """Write the features of every sample, in order, as ``.npy`` float32 [N, D].

        Args:
            path: What to write.
            read: As in :meth:`features`, and so are the errors.
            samples: N.
        """
        features: np.memmap[Any, Any] | None = None
        with tqdm(desc="encoding", total=samples, unit=" samples", disable=not is_interactive()) as progress:
            for start in range(0, samples, BATCH):
                rows = self.features(read, range(start, min(start + BATCH, samples)), progress.update)
                if features is None:
                    shape = (samples, rows.shape[1])
                    features = np.lib.format.open_memmap(path, "w+", np.float32, shape)
                features[start : start + len(rows)] = rows
        if features is not None:
            features.flush()

    def _prepared(self, read: Callable[[int], bytes], number: int) -> Any:
        try:
            return self._transform(decode_rgb(read(number)))
        except BadImage as error:
            raise UserError(
                f"--encoder {self._spec.text}: image {number} of the source: {error}",
                mend="remove it from the source",
            ) from error


def _load(spec: EncoderSpec) -> Any:
    import timm

    if spec.weights is None:
        unreachable()
        try:
            return timm.create_model(spec.model, pretrained=True, num_classes=0)
        # The hub, urllib and timm each raise their own types when there is no network.
        except Exception as error:
            raise UserError(
                f"--encoder {spec.text}: the pre-trained weights could not be loaded: {type(error).__name__}",
                mend="download them on a machine with network and add weights=FILE",
            ) from error
    model = timm.create_model(spec.model, pretrained=False, num_classes=0)
    load_weights(model, spec.weights, f"--encoder {spec.text}")
    return model


def _hash(model: Any) -> str:
    """Return the SHA-256 of all parameters and buffers with their names, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
