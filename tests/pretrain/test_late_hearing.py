"""Steps of which the host hears late wait for nothing, and train and tell what steps heard of at once do.

A GPU hears late. Here a CPU is made to, which takes the same path but for the copies themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nml.curves import metrics_lines
from nml.recipe import Data, Engine, Loss, Model, Recipe
from pretrain import agreement
from pretrain.agreement import Agreement
from pretrain.assembly import build_objective
from pretrain.ending import SIGNALS, STOPPED_STATUS
from pretrain.engines import build_engine
from pretrain.engines.deepspeed import import_deepspeed
from pretrain.engines.native import call_off, tensors_of
from pretrain.loading import Batch
from pretrain.objective import Setting
from pretrain.optimizers import build_optimizer, parameter_groups
from pretrain.options import parse_options
from pretrain.run import train
from pretrain.training import Trainer
from pretrain.upload import uploaded
from pretrain.world import World
from tests.pretrain.small_engines import OPTIMIZERS, batch, make, trainer_without_data

LAG, STEPS = 2, 20
# Of them the host learns a number, or a size, that the device computes.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "equal"}
# What a line says of a step, an epoch's noise or a validation, but for times and memory.
EXACT = ("event", "step", "epoch", "loss", "lr", "grad_norm", "samples_seen", "top1", "top5")
READ = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(agreement.LAG, "cpu", LAG)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Waits(TorchDispatchMode):
    """Counts what the host reads of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING and not self.allowed:
            self.found[name] += 1
        return func(*args, **kwargs or {})

    @contextlib.contextmanager
    def counting(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
        def counted(name: str) -> Callable[..., Any]:
            original = getattr(torch.Tensor, name)

            def read(tensor: torch.Tensor, *arguments: Any, **more: Any) -> Any:
                if not self.allowed:
                    self.found[name] += 1
                return original(tensor, *arguments, **more)

            return read

        hear = Agreement.hear

        def heard(own: Agreement) -> Any:
            self.allowed = True
            try:
                return hear(own)
            finally:
                self.allowed = False

        with monkeypatch.context() as patched, self:
            for name in READ:
                patched.setattr(torch.Tensor, name, counted(name))
            patched.setattr(Agreement, "hear", heard)
            yield self.found


def make_trainer(engine_name: str, recipe: Recipe, folder: Path) -> Trainer:
    objective = build_objective(recipe, Setting(num_classes=4))
    name = engine_name.partition("-")[0]
    engine = build_engine(name, objective.network(), recipe, accumulation=1)  # type: ignore[arg-type]
    assert engine.lag == LAG
    return trainer_without_data(recipe, objective, engine, folder)


def make_recipe(objective: str, model: dict[str, Any], engine: str, optimizer: str) -> Recipe:
    stage = int(engine.partition("-")[2] or 1)
    return Recipe(
        objective=objective,
        global_batch=4,
        ema=0.9,
        model=Model(**model),
        data=Data(size=32, test_size=32),
        loss=Loss(name="bce", mixup=0.2) if objective == "classify" else Loss(name="infonce"),
        optimizer=OPTIMIZERS[optimizer],
        engine=Engine(zero_stage=stage),
    )


@pytest.mark.parametrize(
    ("objective", "engine", "optimizer"),
    [
        ("classify", "ddp", "adamw"),
        ("classify", "fsdp", "lamb"),
        ("classify", "deepspeed-0", "sgd"),
        ("clip", "ddp", "lamb"),
        ("clip", "fsdp", "sgd"),
        ("clip", "deepspeed-0", "adamw"),
    ],
)
def test_twenty_steps_wait_for_nothing(
    objective: str,
    engine: str,
    optimizer: str,
    late: None,
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_resnet: dict[str, Any],
    tiny_clip: dict[str, Any],
) -> None:
    model = tiny_resnet if objective == "classify" else tiny_clip
    trainer = make_trainer(engine, make_recipe(objective, model, engine, optimizer), tmp_path)
    targets = torch.tensor([0, 1, 2, 3]) if objective == "classify" else torch.ones(4, 12, dtype=torch.int64)
    images = Batch(torch.randn(4, 3, 32, 32), targets, torch.arange(4), torch.tensor([0, 1, 1, 1]))
    # What is made once, of the optimizer and the like, is made in the first step.
    trainer.train_step(images, 0.0)
    with Waits().counting(monkeypatch) as found:
        for _ in range(STEPS):
            trainer.train_step(images, 0.0)
        assert not found
        # The count sees the read that is to be there, and those that are not.
        trainer._hear_all()
        assert not found
        assert float(torch.ones(1)) == torch.ones(1).tolist()[0]
        assert found.keys() >= {"__float__", "tolist", "_local_scalar_dense"}
    trainer.recorder.close()
    lines = list(metrics_lines(tmp_path / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [*range(1, STEPS + 2)]
    assert all(line["loss"] is not None and line["grad_norm"] for line in lines)


# What docs/pretraining.md says of clipped steps over weights that decay and weights that do not: numbers that
# the host reads of the device, the norm that we read among them, and numbers that it sends there.
ASKED_BY_ZERO = {1: (4, 2), 2: (4, 2), 3: (2, 2)}


def test_deepspeed_waits_for_the_device_as_often_as_is_written(
    process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    sent: Counter[str] = Counter()
    tensor = torch.tensor

    def counted(*values: Any, **more: Any) -> torch.Tensor:
        sent["tensor"] += "device" in more
        return tensor(*values, **more)

    monkeypatch.setattr(
        get_accelerator(), "synchronize", lambda *_: sent.update(synchronize=1), raising=False
    )
    for stage in range(4):
        # Without ZeRO it is for the device to decide; torch's plain SGD reads nothing.
        monkeypatch.setitem(agreement.LAG, "cpu", 0 if stage else LAG)
        engine = make(f"deepspeed-{stage}")
        for step in range(4):
            images, labels = batch(step)
            sent.clear()
            with monkeypatch.context() as patched, Waits() as waits:
                patched.setattr(torch, "tensor", counted)
                with engine.micro_step(last=True):
                    engine.backward(nn.functional.cross_entropy(engine.forward(images), labels))
                trains = torch.ones((), dtype=torch.bool)
                _ = engine.step(0.01) if stage else engine.step_if(0.01, trains)
            found = waits.found["_local_scalar_dense"], sent["tensor"]
            # What is made once is made in the first steps; DeepSpeed's clock begins after them.
            assert step < 3 or found == ASKED_BY_ZERO.get(stage, (0, 0)), (stage, waits.found, sent)
            assert not sent["synchronize"], stage


def test_updates_on_the_device_are_those_of_the_libraries_and_can_be_called_off() -> None:
    for name, config in OPTIMIZERS.items():
        torch.manual_seed(0)
        shapes = (4, 3), (3,)
        ours, theirs = ([nn.Parameter(torch.ones(shape).double()) for shape in shapes] for _ in "12")
        rule = Recipe(optimizer=config)
        one, other = (
            build_optimizer(rule, parameter_groups(zip("ab", both, strict=True), 0.1), on_device=on_device)
            for both, on_device in ((ours, True), (theirs, False))
        )
        for step in range(6):
            gradients = [torch.randn_like(weight) for weight in ours]
            if step in (0, 3):
                before = [tensor.clone() for tensor in (*ours, *tensors_of(one))]
                for weight in ours:
                    weight.grad = torch.full_like(weight, torch.nan)
                call_off(one, torch.tensor(False))
                one.step()
                after = [*ours, *tensors_of(one)]
                assert all(
                    torch.equal(*pair) for pair in zip(before, after if step else ours, strict=True)
                ), name
            for both in (ours, theirs):
                for weight, gradient in zip(both, gradients, strict=True):
                    weight.grad = gradient.clone()
            call_off(one, torch.tensor(True))
            one.step()
            other.step()
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, msg=name)


def test_sharded_updates_on_the_device_are_those_of_whole_weights(
    on_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    def trained(rank: int, size: int) -> list[dict[str, torch.Tensor]]:
        agreement.LAG["cpu"] = LAG
        found = []
        for name in OPTIMIZERS:
            for engine_name in ("ddp", "fsdp"):
                engine = make(engine_name, optimizer=name)
                for step in range(4):
                    images, labels = batch(step)
                    loss = nn.functional.cross_entropy(engine.forward(images[rank::size]), labels[rank::size])
                    # Of one rank alone.
                    engine.backward(loss * torch.nan if (rank, step) == (1, 2) else loss)
                    _, applied = engine.step_if(0.01, torch.tensor(True))
                    assert bool(applied) == (step != 2)
                found.append({key: value.numpy().copy() for key, value in engine.whole_weights()})
        return found

    weights = on_ranks(2, trained, tmp_path / "store")[0]
    for whole, sharded in zip(weights[::2], weights[1::2], strict=True):
        # Normalised away, so that its gradient is nothing but rounding.
        del whole["block.conv.bias"]
        for name, value in whole.items():
            np.testing.assert_allclose(sharded[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_run_heard_late_stops_resumes_and_tells_as_one_heard_at_once(
    late: None,
    process_group: None,
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    tiny_resnet: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    weights: Callable[..., Any],
) -> None:
    optimizer = {"name": "lamb", "lr": 1e-3, "weight_decay": 0.05, "clip": 1.0}
    saving = {"every_epochs": 0, "every_steps": 8}
    recipe = make_recipe(
        "late", epochs=1, ema=0.9, model=tiny_resnet, optimizer=optimizer, checkpoints=saving
    )

    def trained(name: str) -> int:
        words = ["--recipe", str(recipe), "--shards", str(image_set), "--validation", str(image_set)]
        options, text = parse_options([*words, "--noise", "0.25", "--run-dir", str(work / "late" / name)])
        with contextlib.ExitStack() as closing:
            return train(options, text, World(), time.perf_counter(), closing)

    def told(name: str) -> list[dict[str, Any]]:
        lines = metrics_lines(work / "late" / name / "metrics.jsonl")
        return [{key: line[key] for key in EXACT if key in line} for line in lines]

    assert trained("late") == 0
    step = Trainer.train_step

    def stopping(trainer: Trainer, *arguments: Any) -> None:
        step(trainer, *arguments)
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", stopping)
        assert trained("stopped") == STOPPED_STATUS
    # Told with the step after the signal, heard two later; all that was done is told and saved.
    assert told("stopped")[-1]["step"] == 4 + LAG
    assert trained("stopped") == 0
    assert told("stopped") == told("late")
    monkeypatch.setitem(agreement.LAG, "cpu", 0)
    assert trained("at once") == 0
    for line, expected in zip(told("late"), told("at once"), strict=True):
        assert line.pop("event") == expected.pop("event")
        # Of an accuracy, rounding may turn a sample over.
        assert line == pytest.approx(expected, rel=1e-2 if "top1" in line else 1e-4)
    found, exported = weights(work / "late" / "late"), weights(work / "late" / "at once")
    for name, value in weights(work / "late" / "stopped").items():
        np.testing.assert_array_equal(value, found[name])
        np.testing.assert_allclose(value, exported[name], rtol=1e-3, atol=1e-4)


def test_a_batch_is_copied_beside_the_step_before_into_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With stand-ins for streams: which work on the device waits for which, whatever its speed."""
    device = torch.device("cuda")
    done: dict[str, list[Any]] = {"main": [], "side": []}
    current = ["main"]

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = "side" if name is device else name

        def record_event(self) -> list[Any]:
            return list(done[self.name])

        def wait_event(self, event: list[Any]) -> None:
            done[self.name] += [work for work in event if work not in done[self.name]]

        def wait_stream(self, other: Stream) -> None:
            self.wait_event(other.record_event())

    @contextlib.contextmanager
    def stream(on: Stream) -> Iterator[None]:
        current[0] = on.name
        yield
        current[0] = "main"

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(current[0]))

    class Copied:
        alive: ClassVar[set[int]] = set()

        def __init__(self, number: int) -> None:
            self.number = number
            self.alive.add(number)

        def __del__(self) -> None:
            self.alive.remove(self.number)

    def upload(number: Any) -> Any:
        # Beside the step before, whose batch has its memory still; after the one whose memory is taken.
        assert current[0] == "side"
        assert ("step", number - 1) not in done["side"]
        assert number < 2 or ("step", number - 2) in done["side"]
        assert not number or number - 1 in Copied.alive
        done["side"].append(("copy", number))
        return Copied(number)

    for number, copied in enumerate(uploaded(iter(range(5)), upload, device)):  # type: ignore[arg-type]
        assert ("copy", number) in done["main"]
        done["main"].append(("step", number))
        del copied
    assert number == 4
