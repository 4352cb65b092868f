"""Which tars of a location are to be indexed, in place or for a sidecar; a set there names its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nml.errors import UserError
from nml.files import atomic_writer, make_folder, write_json
from nml.set_file import (
    MANIFEST_FILE,
    SET_FILE,
    WORK_FOLDER,
    interrupted,
    local_folder,
    open_file_system,
)
from nml.untrusted import Untrusted, file_name
from nml.urls import access_error, take_secret, with_secret
from shards.certified import check_statistics, refuse_damaged
from shards.manifest import iter_manifest
from shards.set_info import INDEX_FILE, STATS_FILE, SetInfo
from shards.shardset import ShardSet
from shards.sidecar import tar_here
from shards.sources import SourceSpec
from shards.sources.files import expand, split_of
from shards.sources.webdataset import WebDatasetSource


class ForeignTars(NamedTuple):
    """What is indexed.

    Attributes:
        source: Reads the samples.
        places: The tars: paths in place, URLs for a sidecar.
        held_out: Whether they are of a validation or test split.
    """

    source: WebDatasetSource
    places: list[str]
    held_out: bool


def in_place(spec: SourceSpec, folder: Path) -> ForeignTars:
    """Return the tars of a folder that are indexed where they lie.

    Raises:
        UserError: If there are none, one cannot be, or they are of several splits.
    """
    source = WebDatasetSource(spec)
    tars = [Path(str(tar)) for tar in source.tars]
    if others := [tar for tar in tars if not tar.name.endswith(".tar") or tar.parent != folder]:
        raise not_in_place(others[0])
    if len(source.tars) < len(list(folder.glob("*.tar"))):
        raise UserError(
            f"{folder}: holds tars of several splits, by their names",
            mend="give each split a folder of its own; links to the tars will do",
        )
    return ForeignTars(source, [str(tar) for tar in source.tars], source.held_out)


def elsewhere(spec: SourceSpec) -> ForeignTars:
    """Return the tars of a sidecar: of this machine as a source names them, of others as a server lists them.

    Raises:
        UserError: If there are none, one cannot be read by readers of sets, or they are of several splits.
    """
    path = local_folder(spec.argument)
    if path is not None:
        source = WebDatasetSource(replace(spec, argument=str(path)))
        urls = [f"file://{Path(str(tar)).absolute()}" for tar in source.tars]
        return ForeignTars(source, list(named_once(urls).values()), source.held_out)
    urls = list(named_once(tars_at(spec.argument)).values())
    splits = {split_of(url.partition("://")[2]) for url in urls}
    if len(splits) > 1:
        raise UserError(
            f"{spec.shown}: holds tars of several splits, by their names",
            mend="name those of one, by braces: {0000..0099}",
        )
    with tar_here(urls[0]) as first:
        source = WebDatasetSource(replace(spec, argument=str(first)))
    return ForeignTars(source, urls, not splits <= {"", "train"})


def not_in_place(tar: Path) -> UserError:
    """Return the error for a tar whose bytes a reader cannot find by their place."""
    return UserError(
        f"{tar}: cannot be read where it lies",
        possible="uncompressed tars; without --out directly in the folder that is indexed",
        mend="unpack it or link it there; or write a set of it: "
        f"python -m shards.write --source webdataset:{tar.parent}",
    )


def tars_at(location: str) -> list[str]:
    """Return the URLs of the tars that a location names, without their secrets, sorted within each pattern.

    Args:
        location: An fsspec URL of a folder, of a tar, or of several by braces, ``{0000..0099}``.

    Raises:
        UserError: If there are none, or the server cannot be asked.
    """
    shown = take_secret(location)
    names = expand(with_secret(shown))
    if len(names) == 1 and not shown.endswith(".tar"):
        return _listed(shown.rstrip("/"))
    return [take_secret(name) for name in names]


def _listed(folder: str) -> list[str]:
    try:
        found = open_file_system(folder).ls(with_secret(folder + "/"), detail=False)
    except UserError:
        raise
    except Exception as error:
        raise access_error(
            f"{folder}: cannot be listed", error, f"name its tars: {folder}/{{0000..0099}}.tar"
        ) from None
    names = {str(each).rstrip("/").rpartition("/")[2].partition("?")[0] for each in found}
    if WORK_FOLDER in names:
        raise interrupted(folder)
    tars = sorted(name for name in names if name.endswith(".tar"))
    if not tars:
        raise UserError(
            f"{folder}: lists no .tar", mend=f"check the URL, or name the tars: {folder}/{{0000..0099}}.tar"
        )
    return [f"{folder}/{name}" for name in tars]


def named_once(urls: Iterable[str]) -> dict[str, str]:
    """Return tars by file name.

    Raises:
        UserError: If two have one, or one cannot be the name of a shard.
    """
    found: dict[str, str] = {}
    for url in urls:
        name = url.rpartition("/")[2]
        try:
            file_name(name, ".tar")
        except Untrusted as error:
            raise UserError(f"{url}: {error}", possible="uncompressed tars, NAME.tar") from error
        if name in found:
            raise UserError(
                f"{url}: another tar is called {name}, too", mend="give each folder a sidecar of its own"
            )
        found[name] = url
    return found


def is_set(location: str) -> bool:
    """Whether a location is that of a set, which names its own tars.

    Raises:
        UserError: If its server cannot be asked.
    """
    if (folder := local_folder(location)) is not None:
        return (folder / SET_FILE).is_file()
    base = take_secret(location).rstrip("/")
    try:
        return bool(open_file_system(base).exists(with_secret(f"{base}/{SET_FILE}")))
    except UserError:
        raise
    except Exception as error:
        raise access_error(f"{base}: cannot be reached", error, "check the URL and the network") from None


def make_sidecar(shard_set: ShardSet, out: Path) -> SetInfo:
    """Give a set a sidecar, with its levels, that further levels can be added to; return what it is.

    Raises:
        UserError: If a file that describes the set is not what its set.json says.
    """
    info = shard_set.info
    base = shard_set.path.rstrip("/")
    if (folder := local_folder(base)) is not None:
        refuse_damaged(folder, info)
        base = f"file://{folder.absolute()}"
    made_folder(out)
    for name in (MANIFEST_FILE, INDEX_FILE, STATS_FILE):
        # What comes from a server is held to its hash on the way.
        with shard_set.storage.local(name).open("rb") as source, atomic_writer(out / name) as target:
            shutil.copyfileobj(source, target)
    if problem := check_statistics(out, info, iter_manifest(out / MANIFEST_FILE)).problem:
        raise UserError(f"{base}: {problem}", mend="upload the set again")
    shards = tuple(replace(shard, url=shard.url or f"{base}/{shard.name}") for shard in info.shards)
    info = replace(info, shards=shards)
    write_json(out / SET_FILE, info.as_json())
    return info


def made_folder(folder: Path) -> Path:
    """Return the folder, made if it was not there."""
    make_folder(folder)
    return folder
