"""The plan of a write: which sample goes where, and what supervision it gets at every level.

A pure function of the source and the request, kept in the work folder::

    WORK/
      catalogue.arrow  what the source holds (see shards.catalogue), with spool.bin and hashes.npy
      features.npy     features of an encoder, if the noise needs them
      order.npy bounds.npy label_n20.npy ...   write order, shard boundaries, noisy supervision
      plan.json        what was asked; written last, so the plan is whole if this is there
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow.compute as pc

from nml.errors import UserError
from nml.files import json_bytes, sha256_file, sync_tree, write_json
from nml.levels import CLEAN_LEVEL
from nml.untrusted import read_json
from shards.catalogue import SPOOL, Catalogue, read_catalogue, write_catalogue
from shards.defects import Checks
from shards.features import describe_input, open_encoder
from shards.ladder import Level, PlannedLevel, apply_flips, load_model, plan_ladder, with_own_rate
from shards.layout import cut, member_bytes, write_order
from shards.noise import Integers, Kind
from shards.packing import ImageReader
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
        parent: The set that the source was, if it was one.
        held_out: Whether the source is a validation or test split.
        resized: How images are made smaller, and by which encoder; empty where they are copied.
    """

    kind: Kind
    classes: tuple[str, ...] | None
    levels: dict[str, Level]
    primary: str
    shards: int
    parent: dict[str, str] | None
    held_out: bool
    resized: dict[str, Any]


def plan_once(
    work: Path,
    request: WriteRequest,
    make_source: Callable[[], Source],
    shown: str,
    *,
    defects: list[Defect] | None = None,
    listed: Path | None = None,
) -> Plan:
    """Return the plan in the work folder, making it first if it is not whole.

    Args:
        work: The work folder.
        request: What was asked.
        make_source: Opens the source; called only if the plan is not there yet.
        shown: What a message calls the set.
        defects: Where the source notes samples that cannot be taken.
        listed: The file that lists these.

    Raises:
        UserError: If a plan for other options is there, or the source cannot be read.
    """
    plan_file = work / PLAN_FILE
    if plan_file.exists():
        stored = _stored_plan(work, shown)
        refuse_other_request(stored["request"], request, shown)
        levels = [Level(**level) for level in stored["levels"]]
        refuse_changed_model_file(levels, request, f"what lies in {shown}")
        _refuse_other_encoder(stored.get("resized", {}), shown)
    else:
        decode = request.decode_check or request.resize is not None
        checks = Checks(decode, request.skip_bad, listed)
        stored = _make(work, request, make_source(), checks, defects)
        sync_tree(work)
        stored["files"] = _hashes(work)
        write_json(plan_file, {**stored, _DIGEST: _digest(stored)})
    return Plan(
        stored["kind"],
        tuple(stored["classes"]) if stored["classes"] is not None else None,
        {level["name"]: Level(**level) for level in stored["levels"]},
        stored["primary"],
        stored["shards"],
        stored["parent"],
        stored["held_out"],
        stored.get("resized", {}),
    )


def _refuse_other_encoder(resized: dict[str, Any], shown: str) -> None:
    """Refuse to continue with another encoder: the shards of one set are made by one."""
    if resized and resized["encoder"] != encoder_version():
        raise UserError(
            f"--out {shown}: an interrupted write is there whose images were made smaller by "
            f"{resized['encoder']}, and here is {encoder_version()}",
            mend="finish it with that version, or remove the folder to start anew",
        )


def _stored_plan(work: Path, shown: str) -> dict[str, Any]:
    """Return what plan.json holds, it and all that it names as it was written.

    Raises:
        UserError: If not: what is packed by it would get hashes that are right.
    """
    try:
        stored = read_json(work / PLAN_FILE)
        # Plans of earlier versions have no hashes.
        files = stored.get("files", {})
        digest = stored.pop(_DIGEST, None)
        wrong = PLAN_FILE if digest not in (None, _digest(stored)) or (files and digest is None) else ""
        wrong = wrong or next((name for name, value in files.items() if _hash(work / name) != value), "")
    except (OSError, ValueError, AttributeError):
        wrong = PLAN_FILE
    if wrong:
        raise UserError(
            f"--out {shown}: the plan of an interrupted write is damaged: {work / wrong}",
            mend="remove the folder to start anew",
        )
    plan: dict[str, Any] = stored
    return plan


def _digest(stored: dict[str, Any]) -> str:
    return hashlib.sha256(json_bytes(stored)).hexdigest()


def _hashes(work: Path) -> dict[str, str]:
    """Return the hash of every file of a plan."""
    return {path.name: _hash(path) for path in sorted(work.iterdir())}


