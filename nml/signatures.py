"""Signatures over sets and exports, in the format and by the library of OpenSSF model-signing.

A signature is a Sigstore bundle beside the files that it covers, made and checked offline with a key pair of
one's own. What it covers is small and holds the hashes of all the rest: ``set.json`` of a set, ``meta.json``
and the weights of an export.
"""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nml.errors import UserError, import_extra
from nml.files import link_or_copy, write_bytes
from nml.untrusted import parse_json, read_file

PASSWORD_VARIABLE = "NML_SIGNING_PASSWORD"  # noqa: S105 - the name of a variable
_EXTRA = "sign"
_MOST_BYTES = 4 << 20
_MOST_KEY_BYTES = 1 << 16
# The library shows the hashes as Python would.
_CHANGED = re.compile(r"Hash mismatch for \\?'(.+?)\\?':")


class BadSignature(UserError):
    """A signature is missing, of another key, or over something else."""


def sign(folder: Path, names: Collection[str], signature: str, key: str | Path) -> Path:
    """Sign files of a folder and return the path of the signature.

    Args:
        folder: Where they lie.
        names: Their names.
        signature: The name that the signature gets there.
        key: Private key in PEM, on a curve P-256, P-384 or P-521; its password, if it has one, is read from
            ``$NML_SIGNING_PASSWORD``.

    Raises:
        UserError: If the key does not read, or the package is missing.
    """
    with tempfile.TemporaryDirectory() as place:
        # All that lies in a folder is covered, and its name becomes part of the signature.
        covered = Path(place, "covered", folder.resolve().name or "set")
        covered.mkdir(parents=True)
        for name in names:
            link_or_copy(folder / name, covered / name)
        made = Path(place, "signature")
        signer(key).sign(covered, made)
        write_bytes(folder / signature, made.read_bytes())
    return folder / signature


def signer(key: str | Path) -> Any:
    """Return what signs with a private key, so that one that does not read is told before other work.

    Raises:
        UserError: If it does not read, or the package is missing.
    """
    config = _module("signing").Config()
    password = os.environ.get(PASSWORD_VARIABLE, "").encode() or None
    try:
        read_file(Path(key), _MOST_KEY_BYTES)
        return config.use_elliptic_key_signer(private_key=key, password=password)
    except Exception as error:
        # Each kind of broken key has an error of its own, and of the library below.
        raise UserError(
            f"{key}: cannot be used for signing: {_said_of_key(error)}",
            possible="a private key in PEM on the curve P-256, P-384 or P-521; its password in "
            f"${PASSWORD_VARIABLE}",
            mend="make one: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ) from error


def check_signature(folder: Path, names: Collection[str], signature: str, key: str | Path) -> None:
    """Check that files of a folder are those that the owner of a key signed.

    Args:
        folder: Where they lie.
        names: Their names: those that the signature has to cover.
        signature: The name of the signature there.
        key: Public key in PEM.

    Raises:
        BadSignature: If there is none, it is of another key, or a file is not what was signed.
        UserError: If the key does not read, or the package is missing.
    """
    file = folder / signature
    if not file.is_file():
        raise unsigned(str(folder), signature)
    _check(folder, names, file, key, str(folder))


def check_signed_bytes(content: bytes, name: str, signature: bytes, key: str | Path, where: str) -> None:
    """Do the same for one file that has been read.

    Args:
        content: What it holds.
        name: Its name.
        signature: What its signature holds.
        key: Public key in PEM.
        where: The folder or URL, for messages.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, file = Path(place, "set"), Path(place, "signature")
        folder.mkdir()
        (folder / name).write_bytes(content)
        file.write_bytes(signature)
        _check(folder, [name], file, key, where)


def _check(folder: Path, names: Collection[str], signature: Path, key: str | Path, where: str) -> None:
    verifying = _module("verifying")
    try:
        read_file(Path(key), _MOST_KEY_BYTES)
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise UserError(
            f"{key}: cannot be used to check signatures: {_said_of_key(error)}",
            possible="a public key in PEM on the curve P-256, P-384 or P-521",
            mend="of your own key: openssl ec -in key.pem -pubout -out key.pub",
        ) from error
    try:
        left_out = set(names) - set(_covered(signature))
        if left_out:
            raise ValueError(f"it does not cover {', '.join(sorted(left_out))}")
        config.set_ignore_unsigned_files(True).verify(folder, signature)
    except Exception as error:
        raise BadSignature(
            f"{where}: its signature does not hold: {_said(error)}",
            mend="it is of another key, or what it covers was changed; its owner can sign it anew",
        ) from error


def unsigned(where: str, signature: str) -> BadSignature:
    """Return the error for a folder or URL without a signature."""
    return BadSignature(f"{where}: has no signature ({signature})", mend="ask its owner for a signed one")


def _covered(signature: Path) -> list[str]:
    """Return what a signature says it covers; that it may say so is for the library to check."""
    bundle = parse_json(read_file(signature, _MOST_BYTES))
    statement = parse_json(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
    return [str(resource["name"]) for resource in statement["predicate"]["resources"]]


def _module(name: str) -> Any:
    return import_extra(f"model_signing.{name}", _EXTRA, "signatures")


def _said_of_key(error: Exception) -> str:
    # The library looks for the curve of any key that reads.
    return "it is of another kind" if isinstance(error, AttributeError) else _said(error)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    if changed := _CHANGED.findall(text):
        return f"{', '.join(changed)} is not what was signed"
    # That of a wrong signature says nothing.
    return text or type(error).__name__
