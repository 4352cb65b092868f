"""What a run does step by step, noted by an engine that computes nothing, against what it is defined to do.

Learning rates, the moving average, the seeds and samples of each micro-batch, and when it validates and saves
are computed here a second time, from the definitions alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from nml.recipe import Data, Loss, Model, Optimizer, Recipe, Schedule
from pretrain import assembly
from pretrain.classify import Classify
from pretrain.clip import Clip
from pretrain.ema import Average
from pretrain.ending import SIGNALS
from pretrain.engines import Update
from pretrain.engines.ddp import DdpEngine
from pretrain.loading import Batch
from pretrain.objective import Setting
from pretrain.options import parse_options
from pretrain.schedule import learning_rate
from pretrain.transforms import training_transform
from pretrain.world import World
from shards.dataset import ShardDataset
from shards.layout import ShardLimits
from shards.sampler import SampleRef
from shards.shardset import ShardSet
from tests.shards import by_definition
from tests.shards.conftest import make_request, write

SAMPLES, CLASSES, BATCH, MICRO, STREAMS, SEED = 50, 4, 8, 4, 4, 5
EPOCHS = 3
STEPS = SAMPLES // STREAMS * STREAMS // BATCH
SHIFTS = torch.tensor([0.0, 0.5, 1.5, 3.0])


def rate(step: int, *, peak: float, warmup: int, start: float, total: int, end: float | None) -> float:
    """Return the rate of a step, the first of which is 0: up in a line, then down half a cosine to an end."""
    if step < warmup:
        return start + (peak - start) * (step + 1) / warmup
    if end is None:
        return peak
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize("end", [None, 0.0, 0.002])
@pytest.mark.parametrize(
    ("epochs", "steps", "start"), [(0.0, 0, 0.0), (0.5, 0, 0.0), (0.0, 7, 0.01), (1.0, 3, 0.01)]
)
def test_the_rate_of_every_step_is_that_of_the_definition(
    epochs: float, steps: int, start: float, end: float | None
) -> None:
    schedule = Schedule(
        name="constant" if end is None else "cosine",
        warmup_epochs=epochs,
        warmup_steps=steps,
        warmup_lr=start,
        min_lr=end or 0.0,
    )
    recipe = Recipe(optimizer=Optimizer(lr=0.4), schedule=schedule)
    warmup = steps + round(epochs * 10)
    found = [learning_rate(recipe, step, steps_per_epoch=10, total_steps=60) for step in range(61)]
    expected = [rate(step, peak=0.4, warmup=warmup, start=start, total=60, end=end) for step in range(61)]
    assert found == pytest.approx(expected, abs=1e-15)
    # The last step of the warm-up is at the peak, and the cosine would end one step after the last.
    assert found[max(warmup - 1, 0)] == pytest.approx(0.4)
    assert found[60] == pytest.approx(0.4 if end is None else end)


def test_a_run_of_one_step_after_its_warm_up_ends_like_any_other() -> None:
    schedule = Schedule(name="cosine", warmup_epochs=0.0, warmup_steps=2, min_lr=0.1)
    recipe = Recipe(optimizer=Optimizer(lr=0.4), schedule=schedule)
    for total, expected in ((3, [0.2, 0.4, 0.4, 0.1]), (2, [0.2, 0.4, 0.4])):
        found = [learning_rate(recipe, s, steps_per_epoch=9, total_steps=total) for s in range(total + 1)]
        assert found == pytest.approx(expected)


def averages(values: list[float], first: float, decay: float) -> list[float]:
    """Return the moving average after each update, its decay warming up."""
    found, average = [], first
    for number, value in enumerate(values):
        weight = min(decay, (1 + number) / (10 + number))
        average = weight * average + (1 - weight) * value
        found.append(average)
    return found


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.9999])
def test_an_average_warms_up_until_its_decay_is_reached(decay: float) -> None:
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, 2.0)
    average = Average(network, decay)
    values = [math.sin(number) for number in range(40)]
    found = []
    for number, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        average.update(network, number)
        found.append(average.shadow["weight"].item())
    assert found == pytest.approx(averages(values, 2.0, decay), abs=1e-12)


class Counter(nn.Module):
    """A network of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Noting(DdpEngine):
    """An engine whose weight is the number of updates, and that notes what is asked of it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(Counter(), recipe)
        self.events: list[tuple[Any, ...]] = []

    @property
    def weight(self) -> float:
        return self.network.weight.item()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
        kind = "forward" if self.network.training else "validate"
        # Copied: every batch lies in the same memory.
        self.events.append((kind, images.clone(), drawn) if kind == "forward" else (kind, self.weight))
        return SHIFTS.repeat(len(images), 1)

    @contextlib.contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        yield
        self.events.append(("micro-step", last))

    def backward(self, loss: torch.Tensor) -> None:
        self.events.append(("backward", loss.item()))

    def step(self, lr: float) -> Update:
        with torch.no_grad():
            self.network.weight += 1
        self.events.append(("step", lr))
        return Update(0.0, applied=True)

    def save(
        self, folder: Path, shared: dict[str, torch.Tensor], own: dict[str, torch.Tensor]
    ) -> Future[None]:
        folder.mkdir(parents=True)
        (folder / "weight").write_text(str(self.weight))
        step, weight, future = int(folder.parent.name.removeprefix("step-")), self.weight, Future[None]()

        def written() -> None:
            self.events.append(("save", step, weight, (folder.parents[2] / "DONE.json").exists()))
            future.set_result(None)

        # As the real ones do, in the background; the run may have gone on, but cannot be done.
        threading.Timer(0.02, written).start()
        return future

    def of(self, kind: str) -> list[Any]:
        return [event[1:] for event in self.events if event[0] == kind]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Images of a colour each, in 25 shards, so that streams have several blocks; 12 labels are wrong."""
    folder = tmp_path_factory.mktemp("trainer")
    for number in range(SAMPLES):
        path = folder / "images" / f"class{number % CLASSES}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (100 + number, 0, 0)).save(path)
    request = make_request(f"imagefolder:{folder / 'images'}", "0", "0.25", limits=ShardLimits(10**9, 2))
    return write(folder / "set", request)


