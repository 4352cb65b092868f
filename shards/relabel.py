"""``python -m shards.relabel``: add a noise level to a set without touching its images.

Always planned from the clean supervision. The manifest and the index gain a column; the tars, and
the fingerprint of the set, stay. Loaders that read ``.cls`` or ``.json`` from the tars see only the
levels that the set was written with.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nml.cli import Parser, run
from nml.errors import UserError
from nml.files import sha256_file, write_json
from nml.front import spelled
from nml.levels import OWN_RATE, is_level_name, level_name, parse_ratio
from nml.set_file import MANIFEST_FILE, SET_FILE, SIGNATURE_FILE, read_set_bytes
from shards.arrow_columns import KeyColumn, take_rows
from shards.captions import as_lists, flat, starts_of, with_captions
from shards.certified import refuse_damaged
from shards.features import describe_input, open_encoder
from shards.finishing import refuse_unreadable
from shards.hashing import hash_keys
from shards.ladder import (
    Level,
    PlannedLevel,
    check_ratios,
    clean_column,
    load_model,
    plan_ladder,
    refuse_noise,
    with_own_rate,
)
from shards.locking import existing_locked
from shards.manifest import (
    SOURCE_ROW,
    SourceNames,
    Statistics,
    index_digests,
    index_schema,
    iter_manifest,
    manifest_schema,
    read_source_rows,
    write_index,
    write_manifest,
)
from shards.noise import NOISE_MODELS, Population
from shards.pending import finish_pending, next_file, replacing
from shards.reader import ShardReader
from shards.set_info import INDEX_FILE, STATS_FILE, SetInfo
from shards.shardset import ShardSet
from shards.storage import refuse_url

PROGRAM = "python -m shards.relabel"

_EPILOG = """
examples:
  python -m shards.relabel data/shards/digits --noise 0.15
  python -m shards.relabel data/shards/cifar10 --noise 0.1 --model pair-flip
  python -m shards.relabel data/shards/cifar10 --noise 0.1 --seed 1 --name n10-seed1    # another draw
