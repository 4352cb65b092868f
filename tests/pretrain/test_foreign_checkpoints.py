"""A checkpoint from elsewhere is loaded or refused; nothing that it names is run."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from nml.errors import UserError
from pretrain.engines.plan_reader import PLAN, read_plan
from tests.pretrain.small_engines import make, train

pytestmark = pytest.mark.usefixtures("process_group")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    engine = make("ddp", optimizer="adamw")
    train(engine, range(1))
    future = engine.save(tmp_path / "state", {}, {})
    assert future is not None
    future.result()
    return tmp_path / "state"


def test_a_pickle_in_place_of_the_plan_is_not_unpickled(state: Path, tmp_path: Path) -> None:
    (state / PLAN).write_bytes(pickle.dumps(Touch(tmp_path / "proof")))
    with pytest.raises(
        UserError, match=r"\.metadata: no plan of a checkpoint: it would make 'posix\.system'"
    ):
        make("ddp", optimizer="adamw").load(state, {}, {}, world_size=1)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("damage", [b"", b"\x80\x04.", pickle.dumps({"a": 1}), pickle.dumps(torch.Size([1]))])
def test_a_plan_that_is_none_is_told(state: Path, damage: bytes) -> None:
    (state / PLAN).write_bytes(damage)
    with pytest.raises(UserError, match=r"\.metadata: no plan of a checkpoint"):
        read_plan(state)


def test_a_plan_reads_no_file_from_elsewhere(state: Path) -> None:
    plan = read_plan(state)
    for index, place in plan.storage_data.items():
        plan.storage_data[index] = dataclasses.replace(place, relative_path="../../elsewhere.distcp")
    (state / PLAN).write_bytes(pickle.dumps(plan))
    with pytest.raises(UserError, match=r"'\.\./\.\./elsewhere\.distcp' is no name of a file"):
        read_plan(state)


def test_a_value_that_is_no_tensor_is_not_unpickled_either(state: Path, tmp_path: Path) -> None:
    plan = read_plan(state)
    index, place = next(
        (index, place)
        for index, place in plan.storage_data.items()
        if type(plan.state_dict_metadata[index.fqn]).__name__ == "BytesStorageMetadata"
    )
    evil = io.BytesIO()
    torch.save({"x": Touch(tmp_path / "proof")}, evil)
    (state / "evil.distcp").write_bytes(evil.getvalue())
    plan.storage_data[index] = dataclasses.replace(
        place, relative_path="evil.distcp", offset=0, length=len(evil.getvalue())
    )
    (state / PLAN).write_bytes(pickle.dumps(plan))
    with pytest.raises(UserError, match="is no plain value, and is not unpickled"):
        make("ddp", optimizer="adamw").load(state, {}, {}, world_size=1)
    assert not (tmp_path / "proof").exists()
