"""A rank's own tensors in a checkpoint: one entry of its plan, however many they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nml.errors import UserError
from pretrain.engines import Tensors, native
from pretrain.engines.plan_reader import read_plan
from tests.pretrain.small_engines import make

pytestmark = pytest.mark.usefixtures("process_group")

OWN: Tensors = {
    "bn.running_mean": torch.arange(4.0),
    "bn.mask": torch.tensor([True, False]).expand(3, 2),
    "bn.num_batches_tracked": torch.tensor(7),
    "bn.bad": torch.tensor([torch.nan, torch.inf, -0.0]),
}


def saved(folder: Path, own: Tensors = OWN) -> Path:
    future = make("ddp", optimizer="adamw").save(folder, {}, dict(own))
    assert future is not None
    future.result()
    return folder


def loaded(folder: Path, own: Tensors) -> Tensors:
    make("ddp", optimizer="adamw").load(folder, {}, own, world_size=1)
    return own


def blank() -> Tensors:
    return {name: torch.zeros_like(tensor).contiguous() for name, tensor in OWN.items()}


@pytest.mark.parametrize("earlier", [False, True])
def test_buffers_come_back_also_from_a_checkpoint_of_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    with monkeypatch.context() as patch:
        if earlier:
            # Each tensor by itself.
            patch.setattr(
                native, "packed", lambda rank, own: {f"{rank}/{name}": one for name, one in own.items()}
            )
        folder = saved(tmp_path / "state")
    entries = [name for name in read_plan(folder).state_dict_metadata if name.startswith("own.")]
    assert len(entries) == (len(OWN) if earlier else 1)
    own = loaded(folder, blank())
    assert all(own[name].equal(OWN[name]) for name in OWN if name != "bn.bad")
    assert own["bn.bad"].view(torch.int32).equal(OWN["bn.bad"].view(torch.int32))


def test_buffers_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "state")
    for other in (blank() | {"more": torch.zeros(1)}, blank() | {"bn.running_mean": torch.zeros(5)}):
        with pytest.raises(UserError, match="buffers that it has of each rank are of another network"):
            loaded(folder, other)


def test_buffers_that_are_not_there_or_far_too_large_are_refused(tmp_path: Path) -> None:
    missing, large = (
        saved(tmp_path / "missing", {}),
        saved(tmp_path / "large", {"bn.mask": torch.zeros(9999)}),
    )
    with pytest.raises(UserError, match="does not hold what this run would load: Missing key"):
        loaded(missing, blank())
    with pytest.raises(UserError, match=r"rank 0 take 40,[0-9]+ bytes, those of this network up to"):
        loaded(large, blank())
