"""The bundled task: real scans of handwritten digits, with shifted test images as OOD variants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from nml import digits
from probes.spec import Spec, check_options
from probes.tasks.task import Evaluation, Task, TaskRecord

Images = npt.NDArray[np.uint8]

REVISION = "1"


def invert(images: Images) -> Images:
    """Swap ink and paper."""
    return 255 - images


def rotate(images: Images) -> Images:
    """Turn by 30 degrees, left or right by turns."""
    turned = [
        Image.fromarray(image).rotate(30 if index % 2 else -30, Image.Resampling.BILINEAR)
        for index, image in enumerate(images)
    ]
    return np.stack([np.asarray(image) for image in turned])


def thicken(images: Images) -> Images:
    """Widen every stroke by one pixel to each side: the maximum over 3 x 3 neighbours."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    height, width = images.shape[1:]
    shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.max(shifted, axis=0)


def texture(images: Images) -> Images:
    """Put a woven background behind the ink: a checked ground of two greys with diagonal threads."""
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    ground = np.where((x // 4 + y // 4) % 2, 110, 50) + np.where((x + y) % 5 == 0, 40, 0)
    return np.maximum(images, ground.astype(np.uint8))


SHIFTS: dict[str, Callable[[Images], Images]] = {
    "inverted": invert,
    "rotated": rotate,
    "thick": thicken,
    "textured": texture,
}


class DigitSamples:
    """Scans as samples, shown to encoders as RGB images.

    Args:
        keys: N names.
        images: Grey levels, uint8 [N, 32, 32].
        labels: Classes, int64 [N].
    """

    def __init__(self, keys: Sequence[str], images: Images, labels: npt.NDArray[np.int64]) -> None:
        self.keys = keys
        self.labels = labels
        self.fingerprint = hashlib.sha256(images.tobytes()).hexdigest()
        self._images = images

    def read(self, index: int) -> Image.Image:
        """Return one scan as an RGB image."""
        return Image.fromarray(self._images[index]).convert("RGB")


class DigitsTask:
    """The entry point of the bundled task."""

    record = TaskRecord(
        name="digits",
        modality="image",
        num_classes=10,
        splits={"train": 1259, "validation": 179, "test": 359},
        ood=tuple(f"digits-{name}" for name in SHIFTS),
        source="scikit-learn's load_digits, bundled",
        revision=REVISION,
        licence="CC BY 4.0 (Alpaydin and Kaynak, UCI 1998)",
        note="OOD variants are shifts of the test images: " + ", ".join(SHIFTS),
    )

    def check(self, spec: Spec) -> None:
        """Refuse options: it has none."""
        check_options(spec, (), where="--task")

    def open(self, spec: Spec, root: Path) -> Task:  # noqa: ARG002 - the protocol's signature
        """Return the task; it needs neither files nor network."""
        self.check(spec)
        train, validation, test = (digits.load(split) for split in digits.SPLITS)
        shifted = (
            Evaluation(f"digits-{name}", "ood", DigitSamples(test.keys, shift(test.images), test.labels))
            for name, shift in SHIFTS.items()
        )
        return Task(
            name="digits",
            modality="image",
            classes=digits.CLASSES,
            revision=REVISION,
            train=DigitSamples(*train),
            validation=DigitSamples(*validation),
            evaluations=(Evaluation("digits", "id", DigitSamples(*test)), *shifted),
        )


DIGITS = DigitsTask()
