"""How much is measured: all of it on a GPU, and as little as runs every line on a CPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from nml.recipe import Data, Engine, Loss, Model, Optimizer, Recipe


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the measurement.

    Attributes:
        device: ``cuda`` or ``cpu``.
        classes: Of the images.
        model, side, batch: What is trained to tell them apart.
        clip, clip_side, clip_batch: The same for images and captions.
        dtype, compile: Of the steps.
        warm: Steps before any that are timed.
        steps, rounds: Steps of a turn, and turns of each loop.
        traced: Steps that are looked at closely.
        products: Side of the matrices that are multiplied.
        images, image_side: The set that is written, and its images.
        epochs, workers: Of the run on that set.
        width, samples: Of the features that heads are fitted to.
        tests: Files of tests marked ``gpu``, below tests/; none is all of them.
        patience: What budgets are multiplied by.
    """

    device: str = "cuda"
    classes: int = 1000
    model: Model = field(default_factory=Model)
    side: int = 224
    batch: int = 256
    clip: Model = field(default_factory=lambda: Model(name="RN50-quickgelu"))
    clip_side: int = 224
    clip_batch: int = 256
    dtype: str = "bf16"
    compile: bool = True
    warm: int = 15
    steps: int = 20
    traced: int = 10
    rounds: int = 5
    products: int = 8192
    images: int = 4096
    image_side: int = 448
    epochs: int = 12
    workers: int = 14
    width: int = 2048
    samples: int = 4000
    tests: tuple[str, ...] = ()
    patience: float = 1.0

    def fewer(self) -> Sizes:
        """Return the same with half the turns, for loops that are only to be compared roughly."""
        halves = {name: max(1, getattr(self, name) // 2) for name in ("warm", "steps", "rounds")}
        return dataclasses.replace(self, **halves)

    def recipe(self, *, compile: bool = False, channels_last: bool = True) -> Recipe:
        """Return the recipe of classes."""
        return Recipe(
            epochs=self.epochs,
            global_batch=self.batch,
            model=self.model,
            data=Data(
                size=self.side, test_size=self.side, workers=self.workers, streams=min(64, self.images)
            ),
            optimizer=Optimizer(name="sgd", lr=0.01, weight_decay=5e-5),
            engine=self._engine(compile, channels_last),
        )

    def clip_recipe(self) -> Recipe:
        """Return the recipe of captions."""
        return Recipe(
            objective="clip",
            epochs=1,
            global_batch=self.clip_batch,
            model=self.clip,
            data=Data(size=self.clip_side, test_size=self.clip_side, workers=self.workers),
            loss=Loss(name="infonce"),
            optimizer=Optimizer(name="adamw", lr=1e-4, weight_decay=0.1),
            engine=self._engine(compile=False, channels_last=True),
        )

    def _engine(self, compile: bool, channels_last: bool) -> Engine:
        dtype: Any = self.dtype
        return Engine(dtype=dtype, channels_last=channels_last, compile=compile and self.compile)


FULL = Sizes()
TINY = Sizes(
    device="cpu",
    classes=4,
    model=Model(name="resnet18", kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}),
    side=32,
    batch=8,
    clip=Model(
        name="RN50",
        kwargs={
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
            "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1},
        },
    ),
    clip_side=32,
    clip_batch=8,
    compile=False,
    warm=1,
    steps=2,
    traced=2,
    rounds=2,
    products=64,
    images=32,
    image_side=40,
    epochs=30,
    workers=1,
    width=8,
    samples=100,
    tests=("plugins/test_trainer.py",),
    patience=10.0,
)
