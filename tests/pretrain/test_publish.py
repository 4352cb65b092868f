"""``python -m pretrain.publish``: what is published loads elsewhere and says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from nml.errors import UserError
from pretrain.cards import _code
from pretrain.publish import _write_timm_config, main
from shards.shardset import ShardSet

PROBES = """encoder,task,dataset,domain,head,metric_name,metric,fraction,downstream_noise
noisy,pets,pets,id,lp,accuracy,0.5,1.0,0.0
noisy,pets,pets,id,lp,accuracy,0.7,1.0,0.0
noisy,pets,pets,id,lp,accuracy,0.1,0.1,0.0
noisy,pets,pets,id,lp,accuracy,0.1,1.0,0.2
noisy,pets,pets-sketch,ood,lp,accuracy,0.25,1.0,0.0
"""


@pytest.fixture(scope="module")
def runs(
    work: Path,
    image_set: Path,
    few_captions: Path,
    make_recipe: Callable[..., Path],
    tiny_clip: dict[str, object],
    run_ranks: Callable[..., str],
) -> dict[str, Path]:
    """A run on clean labels, one on noisy ones with two checkpoints, and one on captions."""
    kept = {"every_epochs": 1, "keep_last": 1, "keep_every": 2}
    images = make_recipe("published", checkpoints=kept, global_batch=160)
    clip = {"objective": "clip", "model": tiny_clip, "loss": {"name": "infonce"}}
    captions = make_recipe("published-clip", epochs=1, global_batch=8, **clip)
    # A set of its own, which a test takes away.
    shutil.copytree(few_captions, work / "captions-of-a-run")
    where = {name: work / "published" / name for name in ("clean", "noisy", "captions")}
    words = {
        "clean": ["--recipe", str(images), "--shards", str(image_set), "--noise", "0"],
        "noisy": ["--recipe", str(images), "--shards", str(image_set), "--noise", "0.25"],
        "captions": ["--recipe", str(captions), "--shards", str(work / "captions-of-a-run"), "--noise", "0"],
    }
    run_ranks(1, *[[*words[name], "--run-dir", str(run)] for name, run in where.items()], cwd=work)
    return where


@pytest.fixture(scope="module")
def hub(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, published with accuracies and a licence."""
    folder = tmp_path_factory.mktemp("publish")
    (folder / "probes.csv").write_text(PROBES)
    main(
        [
            *map(str, runs.values()),
            *(
                "--out",
                str(folder / "hub"),
                "--license",
                "apache-2.0",
                "--results",
                str(folder / "probes.csv"),
            ),
        ]
    )
    return folder / "hub"


def front_of(card: Path) -> dict[str, Any]:
    _, front, _ = card.read_text().split("---\n", 2)
    return yaml.safe_load(front)


