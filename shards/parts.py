"""Equal parts of work that any number of processes share out among them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nml.errors import UserError

_PART = re.compile(r"(\d{1,7})/(\d{1,7})")


@dataclass(frozen=True)
class Part:
    """One of several equal parts of the shards of a set, or of other things that have numbers.

    Attributes:
        number: From 1.
        count: How many parts there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``3/8``.

        Raises:
            UserError: If it is no part.
        """
        found = _PART.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--part {text}: not a part", possible="1/8 to 8/8, for example")
        return cls(int(found[1]), int(found[2]))

    def of(self, things: int) -> range:
        """Return the numbers of the shards of this part."""
        return range(self.number - 1, things, self.count)
