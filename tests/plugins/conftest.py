from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The problems are tiny; on a busy machine threads wait for each other.
    torch.set_num_threads(1)
