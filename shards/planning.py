"""The plan of a write: which sample goes where, and what supervision it gets at every level.

A pure function of the source and the request, kept in the work folder::

    WORK/
      rows.bin rows.npy   what each shard is packed from (see shards.plan_rows)
      spool.bin           images that lie nowhere by themselves
      plan.json           what was asked; written last, so the plan is whole if this is there

While it is made, what the source holds (see shards.catalogue) and features of an encoder lie there, too.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nml.errors import UserError
from nml.files import json_bytes, sha256_file, sync_tree, write_json
from nml.levels import CLEAN_LEVEL
from nml.sources import ByteRange, Cell, Place
from nml.stored_images import StoredImages
from nml.untrusted import parse_json
from shards.captions import flat, starts_of
from shards.catalogue import SPOOL, Catalogue, read_catalogue, write_catalogue
from shards.defects import Checks
from shards.features import describe_input, open_encoder
from shards.gathering import tell_of_reading_again
from shards.ladder import Level, PlannedLevel, apply_flips, load_model, plan_ladder, with_own_rate
from shards.layout import cut, member_bytes, write_order
from shards.locking import PACKING_LOCK
from shards.noise import Integers, Kind
from shards.plan_rows import BOUNDS, ROWS, Readable, write_rows
from shards.request import WriteRequest, difference, refuse_changed_model_file
from shards.resize import encoder_version
from shards.sources import Defect, Source

PLAN_FILE = "plan.json"
FEATURES = "features.npy"
_DIGEST = "plan_sha256"
_ESCAPED = r'["\\\x00-\x1f]'


class Plan(NamedTuple):
    """A plan read back from the work folder.

    Attributes:
        kind: ``class`` or ``caption``.
        classes: Class names in index order; None for captions.
        levels: The noisy levels, in the order asked.
        primary: Level that ``.cls``/``.txt`` hold.
        shards: How many shards there will be.
        samples: How many samples.
        parent: The set that the source was, if it was one.
        held_out: Whether the source is a validation or test split.
        resized: How images are made smaller, and by which encoder; empty where they are copied.
        request: What was asked, as :meth:`WriteRequest.as_json` gives it.
    """

    kind: Kind
    classes: tuple[str, ...] | None
    levels: dict[str, Level]
    primary: str
    shards: int
    samples: int
    parent: dict[str, str] | None
    held_out: bool
    resized: dict[str, Any]
    request: dict[str, Any]


class WorkFiles(Readable, Protocol):
    """The files of unfinished work: made in a local folder, and read by every process that packs."""

    @property
    def shown(self) -> str:
        """What a message calls the set."""
        ...

    @property
    def work(self) -> Path:
        """The local folder."""
        ...

    def publish_work(self, name: str, *, keep: bool = False) -> None:
        """Let every process that packs read a file of the local folder; ``keep`` it there as well."""
        ...


def plan_once(
    files: WorkFiles,
    request: WriteRequest,
    make_source: Callable[[], Source],
    *,
    spool: bool = False,
    defects: list[Defect] | None = None,
    listed: Path | None = None,
) -> Plan:
    """Return the plan of a set, making it first if it is not whole.

    Args:
        files: The files of unfinished work.
        request: What was asked.
        make_source: Opens the source; called only if the plan is not there yet.
        spool: Whether images in tables are kept on disk, instead of being read again from their row groups.
        defects: Where the source notes samples that cannot be taken.
        listed: The file that lists these.

    Raises:
        UserError: If a plan for other options is there, or the source cannot be read.
    """
    found = read_plan(files)
    if found is not None:
        refuse_other_request(found.request, request, files.shown)
        refuse_changed_model_file(found.levels.values(), request, f"what lies in {files.shown}")
        return found
    decode = request.decode_check or request.resize is not None
    checks = Checks(decode, request.skip_bad, listed)
    work = files.work
    stored = _make(work, request, make_source(), checks, defects, spool=spool)
    sync_tree(work)
    stored["files"] = {BOUNDS: sha256_file(work / BOUNDS)}
    if (work / SPOOL).exists():
        # Whoever made it reads it where it lies.
        files.publish_work(SPOOL, keep=True)
    for name in (ROWS, BOUNDS):
        files.publish_work(name)
    write_json(work / PLAN_FILE, {**stored, _DIGEST: _digest(stored)})
    files.publish_work(PLAN_FILE)
    return _plan(stored)


def read_plan(files: WorkFiles) -> Plan | None:
    """Return the plan of a set that is being written; None if there is none, or not all of it.

    Raises:
        UserError: If it is damaged: what is packed by it would get hashes that are right.
    """
    content = files.read_work(PLAN_FILE)
    if content is None:
        return None
    try:
        stored = parse_json(content)
        digest = stored.pop(_DIGEST, None)
        expected = stored.get("files", {})
        if BOUNDS not in expected and digest in (None, _digest(stored)):
            # Of an earlier version, which had the rows of a shard in other files.
            return None
        wrong = PLAN_FILE if digest != _digest(stored) else ""
        if not wrong and hashlib.sha256(files.read_work(BOUNDS) or b"").hexdigest() != expected[BOUNDS]:
            wrong = BOUNDS
    except (ValueError, TypeError, KeyError, AttributeError):
        wrong = PLAN_FILE
    if wrong:
        raise damaged_plan(files, wrong)
    return _plan(stored)


def refuse_other_encoder(plan: Plan, shown: str) -> None:
    """Refuse to pack with another encoder: the shards of one set are made by one."""
    if plan.resized and plan.resized["encoder"] != encoder_version():
        raise UserError(
            f"--out {shown}: an interrupted write is there whose images were made smaller by "
            f"{plan.resized['encoder']}, and here is {encoder_version()}",
            mend="finish it with that version, or remove the folder to start anew",
        )


def damaged_plan(files: WorkFiles, name: str) -> UserError:
    """Return the error for a file of a plan that is not as it was written."""
    return UserError(
        f"--out {files.shown}: the plan of an interrupted write is damaged: {files.work / name}",
        mend="remove the folder to start anew",
    )


def _plan(stored: dict[str, Any]) -> Plan:
    return Plan(
        stored["kind"],
        tuple(stored["classes"]) if stored["classes"] is not None else None,
        {level["name"]: Level(**level) for level in stored["levels"]},
        stored["primary"],
        stored["shards"],
        stored["samples"],
        stored["parent"],
        stored["held_out"],
        stored.get("resized", {}),
        stored["request"],
    )


def _digest(stored: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes(stored)).hexdigest()


def refuse_other_request(found: dict[str, Any], request: WriteRequest, shown: str) -> None:
    """Raise a UserError if an interrupted write had other options."""
    if found != request.as_json():
        raise UserError(
            f"--out {shown}: an interrupted write with other options is there "
            f"({difference(found, request.as_json())})",
            mend="repeat its options to finish it, or remove the folder to start anew",
        )


def _make(
    work: Path,
    request: WriteRequest,
    source: Source,
    checks: Checks,
    defects: list[Defect] | None,
    *,
    spool: bool,
) -> dict[str, Any]:
    # Before the pass over the source: what is wrong with the request shows at once.
    encoder = open_encoder(request.encoder, request.model, request.model_file)
    features = str(work / FEATURES) if encoder else None
    name, model = load_model(request.model, source.kind, features or request.model_file)
    if any(request.ratios) or model.own_ratio or request.own_rate:
        refuse_noise(source, f"--source {request.source}", chain=request.chain, force=request.force)
    _remove_content(work)
    write_catalogue(source, work, keep_cells=spool, checks=checks, defects=defects)
    catalogue = read_catalogue(work, source.classes)
    if encoder:
        with (work / SPOOL).open("rb") as spooled:
            images = StoredImages(_Places(catalogue.table), spooled)
            encoder.write_features(work / FEATURES, images.__getitem__, len(images))
    model_input = describe_input(features or request.model_file, encoder)
    population, ratios = catalogue.population(), request.ratios
    if request.own_rate:
        ratios = with_own_rate(ratios, model, name, population)
    planned = plan_ladder(model, name, population, ratios, request.seed, model_input, request.names)
    order = write_order(catalogue.hashes, request.seed)
    bounds = cut(_sample_sizes(catalogue, planned)[order], request.limits)
    tell_of_reading_again(catalogue.table, bounds)
    write_rows(work, _supervision(catalogue, planned), order, bounds)
    for used in work.iterdir():
        if used.name not in (ROWS, BOUNDS, SPOOL, PACKING_LOCK) or not used.stat().st_size:
            used.unlink()
    levels = [planned_level.level for planned_level in planned]
    clean_first = not levels or (request.ratios and not request.ratios[0])
    return {
        "request": request.as_json(),
        "kind": catalogue.kind,
        "classes": catalogue.classes,
        "levels": [{"name": level.name, **level.as_json()} for level in levels],
        "primary": CLEAN_LEVEL if clean_first else levels[0].name,
        "shards": len(bounds) - 1,
        "samples": int(bounds[-1]),
        "parent": source.parent,
        "held_out": source.held_out,
        **({"resized": request.resize.as_json()} if request.resize else {}),
    }


class _Places(Sequence[Place]):
    """Where the images of a catalogue lie."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, sample: Any) -> Any:
        path, leaf, offset, size = (
            self._table[name][sample].as_py() for name in ("path", "leaf", "offset", "size")
        )
        return Cell(path, leaf, offset) if leaf else ByteRange(path, offset, size)


