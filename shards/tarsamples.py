"""Group the members of a WebDataset tar into samples, by the rule every WebDataset reader uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nml.images import EXTENSIONS
from shards.tarwalk import Member

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


class TarSample(NamedTuple):
    """Adjacent members with one base name.

    Attributes:
        base: The name up to the first dot of its last part.
        members: By extension, lower case.
    """

    base: str
    members: dict[str, Member]

    def image(self) -> Member | None:
        """Return the image member, such as ``KEY.jpg`` or else ``KEY.input.jpg``, or None."""
        plain = (self.members[name] for name in EXTENSIONS if name in self.members)
        longer = (self.members[name] for name in self.members if name.rpartition(".")[2] in EXTENSIONS)
        return next(plain, None) or next(longer, None)


def tar_samples(members: Iterable[Member]) -> Iterator[TarSample]:
    """Yield samples: runs of adjacent members whose names agree up to the first dot."""
    sample: TarSample | None = None
    for member in members:
        match = _NAME.fullmatch(member.name)
        # Names starting with a dot or two underscores carry no sample (._x of macOS, __meta__).
        if not match or match[1].rpartition("/")[2].startswith("__"):
            continue
        base, extension = match[1], match[2].lower()
        if sample is None or sample.base != base or extension in sample.members:
            if sample is not None:
                yield sample
            sample = TarSample(base, {})
        sample.members[extension] = member
    if sample is not None:
        yield sample
