"""Tensors in safetensors files, whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nml.files import fsync_folder, make_folder, temporary_beside


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors to ``path``, fsynced."""
    make_folder(path.parent)
    temporary = temporary_beside(path)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, on the CPU."""
    return load_file(path)
