"""One registry for everything that can be plugged in, found over entry points.

Discovery and loading are two steps. Discovery reads the metadata of installed distributions and
imports nothing, so a listing is instant and a broken plugin cannot break it. Loading imports one
plugin, by name, and blames a failure on the distribution that brought it.

The groups are ``nml.heads``, ``nml.encoders``, ``nml.tasks``, ``nml.noise``, ``nml.sources`` and
``nml.objectives``.
The project's own parts register through the same entry points as everybody else's, in setup.cfg.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec
from typing import Any, NamedTuple

from nml.errors import UserError, unknown_name
from nml.text_table import in_columns
from nml.untrusted import Untrusted

UNKNOWN = "unknown"


class Plugin(NamedTuple):
    """A registered name and who registered it. Nothing has been imported yet.

    Attributes:
        name: The name a user types.
        value: Where the object lives, ``package.module:attribute``.
        distribution: The installed distribution that registers it.
        version: That distribution's version.
        group: The entry-point group.
    """

    name: str
    value: str
    distribution: str
    version: str
    group: str

    @property
    def owner(self) -> str:
        """``distribution version``, as messages and results name it."""
        return f"{self.distribution} {self.version}"


class Registry:
    """The plugins of one entry-point group.

    Args:
        group: The entry-point group, for example ``nml.heads``.
        kind: What one plugin is called in messages, for example ``head``.
        where: The flag or field a user names a plugin in, for example ``--plugin``.
        listing: The command that lists the plugins, named as the mend for an unknown name.
        check: The command that holds one to its contract.
        fault: Says what keeps a loaded object from being such a plugin, or None; asked on loading.
    """

    def __init__(
        self,
        group: str,
        *,
        kind: str,
        where: str,
        listing: str,
        check: str = "",
        fault: Callable[[Any], str | None] | None = None,
    ) -> None:
        self.group = group
        self.kind = kind
        self.where = where
        self.listing = listing
        self.check = check
        self.fault = fault

    def discover(self) -> list[Plugin]:
        """Return every registered plugin, sorted by name then distribution, importing none.

        The same distribution can be seen twice on one path (an editable install run from its own
        folder, what an older version left behind); as on import, the first one on the path counts.
        """
        found: set[Plugin] = set()
        seen: set[str] = set()
        for distribution in metadata.distributions():
            entries = [entry for entry in _entry_points(distribution) if entry.group == self.group]
            if not entries:
                continue
            # Only now: parsing the metadata of every installed distribution takes a tenth of a second.
            owner, version = _identity(distribution)
            normalised = re.sub(r"[-_.]+", "-", owner).lower()
            if normalised in seen:
                continue
            # What cannot even say its name cannot shadow another.
            seen.update({normalised} - {UNKNOWN})
            found.update(
                Plugin(entry.name, entry.value, distribution=owner, version=version, group=self.group)
                for entry in entries
            )
        return sorted(found)

    def faults(self, *, load: bool = False) -> list[str]:
        """Return what is wrong with the plugins, a line each.

        Args:
            load: Also import every plugin. Without, nothing is imported: two owners of a name and a
                module that is not there are found, a module that raises or lacks a method is not.
        """
        lines = []
        for name, owners in _by_name(self.discover()).items():
            if len(owners) > 1:
                lines.append(_duplicate(self.kind, name, owners))
            gone = {plugin: _missing_module(plugin.value.partition(":")[0].strip()) for plugin in owners}
            lines += [
                f"the {self.kind} {name!r} of {plugin.owner} is gone: {missing}; "
                f"reinstall or remove {plugin.distribution}"
                for plugin, missing in gone.items()
                if missing
            ]
            if load and len(owners) == 1 and not any(gone.values()):
                try:
                    self.load(name)
                except UserError as error:
                    lines.append(str(error))
        return lines

    def show(self, *, load: bool = False) -> None:
        """Print one line a registered plugin, then what is wrong with the registrations, if anything.

        Args:
            load: Also import every plugin, which finds those that raise or are none.
        """
        lines = [(plugin.name, plugin.owner, plugin.value) for plugin in self.discover()]
        for line in in_columns(lines):
            print(line)
        for fault in self.faults(load=load):
            print(f"warning: {fault}")

    def names(self) -> list[str]:
        """Return the registered names, sorted, each once."""
        return sorted({plugin.name for plugin in self.discover()})

    def those(self, test: Callable[[Any], bool]) -> list[str]:
        """Return the names of the plugins that load and pass a test, sorted."""
        found = []
        for name in self.names():
            with contextlib.suppress(UserError):
                found += [name] if test(self.load(name)) else []
        return found

    def find(self, name: str, *, where: str = "") -> Plugin:
        """Return the one plugin registered as ``name``, without importing it.

        Args:
            name: The name.
            where: What named it, for errors; the registry's own option without it.

        Raises:
            UserError: If the name is unknown (near matches are named) or has several owners.
        """
        by_name = _by_name(self.discover())
        if name not in by_name:
            raise unknown_name(where or self.where, name, by_name, mend=f"see: {self.listing}")
        owners = by_name[name]
        if len(owners) > 1:
            raise UserError(f"{where or self.where}: {_duplicate(self.kind, name, owners)}")
        return owners[0]

    def load(self, name: str, *, where: str = "") -> Any:
        """Import and return the object registered as ``name``.

        Args:
            name: The name.
            where: What named it, for errors; the registry's own option without it.

        Raises:
            UserError: If the name is unknown or ambiguous, the plugin fails to import, or it is not
                what the group holds; the message names its distribution, version and error.
        """
        where = where or self.where
        plugin = self.find(name, where=where)
        entry = metadata.EntryPoint(plugin.name, plugin.value, plugin.group)
        mend = f"reinstall or remove {plugin.distribution}; every other {self.kind} still works"
        try:
            loaded = entry.load()
        # A plugin is foreign code: whatever it raises on import is its fault, to be named as such. One that
        # calls sys.exit() would otherwise end the command without a word.
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{where}: the {self.kind} {name!r} of {plugin.owner} ({plugin.value}) does not load: "
                f"{type(error).__name__}: {error}",
                mend=mend,
            ) from error
        fault = self.fault(loaded) if self.fault else None
        if fault:
            raise UserError(
                f"{where}: {name!r} of {plugin.owner} ({plugin.value}) is no {self.kind}: {fault}",
                mend=mend,
            )
        return loaded

    @contextlib.contextmanager
    def blaming(self, name: str, *, where: str = "") -> Iterator[None]:
        """Tell in one line whose plugin it is that raises in a block; what is the user's to mend stays.

        Args:
            name: The plugin.
            where: What named it; the registry's own option without it.

        Raises:
            UserError: Instead of what the plugin raises, sys.exit() among it.
        """
        try:
            yield
        except (UserError, Untrusted, OSError):
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{where or self.where} {name}: the {self.kind} of {self.find(name).owner} raised "
                f"{type(error).__name__}: {error}",
                mend=f"see: {self.check} {name}" if self.check else "",
            ) from error


def _missing_module(name: str) -> str | None:
    """Return what keeps a module from being found, or None. Its parents are looked at, not imported."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return f"{name!r} is no module name"
    path: Iterable[str] | None = None
    for end in range(1, len(parts) + 1):
        spec = _find_spec(".".join(parts[:end]), path)
        if spec is None:
            return f"no {'package' if end == 1 else 'module'} {'.'.join(parts[:end])!r}"
        path = spec.submodule_search_locations
        if path is None and end < len(parts):
            return f"{'.'.join(parts[:end])!r} is no package"
    return None


def _find_spec(name: str, path: Iterable[str] | None) -> ModuleSpec | None:
    # importlib.util.find_spec() imports the parents of a submodule; the finders themselves import nothing.
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None:
            return spec
    return None


def _by_name(plugins: list[Plugin]) -> dict[str, list[Plugin]]:
    by_name: dict[str, list[Plugin]] = defaultdict(list)
    for plugin in plugins:
        by_name[plugin.name].append(plugin)
    return by_name


def _duplicate(kind: str, name: str, owners: list[Plugin]) -> str:
    registered = " and by ".join(f"{plugin.owner} ({plugin.value})" for plugin in owners)
    return f"the {kind} name {name!r} is registered by {registered}; uninstall one, or rename its entry point"


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """Return name and version; an interrupted uninstall may leave neither behind."""
    try:
        return distribution.metadata["Name"] or UNKNOWN, distribution.metadata["Version"] or UNKNOWN
    except Exception:
        return UNKNOWN, UNKNOWN


def _entry_points(distribution: metadata.Distribution) -> list[metadata.EntryPoint]:
    """Return a distribution's entry points; one whose file cannot be parsed has none."""
    try:
        return list(distribution.entry_points)
    except Exception:
        return []