class Noisable(Protocol):
    """Samples that noise may be asked for: a source, or a finished set."""

    @property
    def held_out(self) -> bool:
        """Whether they are a validation or test split."""
        ...

    @property
    def parent(self) -> dict[str, str] | None:
        """Fingerprint and level of the set they came from, if they came from one."""
        ...


def refuse_noise(samples: Noisable, shown: str, *, chain: bool, force: bool) -> None:
    """Raise a UserError if noise would touch a held-out split, or samples that are noisy already.

    Args:
        samples: What noise is asked for.
        shown: What a message calls them.
        chain: Whether noise on top of noise was asked for.
        force: Whether noise on a held-out split was asked for.
    """
    if samples.held_out and not force:
        raise UserError(
            f"{shown}: is a validation or test split, which noise must not touch",
            mend="use --noise 0, the training split, or --force if the name misleads",
        )
    if samples.parent and samples.parent["level"] != CLEAN_LEVEL and not chain:
        raise UserError(
            f"{shown}: its labels are already noisy ({samples.parent['level']})",
            mend="add a level to the set they came from with python -m shards.relabel, or noise on top with "
            "--chain, which set.json records",
        )


def _supervision(catalogue: Catalogue, planned: Sequence[PlannedLevel]) -> dict[str, Integers]:
    """Return the column of each level: the class of every sample, or for every caption the one it becomes."""
    if catalogue.kind == "class":
        clean = catalogue.labels
    else:
        clean = np.arange(len(flat(catalogue.table["caption"])), dtype=np.int64)
    return {level.column: apply_flips(clean, flips) for level, flips in planned}


