"""What a source is: a stream of named images with a class or a caption each.

A source is iterated once, in order, and holds one example at a time, so memory does not grow with
the images. Images that lie in a file as they are (an image folder, a tar) are only pointed at;
others come as bytes and are spooled to disk by the writer. Sources register under the entry point
group ``nml.sources`` and are named on the command line as ``NAME`` or ``NAME:ARGUMENT``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nml.errors import UserError
from nml.registry import Registry
from shards.noise import Kind

SOURCES = Registry("nml.sources", kind="source", where="--source", listing="python -m shards.write --help")


class ByteRange(NamedTuple):
    """An image's bytes where they already lie: ``size`` bytes at ``offset`` of a local file."""

    path: str
    offset: int
    size: int


class Example(NamedTuple):
    """One sample of a source.

    Attributes:
        name: Its name in the source, for example its relative path; the sample's key is made from it.
        supervision: The class as an index into ``classes`` or as a class name; or the caption.
        image: The encoded image, or where it lies.
    """

    name: str
    supervision: int | str
    image: bytes | ByteRange


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What a user says about a source.

    Attributes:
        text: As typed, ``parquet:/data/train.parquet``.
        name: The registered name, ``parquet``.
        argument: What follows the colon; may be empty.
        split: ``--split``; empty when not given.
        image_column, label_column, caption_column, key_column: Column names for tables; empty
            means to look for the usual ones.
    """

    text: str
    name: str
    argument: str
    split: str = ""
    image_column: str = ""
    label_column: str = ""
    caption_column: str = ""
    key_column: str = ""

    def require_argument(self, what: str, example: str) -> str:
        """Return the argument.

        Raises:
            UserError: If nothing follows the colon.
        """
        if not self.argument:
            raise UserError(f"--source {self.text}: names no {what}", mend=f"write it as {example}")
        return self.argument

    def refuse_columns(self) -> None:
        """Raise a UserError if a column was named for a source that has none."""
        for flag in ("image_column", "label_column", "caption_column", "key_column"):
            if value := getattr(self, flag):
                raise UserError(
                    f"--{flag.replace('_', '-')} {value}: the {self.name} source has no columns",
                    mend="leave it out, or use a parquet, csv, tsv or huggingface source",
                )


class Source(Protocol):
    """A source, made from a :class:`SourceSpec`; a wrong spec raises a UserError at once.

    Attributes:
        kind: ``class`` or ``caption``.
        classes: The class names in index order, when known before reading.
        held_out: Whether this is a validation or test split, which noise must not touch.
        parent: Fingerprint and level of the shard set this source reads, if it is one.
    """

    kind: Kind
    classes: tuple[str, ...] | None
    held_out: bool
    parent: dict[str, str] | None

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples in a fixed order."""
        ...


def open_source(text: str, **options: str) -> Source:
    """Make the source that ``--source TEXT`` names.

    Raises:
        UserError: If the name is unknown or its argument or options are wrong.
    """
    name, _, argument = text.partition(":")
    source: Source = SOURCES.load(name)(SourceSpec(text=text, name=name, argument=argument, **options))
    return source
