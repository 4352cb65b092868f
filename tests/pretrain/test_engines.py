"""What every engine owes the training loop, on one process: exact resume, precision, layout, refusals."""

from __future__ import annotations

import inspect
import math
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from nml.errors import UserError
from nml.recipe import Engine as EngineConfig
from nml.recipe import Recipe
from pretrain import batchnorm
from pretrain.batchnorm import running_statistics, set_statistics
from pretrain.ema import Average
from pretrain.engines import Engine, check_engine, local
from pretrain.loading import training_loader
from pretrain.optimizers import build_optimizer, parameter_groups
from pretrain.validation import evaluated
from pretrain.world import World, wait_no_longer
from tests.pretrain.small_engines import ENGINES, OPTIMIZERS, Network, around, batch, make, train

NAMES = ("ddp", "fsdp", "deepspeed")
pytestmark = pytest.mark.usefixtures("process_group")


def supported(engine: str, optimizer: str) -> bool:
    return optimizer != "lamb" or engine[-1] not in "123"


@pytest.mark.parametrize("engine", NAMES)
def test_no_process_group_of_an_engine_waits_for_longer_than_the_run(engine: str) -> None:
    make(engine)
    limit = timedelta(seconds=77)
    wait_no_longer(World(timeout=limit))
    groups = dist.distributed_c10d._world.pg_map
    waits = {group._get_backend(torch.device("cpu")).options._timeout for group in groups}
    wait_no_longer(World())
    assert len(groups) > 1
    assert waits == {limit}


@pytest.mark.parametrize(
    ("engine", "optimizer"), [(e, o) for e in ENGINES for o in OPTIMIZERS if supported(e, o)]
)
def test_what_is_saved_is_all_that_counts(engine: str, optimizer: str, tmp_path: Path) -> None:
    whole = make(engine, optimizer=optimizer)
    expected = train(whole, range(6))
    first = make(engine, optimizer=optimizer)
    told = train(first, range(3))
    own = running_statistics(first.network)
    written = first.save(tmp_path / "state", {"shared": torch.arange(3.0)}, own)
    if written is not None:
        written.result()
    second = make(engine, optimizer=optimizer)
    shared, kept = {"shared": torch.zeros(3)}, running_statistics(second.network)
    second.load(tmp_path / "state", shared, kept, world_size=1)
    set_statistics(second.network, kept)
    assert shared["shared"].tolist() == [0, 1, 2]
    assert told + train(second, range(3, 6)) == expected
    one, other = whole.weights(), second.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_save_before_the_first_update_is_none(engine: str, optimizer: str, tmp_path: Path) -> None:
    expected = train(make(engine, optimizer=optimizer), range(2))
    first, second = make(engine, optimizer=optimizer), make(engine, optimizer=optimizer)
    written = first.save(tmp_path / "state", {}, {})
    assert written is not None
    written.result()
    second.load(tmp_path / "state", {}, {}, world_size=1)
    assert train(first, range(2)) == train(second, range(2)) == expected


