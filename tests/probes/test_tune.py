from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import signal
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from nml.errors import UserError
from plugins.losses import consistency, covariance, dominant_share, products
from plugins.saved import load_head
from plugins.trainable import Batch
from probes.encoders import open_encoder
from probes.encoders.torch_images import TorchImageEncoder
from probes.features import FeatureStore, feature_pass
from probes.fitting import Failed
from probes.results import Row, read_rows
from probes.results.rowfiles import row_files
from probes.scoring import spectrum
from probes.splits import carve
from probes.tasks import Task, open_task
from probes.training_data import Point, TrainingData
from probes.tune import main
from probes.tuning import training
from probes.tuning.choosing import METHODS, choose_methods
from probes.tuning.low_rank import LoRA
from probes.tuning.methods import Full
from probes.tuning.network import Network, check_encoder
from probes.tuning.saved import save_tuned
from probes.tuning.training import Trainer, Tuned
from tests.commands import Command, run_command
from tests.probes.conftest import write_export

RESNET = "timm:test_resnet,weights=random"
VIT = "timm:test_vit,weights=random"
POINT = Point(Fraction(1), 0, Fraction(0))


def write_images(path: Path, numbers: Sequence[int], *, light: int = 255) -> Path:
    """Write small noisy images of two colours, a class each."""
    rows = []
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 120, (16, 16, 3), dtype=np.uint8)
        pixels[..., number % 2] += light - 120
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        rows.append({"image": {"bytes": buffer.getvalue()}, "label": number % 2})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train.parquet", range(24))
    write_images(folder / "test.parquet", range(24, 34))
    write_images(folder / "dark.parquet", range(34, 44), light=160)
    return folder


@pytest.fixture(scope="module")
def task(data: Path) -> Task:
    return open_task(task_of(data), data)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("features"))


def task_of(data: Path) -> str:
    return f"parquet:{data}/train.parquet,{data}/test.parquet,{data}/dark.parquet"


def trainer_of(text: str, task: Task, store: FeatureStore, *, views: int = 0) -> Trainer:
    encoder = check_encoder(open_encoder(text))
    for name, part in encoder.module.named_parameters():
        if name.endswith("weight") and not part.any():
            # A ResNet begins with branches that are nothing, and no gradient gets into them.
            part.data.fill_(1.0)
    passes = [
        feature_pass(store, encoder, task.train, dataset="train", view=view) for view in range(views + 1)
    ]
    data = TrainingData(
        keys=task.train.keys,
        features=np.concatenate([one.array for one in passes]),
        labels=task.train.labels,
        validation_keys=None,
        validation_features=None,
        validation_labels=None,
        carving=carve(task.train.keys, task.train.labels, published=False),
        num_classes=2,
    )
    return Trainer(Network(encoder), task, data, views=views, device="cpu")


def tune(trainer: Trainer, method: str, *shares: float, hyper: Sequence[str] = ()) -> list[Tuned]:
    quick = ["epochs=1", "batch_size=12", *(["probe_epochs=1"] if method in ("full", "lp-ft") else [])]
    (choice,) = choose_methods(method, "none", [*quick, *hyper], [], tries=1)
    found = trainer.fit(choice, POINT, shares or [1.0])
    assert not [one for one in found if isinstance(one, Failed)]
    return [one for one in found if isinstance(one, Tuned)]


