"""fp16 and deep compiled networks under the engines of torch's own parts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain import agreement
from pretrain.batchnorm import running_statistics, set_statistics
from pretrain.engines import Engine, Update
from tests.pretrain.small_engines import batch, make, train

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow(engine: str, tmp_path: Path) -> None:
    trained = make(engine, dtype="fp16")
    before = trained.weights()
    overflow(trained, 0)
    after = trained.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    told = train(trained, range(4))[::2]
    assert told == pytest.approx(train(make(engine), range(4))[::2], rel=0.03)


def backward(engine: Engine, step: int, *, overflows: bool) -> None:
    """Add the gradient of a step, infinite or not, while the loss is finite."""
    images, labels = batch(step)
    with engine.micro_step(last=True):
        output = engine.forward(images)
        if overflows:
            output.register_hook(lambda gradient: gradient * math.inf)
        engine.backward(nn.functional.cross_entropy(output.float(), labels))


def overflow(engine: Engine, step: int) -> float:
    """Take a step whose gradients are infinite while the loss is not; return the norm that is told."""
    backward(engine, step, overflows=True)
    return engine.step(0.01).norm


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_fp16_resumes_with_the_scale_it_had_found(engine: str, tmp_path: Path) -> None:
    whole = make(engine, dtype="fp16")
    overflow(whole, 0)
    train(whole, range(2))
    own = running_statistics(whole.network)
    written = whole.save(tmp_path / "state", {}, own)
    assert written is not None
    written.result()
    again = make(engine, dtype="fp16")
    kept = running_statistics(again.network)
    again.load(tmp_path / "state", {}, kept, world_size=1)
    set_statistics(again.network, kept)
    assert train(again, range(2, 5)) == train(whole, range(2, 5))
    one, other = whole.weights(), again.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_fp16_that_never_finds_a_scale_says_that_no_weight_was_updated(engine: str) -> None:
    trained = make(engine, dtype="fp16")
    told = [overflow(trained, step) for step in range(20)]
    # It looks for its scale first, from 2^16 on down, which is no failure.
    assert told[:16] == [0.0] * 16
    assert told[17:] == [math.inf] * 3


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_fp16_finds_the_same_scale_where_the_host_does_not_hear_of_it(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = make(engine, dtype="fp16")
    monkeypatch.setitem(agreement.LAG, "cpu", 2)
    late = make(engine, dtype="fp16")
    scales: list[Any] = [trained._scaler for trained in (at_once, late)]  # type: ignore[attr-defined]
    for scale in scales:
        scale.load_state_dict(scale.state_dict() | {"scale": 2.0, "growth_interval": 3})
    told = []
    # Below a scale of 1 no weight will be updated; a loss that is not finite says nothing of the scale.
    for step, way in enumerate(["", "overflows", "overflows", "", "not finite", "", "", ""]):
        for trained in (at_once, late):
            backward(trained, step, overflows=way != "")
        if way == "not finite":
            at_once.discard()
            found = Update(0.0, applied=False)
        else:
            found = at_once.step(0.01)
        norm, applied = late.step_if(0.01, torch.tensor(way != "not finite"))
        assert bool(applied) == found.applied, step
        assert way == "not finite" or float(norm) == pytest.approx(found.norm), step
        assert scales[0].state_dict() == scales[1].state_dict(), step
        told.append((scales[0].get_scale(), found.norm == math.inf))
    assert told == [(2, False), (1, False), (0.5, True), *[(0.5, False)] * 3, *[(1, False)] * 2]
    one, other = at_once.weights(), late.weights()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, msg=name)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_every_block_of_a_deep_network_is_compiled() -> None:
    torch._dynamo.reset()
    # A compilation takes seconds: fewer of them, past a lower limit. Of the ways to set one, only torch's own
    # leaves later tests with the setting.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=2):
        compiled = make("fsdp", compile=True, more_blocks=3)
        train(compiled, range(1))
        compiled.network.eval()
        with torch.no_grad():
            compiled.forward(batch(0)[0])
