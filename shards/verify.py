"""``python -m shards.verify``: hold a set to everything its set.json claims."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from nml.cli import Parser, is_interactive, run
from nml.errors import UserError
from nml.levels import parse_ratio
from nml.set_file import MANIFEST_FILE, SET_FILE, SIGNATURE_FILE, local_folder, read_set_bytes
from nml.signatures import BadSignature, check_signature
from nml.untrusted import MOST_BYTES, Untrusted, parse_json, shown
from shards.arrow_columns import hash_column
from shards.captions import flat, member_text, starts_of
from shards.certified import Finding, check_files, check_statistics
from shards.finishing import supervision_digest
from shards.image_checks import too_large, undecodable
from shards.index_table import IndexTable
from shards.ladder import MISSES_ITS_RATIO, Level, clean_column
from shards.manifest import MUST_HAVE, iter_manifest, manifest_schema
from shards.noise import NOISE_MODELS, exact_count
from shards.packing import ORIGINAL_SHA256, TreeHash
from shards.pending import is_pending
from shards.set_info import INDEX_FILE, SetInfo, Shard, fingerprint, parse_set_info
from shards.sidecar import size_now, tar_here
from shards.storage import refuse_url
from shards.tarwalk import tar_samples, walk

PROGRAM = "python -m shards.verify"


def verify(
    folder: Path, *, images: bool = True, decode: bool = False, key: str | None = None
) -> Iterator[Finding]:
    """Check a set, yielding a finding a check; later checks run even if earlier ones fail.

    Args:
        folder: The set.
        images: Also read every shard: its hash, and each member and image against the manifest.
        decode: Also decode every image: what nobody can decode has a hash, too.
        key: Public key that set.json must be signed with.

    Raises:
        UserError: If there is no set, or its set.json is damaged.
    """
    set_bytes = read_set_bytes(folder)
    info = parse_set_info(set_bytes, str(folder / SET_FILE))
    if key is not None:
        yield Finding("signature", _signature(folder, key))
    if is_pending(folder):
        again = "run python -m shards.relabel again, with any level: it finishes the former one first"
        yield Finding("levels", f"adding one was interrupted; {again}")
    yield from check_files(folder, info, set_bytes)
    for shard in info.shards:
        yield Finding(f"{shard.name} size", _same_size(folder, shard))
    try:
        manifest = pa.concat_tables(iter_manifest(folder / MANIFEST_FILE))
        manifest.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        yield Finding("manifest", f"cannot be read: {error}")
        return
    problem = _columns(manifest, info)
    yield Finding("manifest columns", problem)
    if problem:
        return
    yield Finding("index content", _index(folder / INDEX_FILE, manifest, info))
    yield check_statistics(folder, info, iter_manifest(folder / MANIFEST_FILE))
    for name, check in _MANIFEST_CHECKS.items():
        yield Finding(name, check(manifest, info))
    yield from _levels(manifest, info)
    if images:
        for number, shard in enumerate(tqdm(info.shards, desc="verifying", disable=not is_interactive())):
            rows = _rows_of(manifest, number)
            try:
                # What lies on a server now, not what a cache has of it.
                with tar_here(shard.url or str(folder / shard.name), shard.bytes) as path:
                    problem = _shard_content(path, shard, rows, info)
                    yield Finding(f"{shard.name} content", problem.replace(str(path), shard.url or str(path)))
                    if info.resized:
                        yield Finding(f"{shard.name} sizes", too_large(path, rows, info.resized))
                    if decode:
                        yield Finding(f"{shard.name} images", undecodable(path, rows))
            except UserError as error:
                yield Finding(f"{shard.name} content", str(error))


def _signature(folder: Path, key: str) -> str:
    try:
        check_signature(folder, [SET_FILE], SIGNATURE_FILE, key)
    except BadSignature as error:
        return str(error)
    return ""


def _same_size(folder: Path, shard: Shard) -> str:
    place = shard.url or str(folder / shard.name)
    if (path := local_folder(place)) is not None and not path.is_file():
        return f"{path} is missing"
    try:
        found = size_now(place)
    except UserError as error:
        return str(error)
    if found in (None, shard.bytes):
        return ""
    return f"{place} has {found:,} bytes, set.json says {shard.bytes:,}"


def _columns(manifest: pa.Table, info: SetInfo) -> str:
    """Hold the columns that are there to their types, and those that every sample has to having values."""
    original = (ORIGINAL_SHA256,) if info.resized else ()
    must_have = (*MUST_HAVE, *original, clean_column(info.kind))
    levels = [level.column for level in info.all_levels().values()]
    for field in manifest_schema(info.kind, levels, resized=bool(info.resized)):
        if field.name not in manifest.column_names:
            if field.name in must_have:
                return f"has no column {field.name}"
            continue
        if manifest.column_names.count(field.name) > 1:
            return f"has {field.name} twice"
        column = manifest[field.name]
        if column.type != field.type:
            return f"{field.name} is {column.type}, not {field.type}"
        if column.null_count and (field.name in must_have or field.name.startswith(clean_column(info.kind))):
            return f"{field.name} has no value for {column.null_count} samples"
    return ""


def _index(path: Path, manifest: pa.Table, info: SetInfo) -> str:
    """Hold the index, which is all that reading looks at, to the manifest."""
    try:
        index = IndexTable(path, info)
        for name in index.names:
            if name in manifest.column_names and not index.column(name).equals(manifest[name]):
                return f"{path}: {name} is not what the manifest has"
    except UserError as error:
        return str(error)
    return ""


def _counts(manifest: pa.Table, info: SetInfo) -> str:
    if manifest.num_rows != info.num_samples or manifest.num_rows != sum(
        shard.samples for shard in info.shards
    ):
        return f"{manifest.num_rows} rows in the manifest, {info.num_samples} samples in set.json"
    return ""


def _keys(manifest: pa.Table, info: SetInfo) -> str:  # noqa: ARG001 - one signature for all checks
    # As large strings: more than 2 GiB of keys are no error.
    distinct = pc.count_distinct(manifest["key"].cast(pa.large_string())).as_py()
    return "" if distinct == manifest.num_rows else f"{manifest.num_rows - distinct} keys occur twice"


def _identity(manifest: pa.Table, info: SetInfo) -> str:
    clean = hashlib.sha256()
    column = clean_column(info.kind)
    start = 0
    for shard in info.shards:
        clean.update(supervision_digest(manifest.slice(start, shard.samples), column))
        start += shard.samples
    found = fingerprint(info.kind, info.classes, info.shards, clean.digest())
    return "" if found == info.fingerprint else "the fingerprint does not match the manifest and the shards"


_MANIFEST_CHECKS: dict[str, Callable[[pa.Table, SetInfo], str]] = {
    "sample counts": _counts,
    "unique keys": _keys,
    "fingerprint": _identity,
}


def _levels(manifest: pa.Table, info: SetInfo) -> Iterator[Finding]:
    """Check counts of every level, and nesting between neighbours among those of one model and seed."""
    clean = flat(manifest[clean_column(info.kind)])
    changed = {}
    for level in info.levels.values():
        if level.column not in manifest.column_names:
            yield Finding(f"{level.name} count", f"the manifest has no column {level.column}")
            continue
        given = flat(manifest[level.column])
        if len(given) != len(clean):
            yield Finding(f"{level.name} count", f"{len(given)} captions, where {len(clean)} are clean")
            continue
        changed[level.name] = pc.not_equal(clean, given).to_numpy()
        yield Finding(f"{level.name} count", _level_count(level, changed[level.name]))
        yield Finding(f"{level.name} values", _level_values(level, manifest, info))
    ladders: dict[tuple[str, int, str], list[Level]] = {}
    for level in sorted((info.levels[name] for name in changed), key=_ratio):
        read = json.dumps(level.model_input, sort_keys=True)
        ladders.setdefault((level.model, level.seed, read), []).append(level)
    for (model, _, _), ladder in ladders.items():
        for low, high in pairwise(ladder if _is_nested(model) else ()):
            yield Finding(f"{low.name} nested in {high.name}", _nesting(low, high, changed, manifest))


def _ratio(level: Level) -> float:
    return float(parse_ratio(level.asked))


def _is_nested(model: str) -> bool:
    """Whether a model promises nesting; unknown for one that is not installed here."""
    return model in NOISE_MODELS.names() and bool(getattr(NOISE_MODELS.load(model), "nested", False))


def _is_exact(model: str) -> bool:
    """Whether a model is held to its ratio: all are that are installed here and do not decide it."""
    known = model in NOISE_MODELS.names() and model != MISSES_ITS_RATIO
    return known and not getattr(NOISE_MODELS.load(model), "own_ratio", False)


def _level_count(level: Level, changed: np.ndarray) -> str:
    found = int(changed.sum())
    if found != level.flipped:
        return f"{found} samples differ from clean, set.json says {level.flipped}"
    moved = level.flipped if level.moved is None else level.moved
    asked = exact_count(parse_ratio(level.asked), len(changed))
    if moved != asked and _is_exact(level.model):
        return f"{moved} samples altered, round({level.asked} * {len(changed)}) is {asked}"
    return ""


def _level_values(level: Level, manifest: pa.Table, info: SetInfo) -> str:
    """Labels are classes of the set; swapped captions are the clean ones, each still used once."""
    if info.kind == "class":
        bounds = pc.min_max(manifest[level.column]).as_py()
        if bounds["min"] < 0 or bounds["max"] >= len(info.classes or ()):
            return f"labels from {bounds['min']} to {bounds['max']} for {len(info.classes or ())} classes"
        return ""
    if not np.array_equal(starts_of(manifest["caption"]), starts_of(manifest[level.column])):
        return "samples have another number of captions than clean ones"
    clean, given = (np.sort(hash_column(flat(manifest[name]))) for name in ("caption", level.column))
    return "" if np.array_equal(clean, given) else "the captions are not the clean ones in another order"


def _nesting(low: Level, high: Level, changed: dict[str, np.ndarray], manifest: pa.Table) -> str:
    lost = int(np.count_nonzero(changed[low.name] & ~changed[high.name]))
    # An odd caption level ends in a ring of three: two of them carry another caption at a higher level, and
    # one carried another at a lower one.
    ring = 2 if (low.moved or 0) % 2 else (high.moved or 0) % 2
    if lost > ring:
        return f"{lost} samples altered at {low.name} are clean at {high.name}"
    both = changed[low.name] & changed[high.name]
    differ = pc.not_equal(flat(manifest[low.column]), flat(manifest[high.column])).to_numpy() & both
    if int(differ.sum()) > ring:
        return f"{int(differ.sum())} samples are wrong in another way at {high.name}"
    return ""


def _rows_of(manifest: pa.Table, number: int) -> pa.Table:
    return manifest.filter(pc.equal(manifest["shard"], number))


def _shard_content(path: Path, shard: Shard, rows: pa.Table, info: SetInfo) -> str:
    """Compare a shard's hash, and each member's place, name and content, with the manifest."""
    if not path.is_file():
        return f"{path} is missing"
    digest, damaged = _tree_hash(path, rows)
    if damaged:
        return f"{path}: image {damaged} does not match its SHA-256 in the manifest"
    if digest != shard.tree_sha256:
        return f"{path} does not match its tree hash in set.json"
    if not info.request:
        return ""
    samples = list(tar_samples(walk(path)))
    if len(samples) != rows.num_rows:
        return f"{path} holds {len(samples)} samples, the manifest {rows.num_rows}"
    supervision = "cls" if info.kind == "class" else "txt"
    primary = info.all_levels()[info.primary].column
    with path.open("rb") as file:
        for sample, row in zip(samples, rows.to_pylist(), strict=True):
            image = sample.image()
            if sample.base != row["key"] or image is None or image.offset != row["image_offset"]:
                return f"{path}: sample {sample.base} stands where the manifest has {row['key']}"
            for extension, column in ((supervision, primary), ("json", None)):
                member = sample.members.get(extension)
                if member is None:
                    return f"{path}: sample {sample.base} has no .{extension}"
                file.seek(member.offset)
                content = file.read(min(member.size, MOST_BYTES + 1))
                if column and content != member_text(row[column]).encode():
                    return f"{path}: {member.name} holds {shown(content)}, the manifest {shown(row[column])}"
                if column is None and (problem := _json_differs(content, row)):
                    return f"{path}: {member.name}: {problem}"
    return ""


def _json_differs(content: bytes, row: dict[str, object]) -> str:
    """Name a field of a ``.json`` member that the manifest contradicts."""
    try:
        record = parse_json(content)
    except Untrusted as error:
        return str(error)
    if not isinstance(record, dict):
        return "it holds no fields"
    for name, value in record.items():
        if row.get(name) != value:
            return f"{name} is {shown(value)}, the manifest says {shown(row.get(name))}"
    return ""


def _tree_hash(path: Path, rows: pa.Table) -> tuple[str, str]:
    """Return a shard's tree hash, and the key of the first image that the manifest contradicts."""
    tree = TreeHash()
    columns = (rows[name].to_pylist() for name in ("key", "image_offset", "image_size", "sha256"))
    end = path.stat().st_size
    with path.open("rb") as file:
        for key, offset, size, sha256 in zip(*columns, strict=True):
            if not file.tell() <= offset <= end or not 0 <= size <= end - offset:
                return "", key
            tree.plain(file.read(offset - file.tell()))
            if hashlib.sha256(file.read(size)).digest() != sha256:
                return "", key
            tree.image(sha256)
        tree.plain(file.read())
    return tree.hexdigest(), ""


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(
        PROGRAM,
        "Check a shard set: hashes and sizes, exact counts of every level, nesting, and every image.",
        epilog="example:\n  python -m shards.verify data/shards/digits",
    )
    parser.add_argument("set", type=str, help="folder of the set")
    parser.add_argument(
        "--key", type=str, default=None, help="public key in PEM that it must be signed with (shards.sign)"
    )
    parser.add_argument("--quick", action="store_true", help="leave out the images: seconds for any set")
    parser.add_argument("--decode", action="store_true", help="also decode every image: takes longest")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 if anything is wrong."""
    arguments = build_parser().parse_args(argv)
    refuse_url(arguments.set)
    if arguments.quick and arguments.decode:
        raise UserError("--quick and --decode: both asked for", mend="leave out one of the two")
    checks = problems = 0
    found = verify(
        Path(arguments.set), images=not arguments.quick, decode=arguments.decode, key=arguments.key
    )
    for finding in found:
        checks += 1
        if finding.problem:
            problems += 1
            print(f"WRONG {finding.name}: {finding.problem}")
    if problems:
        print(f"{problems} of {checks} checks failed: {arguments.set}")
        return 1
    print(f"all {checks} checks passed: {arguments.set}")
    return 0


if __name__ == "__main__":
    run(main)
