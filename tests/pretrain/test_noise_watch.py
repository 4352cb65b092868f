"""What is told of the noise while a network trains: by definition, on any engine, and over a restart."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from nml.recipe import Data
from pretrain.memorised import finding_flipped
from pretrain.noise_sums import OF_CLASSES, OF_PAIRS, class_sums, means, pair_sums
from pretrain.presentations import Presentations, write_saved

ENGINES = ["ddp", "fsdp", "deepspeed-2"]
EXACT = ("samples", "accuracy", "given", "true", "other")
# Steps of an epoch, and one in the middle of the second at which a checkpoint is.
STEPS, MIDDLE = 5, 8


def test_groups_are_told_by_their_definition() -> None:
    scores = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0], [0, 0, 2.0], [2.0, 0, 0]])
    given, truth = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 0])
    told = means(dict(zip(OF_CLASSES, class_sums(scores, given, truth).tolist(), strict=True)))
    loss = torch.nn.functional.cross_entropy(scores, given, reduction="none")
    assert told["kept"] == {"samples": 2, "accuracy": 0.5, "loss": pytest.approx(loss[:2].mean().item())}
    third = pytest.approx(1 / 3)
    assert told["flipped"] == {
        **{"samples": 3, "given": third, "true": third, "other": third},
        "loss": pytest.approx(loss[2:].mean().item()),
    }
    features = torch.tensor([[1.0, 0], [0, 2.0], [3.0, 4.0]])
    sums = pair_sums(features, torch.tensor([[5.0, 0], [0, -1.0], [1.0, 0]]), torch.tensor([1, 0, 0]))
    assert means(dict(zip(OF_PAIRS, sums.tolist(), strict=True))) == {
        "kept": {"samples": 1, "similarity": pytest.approx(1.0)},
        "flipped": {"samples": 2, "similarity": pytest.approx((-1 + 0.6) / 2, abs=1e-6)},
    }
    # A clean level has no flipped samples, and a set of one group no mean of the other.
    assert means(dict.fromkeys(OF_PAIRS, 0)) == {}


CLASSES, SAMPLES, EPOCHS = 4, 12, 5


def presented(rank: int, size: int, folder: Path) -> Any:
    """Present samples, some twice an epoch, in global batches of 8; save and load in the middle."""
    draws = np.random.default_rng(0)
    seen = Presentations(SAMPLES)
    history = []
    for epoch in range(1, EPOCHS + 1):
        for step in range(2):
            samples, given = draws.integers(0, SAMPLES, 8), draws.integers(0, CLASSES, 8)
            scores = draws.normal(size=(8, CLASSES)).astype(np.float32)
            history += [(epoch, *row) for row in zip(samples, given, scores, strict=True)]
            own = [torch.from_numpy(part[rank::size]) for part in (samples, given, scores)]
            seen.see((2 * epoch + step) * 8, *own)
            if (epoch, step) == (3, 0):
                write_saved(folder, seen.saved())
                seen = Presentations(SAMPLES)
                torch.distributed.barrier()
                seen.load(folder / "memorisation.safetensors")
        seen.end_of_epoch(epoch)
    return seen.state, history


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_remembered_of_a_sample_is_what_its_presentations_were(
    size: int, on_ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    state, history = on_ranks(size, presented, tmp_path / "store", tmp_path)[0]
    by_sample = defaultdict(list)
    for epoch, sample, given, scores in history:
        others = np.delete(scores, given).max()
        by_sample[sample].append((epoch, scores.argmax() == given, scores[given] - others, scores.argmax()))
    for sample, times in by_sample.items():
        right = [time[1] for time in times]
        assert state["times"][sample] == len(times)
        assert state["learnt"][sample] == next((time[0] for time in times if time[1]), 0)
        assert state["forgotten"][sample] == sum(a and not b for a, b in itertools.pairwise(right))
        assert state["margin"][sample] == pytest.approx(sum(time[2] for time in times), rel=1e-6)
        assert state["predicted"][sample] == times[-1][3]


def test_the_area_under_the_curve_is_the_chance_that_a_flipped_sample_is_lower() -> None:
    flipped = np.array([True, True, False, False, False])
    measure = np.array([0.0, 2.0, 1.0, 2.0, 3.0])
    assert finding_flipped(flipped, measure) == pytest.approx((3 + 1.5) / 6)
    assert np.isnan(finding_flipped(flipped[:2], measure[:2]))


def noise(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "noise"]


@pytest.fixture(scope="module")
def watched(
    work: Path,
    image_set: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_resnet: dict[str, Any],
) -> Path:
    """Every engine on two ranks, ddp again from the middle of an epoch on two and on one, in float64."""
    recipe = make_recipe(
        "watch",
        model=tiny_resnet | {"batch_norm": "sync"},
        global_batch=64,
        checkpoints={"every_epochs": 0, "every_steps": MIDDLE, "keep_last": 9},
    )
    folder = work / "watch"
    words = ["--recipe", str(recipe), "--shards", str(image_set), "--noise", "0.25", "--memorisation"]
    commands = []
    for engine in ENGINES:
        name, _, stage = engine.partition("-")
        more = ["--engine", name, *(["--recipe.engine.zero_stage", stage] if stage else [])]
        commands.append([*words, *more, "--run-dir", str(folder / engine)])
    for other in ("again", "alone"):
        commands.append(["rewind", str(folder / "ddp"), str(folder / other), str(MIDDLE)])
    run_ranks(2, *commands, [*words, "--run-dir", str(folder / "again")], cwd=work, double=True)
    run_ranks(1, [*words, "--run-dir", str(folder / "alone")], cwd=work, double=True)
    return folder


@pytest.mark.parametrize("run", [*ENGINES, "again", "alone"])
def test_engines_restarts_and_world_sizes_tell_the_same(run: str, watched: Path) -> None:
    expected, found = noise(watched / "ddp"), noise(watched / run)
    assert [(line["step"], line["epoch"], line["source"]) for line in found] == [
        (STEPS, 1, "training"),
        (2 * STEPS, 2, "training"),
    ]
    for one, other in zip(found, expected, strict=True):
        for group in ("kept", "flipped"):
            assert one[group].keys() == other[group].keys()
            for name, value in other[group].items():
                assert one[group][name] == (value if name in EXACT else pytest.approx(value, abs=1e-6))
    both = [pq.read_table(watched / name / "memorisation.parquet") for name in (run, "ddp")]
    if run == "again":
        assert both[0].equals(both[1])
    assert both[0].drop(["margin"]).equals(both[1].drop(["margin"]))
    margins = [table["margin"].to_numpy() for table in both]
    np.testing.assert_allclose(*margins, atol=1e-6)


def test_the_file_says_of_every_sample_what_the_set_knows(watched: Path, image_set: Path) -> None:
    rows = pq.read_table(watched / "ddp" / "memorisation.parquet").to_pylist()
    manifest = {row["key"]: row for row in pq.read_table(image_set / "manifest.parquet").to_pylist()}
    assert [row["key"] for row in rows] == list(manifest)
    assert sum(row["flipped"] for row in rows) == 80
    for row in rows:
        known = manifest[row["key"]]
        assert (row["true"], row["given"]) == (known["label"], known["label_n25"])
        assert row["flipped"] == (row["given"] != row["true"])
        assert row["times"] == 2
        assert (row["learnt"] is None) <= (row["predicted"] != row["given"])
    # Of the epochs' own sums: everybody was presented once in each.
    for line in noise(watched / "ddp"):
        assert (line["kept"]["samples"], line["flipped"]["samples"]) == (240, 80)
    last = noise(watched / "ddp")[-1]["flipped"]
    assert last["given"] == np.mean([row["predicted"] == row["given"] for row in rows if row["flipped"]])


def test_captions_that_were_swapped_are_told_from_their_own(
    work: Path,
    swapped_captions: Path,
    make_recipe: Callable[..., Path],
    run_ranks: Callable[..., str],
    tiny_clip: dict[str, Any],
) -> None:
    recipe = make_recipe(
        "watch-clip", objective="clip", model=tiny_clip, loss={"name": "infonce"}, global_batch=32, epochs=1
    )
    for engine in ("ddp", "fsdp"):
        words = [
            "--recipe",
            str(recipe),
            "--shards",
            str(swapped_captions),
            "--noise",
            "0.25",
            "--engine",
            engine,
        ]
        run_ranks(2, [*words, "--memorisation", "--run-dir", str(work / f"clip-{engine}")], cwd=work)
    for engine in ("ddp", "fsdp"):
        training, evaluation = noise(work / f"clip-{engine}")
        assert (training["source"], evaluation["source"]) == ("training", "evaluation")
        assert (training["kept"]["samples"], training["flipped"]["samples"]) == (48, 16)
        assert set(evaluation["kept"]) == {"samples", "similarity", "true_first"}
        assert set(evaluation["flipped"]) - set(evaluation["kept"]) == {"true_similarity", "given_nearer"}
        # What the pass over a fixed sample tells is that of the network that the run exports.
        assert evaluation["kept"]["similarity"] == pytest.approx(
            similarity(work, swapped_captions, engine), abs=1e-4
        )
    rows = pq.read_table(work / "clip-ddp" / "memorisation.parquet").to_pylist()
    assert sum(row["flipped"] for row in rows) == 16
    assert all(row["given"] is None and 0 <= row["predicted"] < 64 for row in rows)


def similarity(work: Path, shards: Path, engine: str) -> float:
    """Return the mean cosine of kept pairs of the fixed sample, from the export and by open_clip alone."""
    import open_clip

    from pretrain.fixed_sample import FixedSample
    from pretrain.transforms import testing_transform
    from pretrain.world import World, join, leave
    from shards.dataset import ShardDataset
    from shards.shardset import ShardSet

    run = work / f"clip-{engine}"
    meta = json.loads((run / "export" / "meta.json").read_text())
    model = open_clip.create_model(meta["architecture"], pretrained_text=False, **meta["model_kwargs"])
    model.load_state_dict(load_file(run / "export" / "model.safetensors"))
    transform = testing_transform(Data(**meta["recipe"]["resolved"]["data"]))
    shard_set = ShardSet.open(shards)
    join(World())
    fixed = FixedSample(shard_set, "n25", transform, World(), workers=0)
    leave()
    numbers = fixed.numbers[~fixed.flipped]
    samples = [ShardDataset(shard_set, "n25", transform)[int(number)] for number in numbers]
    tokens = open_clip.get_tokenizer("RN50", context_length=12)([sample.target for sample in samples])
    with torch.no_grad():
        model.eval()
        images = model.encode_image(torch.stack([sample.image for sample in samples]), normalize=True)
        return float((images * model.encode_text(tokens, normalize=True)).sum(1).mean())