RECIPE: dict[str, Any] = {
    "objective": "classify",
    "epochs": EPOCHS,
    "global_batch": BATCH,
    "ema": 0.3,
    "model": {"name": "resnet18", "kwargs": {"channels": [8, 8, 8, 8]}},
    "data": {
        **{"size": 16, "test_size": 16, "crop": "pad", "flip": 0.5, "workers": 0, "streams": STREAMS},
        **{"mean": [0.5] * 3, "std": [0.5] * 3},
    },
    "optimizer": {"name": "adamw", "lr": 0.2},
    "schedule": {"warmup_epochs": 0.5, "warmup_lr": 0.01, "min_lr": 0.03},
    "engine": {"micro_batch": MICRO},
    "checkpoints": {"every_epochs": 2, "every_steps": 5, "keep_last": 100},
    "validate_every": 2,
}


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(params=[1, 2], ids=["one view", "two views"])
def ended(
    request: pytest.FixtureRequest,
    shard_set: ShardSet,
    tmp_path: Path,
    process_group: None,
    signals: None,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Noting, Path, int]:
    """Run a recipe to its end with an engine that notes it; return engine, run folder and views."""
    recipe = {**RECIPE, "data": {**RECIPE["data"], "repeats": request.param}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = {
        "recipe": tmp_path / "recipe.yaml",
        "shards": shard_set.path,
        "validation": shard_set.path,
        "noise": "0.25",
        "seed": SEED,
        "run-dir": tmp_path / "run",
    }
    options, _ = parse_options([part for name, value in words.items() for part in (f"--{name}", str(value))])
    engine = Noting(options.recipe)
    monkeypatch.setattr(assembly, "build_engine", lambda *_, **__: engine)
    trainer, batches = assembly.assemble(options, World(), shard_set, time.perf_counter())
    (tmp_path / "run" / "logs").mkdir(parents=True)
    assert trainer.run(batches) == 0
    return engine, tmp_path / "run", request.param


def samples_of(shard_set: ShardSet, views: int) -> list[list[SampleRef]]:
    """Return the samples of each step of the run, in their epoch and view."""
    ends = np.cumsum([shard.samples for shard in shard_set.info.shards]).tolist()
    steps = []
    for epoch in range(EPOCHS):
        streams = by_definition.epoch_order(ends, STREAMS, SEED, epoch)
        for step in range(STEPS):
            places = [divmod(step * BATCH + place, views) for place in range(BATCH)]
            steps.append(
                [SampleRef(streams[place % STREAMS][place // STREAMS], epoch, view) for place, view in places]
            )
    return steps


def test_a_run_does_at_every_step_what_it_is_defined_to_do(
    ended: tuple[Noting, Path, int], shard_set: ShardSet
) -> None:
    engine, run, views = ended
    total = EPOCHS * STEPS

    line = {"peak": 0.2, "warmup": round(STEPS / 2), "start": 0.01, "total": total, "end": 0.03}
    rates = [rate(step, **line) for step in range(total)]  # type: ignore[arg-type]
    assert [lr for (lr,) in engine.of("step")] == pytest.approx(rates, abs=1e-12)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["lr"]) for line in lines if line["event"] == "step"]
    assert told == [(step + 1, pytest.approx(lr, abs=1e-12)) for step, lr in enumerate(rates)]

    transform = training_transform(Data(**RECIPE["data"]))
    images = ShardDataset(shard_set, "n25", transform, seed=SEED)
    labels = shard_set.index.column("label_n25").to_pylist()
    assert sum(a != b for a, b in zip(labels, shard_set.index.column("label").to_pylist(), strict=True)) == 12
    losses = (torch.logsumexp(SHIFTS, 0) - SHIFTS).tolist()
    forwards, backwards = iter(engine.of("forward")), iter(engine.of("backward"))
    for step, samples in enumerate(samples_of(shard_set, views)):
        for micro in range(BATCH // MICRO):
            part = samples[micro * MICRO : (micro + 1) * MICRO]
            seen, drawn = next(forwards)
            pixels = torch.stack([images[ref].image for ref in part]).float()
            torch.testing.assert_close(seen, (pixels / 255 - 0.5) / 0.5, msg=f"images of step {step}")
            assert drawn == draws(SEED, step, 0, micro), f"seed of step {step}, micro-batch {micro}"
            (loss,) = next(backwards)
            expected = sum(losses[labels[ref.index]] for ref in part) / BATCH
            assert loss == pytest.approx(expected, abs=1e-5), f"labels of step {step}"
    assert [last for (last,) in engine.of("micro-step")] == [False, True] * total

    weights = averages([float(step + 1) for step in range(total)], 0.0, 0.3)
    # Validation after every second epoch and at the end, with the average in place.
    carried = sorted({weight for (weight,) in engine.of("validate")})
    assert carried == pytest.approx([weights[2 * STEPS - 1], weights[-1]], rel=1e-5)
    saved = sorted({*range(5, total + 1, 5), 2 * STEPS, total})
    assert engine.of("save") == [(step, float(step), False) for step in saved]
    assert f'"step": {total}' in (run / "export" / "meta.json").read_text()
    assert json.loads((run / "DONE.json").read_text())["step"] == total
    for step in saved:
        exported = load_file(run / "checkpoints" / f"step-{step:08d}" / "export" / "model.safetensors")
        assert exported["weight"].item() == pytest.approx(weights[step - 1], rel=1e-5), (
            f"average at step {step}"
        )
    # The weights that train are never the average's.
    assert engine.weight == total


def draws(seed: int, step: int, rank: int, micro: int) -> tuple[float, float, float]:
    """Return the first numbers that the generators give in a micro-batch."""
    text = f"step {seed} {step} {rank} {micro}".encode()
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    generator = torch.Generator().manual_seed(value & 0x7FFFFFFFFFFFFFFF)
    numbers = np.random.RandomState(value & 0xFFFFFFFF)
    return random.Random(value).random(), float(numbers.rand()), float(torch.rand((), generator=generator))


def test_each_rank_and_micro_batch_has_a_seed_of_its_own(process_group: None) -> None:
    recipe = Recipe(global_batch=BATCH)
    engine = Noting(recipe)
    engine.network.train()
    objective = Classify(recipe, Setting(rank=3, seed=7, micro_batches=2, num_classes=CLASSES))
    batch = Batch(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    for step in (0, 9):
        objective.backward(engine, batch, step)
    drawn = [numbers for _, numbers in engine.of("forward")]
    assert drawn == [draws(7, step, 3, micro) for step in (0, 9) for micro in (0, 1)]
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("parts", [1, 2])
def test_both_passes_over_a_pair_of_image_and_caption_draw_the_same(parts: int, process_group: None) -> None:
    class Towers(Noting):
        def forward(self, images: torch.Tensor, texts: torch.Tensor) -> dict[str, torch.Tensor]:
            super().forward(images)
            features = nn.functional.normalize(images.mean((2, 3)) + self.network.weight, dim=1)
            return {"image_features": features, "text_features": features, "logit_scale": torch.ones(())}

    recipe = Recipe(objective="clip", global_batch=BATCH, model=Model(name="RN50"), loss=Loss(name="infonce"))
    engine = Towers(recipe)
    engine.network.train()
    objective = Clip(recipe, Setting(rank=3, world_size=1, seed=7, micro_batches=parts))
    batch = Batch(torch.randn(4, 3, 2, 2), torch.zeros(4, 8, dtype=torch.int64), torch.arange(4))
    for step in (0, 9):
        objective.backward(engine, batch, step)
    drawn = [numbers for _, numbers in engine.of("forward")]
    # Features first, for the loss over all of them; then once more with gradients.
    passes = 1 if parts == 1 else 2
    assert drawn == [
        draws(7, step, 3, micro) for step in (0, 9) for _ in range(passes) for micro in range(parts)
    ]
