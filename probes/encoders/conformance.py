"""What an encoder promises, as small named checks on a few samples.

A check that fails says what was promised and what was seen; ``python -m probes.encoders check SPEC`` runs all
of them. :mod:`nml.conformance` says how they run as tests of another package.
"""

from __future__ import annotations

import contextlib
import functools
import json
import unittest
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nml import digits
from nml.conformance import CheckFailed, checks_of, promise, refused, untouched_randomness
from nml.errors import UserError
from nml.randomness import scrambled_randomness
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.encoders.layers import OUTPUT, Layered, LayerEncoder, of_layers
from probes.encoders.registry import EncoderOpener, open_with
from probes.samples import Content
from probes.spec import split_spec

SAMPLES = 6
# The same sample in another batch goes through other kernels; that is all that may differ.
TOLERANCE = 1e-3

Features = npt.NDArray[np.float32]


class Subject:
    """An encoder under check.

    Args:
        opener: What its entry point names.
        text: What a user types for it.
        other: The same for other weights; empty if there are none to compare with.
        settings: How to run it.
    """

    def __init__(
        self, opener: EncoderOpener, text: str, other: str = "", settings: Settings | None = None
    ) -> None:
        self.opener = opener
        self.text = text
        self.other = other
        self.settings = settings or Settings(device="cpu")

    def open(self, text: str = "") -> Encoder:
        """Return the encoder, opened anew; another one if ``text`` names one."""
        return open_with(self.opener, split_spec(text or self.text), self.settings)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder as it was when it was first opened."""
        return self.open()

    @functools.cached_property
    def contents(self) -> list[Content]:
        """Samples of what it reads, all different."""
        modality = self.encoder.info.modality
        if modality == "any":
            raise unittest.SkipTest("features that were computed elsewhere are looked up, not computed")
        return samples(modality)

    @functools.cached_property
    def features(self) -> Features:
        """Their features, of one batch."""
        return encoded(self.encoder, self.contents)


def samples(modality: str) -> list[Content]:
    """Return a few samples, scans of digits or sentences."""
    if modality == "text":
        return [f"sample {number}: " + "a word and another " * number for number in range(SAMPLES)]
    return [Image.fromarray(image).convert("RGB") for image in digits.load("test").images[:SAMPLES]]


def encoded(encoder: Encoder, contents: Sequence[Content]) -> Features:
    """Return the features of samples that make one batch."""
    return encoder.encode([encoder.prepare(content) for content in contents])


def has_the_contract(subject: Subject) -> None:
    """``info`` names kind, modality and an identity that is JSON; ``batch_size`` is a number from 1."""
    info, batch_size = subject.encoder.info, subject.encoder.batch_size
    promise(isinstance(info, EncoderInfo), f"info is {type(info).__name__}, no EncoderInfo")
    promise(info.modality in ("image", "text", "any"), f"modality is {info.modality!r}")
    promise(bool(info.identity), "the identity is empty: all encoders of this kind would share features")
    try:
        json.dumps(dict(info.identity))
    except TypeError as error:
        raise CheckFailed(f"the identity is no JSON: {error}") from error
    promise(isinstance(batch_size, int) and batch_size > 0, f"batch_size is {batch_size!r}")


def features_are_finite_float32(subject: Subject) -> None:
    """``encode`` gives float32 [N, D], finite, a row a sample."""
    features = subject.features
    promise(isinstance(features, np.ndarray), f"encode returned {type(features).__name__}, no array")
    promise(
        features.dtype == np.float32 and features.ndim == 2 and len(features) == SAMPLES,
        f"encode returned {features.dtype} {list(features.shape)}; expected float32 [{SAMPLES}, D]",
    )
    promise(bool(np.isfinite(features).all()), "encode returned nan or infinity")


def samples_are_told_apart(subject: Subject) -> None:
    """Different samples have different features."""
    distinct = len(np.unique(subject.features, axis=0))
    promise(distinct > 1, f"{SAMPLES} different samples have one and the same features")


def batches_do_not_matter(subject: Subject) -> None:
    """A sample has the features it has alone, in whatever batch it comes."""
    alone = np.concatenate([encoded(subject.encoder, [content]) for content in subject.contents])
    _same(subject.features, alone, "encoded one by one")


def the_order_does_not_matter(subject: Subject) -> None:
    """A sample has the same features at any place of a batch."""
    turned = encoded(subject.encoder, subject.contents[::-1])[::-1]
    _same(subject.features, turned, "encoded in reverse order")


def encoding_again_gives_the_same(subject: Subject) -> None:
    """Nothing is drawn or remembered: a batch has the same features, whatever was encoded before."""
    expected = subject.features
    with scrambled_randomness():
        again = encoded(subject.encoder, subject.contents)
    _same(expected, again, "encoded a second time")


def opening_again_gives_the_same(subject: Subject) -> None:
    """What a user types names one encoder: the same features under the same hash."""
    with scrambled_randomness():
        again = subject.open()
    promise(again.info.hash == subject.encoder.info.hash, "opened a second time, it has another identity")
    _same(subject.features, encoded(again, subject.contents), "by an encoder that was opened a second time")


def threads_prepare_alike(subject: Subject) -> None:
    """``prepare`` is called from several threads at once."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        prepared = list(pool.map(subject.encoder.prepare, subject.contents * 8))[-SAMPLES:]
    _same(subject.features, subject.encoder.encode(prepared), "prepared in threads")


