"""Encoders: black boxes that turn samples into features [N, D]."""

from probes.encoders.encoder import Encoder, EncoderInfo, Provenance, Settings
from probes.encoders.registry import ENCODERS, open_checkpoint, open_encoder, open_encoders

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderInfo",
    "Provenance",
    "Settings",
    "open_checkpoint",
    "open_encoder",
    "open_encoders",
]
