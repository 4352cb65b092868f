"""An image's format by its first bytes: names lie (ImageNet holds PNGs called .JPEG)."""

from __future__ import annotations


def image_extension(head: bytes | memoryview) -> str | None:
    """Return ``jpg``, ``png``, ``webp``, ``gif``, ``bmp``, ``tiff`` or ``ppm``; None for anything else.

    Args:
        head: The image's first 16 bytes, or more.
    """
    head = bytes(head[:16])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"BM"):
        return "bmp"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    if head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and head[2:3].isspace():
        return "ppm"
    return None