def _remove_content(work: Path) -> None:
    """Remove what a plan that was cut short has left, but for the marks of who holds what."""
    for stale in work.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale)
        elif stale.name != PACKING_LOCK:
            stale.unlink()


def _sample_sizes(catalogue: Catalogue, planned: Sequence[PlannedLevel]) -> Integers:
    """Return at least the bytes that each sample takes in a tar, int64 [N]."""
    images = catalogue.table["size"].to_numpy()
    # The record's keys and punctuation, and a class a level.
    record = pc.binary_length(catalogue.table["key"]).to_numpy() + np.int64(64 * (len(planned) + 2))
    if catalogue.kind == "class":
        return member_bytes(images, np.full(len(images), 8), record)
    captions, starts = flat(catalogue.table["caption"]), starts_of(catalogue.table["caption"])
    text = pc.binary_length(captions).to_numpy().astype(np.int64)
    # JSON writes a quotation mark in two bytes and a control character in up to six.
    escaped = text + 5 * pc.count_substring_regex(captions, _ESCAPED).to_numpy()
    if catalogue.kind == "captions":
        # Quotation marks and a comma, and the brackets.
        escaped = escaped + 3
        record = record + 2 * (len(planned) + 1)
    first = starts[:-1]
    longest = text[first]
    record = record + np.add.reduceat(escaped, first)
    for _, (rows, sources) in planned:
        given, written = text.copy(), escaped.copy()
        given[rows], written[rows] = text[sources], escaped[sources]
        longest = np.maximum(longest, given[first])
        record += np.add.reduceat(written, first)
    return member_bytes(images, longest, record)
