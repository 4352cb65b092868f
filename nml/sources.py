"""What a source is: a stream of named samples with a class or a caption each, of one format of data.

There is one reader a format, and all that reads data stands on it: ``shards.write --source NAME:ARGUMENT``
makes shards of a source, ``probes.run --task NAME:TRAIN,TEST`` probes on two of them. Readers register
under the entry point group ``nml.sources``, the project's own (in ``shards/sources``) like everybody else's.

A source is iterated once, in order, and holds one example at a time, so memory does not grow with
the images. Images that lie in a file as they are (an image folder, a tar) are only pointed at;
others come as bytes and are spooled to disk by whoever reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, get_args

from nml.errors import UserError, unknown_name
from nml.labels import Target, caption_value, captions_value, class_value
from nml.registry import Plugin, Registry

Kind = Literal["class", "caption", "captions"]
"""What supervises a sample; ``captions`` are several."""
Role = Literal["image", "text", "pair", "label", "caption", "key"]
"""What a column of a table may hold."""
ROLES: tuple[Role, ...] = get_args(Role)
"""Every role, in the order in which columns are looked for."""

SOURCES = Registry("nml.sources", kind="source", where="--source", listing="python -m shards.write --help")
"""The registered sources."""


class ByteRange(NamedTuple):
    """An image's bytes where they already lie.

    Attributes:
        path: A local file or a URL; empty for the spool, which keeps images that lie nowhere by themselves.
        offset: Where they begin in it, in bytes.
        size: How many they are.
    """

    path: str
    offset: int
    size: int


def whole_file(path: Path) -> ByteRange:
    """Return the range of a file that is an image."""
    return ByteRange(str(path), 0, path.stat().st_size)


class Cell(NamedTuple):
    """An image in a row of a Parquet file.

    Attributes:
        path: The file, or its URL.
        column: A leaf of bytes, such as ``image.bytes``.
        row: The row, from 0.
    """

    path: str
    column: str
    row: int


Place = ByteRange | Cell
"""Where an image lies."""


class AtHand(NamedTuple):
    """An image that is in memory as its source is read, and is read again from its place when it is needed.

    Attributes:
        content: The encoded image.
        place: Where it lies, for example in a row of a table, or in a tar at a URL.
    """

    content: bytes
    place: Place


def content_of(image: bytes | Place | AtHand) -> bytes | None:
    """Return an image's bytes as far as they are in memory."""
    if isinstance(image, AtHand):
        return image.content
    return image if isinstance(image, bytes) else None


class Example(NamedTuple):
    """One sample of a source.

    Attributes:
        name: Its name in the source, for example its relative path; the sample's key is made from it.
        supervision: The class as an index into ``classes`` or as a class name; or the caption. Of another
            ``target`` what stands there: a number, a list or a text, or a tuple of the cells of several
            columns.
        image: The encoded image, or where it lies, or both; empty for a text, or where only labels are read.
        texts: The text, or the two of a pair, where the sample is one.
        row: Its row in a table; -1 elsewhere.
        number: Which of its image's captions it has, where the table counts them; -1 elsewhere.
        named: Whether it has a name of its own, and not its image's, which others may have, too.
    """

    name: str
    supervision: Any
    image: bytes | Place | AtHand
    texts: tuple[str, ...] = ()
    row: int = -1
    number: int = -1
    named: bool = True

    def checked(self, kind: Kind, where: Literal["--source", "--task"]) -> int | str | tuple[str, ...]:
        """Return the class, as a number or a name, or the caption, or the captions.

        Raises:
            UserError: If what the source gave is none.
        """
        try:
            if kind == "captions":
                return captions_value(self.supervision)
            return class_value(self.supervision) if kind == "class" else caption_value(self.supervision)
        except ValueError as error:
            what = "number or a name" if kind == "class" else "text"
            column = f"--{'label' if kind == 'class' else kind}-column" if where == "--source" else "label="
            raise UserError(
                f"{where}: sample {self.name!r} has {error}",
                mend=f"store a {what} a sample, or name another column with {column}",
            ) from error

    def place(self, spool: IO[bytes]) -> Place:
        """Return where the image lies, writing it to the spool first if it came as bytes."""
        if isinstance(self.image, AtHand):
            return self.image.place
        if not isinstance(self.image, bytes):
            return self.image
        offset = spool.tell()
        spool.write(self.image)
        # The spool's own path is not told: a resumed write may name its folder differently.
        return ByteRange("", offset, len(self.image))


