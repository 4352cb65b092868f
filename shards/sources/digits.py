"""The bundled set as a source: scikit-learn's handwritten digits, 32 x 32 grey PNGs, 10 classes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import ClassVar, get_args

from PIL import Image

from nml import digits
from nml.errors import UserError
from nml.sources import Example, Kind, SourceSpec


class DigitsSource:
    """One split of the bundled set, ``train`` unless ``--split`` says otherwise."""

    kind: ClassVar[Kind] = "class"
    classes: tuple[str, ...] | None = digits.CLASSES
    parent: dict[str, str] | None = None

    def __init__(self, spec: SourceSpec) -> None:
        spec.refuse_columns()
        if spec.argument:
            raise UserError(
                f"{spec.shown}: the bundled set takes no argument",
                mend="write --source digits, and --split for another split",
            )
        split = spec.split or spec.usual_split
        if split not in get_args(digits.Split):
            raise UserError(
                f"{spec.flag('split')}{split}: not a split of digits", possible=", ".join(digits.SPLITS)
            )
        self._split = split
        self.held_out = split != "train"

    def __iter__(self) -> Iterator[Example]:
        data = digits.load(self._split)
        for key, image, label in zip(data.keys, data.images, data.labels, strict=True):
            yield Example(key, int(label), encode_png(Image.fromarray(image)))


def encode_png(image: Image.Image) -> bytes:
    """Return a PNG, lossless and uncompressed: a deflate library's version must not show in the bytes."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=0)
    return file.getvalue()