"""


def relabel(
    folder: Path,
    ratios: Sequence[Fraction],
    model_name: str | None,
    model_file: str | None,
    seed: int | None,
    encoder: str | None = None,
    *,
    chain: bool = False,
    force: bool = False,
    own_rate: bool = False,
    names: Sequence[str] = (),
) -> tuple[SetInfo, list[Level]]:
    """Add levels to the set in ``folder``; return the set and the levels added.

    Args:
        folder: The set.
        ratios: Their ratios.
        model_name: Noise model; None for the default one.
        model_file: What it reads.
        seed: Seed of the noise; None for the set's own.
        encoder: Computes the features that the model reads.
        chain: Whether noise on top of noise is allowed.
        force: Whether noise on a held-out split is.
        own_rate: Whether the model's own rate is asked for, too.
        names: Names of the levels, one each; where there are none, their ratios name them.

    Raises:
        UserError: If there is no set, or a damaged one, a level is there already, or a model cannot do it.
    """
    check_ratios(ratios, names)
    with existing_locked(folder):
        finished = finish_pending(folder)
        shard_set = ShardSet.open(folder)
        info = shard_set.info
        refuse_damaged(folder, info)
        refuse_noise(info, str(folder), chain=chain, force=force)
        with _features(shard_set, encoder, model_name, model_file) as (file, model_input):
            name, model = load_model(model_name, info.kind, file)
            seed = info.seed if seed is None else seed
            population = read_population(shard_set)
            if encoder:
                # These features were computed from the set itself, in its own order.
                population = replace(population, source_rows=None, source_order_lost=False)
            if own_rate:
                ratios = with_own_rate(ratios, model, name, population)
            planned = plan_ladder(model, name, population, ratios, seed, model_input, names)
        asked = [level for level, _ in planned]
        if finished and all(info.levels.get(level.name) == level for level in asked):
            return info, asked
        for level in asked:
            _refuse_there(level, info, folder)
        schema = index_schema(info.kind, [*info.all_levels(), *(level.name for level in asked)], "")
        refuse_unreadable(
            str(folder),
            info.shards[-1],
            len(info.shards),
            info.num_samples,
            len(schema),
            info.classes or (),
            mend="write the set anew, with shards {times} times as large by bytes and by count",
        )
        return _add(folder, info, shard_set, planned), asked


def _refuse_there(level: Level, info: SetInfo, folder: Path) -> None:
    """Raise a UserError if a set has a level of the same name, or the same draw under another."""
    there = info.all_levels()
    same = next((each for each in info.levels.values() if each.draw() == level.draw()), None)
    if same is not None and same.flipped == level.flipped:
        otherwise = same.name != level.name
        raise UserError(
            f"{folder}: level {level.name} is there already{' by another name' if otherwise else ''} "
            f"({same.describe()})",
            mend="ask for another ratio, model or seed"
            + (f", or use it as it is: --noise {same.name}" if otherwise else ""),
        )
    if level.name in there:
        ratio = level_name(parse_ratio(level.asked))
        named = (f"{ratio}-{level.model}", f"{ratio}-{level.model}-seed{level.seed}")
        names = itertools.chain(named, (f"{ratio}-{number}" for number in itertools.count(2)))
        free = next(name for name in names if is_level_name(name) and name not in there)
        raise UserError(
            f"{folder}: level {level.name} is there already ({there[level.name].describe()})",
            mend=f"give this one a name of its own: --name {free}",
        )


@contextlib.contextmanager
def _features(
    shard_set: ShardSet, encoder: str | None, model_name: str | None, model_file: str | None
) -> Iterator[tuple[str | None, dict[str, Any] | None]]:
    """Give the file that the model reads, computed first if an encoder is named, and what to record of it."""
    opened = open_encoder(encoder, model_name, model_file)
    with tempfile.TemporaryDirectory() as folder:
        if opened:
            model_file = str(Path(folder) / "features.npy")
            reader = ShardReader(shard_set)
            opened.write_features(
                Path(model_file), lambda sample: reader.image(sample)[1], shard_set.num_samples
            )
        yield model_file, describe_input(model_file, opened)


def read_population(shard_set: ShardSet) -> Population:
    """Return a set's samples and clean supervision, ready to be planned over."""
    index, info = shard_set.index, shard_set.info
    keys = KeyColumn(index.column("key"))
    empty = np.empty(0, np.int64)
    source_rows = read_source_rows(shard_set.manifest_path)
    population = Population(
        kind=info.kind,
        hashes=hash_keys(keys),
        labels=index.column("label").to_numpy().astype(np.int64) if info.kind == "class" else empty,
        num_classes=len(info.classes or ()),
        texts=np.empty(0, np.uint64),
        keys=keys,
        source_rows=source_rows,
        # Tars that were indexed where they lie (no request) are in the source's order.
        source_order_lost=source_rows is None and bool(info.request),
        names=SourceNames(shard_set.manifest_path),
        classes=info.classes,
    )
    return population if info.kind == "class" else with_captions(population, index.column("caption"))


