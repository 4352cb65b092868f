"""fp16 and deep compiled networks under the engines of torch's own parts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.batchnorm import running_statistics, set_statistics
from pretrain.engines import Engine
from tests.pretrain.small_engines import batch, make, train

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow(engine: str, tmp_path: Path) -> None:
    trained = make(engine, dtype="fp16")
    before = trained.weights()
    images, labels = batch(0)
    with trained.micro_step(last=True):
        output = trained.forward(images)
        output.register_hook(lambda gradient: gradient * math.inf)
        trained.backward(nn.functional.cross_entropy(output.float(), labels))
    trained.step(0.01)
    after = trained.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    told = train(trained, range(4))[::2]
    assert told == pytest.approx(train(make(engine), range(4))[::2], rel=0.03)


def overflow(engine: Engine, step: int) -> float:
    """Take a step whose gradients are infinite while the loss is not; return the norm that is told."""
    images, labels = batch(step)
    with engine.micro_step(last=True):
        output = engine.forward(images)
        output.register_hook(lambda gradient: gradient * math.inf)
        engine.backward(nn.functional.cross_entropy(output.float(), labels))
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