def weights(encoder: TorchImageEncoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def parameters(encoder: TorchImageEncoder) -> set[str]:
    return {name for name, _ in encoder.module.named_parameters()}


# The names of what changes, by a regular expression; of LoRA what its matrices are merged into.
NORMS = r".*(bn\d|downsample\.2|conv1\.[14])\.(weight|bias)"
SAID = {
    (RESNET, "full"): ".*",
    (RESNET, "lp-ft"): ".*",
    (RESNET, "bitfit"): NORMS,
    (RESNET, "lora"): rf"(?!{NORMS}).*",
    (VIT, "bitfit"): r".*\.bias",
    (VIT, "lora"): r".*(qkv|proj|fc\d)\.weight",
}


@pytest.mark.parametrize(("text", "method"), SAID)
def test_a_method_trains_the_parameters_it_says_and_no_other(
    text: str, method: str, task: Task, store: FeatureStore
) -> None:
    trainer = trainer_of(text, task, store)
    encoder = trainer.network.encoder
    before = weights(encoder)
    (found,) = tune(trainer, method)
    # What was measured is not what the next fit begins with.
    assert changed(before, weights(encoder)) == set()
    expected = {name for name in parameters(encoder) if re.fullmatch(SAID[text, method], name)}
    assert expected
    with trainer.network.tuned(METHODS[method](), found.state):
        assert changed(before, weights(encoder)) == expected
    assert changed(before, weights(encoder)) == set()
    sizes = {name: value.numel() for name, value in encoder.module.named_parameters()}
    if method == "lora":
        # Rank 8 times what goes into a layer and what comes out of it.
        shapes = [dict(encoder.module.named_parameters())[name].shape for name in expected]
        sizes = {
            name: 8 * (math.prod(shape[1:]) + shape[0]) for name, shape in zip(expected, shapes, strict=True)
        }
    head = (encoder.module.num_features + 1) * 2
    assert found.trained_parameters == sum(sizes[name] for name in expected) + head


@pytest.mark.parametrize("text", [RESNET, VIT, "open_clip:tiny-towers,weights=random"])
def test_matrices_of_low_rank_give_merged_what_they_give_beside_the_weights(
    text: str, tiny_clip: str
) -> None:
    encoder = check_encoder(open_encoder(text))
    network, method = Network(encoder), LoRA(rank=2)
    side = 224 if tiny_clip in text else 160
    images = [torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    before = weights(encoder)
    plain = encoder.encode(images)
    with network.tuning(method, network.used(images)) as trained:
        for number, part in enumerate(trained.values()):
            draw = torch.randn(part.shape, generator=torch.Generator().manual_seed(number))
            part.data.add_(0.05 * draw)
        beside = encoder.encode(images)
        state = {name: part.detach().clone() for name, part in trained.items()}
    assert np.abs(beside - plain).max() > 1e-3
    with network.tuned(method, state):
        assert encoder.module.state_dict().keys() == before.keys()
        np.testing.assert_allclose(encoder.encode(images), beside, rtol=1e-3, atol=1e-5)
    assert np.array_equal(encoder.encode(images), plain)


def test_interpolated_weights_end_at_the_probe_and_at_the_tuned_network(
    task: Task, store: FeatureStore
) -> None:
    trainer = trainer_of(RESNET, task, store)
    none, half, whole = tune(trainer, "lp-ft", 0.0, 0.5, 1.0)
    assert all(torch.equal(value, trainer.network.weight(name)) for name, value in none.state.items())
    probe = trainer._probe(
        choose_methods("lp-ft", "none", ["probe_epochs=1"], [], tries=1)[0].build(0), POINT, [1]
    )
    assert probe is not None
    frozen = torch.from_numpy(trainer.data.features)
    assert torch.equal(none.fit.head.predict_logits(frozen), probe.head.predict_logits(frozen))
    (plain,) = tune(trainer, "lp-ft")
    assert all(torch.equal(value, plain.state[name]) for name, value in whole.state.items())
    # What is recorded of a share does not depend on what else was asked for.
    (alone,), (_, beside) = tune(trainer, "full"), tune(trainer, "full", 0.5, 1.0)
    assert beside.fit.selection == alone.fit.selection
    assert all(
        torch.allclose(value, (none.state[name] + whole.state[name]) / 2, atol=1e-6)
        for name, value in half.state.items()
    )


def test_a_probe_that_fails_fails_the_shares_that_need_it(
    task: Task, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(RESNET, task, store)
    monkeypatch.setattr(training, "fit_points", lambda *_: [Failed(POINT, "diverged")])
    for method, measured in (("full", 1), ("lp-ft", 0)):
        (choice,) = choose_methods(method, "none", ["epochs=1", "probe_epochs=1"], [], tries=1)
        found = trainer.fit(choice, POINT, [0.0, 0.5, 1.0])
        assert [isinstance(one, Tuned) for one in found] == [False, False, bool(measured)]
        assert found[0] == Failed(POINT, "its linear probe: diverged")


def test_numbers_are_trained_in_their_deviation_and_predicted_in_their_unit(
    task: Task, store: FeatureStore
) -> None:
    trainer = trainer_of(RESNET, task, store)
    numbers = 300.0 + 50.0 * np.arange(len(task.train.keys), dtype=np.float64)
    trainer.data = dataclasses.replace(trainer.data, labels=numbers, num_classes=1)
    trainer.task = dataclasses.replace(task, target="regression", metric="spearman")
    # So slow that nothing moves: what is left is the linear probe.
    probe, tuned = tune(trainer, "lp-ft", 0.0, 1.0, hyper=["lr=1e-12", "weight_decay=0"])
    frozen = torch.from_numpy(trainer.data.features)
    expected = probe.fit.head.predict_logits(frozen)
    assert expected.min() > 100
    torch.testing.assert_close(tuned.fit.head.predict_logits(frozen), expected)


def test_choosing_and_training_see_no_test_sample(task: Task, store: FeatureStore) -> None:
    hyper = ["lr=0.0001,0.01"]
    with_tests = tune(trainer_of(RESNET, task, store), "full", hyper=hyper)[0]
    without = tune(trainer_of(RESNET, dataclasses.replace(task, evaluations=()), store), "full", hyper=hyper)[
        0
    ]
    assert with_tests.fit.selection == without.fit.selection
    assert all(torch.equal(value, without.state[name]) for name, value in with_tests.state.items())


def words(data: Path, *more: str) -> list[str]:
    quick = ["--tries", "1", "--hyper", "epochs=1", "batch_size=12"]
    return ["--encoder", RESNET, "--task", task_of(data), *quick, *more]


def told(rows: list[Row]) -> list[dict[str, object]]:
    """Return rows without what differs from run to run."""
    measured = {"created", "fit_seconds", "predict_seconds", "feature_seconds", "peak_memory", "selection"}
    found = [
        {name: value for name, value in dataclasses.asdict(row).items() if name not in measured}
        for row in rows
    ]
    return sorted(found, key=lambda row: str(row["row_id"]))


def test_rows_of_a_killed_command_are_those_of_an_undisturbed_one(data: Path, tmp_path: Path) -> None:
    asked = words(data, "--method", "full", "--seeds", "2", "--fractions", "0.5")
    killed = Command("probes.tune", *asked, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not row_files(tmp_path / "results"):
        assert killed.running()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert killed.process.pid is not None
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.end()
    there = {row.row_id for row in read_rows(tmp_path / "results")}
    assert run_command("probes.tune", *asked, cwd=tmp_path).returncode == 0
    rows = read_rows(tmp_path / "results")
    assert len(there) < len(rows) == 2 * 2
    assert {(row.method, row.head, row.domain) for row in rows} == {
        ("full", "tune-full", "id"),
        ("full", "tune-full", "ood"),
    }
    other = ["--results", str(tmp_path / "undisturbed"), "--features", str(tmp_path / "features")]
    assert main([*asked, *other]) == 0
    assert told(rows) == told(read_rows(tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "ful"], "did you mean full"),
        (["--regulariser", "l2"], "--regulariser: unknown name 'l2'"),
        (["--wise-ft", "1.5"], "--wise-ft 1.5; possible: 0 to 1"),
        (["--method", "bitfit", "--wise-ft", "0.5"], "--wise-ft 0.5: bitfit"),
        (["--hyper", "weight=0.1"], "weight 0.1; possible: with --regulariser nmtune"),
        (["--hyper", "wise_ft=0.1"], "say it with --wise-ft"),
        (["--hyper", "rank=4"], "hyper-parameter: unknown name 'rank'"),
        (["--encoder", f"{RESNET},layer=layer1"], "no whole network of images"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    more: list[str], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [] if "--encoder" in more else ["--encoder", RESNET]
    with pytest.raises(UserError) as caught:
        main(["--task", task_of(data), *given, *more])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_a_saved_network_is_an_encoder_that_gives_what_was_measured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--method", "lora", "--save", "saved", *words(data)]
    assert main(asked) == 0
    row = next(row for row in read_rows(tmp_path / "results") if row.domain == "ood")
    (folder,) = Path("saved").iterdir()
    encoder = check_encoder(open_encoder(f"tuned:{folder}"))
    dark = open_task(task_of(data), data).evaluations[1].samples
    features = encoder.encode([encoder.prepare(dark.read(number)) for number in range(len(dark.keys))])
    logits = load_head(folder).head.predict_logits(torch.from_numpy(features))
    assert float((logits.argmax(dim=1).numpy() == dark.labels).mean()) == row.accuracy
    assert spectrum(features, "raw").sve == pytest.approx(row.head_sve, rel=1e-5)
    assert encoder.info.hash not in (row.encoder_hash, open_encoder(RESNET).info.hash)
    # One that is missing is saved by the same command; what is there is left alone.
    (folder / "head.json").unlink()
    assert main(asked) == 0
    assert (folder / "head.json").exists()
    write_export(tmp_path / "runs" / "other")
    with pytest.raises(UserError, match="is not the encoder that it was tuned from"):
        open_encoder(f"tuned:{folder},base=checkpoint:runs/other")
    # Tuned once more it is an encoder again, whose chain is never a circle.
    tuner = Network(check_encoder(encoder))
    name = next(name for name, _ in encoder.module.named_parameters() if name.endswith("bias"))
    save_tuned(Path("twice"), METHODS["bitfit"](), {name: tuner.weight(name) + 1}, encoder.info)
    twice = check_encoder(open_encoder("tuned:twice"))
    assert torch.equal(dict(twice.module.named_parameters())[name], tuner.weight(name) + 1)
    assert open_encoder(f"tuned:{folder},base={RESNET}").info.hash == encoder.info.hash
    record = json.loads((folder / "tuned.json").read_text())
    (folder / "tuned.json").write_text(json.dumps(record | {"base": "tuned:twice"}))
    with pytest.raises(UserError, match="tuned from itself"):
        open_encoder("tuned:twice")
    weights = folder / "tuned.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="not the weights that were saved"):
        open_encoder(f"tuned:{folder}")


class Watched(Full):
    """Full, which keeps what its terms are given."""

    seen: ClassVar[list[Batch]] = []

    def terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.seen.append(batch)
        return super().terms(batch)


def test_the_terms_of_nmtune_hold_tuned_features_to_those_of_the_encoder(
    task: Task, store: FeatureStore
) -> None:
    trainer = trainer_of(RESNET, task, store, views=1)
    (choice,) = choose_methods("full", "nmtune", ["epochs=1", "batch_size=12", "lr=0.01"], [], tries=1)
    assert choice.plugin.name == "tune-full-nmtune"
    watched = dataclasses.replace(choice, make=Watched)
    Watched.seen.clear()
    assert not isinstance(trainer.fit(watched, POINT, [1.0])[0], Failed)
    first, *_, last = Watched.seen
    # Before the first step Z is F, of augmented views as well, and later it is not.
    torch.testing.assert_close(first.transformed, first.features, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(last.transformed, last.features, rtol=1e-2)
    views = {int(row) // len(task.train.keys) for batch in Watched.seen for row in batch.samples}
    assert views == {0, 1}
    draw = torch.Generator().manual_seed(0)
    batch = Batch(
        features=torch.rand(8, 5, generator=draw),
        transformed=torch.rand(8, 5, generator=draw),
        logits=torch.rand(8, 2, generator=draw),
        labels=torch.tensor([0, 1] * 4),
    )
    terms = Full(regulariser="nmtune", weight=0.3).terms(batch)
    of = products(batch.transformed, batch.features, spectrum=True)
    assert terms.keys() == {"cross_entropy", "mse", "cov", "svd"}
    for name, value in (("mse", consistency(of)), ("cov", covariance(of)), ("svd", dominant_share(of))):
        assert torch.equal(terms[name], 0.3 * value)
