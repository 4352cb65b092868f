"""Durations as people write them: 20s, 10m, 1h30m."""

from __future__ import annotations

import re
from datetime import timedelta

from nml.errors import UserError

# Libraries count milliseconds in 32 bits, which is 24 days.
LONGEST = timedelta(days=20)
_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def duration(flag: str, text: str) -> timedelta:
    """Return the duration that an option names.

    Args:
        flag: The option, for the error.
        text: Whole days, hours, minutes and seconds, each with its letter: ``2h``, ``1h30m``.

    Raises:
        UserError: If it is none, zero, or longer than :data:`LONGEST`. A bare number is none: it would be
            minutes to Slurm's users and seconds to torch's.
    """
    parts = _PARTS.fullmatch("".join(text.split()))
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise UserError(
            f"{flag} {text}: not a duration", possible="a number with its unit, such as 90s, 10m or 1h30m"
        )
    if total > LONGEST.total_seconds():
        raise UserError(f"{flag} {text}: longer than libraries can wait", possible=f"up to {LONGEST.days}d")
    return timedelta(seconds=total)
