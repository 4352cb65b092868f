"""Weights that were saved with a record beside them, which holds their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.files import check_regular
from nml.untrusted import Untrusted, read_object


def read_saved(
    record_file: Path,
    weights_file: Path,
    form: str,
    check: Callable[[dict[str, Any]], object],
    *,
    missing: str,
    mend: str,
    again: str,
) -> tuple[dict[str, Any], bytes]:
    """Read a record and the weights beside it, which have to be those that it tells of.

    Args:
        record_file: JSON, with ``format`` and ``weights_sha256``.
        weights_file: The weights.
        form: The record's format.
        check: Raises :class:`nml.untrusted.Untrusted` for a record without what its reader needs, of which
            ``weights_sha256`` is one.
        missing: What the folder is not, where one of both cannot be read.
        mend: What to do then.
        again: What to do where they are damaged.

    Raises:
        UserError: If one cannot be read, is damaged, or is of another format.
    """
    try:
        record = read_object(record_file)
        check_regular(weights_file)
        weights = weights_file.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{record_file.parent}: {missing} ({record_file.name} or {weights_file.name} cannot be read)",
            mend=mend,
        ) from error
    if record.get("format") != form:
        raise UserError(f"{record_file}: format {record.get('format')!r}", possible=form)
    try:
        check(record)
    except Untrusted as error:
        raise UserError(f"{record_file}: {error}", mend=again) from error
    if hashlib.sha256(weights).hexdigest() != record["weights_sha256"]:
        raise UserError(f"{weights_file}: not the weights that were saved", mend=again)
    return record, weights
