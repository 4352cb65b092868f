"""set.json, without which a folder or URL is no shard set: where it is, and what it says to all who look.

Writing it, and what only a reader of samples wants of it, is for :mod:`shards.set_info`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.files import is_utf8
from nml.levels import CLEAN_LEVEL, find_level
from nml.untrusted import MOST_BYTES, Untrusted, check_object, parse_json, read_file
from nml.urls import access_error, redacted, take_secret, told_reason, with_secret, without_secret

SET_FORMAT = "nml-shards/1"
SET_FILE = "set.json"
MANIFEST_FILE = "manifest.parquet"
SIGNATURE_FILE = "set.sig"
DIGEST = "set_sha256"
# The folder that a set being written has in place of set.json, and what is in it first.
WORK_FOLDER = ".writing"
WORK_FIRST = "request.json"
_LOCAL_URLS = ("file://", "local://")


def local_folder(location: str | Path) -> Path | None:
    """Return the folder of a set on this machine; None for one at a URL.

    Raises:
        UserError: If its name is no UTF-8, as which Arrow opens and stores names.
    """
    text = str(location)
    if not is_utf8(text):
        raise UserError(f"{text}: the name is no UTF-8", mend="rename it, or name a link to it")
    for prefix in _LOCAL_URLS:
        text = text.removeprefix(prefix)
    return None if "://" in text else Path(text).expanduser()


def read_set_bytes(location: str | Path, name: str = SET_FILE, *, file_system: Any = None) -> bytes:
    """Return a small file of a set, never from a cache: set.json tells what is current.

    Args:
        location: A folder, or an fsspec URL.
        name: The file.
        file_system: An fsspec file system for the URL, where one is open.

    Raises:
        UserError: If there is no set, or it cannot be read.
    """
    folder = local_folder(location)
    if folder is not None:
        try:
            return read_file(folder / name)
        except Untrusted as error:
            raise damaged(f"{folder / name}", error) from error
        except OSError as error:
            if (folder / WORK_FOLDER).is_dir():
                raise interrupted(location) from error
            raise no_set(location) from error
    base = take_secret(str(location)).rstrip("/")
    # From None: what a client of a server raises may show the URL with its secret.
    try:
        remote = open_file_system(base) if file_system is None else file_system
        # What a server sends may have no end, and may grow as it is unpacked.
        with remote.open(with_secret(f"{base}/{name}"), "rb") as file:
            content: bytes = file.read(MOST_BYTES + 1)
    except UserError:
        raise
    except Exception as error:
        # Clients of object stores raise types of their own.
        if isinstance(told_reason(error), FileNotFoundError):
            if remote.exists(with_secret(f"{base}/{WORK_FOLDER}/{WORK_FIRST}")):
                raise interrupted(base) from None
            raise no_set(base) from None
        raise access_error(f"{base}/{name}: cannot be read", error, "check the URL and the network") from None
    return content


def open_file_system(url: str) -> Any:
    """Return the fsspec file system of a URL, as :func:`connected` does."""
    return connected(url)[0]


def connected(url: str, option: str = "") -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and its path in that.

    Args:
        url: The URL.
        option: What named it, for the error.

    Raises:
        UserError: If it needs a package that is not there, is of no kind known here, or cannot be reached.
    """
    import fsspec

    url = take_secret(url)
    shown = f"{option} {url}".strip()
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(with_secret(url))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{shown}: {redacted(str(error))}",
            mend="install fsspec's package for this kind of URL; for http and s3: "
            "pip install 'noisy-model-learning[remote]'",
        ) from None
    except Exception as error:
        raise access_error(f"{shown}: cannot be reached", error, "check the URL and the network") from None
    return found


def parse_set_record(text: bytes, where: str) -> dict[str, Any]:
    """Return what set.json holds, its format and hash checked and taken out.

    Raises:
        UserError: If it is not of a format known here, or damaged.
    """
    try:
        stored = parse_json(text)
        found = stored.pop("format", None)
        if found != SET_FORMAT:
            raise UserError(
                f"{where}: format {found!r}", possible=SET_FORMAT, mend="read it with a newer version"
            )
        digest = stored.pop(DIGEST, None)
        if digest is not None and digest != record_digest(stored):
            raise UserError(
                f"{where}: damaged: its content is not what its {DIGEST} says",
                mend="restore the file, or write the set again",
            )
        for level in check_object(stored.get("levels", {})).values():
            check_object(level)
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(where, error) from error
    record: dict[str, Any] = stored
    return record


def record_digest(record: dict[str, Any]) -> str:
    """Return the hash of what set.json holds: a changed digit in it could name another label column."""
    complete = {"format": SET_FORMAT, **record}
    return hashlib.sha256(json.dumps(complete, sort_keys=True).encode()).hexdigest()


def read_set_record(location: str | Path) -> dict[str, Any]:
    """Return what a set's set.json holds, for those who only want to know which set it is.

    Raises:
        UserError: If there is no set, or its set.json is damaged.
    """
    return parse_set_record(read_set_bytes(location), f"{without_secret(str(location))}/{SET_FILE}")


def check_level(location: str | Path, noise: str, where: str = "--shards", *, strict: bool = True) -> None:
    """Check that there is a complete set that has the level that ``noise``, a name or a ratio, asks for.

    Raises:
        UserError: If not, or if several have the ratio; see :func:`nml.levels.find_level`.
    """
    try:
        location = take_secret(str(location))
        record = read_set_record(location)
    except UserError as error:
        raise UserError(f"{where} {error}") from error
    ratios = {name: str(level.get("asked")) for name, level in record.get("levels", {}).items()}
    what = f"{where} {location}"
    find_level(noise, {CLEAN_LEVEL: "0", **ratios}, what, location=location, strict=strict)


def damaged(where: str, error: Exception) -> UserError:
    """Return the error for a set.json that does not hold what it should."""
    return UserError(
        f"{where}: damaged: {error if isinstance(error, Untrusted) else f'{type(error).__name__}: {error}'}",
        mend="write the set again, or restore the file",
    )


def interrupted(location: str | Path) -> UserError:
    """Return the error for a folder or URL that a set is being written to, or was."""
    return UserError(
        f"{location}: a shard set whose writing was interrupted",
        mend="run the command that wrote it again to finish it",
    )


def no_set(location: str | Path) -> UserError:
    """Return the error for a folder or URL that holds no finished set."""
    return UserError(
        f"{location}: no shard set there ({SET_FILE} is missing)",
        mend="write one: python -m shards.write --out FOLDER; "
        "or for foreign WebDataset tars: python -m shards.index FOLDER",
    )