@pytest.mark.parametrize("place", ["noisy", "noisy/steps/step-00000002"])
def test_timm_loads_a_published_classifier_by_itself(hub: Path, runs: dict[str, Path], place: str) -> None:
    import timm

    model = timm.create_model(f"local-dir:{hub / place}", pretrained=True).eval()
    stored = load_file(hub / place / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    told = timm.data.resolve_model_data_config(model, use_test_size=True)
    assert (told["input_size"], told["crop_pct"], told["mean"]) == ((3, 32, 32), 1.0, [0.5, 0.5, 0.5])
    assert not model.pretrained_cfg.get("tag")
    assert model.pretrained_cfg["label_names"] == ["class0", "class1", "class2", "class3"]
    assert model.num_classes == 4
    newest = load_file(runs["noisy"] / "export" / "model.safetensors")
    same = all(torch.equal(tensor, stored[name]) for name, tensor in newest.items())
    assert same == (place == "noisy")


def test_open_clip_loads_a_published_clip_by_itself(hub: Path) -> None:
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{hub / 'captions'}")
    stored = load_file(hub / "captions" / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert preprocess.transforms[0].size == 32


def test_the_noise_of_a_set_is_published_sample_by_sample_and_described(hub: Path, image_set: Path) -> None:
    shard_set, folder = ShardSet.open(image_set), hub / "noise-image-set"
    noisy = pq.read_table(folder / "n25.parquet").to_pydict()
    assert sum(noisy["altered"]) == shard_set.level("0.25").flipped > 0
    assert noisy["given_label"] == shard_set.index.column(shard_set.level("n25").column).to_pylist()
    assert noisy["true_label"] == shard_set.index.column(shard_set.level("n00").column).to_pylist()
    assert not any(pq.read_table(folder / "n00.parquet").to_pydict()["altered"])
    described = json.loads((folder / "croissant.json").read_text())
    assert {one["name"] for one in described["recordSet"]} == {"n00", "n25"}
    for record in described["recordSet"]:
        columns = pq.read_schema(folder / f"{record['name']}.parquet").names
        assert record["key"] == {"@id": f"{record['name']}/key"}
        assert [field["source"]["extract"]["column"] for field in record["field"]] == columns
    assert front_of(folder / "README.md")["configs"] == [
        {"config_name": "n00", "data_files": "n00.parquet"},
        {"config_name": "n25", "data_files": "n25.parquet"},
    ]
    assert not [file for file in hub.rglob("*") if file.suffix in (".tar", ".jpg")]


def test_captions_are_published_as_hashes_only(hub: Path) -> None:
    table = pq.read_table(hub / "noise-captions-of-a-run" / "n00.parquet")
    assert table.schema.names == ["key", "image_sha256", "given_caption_sha256", "altered"]
    assert len(set(table["given_caption_sha256"].to_pylist())) == 16


def test_cards_say_what_a_run_is_and_what_it_scored(hub: Path, image_set: Path) -> None:
    card, text = front_of(hub / "noisy" / "README.md"), (hub / "noisy" / "README.md").read_text()
    assert (card["license"], card["library_name"]) == ("apache-2.0", "timm")
    values = [one["metrics"][0]["value"] for one in card["model-index"][0]["results"]]
    # The mean of the two seeds on all data with clean labels, and the shifted test set.
    assert values == [0.6, 0.25]
    shard_set = ShardSet.open(image_set)
    assert shard_set.manifest_sha256 in text
    # Of several captions an image, more may be altered than there are samples.
    assert f"\n{shard_set.level('0.25').flipped} of their labels or captions (25.00 %)" in text
    assert "](../noise-image-set)" in text
    meta = json.loads((hub / "noisy" / "meta.json").read_text())
    recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("\n```")[0])
    assert recipe == meta["recipe"]["resolved"]
    ladder = (hub / "README.md").read_text()
    scored = f"symmetric | 0 | {meta['step']} | 60.0 | 25.0 |"
    assert f"| [noisy](noisy) | resnet18 | 25.00 % | {scored}" in ladder
    assert "| [clean](clean) | resnet18 | 0.00 % |" in ladder


def test_no_file_tells_where_things_lay(hub: Path, work: Path) -> None:
    assert not [file for file in hub.rglob("*") if file.is_file() and str(work).encode() in file.read_bytes()]


def test_a_run_that_is_called_as_its_noise_would_be_keeps_a_folder_of_its_own(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "noise-image-set"
    shutil.copytree(runs["clean"], run)
    main([str(run), "--out", str(tmp_path / "hub")])
    (noise,) = (one for one in (tmp_path / "hub").iterdir() if one.name != run.name)
    assert (noise / "n00.parquet").exists()
    assert not list((tmp_path / "hub" / run.name).glob("*.parquet"))
    assert f"](../{noise.name})" in (tmp_path / "hub" / run.name / "README.md").read_text()


def test_a_run_that_had_not_ended_or_was_not_measured_is_published_as_such(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "stopped"
    shutil.copytree(runs["clean"], run)
    (run / "DONE.json").unlink()
    badly_named = tmp_path / "no name: ü"
    shutil.copytree(runs["clean"], badly_named)
    (tmp_path / "probes.csv").write_text(PROBES)
    named = [str(run), str(badly_named)]
    main([*named, "--out", str(tmp_path / "hub"), "--results", str(tmp_path / "probes.csv")])
    said = capsys.readouterr().err
    assert said.count("no name that the Hub takes") == 1
    assert "stopped had not ended: published as it is at step" in said
    assert "without accuracies of stopped: " in said
    assert "steps, and it had not ended." in (tmp_path / "hub" / "stopped" / "README.md").read_text()


def test_features_are_published_without_names_of_classes(runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    meta = json.loads((runs["clean"] / "export" / "meta.json").read_text())
    _write_timm_config(meta, file)
    assert json.loads(file.read_text())["label_names"] == meta["classes"]
    # As an objective without labels exports its network: classes of the set, and no classifier.
    _write_timm_config({**meta, "model_kwargs": {**meta["model_kwargs"], "num_classes": 0}}, file)
    assert "label_names" not in json.loads(file.read_text())


@pytest.mark.parametrize(
    ("name", "shown"), [("tench, <b>", "`tench, <b>`"), ("a`b``", "``` a`b`` ```"), ("a\n# b", "`a # b`")]
)
def test_names_of_classes_are_shown_letter_by_letter(name: str, shown: str) -> None:
    assert _code(name) == shown


def test_a_set_that_is_gone_is_named_and_the_weights_are_published(
    runs: dict[str, Path], hub: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "captions-of-a-run").rename(work / "moved")
    main([str(runs["captions"]), "--out", str(tmp_path / "hub")])
    card = (tmp_path / "hub" / "captions" / "README.md").read_text()
    assert "are not published with it: " in card
    assert "captions-of-a-run" in card
    # Whoever publishes is told where it was looked for; whoever reads the card is not.
    assert f"{work / 'captions-of-a-run'}: " in capsys.readouterr().err
    test_no_file_tells_where_things_lay(tmp_path / "hub", work)
    assert "The publisher named no licence." in card
    assert sorted(file.name for file in (tmp_path / "hub").iterdir()) == ["captions"]


def test_what_cannot_be_published_is_one_line_and_leaves_nothing(
    runs: dict[str, Path], hub: Path, tmp_path: Path
) -> None:
    clean, out = str(runs["clean"]), str(tmp_path / "out")
    with pytest.raises(UserError, match="exists"):
        main([clean, "--out", str(hub)])
    with pytest.raises(UserError, match="no name that the Hub gives a licence"):
        main([clean, "--out", out, "--license", "Apache 2"])
    with pytest.raises(UserError, match="two runs of this name"):
        main([clean, clean, "--out", out])
    with pytest.raises(UserError, match="no complete checkpoint"):
        main([clean, str(tmp_path), "--out", out])
    (tmp_path / "bad.csv").write_text("encoder,task\n")
    with pytest.raises(UserError, match="has no column dataset"):
        main([clean, "--out", out, "--results", str(tmp_path / "bad.csv")])
    assert [file.name for file in tmp_path.iterdir()] == ["bad.csv"]
