"""What every part needs, imported once by the process that parts are forked from."""

from __future__ import annotations

import importlib

LIBRARIES = ("timm", "torch", "open_clip", "pretrain.assembly", "plugins.nmtune", "shards.write")
FAILED: dict[str, str] = {}
"""Why a library does not import. It is the matter of the parts that need it, and no other's."""

for _name in LIBRARIES:
    try:
        importlib.import_module(_name)
    # A library that does not fit another one raises anything.
    except Exception as _error:
        FAILED[_name] = f"{type(_error).__name__}: {_error}"
