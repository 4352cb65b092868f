"""What an objective promises, as small named checks; ``python -m pretrain.objectives check NAME`` runs them.

They train a small network at 8 pixels for four steps, in processes forked from this one, in float64: there a
difference that is none of rounding stands out. This process computes no gradient itself, as torch computes
none in the children of one that has.
"""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

import numpy as np

from nml import layout
from nml.conformance import checks_of, promise, untouched_randomness
from nml.files import write_json
from nml.objectives import declared
from nml.run_options import EngineName
from nml.untrusted import parse_json, read_json
from pretrain.checkpoints import checkpoint_folder
from pretrain.objectives.small_runs import (
    DIES_BEFORE,
    SAMPLES,
    SAVES_EVERY,
    STEPS,
    in_children,
    small_set,
    train,
)

BOUND = 1e-9
SMALL: dict[str, Any] = {
    "epochs": STEPS,
    "global_batch": SAMPLES,
    # Statistics of a rank's own batch, and of a part of one, differ by definition.
    "model": {
        "name": "resnet18",
        "kwargs": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
        "batch_norm": "frozen",
    },
    "data": {"size": 8, "test_size": 8, "crop": "rrc", "workers": 0, "streams": 4},
    "optimizer": {"name": "adamw", "lr": 1e-3, "clip": 1.0},
}
OFTEN = ["--recipe.checkpoints.every_steps", str(SAVES_EVERY)]
PARTS = ["--recipe.engine.micro_batch", "4"]


class Subject:
    """An objective, by its registered name, under an engine, and its runs, each made when it is asked for.

    Args:
        name: The name.
        engine: The engine.
        folder: Where its runs go; empty.
    """

    def __init__(self, name: str, engine: EngineName, folder: Path) -> None:
        self.name, self.engine, self.folder = name, engine, folder
        self.objective = declared(name)
        recipe = _merged(SMALL | {"objective": name}, self.objective.small)
        self.recipe = folder / "small.yaml"
        # What is JSON is YAML.
        write_json(self.recipe, recipe)
        self.classes = small_set(folder, "class")
        self.shards = small_set(folder, "caption") if self.objective.takes == "caption" else self.classes
        self._made: set[str] = set()

    def alone(self) -> Path:
        """Return a run of ddp in one process, validated and with checkpoints."""
        if "alone" not in self._made:
            looked_at = [*OFTEN, "--validation", str(self.classes)]
            runs = [self._words("alone", "ddp", looked_at)]
            if self.engine == "ddp":
                runs.append(self._words("parts", "ddp", PARTS))
            train(self.folder, 1, *runs)
            self._made.add("alone")
        return self.folder / "alone"

    def parts(self) -> Path:
        """Return a run of ddp in one process, whose batches are cut into parts of four samples."""
        self.alone()
        return self.folder / "parts"

    def together(self) -> Path:
        """Return a run of the engine in two processes."""
        self.resumed()
        return self.folder / "together"

    def resumed(self) -> Path:
        """Return a run of the engine in two processes that was killed and continued."""
        words = self._words("resumed", self.engine, OFTEN)
        if "resumed" not in self._made:
            train(self.folder, 2, words, killed=True)
            saved = checkpoint_folder(self.folder / "resumed", SAVES_EVERY)
            promise(
                layout.is_complete(saved), f"killed after step {DIES_BEFORE}, and has not saved {saved.name}"
            )
            train(self.folder, 2, words, self._words("together", self.engine, OFTEN))
            self._made.add("resumed")
        return self.folder / "resumed"

    def _words(self, run: str, engine: str, more: list[str]) -> list[str]:
        words = ["--recipe", str(self.recipe), "--shards", str(self.shards), "--engine", engine]
        return [*words, "--run-dir", str(self.folder / run), "--seed", "1", *more]


def trains_and_is_validated(subject: Subject) -> None:
    """The loss is finite, and after the last epoch there is an accuracy from 0 to 1."""
    run = subject.alone()
    promise(bool(np.isfinite(losses(run)).all()), f"losses are {losses(run)}")
    found = read_json(run / layout.DONE)["validation"]
    promise(0 <= found["top1"] <= 1, f"top-1 is {found['top1']}")


def goes_on_as_if_it_had_not_been_killed(subject: Subject) -> None:
    """Killed (kill -9) in two processes and continued: the same losses and weights, to the last bit."""
    resumed, whole = subject.resumed(), subject.together()
    promise(losses(resumed) == losses(whole), f"losses {losses(resumed)}, undisturbed {losses(whole)}")
    one, other = weights(resumed), weights(whole)
    promise(one.keys() == other.keys(), "the exports hold other tensors")
    names = [name for name in one if not np.array_equal(one[name], other[name])]
    promise(not names, f"weights differ: {', '.join(names[:3])}")


