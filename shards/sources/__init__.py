"""The readers, one a format of data; :mod:`nml.sources` says what a source is."""

from nml.sources import SOURCES, ByteRange, Defect, Example, Source, SourceSpec, open_source

__all__ = ["SOURCES", "ByteRange", "Defect", "Example", "Source", "SourceSpec", "open_source"]