class Defect(NamedTuple):
    """A sample that cannot be taken.

    Attributes:
        name: Its name, as far as it has one.
        kind: What is wrong, in two words that others of its kind share.
        error: What is said where it is the only one.
    """

    name: str
    kind: str
    error: UserError


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What a user says about a source.

    Attributes:
        text: As typed, ``parquet:/data/train.parquet``.
        name: The registered name, ``parquet``.
        argument: What follows the colon; may be empty.
        split: The split asked for; empty when not given.
        usual_split: What to read where none is asked for and the source tells splits apart by name.
        image_column: Column of a table that holds the images; here and below, empty means to look for the
            usual ones.
        text_column: Column of the texts.
        pair_column: Column of the second texts.
        label_column: Column of the classes; of ``multilabel`` also a column a class, with ``+`` between them.
        caption_column: Column of the captions.
        key_column: Column of the samples' names.
        encoding: How a text file is encoded; UTF-8 where empty.
        header: ``yes`` or ``no``: whether the first line of a text file names its columns; empty to find out.
        image_root: Folder that images may lie in besides a table's own, or in which links of an image
            folder may lead; empty for none.
        members: Which members of a tar make a sample, ``image=input.jpg,caption=outputs.txt``; empty for the
            usual ones.
        end: What is made of it: a ``set`` of images in shards, read from start to end, with a class or a
            caption each; a ``task`` of images or texts, read in any order, with a class each; or the
            ``labels`` of a task alone, whose samples lie elsewhere.
        target: What the labels of a task are.
        defects: Where samples that cannot be taken are noted; None to stop at the first.
    """

    text: str
    name: str
    argument: str
    split: str = ""
    usual_split: str = "train"
    image_column: str = ""
    text_column: str = ""
    pair_column: str = ""
    label_column: str = ""
    caption_column: str = ""
    key_column: str = ""
    header: str = ""
    encoding: str = ""
    image_root: str = ""
    members: str = ""
    end: Literal["set", "task", "labels"] = "set"
    target: Target = "classification"
    defects: list[Defect] | None = None

    @property
    def shown(self) -> str:
        """What a message calls the source."""
        return f"--{'source' if self.end == 'set' else 'task'} {self.text}"

    def flag(self, role: Role | Literal["split", "image_root", "members"]) -> str:
        """Return how a user names the column of a role, or a split, up to the name itself."""
        if self.end == "set":
            flags = {"split": "--split ", "image_root": "--image-root ", "members": "--members "}
            return flags.get(role, f"--{role}-column ")
        return f"{self.usual_split if role == 'split' else role}="

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that each hold one class of several, as the user named them; empty for none such."""
        several = self.target == "multilabel" and "+" in self.label_column
        return tuple(self.label_column.split("+")) if several else ()

    def column(self, role: Role) -> str:
        """Return the column that the user named for a role; empty for none."""
        named: str = getattr(self, f"{role}_column")
        return named

    def row_name(self, number: int) -> str:
        """Return the name of a sample that has none of its own: published keys were made of these."""
        return f"row-{number:09d}" if self.end == "set" else f"{number:08d}"

    def refuse(self, name: str, kind: str, error: UserError) -> None:
        """Raise the error of a sample that cannot be taken, or note it where all are gathered."""
        if self.defects is None:
            raise error
        self.defects.append(Defect(name, kind, error))

    def require_argument(self, what: str, example: str) -> str:
        """Return the argument.

        Raises:
            UserError: If nothing follows the colon.
        """
        if not self.argument:
            raise UserError(f"{self.shown}: names no {what}", mend=f"write it as {example}")
        return self.argument

    def refuse_columns(self, *allowed: Role, members: bool = False, image_root: bool = False) -> None:
        """Raise a UserError for what only tables have, but the roles allowed, in a source that is none.

        Args:
            allowed: Roles that may be named.
            members: Whether members may be.
            image_root: Whether a folder for images may be.
        """
        for role in ROLES:
            if role not in allowed and (value := self.column(role)):
                raise UserError(
                    f"{self.flag(role)}{value}: the {self.name} source has no columns",
                    mend="leave it out, or use a parquet, csv, tsv or huggingface source",
                )
        root = "" if image_root else self.image_root
        for flag, value in ((self.flag("image_root"), root), ("--encoding ", self.encoding)):
            if value:
                raise UserError(
                    f"{flag}{value}: the {self.name} source reads no table",
                    mend="leave it out, or use a csv or tsv source",
                )
        if not members:
            self.refuse_members()

    def refuse_members(self) -> None:
        """Raise a UserError if members were named for a source that has none."""
        if self.members:
            raise UserError(
                f"{self.flag('members')}{self.members}: the {self.name} source has no members",
                mend="leave it out, or use a webdataset source",
            )


class Source(Protocol):
    """A source, made from a :class:`SourceSpec`; a wrong spec raises a UserError at once.

    Attributes:
        kind: ``class``, ``caption``, or ``captions`` where samples have lists of them.
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


def find_task(tasks: Registry, name: str) -> Plugin:
    """Return the plugin of a task; where none has the name, that of the source whose data makes one.

    Raises:
        UserError: If neither is registered; near matches are named.
    """
    known = tasks.names()
    if name in known:
        return tasks.find(name)
    sources = SOURCES.names()
    if name not in sources:
        raise unknown_name(tasks.where, name, [*known, *sources], mend=f"see: {tasks.listing}")
    return SOURCES.find(name)


def open_source(text: str, *, defects: list[Defect] | None = None, **options: str) -> Source:
    """Make the source that ``NAME:ARGUMENT`` names.

    Args:
        text: As typed.
        defects: Where samples that cannot be taken are noted; None to stop at the first.
        options: Further fields of :class:`SourceSpec`.

    Raises:
        UserError: If the name is unknown or its argument or options are wrong.
    """
    name, _, argument = text.partition(":")
    spec = SourceSpec(text=text, name=name, argument=argument, defects=defects, **options)  # type: ignore[arg-type]
    source: Source = SOURCES.load(name)(spec)
    return source
