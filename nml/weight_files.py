"""Files of a model's weights that a user names, as PyTorch and safetensors write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nml.errors import UserError


def load_weights(model: Any, file: Path, where: str) -> None:
    """Load a local safetensors or PyTorch file into ``model``; a classifier in it may be left over.

    Args:
        model: The model.
        file: The file.
        where: What named it, for the error.

    Raises:
        UserError: If the file cannot be read, or lacks a parameter or has one of another shape.
    """
    import torch
    from safetensors.torch import load_file

    try:
        state: Any
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        found = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # safetensors, pickle and zipfile raise types of their own.
    except Exception as error:
        raise UserError(f"{where}: cannot read {file}: {error}") from error
    try:
        missing, _ = model.load_state_dict(found, strict=False)
        wrong = f"lacks {len(missing)} parameters, for example {missing[0]}" if missing else ""
    except RuntimeError:
        wrong = "has parameters of another shape"
    if wrong:
        raise UserError(f"{where}: {file} {wrong}", mend="the file belongs to another architecture")
