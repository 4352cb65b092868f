"""Which column of a table holds what: the one table of usual names, and what is said where none is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from nml.errors import UserError, unknown_name
from nml.sources import Kind, Role, SourceSpec

# As Hugging Face, GLUE, img2dataset, open_clip and common CSVs name them, the likeliest first.
IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp")
# Names that stand beside texts, too: there the text is the sample.
PATH = (
    "image_bytes",
    "filepath",
    "file_path",
    "image_path",
    "path",
    "filename",
    "file_name",
    "file",
)
TEXT = ("text", "sentence", "sentence1", "premise", "question", "question1")
PAIR = ("text2", "sentence2", "hypothesis", "question2")
LABEL = ("label", "labels", "cls", "class", "fine_label", "target", "class_id", "category")
CAPTION = ("caption", "captions", "text", "txt", "title")
# As tables of several captions an image count them, a row each or a column each.
NUMBER = ("caption_number", "comment_number")
_NUMBERED = re.compile(r"captions?_?(\d+)")
# The noise of a set and the splits of a task follow from their keys, so each keeps those that were published.
KEY = {"set": ("key", "__key__", "id", "uid", "image_id"), "task": ("key", "__key__", "idx", "id")}


class Columns(NamedTuple):
    """The columns of a table that a source reads.

    Attributes:
        image: Encoded images, paths, or structs of both; None where the samples are texts or elsewhere.
        texts: Texts, or the two of a pair; empty where the samples are images or elsewhere.
        supervision: Classes or captions; of classes in columns of their own the first one.
        kind: Which of the two.
        key: Names of the samples; None to use the image's path, or the row's number.
        more: Of classes, or captions, in columns of their own those after the first.
        number: Which of its image's captions a row has; None where nothing counts them.
    """

    image: str | None
    texts: tuple[str, ...]
    supervision: str
    kind: Kind
    key: str | None
    more: tuple[str, ...] = ()
    number: str | None = None


def find_columns(spec: SourceSpec, names: Sequence[str], *, typed: bool = True) -> Columns:
    """Choose the columns: those the user named, else the usual ones.

    Args:
        spec: What the user named.
        names: The table's columns.
        typed: Whether the table knows the types of its columns. In a file of text, what stands beside the
            label in a table of two columns is the text, whatever it is called, and texts are numbered.

    Raises:
        UserError: If a named column is not there, none of the usual ones is, or both a class and a
            caption would do.
    """
    if spec.end == "set":
        image = _choose(spec, names, "image", IMAGE + PATH)
        if image is None:
            raise _not_found(spec, names, "image")
        kind, (supervision, *more) = _supervision(spec, names)
        number = next((name for name in NUMBER if name in names), None) if kind == "caption" else None
        key = _choose(spec, names, "key", KEY["set"], fold=False)
        return Columns(image, (), supervision, kind, key, tuple(more), number)
    several = spec.label_columns
    for name in several:
        if name not in names:
            raise unknown_name(f"{spec.flag('label')}{spec.label_column}: column", name, names)
    label = several[0] if several else _choose(spec, names, "label", LABEL)
    if label is None and spec.end == "labels" and len(names) == 1:
        label = names[0]
    if label is None:
        raise _not_found(spec, names, "label")
    if spec.end == "labels":
        key = _choose(spec, names, "key", ())
        return Columns(None, (), label, "class", key, several[1:])
    others = [name for name in names if name not in (label, *several)]
    image, texts = _samples(spec, names, others, typed=typed)
    usual = KEY["task"] if typed or image else ()
    key = _choose(spec, others, "key", usual, fold=False)
    return Columns(image, texts, label, "class", key, several[1:])


def known_names(names: Sequence[str]) -> int:
    """Return how many names are usual ones, of samples or of classes."""
    known = {*IMAGE, *PATH, *TEXT, *LABEL}
    return len(known & {name.lower() for name in names})


def _supervision(spec: SourceSpec, names: Sequence[str]) -> tuple[Kind, tuple[str, ...]]:
    """Return what supervises a set's samples, and the columns that hold it."""
    label = _choose(spec, names, "label", LABEL)
    caption = _choose(spec, names, "caption", CAPTION)
    numbered = sorted(filter(_NUMBERED.fullmatch, names), key=lambda name: int(re.findall(r"\d+", name)[0]))
    if spec.label_column and spec.caption_column:
        raise UserError("--label-column and --caption-column: both named", mend="name one of them")
    if label and caption and not (spec.label_column or spec.caption_column):
        raise UserError(
            f"{spec.shown}: has a class ({label}) and a caption ({caption})",
            mend=f"choose with --label-column {label} or --caption-column {caption}",
        )
    if label and not spec.caption_column:
        return "class", (label,)
    if len(numbered) > 1 and caption is None:
        return "captions", tuple(numbered)
    if caption:
        return "caption", (caption,)
    raise _not_found(spec, names, "label", "caption")


def _samples(
    spec: SourceSpec, names: Sequence[str], others: Sequence[str], *, typed: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of a task's images, or those of its texts, among those beside the label."""
    text = _choose(spec, others, "text", TEXT)
    image = _choose(spec, others, "image", IMAGE if text else IMAGE + PATH)
    if image and not spec.text_column:
        return image, ()
    if text is None and not typed and len(others) == 1:
        text = others[0]
    if text is None:
        raise _not_found(spec, names, "image", "text")
    pair = _choose(spec, [name for name in others if name != text], "pair", PAIR)
    return None, (text, pair) if pair else (text,)


def _choose(
    spec: SourceSpec, names: Sequence[str], role: Role, usual: Sequence[str], *, fold: bool = True
) -> str | None:
    """Return the column of a role; a usual name is as clear with a capital, where ``fold``."""
    named = spec.column(role)
    if named:
        if named not in names:
            raise unknown_name(f"{spec.flag(role)}{named}: column of {spec.argument}", named, names)
        return named
    folded = {name.lower(): name for name in reversed(names)} if fold else {}
    exact = (name for name in usual if name in names)
    return next(exact, None) or next((folded[name] for name in usual if name in folded), None)


def _not_found(spec: SourceSpec, names: Sequence[str], *roles: Role) -> UserError:
    return UserError(
        f"{spec.shown}: no {' or '.join(roles)} column found",
        possible=f"columns: {', '.join(names)}",
        mend=f"name it: {' or '.join(f'{spec.flag(role)}COLUMN' for role in roles)}",
    )
