"""What `make docs` adds to the pages of docs/: the documents at the root, and a look at what is public.

The README is the front page, CONTRIBUTING and CHANGELOG have pages of their own. Links between documents
are written for the repository, where they lead to files; here they are turned to pages, and those to code to
plain names.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
AT_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "CHANGELOG.md": "changelog.md",
}
PACKAGES = ("nml", "shards", "pretrain", "plugins", "probes")
# Below mkdocs' own, so that what is said there fails a strict build.
LOG = logging.getLogger("mkdocs.hooks.public")
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the documents at the root."""
    for name, page in AT_THE_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    source = next((name for name, to in AT_THE_ROOT.items() if to == page.file.src_uri), None)
    folder = Path() if source else Path("docs", page.file.src_uri).parent

    def turned(found: re.Match[str]) -> str:
        mark, text, target, anchor = found.groups(default="")
        path = posixpath.normpath((folder / target).as_posix())
        to = AT_THE_ROOT.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if to is None and (ROOT / path).exists():
            return text if "`" in text else f"`{text}`"
        if to is None:
            return found[0]
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{mark}[{text}]({posixpath.relpath(to, here)}{anchor})"

    return LINK.sub(turned, markdown)


def on_pre_build(*, config: MkDocsConfig) -> None:
    """Name what the reference shows and no docstring explains."""
    del config
    for name in undocumented():
        LOG.warning("%s has no docstring, and is public", name)


def undocumented() -> list[str]:
    """Return the public names of the reference's modules that nothing is said of."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    for package in PACKAGES:
        loader.load(package, try_relative_path=False)
    pages = (ROOT / "docs" / "reference").glob("*.md")
    shown = [
        name for page in sorted(pages) for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    ]
    return [name for module in shown for name in _silent(loader.modules_collection[module])]


def _silent(owner: griffe.Object | griffe.Alias) -> Iterator[str]:
    said = _attributes_said(owner)
    for name, member in owner.members.items():
        if name.startswith("_") or member.is_alias or member.is_module:
            continue
        if not member.has_docstring and name not in said:
            yield member.path
        if member.is_class:
            yield from _silent(member)


def _attributes_said(owner: griffe.Object | griffe.Alias) -> set[str]:
    if not owner.docstring:
        return set()
    sections = owner.docstring.parse("google")
    listed = [one for one in sections if one.kind.value in ("attributes", "parameters")]
    # One line may be of several: ``mean, std: Of each channel``.
    return {name for section in listed for item in section.value for name in re.split(r", *", item.name)}
