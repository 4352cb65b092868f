"""An SVG document as an element of the page, in the page's colours and font."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from nml.palette import ROLES

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")
_FONT = re.compile(r"\s*font-family:[^;]*;?|(?<=font: )(.*?px) [^;]*")
_URL = re.compile(r"url\(#([^)]+)\)")
_BY_COLOUR = {role.light: f"var(--{name})" for name, role in ROLES.items()}


def inline(document: str, *, name: str, title: str, description: str) -> str:
    """Return ``document`` for use inside an HTML page.

    Colours of the light theme become CSS variables, so that the figure follows the page into the
    dark; the font is the page's; ids carry ``name``, so that figures of one page don't meet.

    Args:
        document: SVG as matplotlib writes it.
        name: Unique in the page.
        title: Short name of the picture, for assistive technology.
        description: What is seen.
    """
    root = ET.fromstring(document)  # noqa: S314 - as above
    for parent in list(root.iter()):
        for child in list(parent):
            # Page-wide rules and licence metadata; the page's style sheet has the rules it needs.
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    used = _references(root)
    for element in root.iter():
        _rewrite(element, name, used)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        kind = "title" if tag == "title" else "description"
        element = ET.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{kind}"})
        element.text = text
        root.insert(position, element)
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def _references(root: ET.Element) -> set[str]:
    """Return the ids that something in the document points to."""
    found: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            found.update(_URL.findall(value))
            if key in ("href", f"{{{XLINK}}}href"):
                found.add(value.removeprefix("#"))
    return found


def _rewrite(element: ET.Element, name: str, used: set[str]) -> None:
    for key, value in list(element.attrib.items()):
        if key == "id":
            if value in used:
                element.set(key, f"{name}-{value}")
            else:
                del element.attrib[key]
        elif key in ("href", f"{{{XLINK}}}href"):
            element.set(key, f"#{name}-{value.removeprefix('#')}")
        else:
            value = _URL.sub(lambda match: f"url(#{name}-{match[1]})", value)
            if key == "style":
                value = _FONT.sub(lambda match: match[1] or "", value)
                value = _HEX.sub(lambda match: _BY_COLOUR.get(match[0].lower(), match[0]), value)
            element.set(key, value)
