"""One registry for everything that can be plugged in, found over entry points.

Discovery and loading are two steps. Discovery reads the metadata of installed distributions and
imports nothing, so a listing is instant and a broken plugin cannot break it. Loading imports one
plugin, by name, and blames a failure on the distribution that brought it.

The groups are ``nml.heads``, ``nml.encoders``, ``nml.tasks``, ``nml.noise`` and ``nml.sources``.
The project's own parts register through the same entry points as everybody else's, in setup.cfg.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from importlib import metadata, util
from typing import Any, NamedTuple

from nml.errors import UserError, unknown_name


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
        fault: Says what keeps a loaded object from being such a plugin, or None; asked on loading.
    """

    def __init__(
        self,
        group: str,
        *,
        kind: str,
        where: str,
        listing: str,
        fault: Callable[[Any], str | None] | None = None,
    ) -> None:
        self.group = group
        self.kind = kind
        self.where = where
        self.listing = listing
        self.fault = fault

    def discover(self) -> list[Plugin]:
        """Return every registered plugin, sorted by name then distribution, importing none.

        The same distribution can be seen twice on one path (an editable install run from its own
        folder); identical registrations count once. Registrations that differ stay apart, so that
        a caller can name both owners.
        """
        found: set[Plugin] = set()
        for distribution in metadata.distributions():
            entries = [entry for entry in _entry_points(distribution) if entry.group == self.group]
            if entries:
                # Only now: parsing the metadata of every installed distribution takes a tenth of a second.
                owner, version = _identity(distribution)
                found.update(
                    Plugin(entry.name, entry.value, distribution=owner, version=version, group=self.group)
                    for entry in entries
                )
        return sorted(found)

    def faults(self) -> list[str]:
        """Return what is wrong with the registrations, a line each, importing nothing.

        Whether a plugin imports shows only when it is loaded; whether its module is there shows now.
        """
        plugins = self.discover()
        lines = [
            _duplicate(self.kind, name, owners)
            for name, owners in _by_name(plugins).items()
            if len(owners) > 1
        ]
        for plugin in plugins:
            package = plugin.value.partition(":")[0].partition(".")[0]
            if util.find_spec(package) is None:
                lines.append(
                    f"the {self.kind} {plugin.name!r} of {plugin.owner} is gone: no package {package!r}; "
                    f"reinstall or remove {plugin.distribution}"
                )
        return lines

    def names(self) -> list[str]:
        """Return the registered names, sorted, each once."""
        return sorted({plugin.name for plugin in self.discover()})

    def find(self, name: str) -> Plugin:
        """Return the one plugin registered as ``name``, without importing it.

        Raises:
            UserError: If the name is unknown (near matches are named) or has several owners.
        """
        by_name = _by_name(self.discover())
        if name not in by_name:
            raise unknown_name(self.where, name, by_name, mend=f"see: {self.listing}")
        owners = by_name[name]
        if len(owners) > 1:
            raise UserError(f"{self.where}: {_duplicate(self.kind, name, owners)}")
        return owners[0]

    def load(self, name: str) -> Any:
        """Import and return the object registered as ``name``.

        Raises:
            UserError: If the name is unknown or ambiguous, the plugin fails to import, or it is not
                what the group holds; the message names its distribution, version and error.
        """
        plugin = self.find(name)
        entry = metadata.EntryPoint(plugin.name, plugin.value, plugin.group)
        mend = f"reinstall or remove {plugin.distribution}; every other {self.kind} still works"
        try:
            loaded = entry.load()
        # A plugin is foreign code: whatever it raises on import is its fault, to be named as such.
        except Exception as error:
            raise UserError(
                f"{self.where}: the {self.kind} {name!r} of {plugin.owner} ({plugin.value}) does not load: "
                f"{type(error).__name__}: {error}",
                mend=mend,
            ) from error
        fault = self.fault(loaded) if self.fault else None
        if fault:
            raise UserError(
                f"{self.where}: {name!r} of {plugin.owner} ({plugin.value}) is no {self.kind}: {fault}",
                mend=mend,
            )
        return loaded


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
        return distribution.metadata["Name"] or "unknown", distribution.metadata["Version"] or "unknown"
    except Exception:
        return "unknown", "unknown"


def _entry_points(distribution: metadata.Distribution) -> list[metadata.EntryPoint]:
    """Return a distribution's entry points; one whose file cannot be parsed has none."""
    try:
        return list(distribution.entry_points)
    except Exception:
        return []