def test_alone_ddp_takes_the_steps_of_a_bare_loop_and_copies_no_gradient() -> None:
    engine = make("ddp", optimizer="adamw")
    torch.manual_seed(0)
    bare = Network()
    optimizer = build_optimizer(engine._recipe, parameter_groups(bare.named_parameters(), 0.05))
    for step in range(3):
        images, labels = batch(step)
        for number, half in enumerate((slice(8), slice(8, 16))):
            for network in (engine.forward, bare):
                with engine.micro_step(last=number == 1):
                    (nn.functional.cross_entropy(network(images[half]), labels[half]) / 2).backward()
        norm = nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert engine.step(1e-3).norm == norm.item()
    assert all(torch.equal(engine.weights()[name], weight) for name, weight in bare.named_parameters())
    # DistributedDataParallel would hold a second copy of every gradient.
    assert engine.wrapped is engine.network


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_universal_checkpoint_holds_all_that_counts(stage: int, tmp_path: Path) -> None:
    engine = f"deepspeed-{stage}"
    whole = make(engine, optimizer="adamw")
    expected = train(whole, range(6))
    first = make(engine, optimizer="adamw")
    told = train(first, range(3))
    first.save(tmp_path, {}, {})
    second = make(engine, optimizer="adamw")
    # As another number of ranks would read it: all that must survive is the same.
    second.load(tmp_path, {}, {}, world_size=2)
    assert told + train(second, range(3, 6)) == expected
    one, other = whole.weights(), second.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_that_are_not_finite_change_no_weight(engine: str) -> None:
    trained = make(engine)
    train(trained, range(2))
    before = trained.weights()
    images, labels = batch(2)
    with trained.micro_step(last=True):
        output = trained.forward(images)
        output.register_hook(lambda gradient: gradient * math.nan)
        trained.backward(nn.functional.cross_entropy(output, labels))
    assert not math.isfinite(trained.step(0.01).norm)
    after = trained.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # And the next step is as good as any.
    assert all(map(math.isfinite, train(trained, range(3, 5))))
    assert not torch.equal(trained.weights()["head.weight"], before["head.weight"])


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_is_discarded_whatever_its_gradients(engine: str, micro_batches: int) -> None:
    calm, struck = (make(engine, accumulation=micro_batches, optimizer="adamw") for _ in range(2))
    expected = train(calm, range(2), micro_batches=micro_batches)
    told = train(struck, range(1), micro_batches=micro_batches)
    own = running_statistics(struck.network)
    images, labels = batch(7)
    for factor in (math.inf, 1.0):
        for number in range(micro_batches):
            with struck.micro_step(last=number == micro_batches - 1):
                loss = nn.functional.cross_entropy(struck.forward(images), labels)
                struck.backward(loss * factor)
        struck.discard()
    set_statistics(struck.network, own)
    assert told + train(struck, range(1, 2), micro_batches=micro_batches) == expected


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_says_that_sgd_cannot_change_its_world_size(stage: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as many processes as before"):
        make(f"deepspeed-{stage}").load(tmp_path, {}, {}, world_size=2)


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    both = [*network.named_parameters(), *network.named_buffers()]
    return {name: local(value).clone() for name, value in both}


def take_steps(engine: Engine, average: Average) -> dict[str, torch.Tensor]:
    """Take steps, and return the average as it is defined."""
    expected = tensors(engine.network)
    for step in range(5):
        train(engine, range(step, step + 1))
        average.update(engine.network, step)
        decay = min(average.decay, (1 + step) / (10 + step))
        for name, value in tensors(engine.network).items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    return expected


@pytest.mark.parametrize("name", [engine for engine in ENGINES if engine != "deepspeed-3"])
def test_the_average_is_evaluated_and_what_trains_is_put_back(name: str) -> None:
    engine = make(name)
    average = Average(engine.network, decay=0.5)
    expected = take_steps(engine, average)
    before = tensors(engine.network)
    with evaluated(engine, average):
        found = tensors(engine.network)
        assert not any(module.training for module in engine.network.modules())
        engine.forward(batch(9)[0])
    for tensor in ("head.weight", "block.norm.running_mean", "block.norm.running_var"):
        torch.testing.assert_close(found[tensor], expected[tensor])
        assert not torch.equal(found[tensor], before[tensor])
    # How many batches there were is a count, of which there is no average.
    assert found["block.norm.num_batches_tracked"] == 5
    after = tensors(engine.network)
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
    assert all(module.training for module in engine.network.modules())
    # What fsdp had gathered for it would hide what becomes of the shards.
    calm = make(name)
    train(calm, range(5))
    assert train(engine, range(5, 7)) == train(calm, range(5, 7))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_parameter_is_kept_within_bounds(engine: str) -> None:
    trained = make(engine)
    trained.clamp("logit_scale", 0.0, 1.5)
    assert trained.weights()["logit_scale"].tolist() == [1.5]
    train(trained, range(1))
    # The optimizer went on from the bounded value, not from a copy of its own.
    assert abs(trained.weights()["logit_scale"].item() - 1.5) < 0.2


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_computes_low_and_keeps_weights_and_statistics_in_fp32(engine: str) -> None:
    low, full = make(engine, dtype="bf16"), make(engine)
    told, expected = train(low, range(4))[::2], train(full, range(4))[::2]
    assert told != expected
    assert told == pytest.approx(expected, rel=0.03)
    assert {tensor.dtype for tensor in low.weights().values()} == {torch.float32}
    assert running_statistics(low.network)["block.norm.running_mean"].dtype == torch.float32


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_travel_in_fp32_under_the_autocast_of_deepspeed(stage: int) -> None:
    from deepspeed.runtime.torch_autocast import get_all_comm_dtypes

    trained = make(f"deepspeed-{stage}", dtype="bf16")
    assert get_all_comm_dtypes(trained.network.parameters()) == {torch.float32}


def attended(engine: str) -> dict[str, torch.Tensor]:
    """Train a layer with attention, and one with a bias on sequences, in bf16; return the weights."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
    trained = around(nn.Sequential(nn.Linear(8, 8), layer), engine, dtype="bf16")
    for step in range(3):
        sequences = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(step))
        with trained.micro_step(last=True):
            trained.backward(trained.forward(sequences).float().square().mean())
        trained.step(0.05)
    return trained.weights()


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_bf16_rounds_a_transformer_as_under_ddp(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # An engine of another test may have put its own in the place of torch's, for the whole process.
    monkeypatch.setattr(nn.functional, "linear", torch._C._nn.linear)
    expected, found = attended("ddp"), attended(engine)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-7, msg=name)


def test_weights_that_travel_in_bf16_leave_batch_normalisation_and_scalars_in_fp32() -> None:
    config: dict[str, Any] = {"dtype": "bf16", "gather_dtype": "bf16"}
    if "param_dtype_override_fn" not in inspect.signature(MixedPrecisionPolicy).parameters:
        with pytest.raises(UserError, match=r"torch 2\.15 and later"):
            check_engine("fsdp", Recipe(engine=EngineConfig(**config)))
        return
    seen: dict[str, torch.dtype] = {}
    trained = make("fsdp", **config)
    for name, module in trained.network.named_modules():
        module.register_forward_pre_hook(
            lambda module, *_, name=name: seen.update(
                {f"{name}.{key}": value.dtype for key, value in module.named_parameters(recurse=False)}
            )
        )
    told = train(trained, range(3))
    fp32 = {name for name, dtype in seen.items() if dtype == torch.float32}
    assert fp32 == {"block.norm.weight", "block.norm.bias", ".logit_scale"}
    assert all(tensor.dtype == torch.float32 for tensor in trained.weights().values())
    assert told == pytest.approx(train(make("fsdp", dtype="bf16"), range(3)), rel=0.02)


def test_processes_that_make_no_whole_groups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 3)
    with pytest.raises(UserError, match="3 processes cannot be divided into groups"):
        make("fsdp", shard_group=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_channels_last_changes_the_layout_and_nothing_else(engine: str) -> None:
    trained = make(engine, channels_last=True)
    told, expected = train(trained, range(3)), train(make(engine), range(3))
    assert told == pytest.approx(expected, rel=1e-4)
    kernel = dict(trained.network.named_parameters())["block.conv.weight"]
    if engine in ("ddp", "deepspeed-0"):
        assert kernel.is_contiguous(memory_format=torch.channels_last)
    exported = trained.weights()["block.conv.weight"]
    assert exported.is_contiguous()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed-1"])
def test_a_compiled_network_takes_the_same_steps(engine: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = make(engine, compile=True)
    told = train(compiled, range(3))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert told == pytest.approx(train(make(engine), range(3)), rel=1e-4)
    assert set(compiled.weights()) == {name for name, _ in Network().named_parameters()}


def test_batch_normalisation_that_would_stay_unsynchronised_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch's own synchronises every kind on GPUs")
    network = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    with pytest.raises(UserError, match="1 is a BatchNorm1d"):
        batchnorm.prepare(network, "sync")


def test_starting_the_loader_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()

    class NoSamples(list[list[int]]):
        views = 1

    loader = training_loader([], NoSamples(), workers=0, pin_memory=False)  # type: ignore[arg-type]
    iter(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_was_compiled_for_deepspeed() -> None:
    from deepspeed.ops.op_builder.builder import OpBuilder

    # Its shared-memory operation takes 40 s of every rank at once, and a stale lock after a kill.
    assert not hasattr(dist, "deepspeed_shm_comm")
    assert not OpBuilder._loaded_ops