def has_the_same_losses_on_two_ranks(subject: Subject) -> None:
    """The loss of the global batch is the mean of the ranks', and so is its gradient."""
    _same_losses(subject.together(), subject.alone(), "on two ranks")


def has_the_same_losses_in_parts(subject: Subject) -> None:
    """A batch in four parts trains as the whole does."""
    if subject.engine != "ddp":
        raise unittest.SkipTest("it is the objective's own matter: ddp shows it")
    _same_losses(subject.parts(), subject.alone(), "in parts of four samples")


def exports_the_encoder_alone(subject: Subject) -> None:
    """What is exported loads in timm, or open_clip, as meta.json says, without a tensor more or less."""
    run = subject.alone()
    in_children(subject.folder, 1, lambda rank, port: _load(run / layout.EXPORT))  # noqa: ARG005


def depends_on_no_global_state(subject: Subject) -> None:
    """Objects of one seed are alike whatever the global generators say, and leave those as they are."""
    if subject.engine != "ddp":
        raise unittest.SkipTest("it is the objective's own matter: ddp shows it")
    in_children(subject.folder, 1, lambda rank, port: _use(subject, port))  # noqa: ARG005


CHECKS = checks_of(__name__)


def losses(run: Path) -> list[float]:
    """Return the loss of every step of a run, of steps done again the last."""
    return list({line["step"]: line["loss"] for line in _steps(run)}.values())


def weights(run: Path) -> dict[str, Any]:
    """Return the tensors that a run exported."""
    from safetensors.numpy import load_file

    return dict(load_file(run / layout.EXPORT / layout.WEIGHTS))


def _steps(run: Path) -> list[dict[str, Any]]:
    lines = [parse_json(line) for line in (run / layout.METRICS).read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def _same_losses(run: Path, reference: Path, how: str) -> None:
    one, other = losses(run), losses(reference)
    promise(len(one) == len(other) == STEPS, f"{len(one)} and {len(other)} steps, not {STEPS}")
    apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(one, other, strict=True))
    promise(apart <= BOUND, f"losses {how} {one}, alone and whole {other}: {apart:.1g} apart, relative")


def _load(export: Path) -> None:
    import torch
    from safetensors.torch import load_file

    meta = read_json(export / layout.META)
    if meta["library"] == "open_clip":
        import open_clip

        model: Any = open_clip.create_model(
            meta["architecture"], pretrained_text=False, **meta["model_kwargs"]
        )
    else:
        import timm

        model = timm.create_model(meta["architecture"], **meta["model_kwargs"])
    model.load_state_dict(load_file(export / layout.WEIGHTS))
    side = meta["preprocessing"]["input_size"][-1]
    with torch.no_grad():
        model.eval().double()(torch.zeros(2, 3, side, side, dtype=torch.float64))


def _use(subject: Subject, port: int) -> None:
    """Use two objects of one seed beside other states of the global generators."""
    import torch

    from nml.randomness import seed_randomness
    from pretrain.assembly import build_objective
    from pretrain.engines import build_engine
    from pretrain.objective import Setting
    from pretrain.options import parse_options
    from pretrain.world import World, join

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    join(World())
    recipe = parse_options(["--recipe", str(subject.recipe)])[0].recipe
    told = []
    for state in (1, 2):
        seed_randomness(state)
        with untouched_randomness("making it"):
            objective = build_objective(recipe, Setting(num_classes=4, total_steps=STEPS))
        network = objective.network()
        objective.begin(network)
        engine = build_engine("ddp", network, recipe, accumulation=1)
        with untouched_randomness("asking for tensors or an empty batch"):
            before = {name: tensor.clone() for name, tensor in objective.tensors().items()}
            batch = objective.empty_batch(SAMPLES)
        generator = torch.Generator().manual_seed(0)
        batch = batch._replace(images=torch.randn(batch.images.shape, generator=generator))
        # Again: what was made before may have left one state behind whatever there was.
        seed_randomness(state)
        loss = objective.backward(engine, batch, 0)
        after = objective.tensors()
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        promise(not changed, f"a backward pass changes {', '.join(changed)}, also where the step is left out")
        gradients = [weight.grad for weight in engine.network.parameters() if weight.grad is not None]
        gradient = torch.cat([found.flatten() for found in gradients])
        with untouched_randomness("after_step"):
            engine.step(0.1)
            objective.after_step(engine, 0)
        told.append((loss, gradient, *(tensor.clone() for tensor in objective.tensors().values())))
    alike = all(torch.equal(one, other) for one, other in zip(*told, strict=True))
    promise(alike, "the state of the global generators before changes what it trains")


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return values over others, section by section; arguments of a network only as a whole."""
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict) and name != "kwargs"
        merged[name] = _merged(base[name], value) if both else value
    return merged
