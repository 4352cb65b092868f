"""Objectives beside classify and clip: what they compute, on which images, and how they are judged."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nml.conformance import CheckFailed
from nml.errors import UserError
from nml.objectives import _fault
from nml.recipe import Data, Loss, Model, Recipe
from pretrain.loading import StepSampler, collate, micro_batches
from pretrain.objective import Setting
from pretrain.objectives import small_runs
from pretrain.objectives.contrast import contrastive_loss
from pretrain.objectives.embedding import Embedding, views_of
from pretrain.objectives.moco import MoCo
from pretrain.objectives.small_runs import in_children
from pretrain.options import parse_options
from pretrain.same_run import check_same_run
from pretrain.validation import _scores_by_neighbours, validation_data
from pretrain.world import World
from shards.dataset import Sample
from shards.shardset import ShardSet
from tests.commands import run_command


def test_the_contrast_is_the_papers() -> None:
    """Khosla et al. 2020, Equation 2, term by term."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 1, 0, 2, 1, 0, 2])
    expected = 0.0
    for one in (2, 3, 4):
        scores = [math.exp(float(vectors[one] @ vectors[other])) for other in range(7)]
        alike = [other for other in range(7) if other != one and classes[other] == classes[one]]
        whole = sum(scores) - scores[one]
        expected -= sum(math.log(scores[other] / whole) for other in alike) / len(alike) / 3
    found = contrastive_loss(vectors[2:5], classes[2:5], vectors, classes, 2)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_views_lie_beside_each_other_and_leave_the_order_as_it_is(image_set: Path) -> None:
    shard_set = ShardSet.open(str(image_set))
    recipe = Recipe(epochs=2, global_batch=32, data=Data(streams=8))
    plain, paired = (StepSampler(shard_set, recipe, World(1, 2), seed=0, views=views) for views in (1, 2))
    assert len(plain) == len(paired)
    for step in (0, 1):
        refs = plain.batch(1, step)
        assert paired.batch(1, step) == [*refs, *(ref._replace(view=1) for ref in refs)]


def test_a_batch_of_views_is_cut_by_samples() -> None:
    samples = [
        Sample(torch.full((3, 2, 2), number + 10 * view), number, number)
        for view in range(2)
        for number in range(4)
    ]
    batch = collate(samples, views=2)
    assert batch.targets.tolist() == batch.indices.tolist() == [0, 1, 2, 3]
    parts = micro_batches(batch, 2)
    assert [views_of(part)[:, :, 0, 0, 0].tolist() for part in parts] == [
        [[0, 1], [10, 11]],
        [[2, 3], [12, 13]],
    ]
    assert [part.targets.tolist() for part in parts] == [[0, 1], [2, 3]]


def test_neighbours_are_all_images_but_the_image_itself(process_group: None) -> None:
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [1.0, 0.05], [0.0, 0.0]])
    # The last one only fills a batch up.
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    ((votes, theirs),) = _scores_by_neighbours(features, labels, 3)
    assert theirs.tolist() == labels.tolist()
    units = torch.nn.functional.normalize(features, dim=1)
    for one in range(5):
        expected = np.zeros(3)
        for other in set(range(5)) - {one}:
            expected[labels[other]] += math.exp(float(units[one] @ units[other]) / 0.07)
        np.testing.assert_allclose(votes[one].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"options": {"temprature": 0.1}}, "did you mean temperature"),
        ({"options": {"temperature": "warm"}}, "recipe.options.temperature is 'warm'"),
        ({"options": {"temperature": -0.1}}, "recipe.options.temperature -0.1: is not positive"),
        ({"options": {"dim": 1.5}}, "recipe.options.dim is 1.5"),
        ({"loss": Loss(name="bce")}, "simclr leaves no choice of a loss"),
        ({"loss": Loss(mixup=0.2)}, "recipe.loss.mixup 0.2: no effect with recipe.objective simclr"),
        ({"objective": "simclar"}, "did you mean simclr"),
    ],
)
def test_what_an_objective_does_not_take_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        Recipe(**{"objective": "simclr", **values})


@dataclass(frozen=True, kw_only=True)
class Bare:
    weight: float


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({}, "it has no backward; see"),
        ({"backward": len, "Options": Bare}, "its Options have no default of weight"),
        ({"backward": len, "Options": None}, "its Options are no dataclass"),
        ({"backward": len, "views": "2"}, "views is '2', no number of images"),
        ({"backward": len}, None),
    ],
)
def test_what_a_class_lacks_is_told_before_it_is_used(body: dict[str, Any], fault: str | None) -> None:
    found = _fault(type("Another", (Embedding,), body))
    assert found is None if fault is None else found.startswith(fault)


