"""The kits of tasks and encoders: what is sound passes, one fault fails the check that names it."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from nml.conformance import Outcome, outcomes
from nml.errors import UserError
from probes.encoders import conformance as encoders
from probes.encoders.checkpoint import open_export
from probes.encoders.encoder import EncoderInfo
from probes.hashing import hash_value
from probes.spec import check_options
from probes.tasks import conformance as tasks
from probes.tasks.task import Evaluation, Task, TaskRecord


def failed(found: Iterable[Outcome]) -> list[str]:
    return [outcome.name for outcome in found if outcome.status == "FAIL"]


class Squares:
    """Grey squares, a level of grey a sample."""

    def __init__(self, split: str, levels: range, *, shift: int = 0) -> None:
        self.keys = [f"{split}-{level}" for level in levels]
        self.labels = np.array([level % 2 for level in levels], np.int64)
        self.fingerprint = hash_value([list(levels), shift])
        self.grey = [level + shift for level in levels]

    def read(self, index: int) -> Any:
        return Image.new("RGB", (8, 8), (self.grey[index],) * 3)


class SquaresTask:
    """A sound task; ``change`` makes something else of it."""

    record = TaskRecord(
        name="squares",
        modality="image",
        num_classes=2,
        splits={"train": 20, "test": 10},
        source="drawn",
        revision="1",
        licence="none",
    )

    def __init__(self, change: Callable[[Task], Task] = lambda task: task) -> None:
        self.change = change

    def open(self, spec: Any, root: Path) -> Task:
        check_options(spec, (), where="--task")
        test = range(30, 40)
        return self.change(
            Task(
                name="squares",
                modality="image",
                classes=("even", "odd"),
                revision="1",
                train=Squares("train", range(20)),
                validation=Squares("validation", range(20, 30)),
                evaluations=(
                    Evaluation("squares", "id", Squares("test", test)),
                    Evaluation("squares-bright", "ood", Squares("test", test, shift=100)),
                ),
            )
        )


SQUARES = SquaresTask()


def trained_on(change: Callable[[Squares], None]) -> SquaresTask:
    def changed(task: Task) -> Task:
        assert isinstance(task.train, Squares)
        change(task.train)
        return task

    return SquaresTask(changed)


def unread(samples: Squares) -> None:
    samples.read = lambda index: Image.new("RGB", (8, 8), (random.SystemRandom().randrange(256), 1, 2))  # type: ignore[method-assign]


def as_text(samples: Squares) -> None:
    samples.read = lambda index: f"grey {samples.grey[index]}"  # type: ignore[method-assign]


def drawn_order(samples: Squares) -> None:
    random.SystemRandom().shuffle(samples.keys)


def bright(samples: Squares) -> None:
    samples.grey = list(range(30, 50))


def draws(task: Task) -> Task:
    np.random.random()
    return task


def one_fingerprint(task: Task) -> Task:
    for evaluation in task.evaluations:
        evaluation.samples.fingerprint = hash_value(list(evaluation.samples.keys))  # type: ignore[misc]
    return task


class Lenient(SquaresTask):
    def open(self, spec: Any, root: Path) -> Task:
        return super().open(spec._replace(options={}), root)


# The order of a set of texts is another one in each process; that of two may be the same by chance.
UNORDERED = SquaresTask(
    lambda task: dataclasses.replace(task, revision=" ".join({f"part {number}" for number in range(20)}))
)
TASK_FAULTS: dict[str, SquaresTask] = {
    "the_record_is_true": SquaresTask(lambda task: dataclasses.replace(task, metric="macro_f1")),
    "samples_are_aligned": trained_on(lambda train: setattr(train, "labels", train.labels.astype(np.int32))),
    "it_can_be_learnt_and_scored": trained_on(lambda train: train.labels.__iadd__(1)),
    "it_is_tested_in_domain_first": SquaresTask(
        lambda task: dataclasses.replace(task, evaluations=task.evaluations[::-1])
    ),
    "splits_are_disjoint": trained_on(bright),
    "opening_again_gives_the_same": trained_on(drawn_order),
    "another_process_opens_the_same": UNORDERED,
    "reading_gives_the_same": trained_on(unread),
    "samples_are_of_the_modality": trained_on(as_text),
    "fingerprints_tell_samples_apart": SquaresTask(one_fingerprint),
    "leaves_global_randomness_alone": SquaresTask(draws),
    "refuses_an_unknown_option": Lenient(),
}


def test_every_check_of_tasks_has_a_fault_that_it_finds() -> None:
    assert TASK_FAULTS.keys() == tasks.CHECKS.keys()


@pytest.mark.parametrize("name", TASK_FAULTS)
def test_a_fault_of_a_task_fails_the_check_that_names_it_and_no_other(name: str) -> None:
    assert failed(outcomes(tasks.CHECKS, tasks.Subject(TASK_FAULTS[name], "squares"))) == [name]


def test_a_sound_task_passes() -> None:
    assert {outcome.status for outcome in outcomes(tasks.CHECKS, tasks.Subject(SQUARES, "squares"))} == {"ok"}


class Pixels:
    """A sound encoder: the pixels times a weight."""

    batch_size = 4

    def __init__(self, spec: Any, settings: Any) -> None:
        self.weight = float(spec.options.get("weight", 1))
        check_options(spec, ("weight",), where="--encoder")
        self.info = self.describe(spec)

    def describe(self, spec: Any) -> EncoderInfo:
        return EncoderInfo(name="pixels", kind="pixels", modality="image", identity={"weight": self.weight})

    def prepare(self, content: Any) -> Any:
        if not isinstance(content, Image.Image):
            raise UserError("reads images")
        return np.asarray(content.convert("L"), np.float32).ravel() * self.weight

    def encode(self, prepared: Any) -> Any:
        return np.stack(prepared)


def encoder_with(**methods: Any) -> type[Pixels]:
    return type("Fault", (Pixels,), methods)


def encoding(change: Callable[[Any, Any], Any]) -> type[Pixels]:
    return encoder_with(encode=lambda self, prepared: change(self, Pixels.encode(self, prepared)))


def info(**fields: Any) -> type[Pixels]:
    return encoder_with(
        describe=lambda self, spec: dataclasses.replace(Pixels.describe(self, spec), **fields)
    )


def draws_weights(self: Any, spec: Any) -> EncoderInfo:
    described = Pixels.describe(self, spec)
    self.weight *= random.SystemRandom().random() + 1
    return described


def shares(self: Any, content: Any) -> Any:
    self.content = content
    time.sleep(0.002)
    return Pixels.prepare(self, self.content)


def paints(self: Any, content: Any) -> Any:
    prepared = Pixels.prepare(self, content)
    content.putpixel((0, 0), (7, 7, 7))
    prepared[0] = 0
    return prepared


def reads_anything(self: Any, content: Any) -> Any:
    return Pixels.prepare(self, content) if isinstance(content, Image.Image) else np.zeros(1024, np.float32)


def moves(self: Any, features: Any) -> Any:
    np.random.random()
    return features


class Forgiving(Pixels):
    def __init__(self, spec: Any, settings: Any) -> None:
        options = {name: value for name, value in spec.options.items() if name == "weight"}
        super().__init__(spec._replace(options=options), settings)


def by_place(self: Any, features: Any) -> Any:
    # A batch of one has its own place only.
    return features + (len(features) > 1) * np.arange(len(features), dtype=np.float32)[:, None]


# Of the encoder that never answers alike: two drawn numbers may be within rounding of each other.
ENCODED = itertools.count()
ENCODER_FAULTS: dict[str, type[Pixels]] = {
    "has_the_contract": encoder_with(batch_size=0),
    "features_are_finite_float32": encoding(lambda self, features: features.astype(np.float64)),
    "samples_are_told_apart": encoding(lambda self, features: np.full_like(features, self.weight)),
    "batches_do_not_matter": encoding(lambda self, features: features - features.mean(axis=0)),
    "the_order_does_not_matter": encoding(by_place),
    "encoding_again_gives_the_same": encoding(
        lambda self, features: features + np.float32(50 * next(ENCODED))
    ),
    "opening_again_gives_the_same": encoder_with(describe=draws_weights),
    "threads_prepare_alike": encoder_with(prepare=shares),
    "samples_stay_as_they_are": encoder_with(prepare=paints),
    "weights_are_part_of_the_identity": info(identity={"library": "pixels"}),
    "leaves_global_randomness_alone": encoding(moves),
    "refuses_another_modality": encoder_with(prepare=reads_anything),
    "refuses_an_unknown_option": Forgiving,
}
# What such a fault cannot but break as well.
ALSO = {
    "the_order_does_not_matter": {"batches_do_not_matter"},
    "encoding_again_gives_the_same": {
        "batches_do_not_matter",
        "the_order_does_not_matter",
        "opening_again_gives_the_same",
        "threads_prepare_alike",
    },
}


class Network(Pixels):
    """The same as a network of one layer, which can be looked into."""

    def __init__(self, spec: Any, settings: Any) -> None:
        import torch

        super().__init__(spec, settings)
        self.module = torch.nn.Sequential(torch.nn.Softsign())

    def run(self, prepared: Any) -> Any:
        import torch

        return self.module(torch.from_numpy(np.stack(prepared))), self.pool

    def encode(self, prepared: Any) -> Any:
        return self.run(prepared)[0].numpy()

    def pool(self, states: Any) -> Any:
        return states


class Towers(Network):
    """The same, with something to say of every name."""

    texts: ClassVar[dict[str, str]] = {"template": "{}"}

    def class_embeddings(self, names: Any) -> Any:
        rows = [np.random.default_rng(len(name) + ord(name[0])).normal(size=1024) for name in names]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


class Loud(Towers):
    def class_embeddings(self, names: Any) -> Any:
        return 100 * super().class_embeddings(names)


class Mixing(Network):
    def pool(self, states: Any) -> Any:
        return states - states.mean(0)


ENCODER_FAULTS["layers_come_of_one_pass"] = Mixing
ENCODER_FAULTS["class_embeddings_fit_the_features"] = Loud


def test_every_check_of_encoders_has_a_fault_that_it_finds() -> None:
    assert ENCODER_FAULTS.keys() == encoders.CHECKS.keys()


@pytest.mark.parametrize("name", ENCODER_FAULTS)
def test_a_fault_of_an_encoder_fails_the_check_that_names_it(name: str) -> None:
    subject = encoders.Subject(ENCODER_FAULTS[name], "pixels", "pixels:weight=2")
    found = failed(outcomes(encoders.CHECKS, subject))
    assert name in found
    assert set(found) <= {name} | ALSO.get(name, set())


def test_a_sound_encoder_passes() -> None:
    texts = {"class_embeddings_fit_the_features"}
    for sound, text, left in (
        (Pixels, "pixels", texts | {"layers_come_of_one_pass"}),
        (Towers, "pixels", set()),
        (Network, "pixels:layer=0+output", texts),
    ):
        found = outcomes(encoders.CHECKS, encoders.Subject(sound, text, "pixels:weight=2"))
        apply = {outcome.name for outcome in found if outcome.status == "ok"}
        assert encoders.CHECKS.keys() - apply == left


def test_an_exported_encoder_keeps_its_promises(tmp_path: Path, make_export: Callable[..., Path]) -> None:
    runs = [make_export(tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]
    subject = encoders.Subject(open_export, *(f"checkpoint:{run}" for run in runs))
    found = outcomes(encoders.CHECKS, subject)
    assert failed(found) == []
