"""The noise of published runs as a data set of its own: the labels of every sample, and no image."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.errors import UserError
from nml.files import make_folder, sha256_file, write_json
from nml.levels import CLEAN_LEVEL
from nml.parquet import iter_groups
from shards.set_info import Level
from shards.shardset import ShardSet

if TYPE_CHECKING:
    from pretrain.publish import Published

CROISSANT = "croissant.json"
# The context that the specification asks every file to repeat whole.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{
        name: f"cr:{name}"
        for name in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty"),
            *("fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField"),
            *("path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
            *("separator", "source", "subField", "transform"),
        )
    },
}
_TYPES = {pa.string(): "sc:Text", pa.int32(): "sc:Integer", pa.bool_(): "sc:Boolean"}
_ABOUT = {
    "key": "key of the sample in the set",
    "image_sha256": "SHA-256 of the image file as it is stored in the set, hexadecimal",
    "true_label": "index of the class in the source",
    "given_label": "index of the class that training saw",
    "altered": "whether what training saw is not what the source says",
    "given_caption_sha256": "SHA-256 of the caption that training saw, in UTF-8, hexadecimal",
}


class Noise(NamedTuple):
    """The published noise of one set.

    Attributes:
        folder: Name of its folder.
        fingerprint: Of the set.
        levels: The levels whose labels lie there, by name.
        reason: Why there are none, as cards say it; empty where there are.
    """

    folder: str
    fingerprint: str
    levels: dict[str, Level]
    reason: str = ""


def write_noise(runs: Sequence[Published], out: Path, license_name: str | None) -> dict[str, Noise]:
    """Write the labels of the sets that runs were trained on; return what there is, by fingerprint.

    A set that is no longer where the run found it, or has become another, is left out: a line says why. Cards
    do not repeat it, as it says where the set lay.
    """
    found: dict[str, Noise] = {}
    taken = {run.name for run in runs}
    for run in runs:
        asked = run.meta["noise"]
        fingerprint = asked["set_fingerprint"]
        if fingerprint in found:
            continue
        where = run.set_path
        called = Path(where).name or fingerprint[:8]
        names = {
            one.meta["noise"]["level"] for one in runs if one.meta["noise"]["set_fingerprint"] == fingerprint
        }
        try:
            shard_set = ShardSet.open(where)
            if shard_set.fingerprint != fingerprint:
                raise UserError(f"{where}: is another set by now")
            levels = {name: shard_set.levels[name] for name in sorted(names & set(shard_set.levels))}
            missing = sorted(names - set(levels))
            if missing:
                raise UserError(f"{where}: has no longer the level {', '.join(missing)}")
            folder = f"noise-{called}"
            if folder in taken:
                folder = f"{folder}-{fingerprint[:8]}"
            taken.add(folder)
            _write_set(shard_set, levels, out / folder, license_name)
            found[fingerprint] = Noise(folder, fingerprint, levels)
        except UserError as error:
            print(f"without the labels of {called}: {error}", file=sys.stderr)
            reason = f"the set {called} was not there as training saw it"
            found[fingerprint] = Noise("", fingerprint, {}, reason)
    return found


def _write_set(shard_set: ShardSet, levels: dict[str, Level], folder: Path, license_name: str | None) -> None:
    from pretrain.cards import write_noise_card

    make_folder(folder)
    for name, level in levels.items():
        _write_level(shard_set, level, folder / f"{name}.parquet")
    write_json(folder / CROISSANT, _croissant(shard_set, levels, folder, license_name))
    write_noise_card(shard_set, levels, folder, license_name)


def _write_level(shard_set: ShardSet, level: Level, path: Path) -> None:
    writer = None
    columns = ["key", "sha256", *dict.fromkeys((_clean(shard_set), level.column))]
    for table in iter_groups(shard_set.manifest_path, columns=columns):
        labels = _labels(shard_set, table, level.column)
        writer = writer or pq.ParquetWriter(path, labels.schema, compression="zstd")
        writer.write_table(labels)
    if writer is not None:
        writer.close()


def _clean(shard_set: ShardSet) -> str:
    return shard_set.levels[CLEAN_LEVEL].column


def _labels(shard_set: ShardSet, table: pa.Table, column: str) -> pa.Table:
    """Return the published rows of a row group of the manifest."""
    clean, given = table.column(_clean(shard_set)), table.column(column)
    keys, hashes = table.column("key"), table.column("sha256")
    if shard_set.kind == "captions":
        # A row a caption, of which an image has several.
        owners = pc.list_parent_indices(clean.combine_chunks())
        keys, hashes = keys.take(owners), hashes.take(owners)
        clean, given = (pc.list_flatten(column) for column in (clean, given))
    found: dict[str, Any] = {
        "key": keys,
        "image_sha256": pa.array([value.hex() for value in hashes.to_pylist()], pa.string()),
    }
    if shard_set.kind == "class":
        found |= {"true_label": clean, "given_label": given}
    else:
        # Captions are the source's; their hashes tell whoever has the source which one was given.
        found["given_caption_sha256"] = pa.array(
            [hashlib.sha256(text.encode()).hexdigest() for text in given.to_pylist()], pa.string()
        )
    return pa.table({**found, "altered": pc.not_equal(clean, given)})


def _croissant(
    shard_set: ShardSet, levels: Iterable[str], folder: Path, license_name: str | None
) -> dict[str, Any]:
    """Return the description of the files in the vocabulary of Croissant 1.0."""
    files, records = [], []
    for level in levels:
        name = f"{level}.parquet"
        files.append(
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": "application/x-parquet",
                "sha256": sha256_file(folder / name),
            }
        )
        records.append(
            {
                "@type": "cr:RecordSet",
                "@id": level,
                "name": level,
                # An image has several captions, each a row.
                **({"key": {"@id": f"{level}/key"}} if shard_set.kind == "class" else {}),
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"{level}/{column.name}",
                        "name": column.name,
                        "description": _ABOUT[column.name],
                        "dataType": _TYPES[column.type],
                        "source": {"fileObject": {"@id": name}, "extract": {"column": column.name}},
                    }
                    for column in pq.read_schema(folder / name)
                ],
            }
        )
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": folder.name,
        "citeAs": f"Noise of the set {shard_set.fingerprint}",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "description": "Labels with noise that is known sample by sample; no images. Set "
        f"{shard_set.fingerprint}, manifest {shard_set.manifest_sha256}.",
        **({"license": license_name} if license_name else {}),
        "datePublished": datetime.now(UTC).date().isoformat(),
        "version": "1.0.0",
        "distribution": files,
        "recordSet": records,
    }
