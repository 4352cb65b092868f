"""Begin a network from weights that are there: an export, or any file of the same library's architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nml.errors import UserError, some
from nml.files import sha256_file
from nml.initial_weights import InitialWeights

# Tensors that a line names before it counts the rest.
_NAMED = 6
# Less of a network than this share, by numbers, is no start that anybody means.
_LEAST = 0.5


@dataclass(frozen=True)
class Taken:
    """What became of the tensors of a file.

    Attributes:
        taken: Names of the network's tensors that have the file's values.
        fresh: Names of those that the file lacks, which keep their own.
        classes: The classifier's, which are for another number of classes in the file and stay fresh as well.
        left_over: Names of the file's that the network has no place for.
    """

    taken: list[str]
    fresh: list[str]
    classes: list[str]
    left_over: list[str]

    def line(self, file: str) -> str:
        """Return what to tell the user."""
        told = f"begins from {file}: {len(self.taken)} tensors taken"
        for names, what in (
            (self.classes, "left out, of another number of classes"),
            (self.fresh, "not in it, and fresh"),
            (self.left_over, "in it alone"),
        ):
            if names:
                told += f"; {what}: {some(names, _NAMED)}"
        return told


def begin_from(network: nn.Module, weights: InitialWeights) -> Taken:
    """Give a network the tensors of a file that have its names.

    A classifier (as timm names it) of another number of classes keeps its fresh values. Buffers count as
    parameters do: running statistics come along.

    Raises:
        UserError: If the file does not read, has changed, is of another architecture, or holds values that
            are not finite.
    """
    where = f"--init-from {weights.file}"
    found = _read(weights, where)
    own = network.state_dict()
    classes = [name for name in own if _is_classifier(network, name)]
    taken: list[str] = []
    for name in own.keys() & found.keys():
        shape = own[name].shape
        # Exports hold scalars, which fully_shard refuses: in training they are [1].
        found[name] = found[name].reshape(shape) if shape.numel() == found[name].numel() == 1 else found[name]
        if found[name].shape == shape:
            taken.append(name)
        elif name not in classes:
            raise UserError(
                f"{where}: {name} is {list(found[name].shape)}, and {list(shape)} in the recipe's network",
                mend="name weights of the recipe's model, or another --recipe.model.name",
            )
    _check_enough(network, taken, classes, found, where)
    bad = sorted(name for name in taken if not bool(found[name].isfinite().all()))
    if bad:
        raise UserError(
            f"{where}: holds infinite or NaN values: {some(bad, _NAMED)}", mend="name other weights"
        )
    with torch.no_grad():
        for name in taken:
            own[name].copy_(found[name])
    return Taken(
        sorted(taken),
        sorted(name for name in own if name not in found),
        sorted(name for name in classes if name in found and name not in taken),
        sorted(found.keys() - own.keys()),
    )


def _read(weights: InitialWeights, where: str) -> dict[str, torch.Tensor]:
    from timm.models import load_state_dict

    try:
        # Safetensors, or tensors alone of a pickle; out of a checkpoint, and without wrappers' prefixes.
        state = load_state_dict(weights.file, weights_only=True)
        found = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    # safetensors, pickle and zipfile raise types of their own.
    except Exception as error:
        reason = str(error).strip().splitlines()
        if not (reason and weights.file.endswith(".safetensors")):
            # PyTorch's own words advise to run whatever such a file holds.
            reason = ["it is damaged, or holds other things"]
        raise UserError(
            f"{where}: does not read: {reason[0]}",
            possible="safetensors, or a PyTorch file that holds tensors and plain values alone",
        ) from error
    # What this rank has read is what rank 0 has written down.
    if sha256_file(Path(weights.file)) != weights.sha256:
        raise UserError(f"{where}: has changed since this command began", mend="give the command again")
    return found


def _check_enough(
    network: nn.Module, taken: list[str], classes: list[str], found: dict[str, torch.Tensor], where: str
) -> None:
    sizes = {name: value.numel() for name, value in network.named_parameters() if name not in classes}
    share = sum(sizes.get(name, 0) for name in taken) / max(1, sum(sizes.values()))
    if share < _LEAST:
        raise UserError(
            f"{where}: holds {share:.0%} of the recipe's network; it lacks "
            f"{some(sorted(sizes.keys() - found.keys()), _NAMED)}, "
            f"and holds {some(sorted(found), _NAMED) or 'no tensor'}",
            mend="name weights of the recipe's library and model",
        )


def _is_classifier(network: nn.Module, name: str) -> bool:
    told = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    modules = (told,) if isinstance(told, str) else told
    return any(name.startswith(f"{module}.") for module in modules)
