"""From a number back to its cause: result, features, encoder, pre-training, noise, flipped samples.

Everything is read from the files that the rooms left behind; what has been moved or removed is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nml.errors import UserError, unknown_name
from nml.files import sha256_file
from nml.layout import EXPORT, META
from nml.levels import CLEAN_LEVEL as CLEAN
from nml.parquet import read_parquet
from nml.set_file import MANIFEST_FILE, SET_FILE, local_folder
from nml.untrusted import read_object
from probes.features.store import DEFAULT_FOLDER, DONE, read_key
from probes.results.row import Row


def find_row(rows: list[Row], row_id: str) -> Row:
    """Return the one row whose id begins with ``row_id``.

    Raises:
        UserError: If there is none or several.
    """
    found = [row for row in rows if row.row_id.startswith(row_id)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"row {row_id}: {len(found)} rows begin so", possible=", ".join(row.row_id for row in found[:5])
        )
    raise unknown_name(
        "row", row_id, [row.row_id for row in rows[:50]], mend="see: python -m probes.results show"
    )


def trace(row: Row, *, features: Path = DEFAULT_FOLDER, samples: int = 10) -> Iterator[str]:
    """Yield the lines of the chain behind a row.

    Args:
        row: The result.
        features: The feature store.
        samples: Flipped samples to name.
    """
    score = f"{row.metric_name} {row.metric:.4f}"
    yield f"result    {row.row_id}: {row.head} on {row.dataset} ({row.domain}), {score}"
    code = f"code {row.head_code}" if row.head_code else "code not recorded"
    yield f"          head {row.head_distribution} {row.head_version}, {code}, {row.hyper_parameters}"
    yield f"          fraction {row.fraction:g}, seed {row.seed}, downstream noise {row.downstream_noise:g}"
    yield f"          selection {row.selection}"
    yield f"task      {row.task}, revision {row.task_revision}, split {row.split_hash[:16]}"
    yield from _features(row, features)
    yield f"encoder   {row.encoder} ({row.encoder_kind}), hash {row.encoder_hash[:16]}"
    if row.run_path is None:
        yield "          not pre-trained here: the chain ends"
        return
    yield from _run(row)
    yield from _noise(row, samples)


def _features(row: Row, folder: Path) -> Iterator[str]:
    for name, key in (("train", row.train_features), ("scored", row.features)):
        entry = folder / str(key)
        state = "in the store" if (entry / DONE).exists() else f"no longer in {folder}"
        content = read_key(entry) if entry.is_dir() else {}
        same = content.get("parts", {}).get("encoder_hash", row.encoder_hash) == row.encoder_hash
        yield f"features  {name} {key}, {state}" + ("" if same else ", OF ANOTHER ENCODER")


def _run(row: Row) -> Iterator[str]:
    run = Path(str(row.run_path))
    yield f"run       {run}, step {row.step}, objective {row.objective}"
    meta = _read_json(next((path for path in (run / EXPORT / META, run / META) if path.exists()), None))
    if meta is None:
        yield "          its export is no longer there"
        return
    recipe = meta.get("recipe") or {}
    yield (
        f"          recipe {recipe.get('name')}, engine {meta.get('engine')}, "
        f"world size {meta.get('world_size')}, seed {meta.get('seed')}, {meta.get('samples_seen')} samples"
    )
    if meta.get("step") != row.step:
        yield f"          its export has moved on to step {meta.get('step')}"


def _noise(row: Row, samples: int) -> Iterator[str]:
    ratio = "unknown" if row.noise_ratio is None else f"{row.noise_ratio:g}"
    yield f"noise     level {row.noise_level}, model {row.noise_model}, realised {ratio}"
    yield f"manifest  sha256 {row.manifest_sha256}"
    folder = local_folder(str(row.set_path))
    if folder is None:
        yield f"          at {row.set_path}, where nothing is looked up"
        return
    manifest = folder / MANIFEST_FILE
    if row.set_path is None or not manifest.exists():
        yield f"          the shard set is no longer at {row.set_path}"
        return
    facts = _read_json(folder / SET_FILE) or {}
    # Adding a level rewrites the manifest; the fingerprint, over keys and clean content, stays.
    if sha256_file(manifest) == row.manifest_sha256:
        yield f"          {manifest}: the very file"
    elif facts.get("fingerprint") == row.set_fingerprint:
        yield f"          {manifest}: rewritten since, of the same set"
    else:
        yield f"          {manifest}: ANOTHER set lies there now"
        return
    yield from _flipped(manifest, row.noise_level or CLEAN, facts, samples)


def _flipped(manifest: Path, level: str, facts: dict[str, Any], samples: int) -> Iterator[str]:
    base = "label" if facts.get("kind") == "class" else "caption"
    column = base if level == CLEAN else f"{base}_{level}"
    names = pq.read_schema(manifest).names
    if level == CLEAN or column not in names:
        yield (
            "flipped   none: the clean labels"
            if level == CLEAN
            else f"flipped   no column {column} in the manifest"
        )
        return
    table: pa.Table = read_parquet(manifest, ["key", base, column])
    if pa.types.is_list(table.schema.field(base).type):
        # Of several captions a sample each is one.
        whole = table.combine_chunks()
        owner = pc.list_parent_indices(whole[base].combine_chunks())
        flat = {name: pc.list_flatten(whole[name]) for name in (base, column)}
        table = pa.table({"key": whole["key"].take(owner), **flat})
    table = table.filter(pc.not_equal(table[base], table[column]))
    yield f"flipped   {len(table)} samples" + (f", the first {samples}:" if len(table) > samples else "")
    classes = facts.get("classes")
    for record in table.slice(0, samples).to_pylist():
        before, after = record[base], record[column]
        if classes and isinstance(before, int):
            before, after = classes[before], classes[after]
        yield f"          {record['key']}: {before} -> {after}"


def _read_json(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.exists():
        return None
    return read_object(path)
