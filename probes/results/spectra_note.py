"""What the spectra of a table are of: the same words in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Collection

_WHOSE = "encoder: as pre-trained, head: as its classifier sees them."


def spectra_note(shifted: Collection[bool]) -> str:
    """Return the note under a table of SVE and LSVR.

    Args:
        shifted: For each group of its lines, whether there are out-of-domain results, whose LSVR it shows
            then.
    """
    if all(shifted):
        return f"SVE of in-domain test features, LSVR of out-of-domain ones; {_WHOSE}"
    if not any(shifted):
        return f"SVE and LSVR of in-domain test features; {_WHOSE}"
    return (
        f"SVE of in-domain test features, LSVR of out-of-domain ones, or of in-domain ones where there are "
        f"no others; {_WHOSE}"
    )
