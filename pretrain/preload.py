"""Imports what the run of this command line does, for a process that stands by till all ranks start again."""

from __future__ import annotations

import timm.data  # noqa: F401 - to be there, as all below

from pretrain import assembly  # noqa: F401
from pretrain.engines import ddp, fsdp  # noqa: F401
from pretrain.models import architecture
from pretrain.options import parse_options
from shards import bundled, shardset  # noqa: F401

options, _ = parse_options(None)
architecture(options.recipe, num_classes=0)
if options.engine == "deepspeed":
    from pretrain.engines.deepspeed import import_deepspeed

    import_deepspeed()
