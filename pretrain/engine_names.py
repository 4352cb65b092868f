"""The names that ``--engine`` takes, apart from the engines so that a listing needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

EngineName = Literal["ddp", "fsdp", "deepspeed"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
# The numerical reference; models of 25 to 100 million parameters fit a GPU and need no sharding.
DEFAULT_ENGINE: EngineName = "ddp"
