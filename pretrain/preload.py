"""Imports what a run imports, for a process that stands by in case all ranks have to start again."""

from __future__ import annotations

import sys

from pretrain import assembly, options  # noqa: F401 - to be there
from pretrain.engines import ddp, fsdp  # noqa: F401 - likewise
from shards import bundled, shardset  # noqa: F401 - likewise

if any(word.endswith("deepspeed") for word in sys.argv):
    from pretrain.engines.deepspeed import import_deepspeed

    import_deepspeed()
