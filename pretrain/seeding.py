"""Randomness of a training step as a pure function of (seed, step, rank, micro-batch).

Mixup, dropout and stochastic depth draw from global generators. Seeding those anew for every
micro-batch leaves no random state to save, and none to restore wrongly.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    digest = hashlib.blake2b(f"step {seed} {step} {rank} {micro_batch}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "big")
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.manual_seed(value & 0x7FFFFFFFFFFFFFFF)