def test_neighbours_are_looked_for_among_images_of_any_classes(image_set: Path) -> None:
    training: Any = SimpleNamespace(kind="class", classes=("other",), path="there")
    found = validation_data(str(image_set), training, torch.as_tensor, same_classes=False)
    assert found is not None
    assert found.classes == ShardSet.open(image_set).classes
    with pytest.raises(UserError, match="its classes are not those of there"):
        validation_data(str(image_set), training, torch.as_tensor)


def test_a_queue_holds_whole_batches() -> None:
    recipe = Recipe(objective="moco", global_batch=96, model=Model(name="resnet18"))
    with pytest.raises(UserError, match=r"4096: not a multiple of recipe\.global_batch 96; for example 4032"):
        MoCo(recipe, Setting())


def test_the_example_is_the_text_of_the_document() -> None:
    root = Path(__file__).resolve().parents[2]
    document = (root / "docs" / "objectives.md").read_text()
    for file in ("turns_objective.py", "pyproject.toml"):
        assert f"\n{(root / 'examples' / 'third_party_objective' / file).read_text()}```" in document


def test_a_run_says_every_option_and_goes_on_with_them_alone(tmp_path: Path) -> None:
    words = ["--recipe", "simclr_cifar_resnet18", "--run-dir", str(tmp_path)]
    _, text = parse_options(words)
    stored = yaml.safe_load(text)
    assert stored["recipe"]["options"] == {
        "hidden": 512,
        "dim": 128,
        "projector_norm": True,
        "temperature": 0.5,
    }
    # A run of before there was such an option.
    del stored["recipe"]["options"]["projector_norm"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    check_same_run(tmp_path, text)
    _, other = parse_options([*words, "--recipe.options.projector_norm", "false"])
    with pytest.raises(UserError, match=r"recipe\.options\.projector_norm False: .* holds a run with True"):
        check_same_run(tmp_path, other)


WITHOUT_SCORES = ["dino", "mae", "moco", "simclr", "supcon"]


# classify and clip are held to more under the other engines by test_engine_parity and test_exact_resume.
@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("ddp", ["classify", "clip", *WITHOUT_SCORES]),
        ("fsdp", WITHOUT_SCORES),
        ("deepspeed", WITHOUT_SCORES),
    ],
)
def test_every_objective_keeps_its_promises(tmp_path: Path, engine: str, names: list[str]) -> None:
    done = run_command("pretrain.objectives", "check", *names, "--engine", engine, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_makes_its_threads_anew_in_a_process_of_the_kit_before_there_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two came to do so at once, one of them would abort: too seldom to be waited for here."""
    made: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", made.append)

    def work(rank: int, port: int) -> None:
        assert made == [1]
        assert threading.active_count() == 1

    in_children(tmp_path, 2, work)
    assert not made, "in each of them, not here"


def test_an_abort_in_the_kit_is_told_by_its_message(tmp_path: Path) -> None:
    def work(rank: int, port: int) -> None:
        os.write(2, b"terminate called\n  what():  no pool\nframe #0: abort\nframe #1: start\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(CheckFailed, match=r"ended with -9: what\(\):  no pool"):
        in_children(tmp_path, 1, work)


def test_a_process_of_the_kit_that_waits_for_one_that_failed_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_runs, "GRACE_SECONDS", 0.2)

    def work(rank: int, port: int) -> None:
        if rank == 0:
            raise UserError("no such weights")
        signal.pause()

    with pytest.raises(CheckFailed, match=r"^ended with 1: .*no such weights$"):
        in_children(tmp_path, 2, work)


def test_an_encoder_trained_without_labels_is_probed_like_any_other(
    tmp_path: Path,
    few_captions: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_resnet: dict[str, Any],
) -> None:
    """Of a set with captions, averaged beside its teacher, in micro-batches."""
    recipe = make_recipe(
        "moco-averaged",
        objective="moco",
        options={"queue": 32, "dim": 4, "hidden": 8},
        epochs=2,
        global_batch=16,
        ema=0.9,
        model=tiny_resnet,
        engine={"micro_batch": 8},
    )
    run = tmp_path / "run"
    run_ranks(
        1, ["--recipe", str(recipe), "--shards", str(few_captions), "--run-dir", str(run)], cwd=tmp_path
    )
    words = ("--plugin", "lp", "--hyper", "lp.epochs=1", "--checkpoint", str(run), "--task", "digits")
    done = run_command("probes.run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stdout
