"""The names that ``--engine`` takes, apart from the engines so that a listing needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

EngineName = Literal["ddp", "fsdp", "deepspeed"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
# By measurement: see docs/pretraining.md.
DEFAULT_ENGINE: EngineName = "ddp"