def _hash(path: Path) -> str:
    """Return a file's SHA-256; its size for the spool, which may be as large as the whole set."""
    return f"{path.stat().st_size} bytes" if path.name == SPOOL else sha256_file(path)


def refuse_other_request(found: dict[str, Any], request: WriteRequest, shown: str) -> None:
    """Raise a UserError if an interrupted write had other options."""
    if found != request.as_json():
        raise UserError(
            f"--out {shown}: an interrupted write with other options is there "
            f"({difference(found, request.as_json())})",
            mend="repeat its options to finish it, or remove the folder to start anew",
        )


def _make(
    work: Path, request: WriteRequest, source: Source, checks: Checks, defects: list[Defect] | None
) -> dict[str, Any]:
    # Before the pass over the source: what is wrong with the request shows at once.
    encoder = open_encoder(request.encoder, request.model, request.model_file)
    features = str(work / FEATURES) if encoder else None
    name, model = load_model(request.model, source.kind, features or request.model_file)
    if any(request.ratios) or model.own_ratio or request.own_rate:
        refuse_noise(source, f"--source {request.source}", chain=request.chain, force=request.force)
    for stale in work.iterdir():
        stale.unlink()
    write_catalogue(source, work, checks=checks, defects=defects)
    catalogue = read_catalogue(work, source.classes)
    if encoder:
        encoder.write_features(work / FEATURES, partial(_image, work, catalogue), len(catalogue.hashes))
    model_input = describe_input(features or request.model_file, encoder)
    population, ratios = catalogue.population(), request.ratios
    if request.own_rate:
        ratios = with_own_rate(ratios, model, name, population)
    planned = plan_ladder(model, name, population, ratios, request.seed, model_input, request.names)
    _save_levels(work, catalogue, planned)
    order = write_order(catalogue.hashes, request.seed)
    bounds = cut(_sample_sizes(catalogue, planned)[order], request.limits)
    np.save(work / "order.npy", order)
    np.save(work / "bounds.npy", bounds)
    levels = [planned_level.level for planned_level in planned]
    clean_first = not levels or (request.ratios and not request.ratios[0])
    return {
        "request": request.as_json(),
        "kind": catalogue.kind,
        "classes": catalogue.classes,
        "levels": [{"name": level.name, **level.as_json()} for level in levels],
        "primary": CLEAN_LEVEL if clean_first else levels[0].name,
        "shards": len(bounds) - 1,
        "parent": source.parent,
        "held_out": source.held_out,
        **({"resized": request.resize.as_json()} if request.resize else {}),
    }


def _image(work: Path, catalogue: Catalogue, sample: int) -> bytes:
    """Return a sample's encoded image; unlike a packer's reader, safe to call from several threads."""
    path, offset, size = (catalogue.table[name][sample].as_py() for name in ("path", "offset", "size"))
    image = bytearray(size)
    with ImageReader(work.parent) as reader:
        reader.read_into(memoryview(image), path or str(work / SPOOL), offset)
    return bytes(image)


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


def _save_levels(work: Path, catalogue: Catalogue, planned: Sequence[PlannedLevel]) -> None:
    """Save each level: the given class of every sample, or the sample whose caption it gets."""
    samples = catalogue.table.num_rows
    clean = catalogue.labels if catalogue.kind == "class" else np.arange(samples, dtype=np.int64)
    for level, flips in planned:
        np.save(work / f"{level.column}.npy", apply_flips(clean, flips))


def _sample_sizes(catalogue: Catalogue, planned: Sequence[PlannedLevel]) -> Integers:
    """Return at least the bytes that each sample takes in a tar, int64 [N]."""
    images = catalogue.table["size"].to_numpy()
    # The record's keys and punctuation, and a class a level.
    record = pc.binary_length(catalogue.table["key"]).to_numpy() + np.int64(64 * (len(planned) + 2))
    if catalogue.kind == "class":
        return member_bytes(images, np.full(len(images), 8), record)
    captions = catalogue.table["caption"]
    text = pc.binary_length(captions).to_numpy().astype(np.int64)
    # JSON writes a quotation mark in two bytes and a control character in up to six.
    escaped = text + 5 * pc.count_substring_regex(captions, _ESCAPED).to_numpy()
    longest = text
    record = record + escaped
    for _, (rows, sources) in planned:
        given = text.copy()
        given[rows] = text[sources]
        longest = np.maximum(longest, given)
        record[rows] += escaped[sources] - escaped[rows]
        record += escaped
    return member_bytes(images, longest, record)