def _add(folder: Path, info: SetInfo, shard_set: ShardSet, planned: Sequence[PlannedLevel]) -> SetInfo:
    levels = {**info.levels, **{level.name: level for level, _ in planned}}
    columns = [clean_column(info.kind), *(level.column for level in levels.values())]
    statistics = Statistics.of(replace(info, levels=levels))
    clean = shard_set.index.column(columns[0])
    added = {
        level.column: _column(clean, planned_level, info)
        for planned_level in planned
        for level in [planned_level.level]
    }

    def tables() -> Iterator[pa.Table]:
        start = 0
        for table in iter_manifest(folder / MANIFEST_FILE):
            for column, values in added.items():
                table = table.append_column(column, values.slice(start, table.num_rows))
            start += table.num_rows
            yield table

    schema = manifest_schema(info.kind, columns, resized=bool(info.resized))
    if read_source_rows(folder / MANIFEST_FILE) is None:
        schema = schema.remove(schema.get_field_index(SOURCE_ROW))
    index, manifest = next_file(folder, INDEX_FILE), next_file(folder, MANIFEST_FILE)
    with replacing(folder):
        write_index(index, index_schema(info.kind, columns, info.fingerprint), tables())
        write_manifest(manifest, schema, _counted(tables(), statistics))
        write_json(next_file(folder, STATS_FILE), statistics.as_json(info.classes))
        changed = replace(
            info,
            levels=levels,
            manifest_sha256=sha256_file(manifest),
            index_sha256=sha256_file(index),
            index_digests=index_digests(index),
        )
        write_json(next_file(folder, SET_FILE), changed.as_json())
    return changed


def _counted(tables: Iterator[pa.Table], statistics: Statistics) -> Iterator[pa.Table]:
    for table in tables:
        statistics.add(table)
        yield table


def _column(clean: pa.ChunkedArray, planned: PlannedLevel, info: SetInfo) -> pa.ChunkedArray:
    """Return a level's supervision of every sample."""
    rows, values = planned.flips
    if info.kind == "class":
        labels = clean.to_numpy().copy()
        labels[rows] = values
        return pa.chunked_array([pa.array(labels, pa.int32())])
    captions = flat(clean)
    source = np.arange(len(captions), dtype=np.int64)
    source[rows] = values
    given = take_rows(captions, source)
    return given if info.kind == "caption" else as_lists(given, starts_of(clean))


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Add noise levels to a shard set. Images are not touched, and clean labels always stay.",
        epilog=_EPILOG,
    )
    parser.add_argument("set", type=str, help="folder of the set")
    parser.add_argument(
        "--noise", nargs="+", default=[], type=str, help="noise ratios, above 0 and below 1, or own"
    )
    parser.add_argument("--model", default=None, type=str, help="noise model (default: as shards.write)")
    parser.add_argument("--model-file", default=None, type=str, help="what the model reads")
    parser.add_argument(
        "--encoder", default=None, type=str, help="compute the features it reads (as shards.write)"
    )
    parser.add_argument(
        "--name",
        nargs="+",
        default=[],
        type=str,
        help="names of the levels, one each (default: n20 for 0.2), for another draw of a ratio",
    )
    parser.add_argument("--seed", default=None, type=int, help="seed of the noise (default: the set's own)")
    parser.add_argument(
        "--chain", action="store_true", help="allow noise on top of labels that came from a noisy set"
    )
    parser.add_argument("--force", action="store_true", help="allow noise on a validation or test split")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = build_parser().parse_args(argv)
    ratios = tuple(parse_ratio(text) for text in arguments.noise if text != OWN_RATE)
    own_rate = OWN_RATE in arguments.noise
    own_ratio = arguments.model and getattr(NOISE_MODELS.load(arguments.model), "own_ratio", False)
    if not all(ratios) or not (ratios or own_ratio or own_rate):
        raise UserError(
            "--noise: names no level to add",
            possible="ratios above 0; clean is always there",
            mend="--noise 0.15",
        )
    refuse_url(arguments.set)
    folder = Path(arguments.set)
    before = read_set_bytes(folder)
    _, levels = relabel(
        folder,
        ratios,
        arguments.model,
        arguments.model_file,
        arguments.seed,
        arguments.encoder,
        chain=arguments.chain,
        force=arguments.force,
        own_rate=own_rate,
        names=tuple(arguments.name),
    )
    for level in levels:
        print(level.describe())
    if (folder / SIGNATURE_FILE).exists() and read_set_bytes(folder) != before:
        print(f"{SIGNATURE_FILE} no longer holds: sign the set anew with {spelled('python -m shards.sign')}")
    print(f"set: {arguments.set}")


if __name__ == "__main__":
    run(main)