def samples_stay_as_they_are(subject: Subject) -> None:
    """Samples are read, never written."""
    expected = samples(subject.encoder.info.modality) if subject.contents else []
    encoded(subject.encoder, subject.contents)
    changed = sum(before != after for before, after in zip(expected, subject.contents, strict=True))
    promise(not changed, f"encoding changed {changed} of {SAMPLES} samples")


def weights_are_part_of_the_identity(subject: Subject) -> None:
    """Other weights are another identity: their features must not be taken from the store."""
    if not subject.other:
        raise unittest.SkipTest("no encoder of other weights was named: --other SPEC")
    other = subject.open(subject.other)
    differs = not np.array_equal(subject.features, encoded(other, subject.contents))
    promise(differs, f"{subject.other} gives the same features; name one of other weights")
    promise(
        other.info.hash != subject.encoder.info.hash,
        f"{subject.other} gives other features under the same identity",
    )


def class_embeddings_fit_the_features(subject: Subject) -> None:
    """What a text tower says of a class is a unit vector of the features' width, whatever else is asked."""
    encoder: Any = subject.encoder
    if not hasattr(encoder, "class_embeddings"):
        raise unittest.SkipTest("no text tower: it has no class_embeddings()")
    found = encoder.class_embeddings(["cat", "dog"])
    shown, expected = f"{found.dtype} {list(found.shape)}", f"float32 [2, {subject.features.shape[1]}]"
    promise(shown == expected, f"embeddings of two classes are {shown}; expected {expected}")
    lengths = np.linalg.norm(found, axis=1)
    promise(
        bool(np.allclose(lengths, 1, atol=TOLERANCE)), f"their lengths are {lengths.tolist()}; expected 1"
    )
    _same(found[::-1], encoder.class_embeddings(["dog", "cat"]), "of the classes in another order")
    promise(bool(encoder.texts), "texts is empty: results could not tell what the embeddings follow from")


def layers_come_of_one_pass(subject: Subject) -> None:
    """Each layer has features and an identity of its own, the same alone and with others, in any batch."""
    encoder, contents = subject.encoder, subject.contents
    siblings = encoder.siblings if isinstance(encoder, LayerEncoder) else _some_layers(encoder)
    prepared = [siblings[0].prepare(content) for content in contents]
    together = siblings[0].encode_together(prepared)
    for sibling, features in zip(siblings, together, strict=True):
        layer = f"of layer {sibling.layer}"
        _same(features, sibling.encode(prepared), f"{layer} without the others")
        alone = np.concatenate([sibling.encode([one]) for one in prepared])
        _same(features, alone, f"{layer} encoded one by one")
    named = {sibling.layer: sibling.info.hash for sibling in siblings}
    promise(len(set(named.values())) == len(named), f"layers share an identity: {', '.join(named)}")


def _some_layers(encoder: Encoder) -> tuple[LayerEncoder, ...]:
    """Return encoders of a network's first layer that gives features, and of its output."""
    if not isinstance(encoder, Layered):
        raise unittest.SkipTest("no network that can be looked into: it has no module and no run()")
    for name, _ in encoder.module.named_modules():
        with contextlib.suppress(UserError):
            if name:
                return of_layers(encoder, [name, OUTPUT]).siblings
    raise CheckFailed("no module of the network gives features")


def leaves_global_randomness_alone(subject: Subject) -> None:
    """Encoding leaves the random generators of torch, numpy and Python as they were."""
    encoder, contents = subject.encoder, subject.contents
    with untouched_randomness("encoding"):
        encoded(encoder, contents)


def refuses_another_modality(subject: Subject) -> None:
    """Texts given to an encoder of images, and the other way round, are an error in one line."""
    modality = "text" if subject.encoder.info.modality == "image" else "image"
    if subject.contents:
        refused(lambda: encoded(subject.encoder, samples(modality)), f"samples of {modality}")


def refuses_an_unknown_option(subject: Subject) -> None:
    """An option that the encoder does not have is refused in one line, not passed over."""
    separator = "," if ":" in subject.text else ":"
    refused(lambda: subject.open(f"{subject.text}{separator}no_such_option=1"), "no_such_option=1")


CHECKS = checks_of(__name__)


def _same(expected: Features, found: Features, circumstance: str) -> None:
    promise(expected.shape == found.shape, f"{circumstance}, features are {list(found.shape)}")
    difference = float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), 1e-30))
    promise(
        difference <= TOLERANCE, f"{circumstance}, features differ by {difference:.2g} of the largest value"
    )
