"""Find the image, key and supervision columns of a table by their usual names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nml.errors import UserError
from shards.noise import Kind
from shards.sources import SourceSpec

# As Hugging Face, img2dataset, open_clip and common CSVs name them, the likeliest first.
_IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "filepath", "file_path", "image_path")
_IMAGE_MORE = ("path", "filename", "file_name", "file")
_LABEL = ("label", "labels", "cls", "class", "fine_label", "target", "class_id", "category")
_CAPTION = ("caption", "captions", "text", "txt", "title", "TEXT")
_KEY = ("key", "__key__", "id", "uid", "image_id")


class Columns(NamedTuple):
    """The columns of a table that a source reads.

    Attributes:
        image: Encoded images, paths, or structs of both.
        supervision: Classes or captions.
        kind: Which of the two.
        key: Names of the samples; None to use the image's path, or the row's number.
    """

    image: str
    supervision: str
    kind: Kind
    key: str | None


def find_columns(spec: SourceSpec, names: Sequence[str]) -> Columns:
    """Choose the columns: those the user named, else the usual ones.

    Raises:
        UserError: If a named column is not there, none of the usual ones is, or both a class and a
            caption would do.
    """
    image = _choose(spec, names, "image", spec.image_column, _IMAGE + _IMAGE_MORE)
    key = _choose(spec, names, "key", spec.key_column, _KEY)
    label = _choose(spec, names, "label", spec.label_column, _LABEL)
    caption = _choose(spec, names, "caption", spec.caption_column, _CAPTION)
    if spec.label_column and spec.caption_column:
        raise UserError("--label-column and --caption-column: both named", mend="name one of them")
    if spec.label_column:
        caption = None
    if spec.caption_column:
        label = None
    if label and caption:
        raise UserError(
            f"--source {spec.text}: has a class ({label}) and a caption ({caption})",
            mend=f"choose with --label-column {label} or --caption-column {caption}",
        )
    if image is None:
        raise _not_found(spec, names, "image")
    supervision = label or caption
    if supervision is None:
        raise _not_found(spec, names, "label or caption")
    return Columns(image, supervision, "class" if label else "caption", key)


def _choose(
    spec: SourceSpec, names: Sequence[str], role: str, named: str, usual: Sequence[str]
) -> str | None:
    if named:
        if named not in names:
            raise UserError(
                f"--{role}-column {named}: {spec.text} has no such column", possible=", ".join(names)
            )
        return named
    return next((name for name in usual if name in names), None)


def _not_found(spec: SourceSpec, names: Sequence[str], role: str) -> UserError:
    flag = "--image-column" if role == "image" else "--label-column or --caption-column"
    return UserError(
        f"--source {spec.text}: no {role} column found",
        possible=", ".join(names),
        mend=f"name it with {flag}",
    )
