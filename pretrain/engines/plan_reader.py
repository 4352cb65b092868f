"""Distributed checkpoints of torch, read without running what somebody put into them.

``.metadata``, which says where each tensor lies, is a pickle, and so is every value that is no tensor. Torch
unpickles both as they are. Here the first is made of the classes of a plan and of nothing else, the second of
plain values.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from nml.errors import UserError
from nml.untrusted import Untrusted, file_name, read_file, shown

PLAN = ".metadata"
# fsdp has an entry of 180 bytes a rank, tensor and moment: 280 MB of a ViT-H with averages on 1,024 ranks.
_MOST_BYTES = 1 << 30
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    # Where the checkpoint was written, which nothing reads; Python 3.13 calls the module otherwise.
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),
}


class PlanReader(dcp.FileSystemReader):
    """Reads a checkpoint whose plan is made of the classes of a plan."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch's own arguments
        """Return the plan, as torch does."""
        plan = read_plan(Path(self.path))
        plan.storage_meta = plan.storage_meta or StorageMeta()
        plan.storage_meta.load_id = self.load_id
        return plan


class PlainPlanner(DefaultLoadPlanner):
    """Unpickles plain values where torch unpickles all."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take over a value that is no tensor."""
        try:
            plain = torch.load(value, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"checkpoint: {read_item.dest_index.fqn} is no plain value, and is not unpickled",
                mend="continue from a checkpoint that this project wrote",
            ) from error
        # Where it belongs torch knows, which now unpickles what was written here.
        again = io.BytesIO()
        torch.save(plain, again)
        again.seek(0)
        super().load_bytes(read_item, again)


def read_plan(folder: Path) -> Metadata:
    """Return where each tensor of a checkpoint lies.

    Raises:
        UserError: If it cannot be read, or is made of anything but that.
    """
    try:
        plan = _PlanUnpickler(io.BytesIO(read_file(folder / PLAN, _MOST_BYTES))).load()
        if not isinstance(plan, Metadata):
            raise Untrusted(f"it holds {type(plan).__name__}")
        for place in plan.storage_data.values():
            file_name(place.relative_path)
    # What a broken pickle raises is of nearly any type.
    except Exception as error:
        raise UserError(
            f"{folder / PLAN}: no plan of a checkpoint: {error}",
            mend="continue from a checkpoint that this project wrote",
        ) from error
    return plan


class _PlanUnpickler(pickle.Unpickler):
    """Knows the classes of a plan and torch's types of numbers; any other name is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise Untrusted(f"it would make {shown(f'{module}.{name}')}, which is no part of one")
