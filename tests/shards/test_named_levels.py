"""Several draws of one ratio in one set: each has a name, and every reader takes it by that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nml.errors import UserError
from nml.run_options import RunOptions
from nml.set_file import check_level
from shards import audit, info, relabel, verify, write
from shards.dataset import ShardDataset
from shards.shardset import ShardSet

NAMES = ["n20", "n20-pair-flip", "instance", "n20-seed1", "n20-seed2"]


@pytest.fixture
def drawn(copied: Path, tmp_path: Path) -> Path:
    """The bundled digits at 20 %: symmetric, and by name pair-flip, instance-dependent and two more seeds."""
    np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(1259, 4)))
    features = ["--model", "instance-dependent", "--model-file", str(tmp_path / "features.npy")]
    relabel.main([str(copied), "--noise", "0.2", "--model", "pair-flip", "--name", "n20-pair-flip"])
    relabel.main([str(copied), "--noise", "0.2", *features, "--name", "instance"])
    for seed in ("1", "2"):
        relabel.main([str(copied), "--noise", "0.2", "--seed", seed, "--name", f"n20-seed{seed}"])
    return copied


def test_five_draws_of_one_ratio_lie_in_one_set_and_are_read_by_name(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard_set = ShardSet.open(drawn)
    clean = shard_set.index.column("label").to_numpy()
    given = {name: shard_set.index.column(f"label_{name}").to_numpy() for name in NAMES}
    assert {name: int((labels != clean).sum()) for name, labels in given.items()} == dict.fromkeys(NAMES, 252)
    assert len({labels.tobytes() for labels in given.values()}) == 5
    assert set(((given["n20-pair-flip"] - clean) % 10).tolist()) == {0, 1}
    sample = ShardDataset(shard_set, "instance", lambda image: image.size)[7]
    assert sample.target == given["instance"][7]
    assert verify.main([str(drawn)]) == 0
    capsys.readouterr()
    info.main([str(drawn), "--level", "n20-pair-flip"])
    told = capsys.readouterr().out
    assert "n20-pair-flip: asked 0.2, realised 0.200159 (pair-flip, 252 flipped)" in told
    assert "instance" not in told
    assert audit.main([str(drawn), "--level", "n20-seed1"]) == 0
    assert "realised     0.2002, 252 labels" in capsys.readouterr().out


def test_a_ratio_of_several_levels_is_refused_with_their_names(drawn: Path) -> None:
    shard_set = ShardSet.open(drawn)
    named = r"5 of its levels have the ratio 0\.2; .*instance, n20, n20-pair-flip, n20-seed1, n20-seed2"
    for ask in (lambda: shard_set.level(0.2), lambda: check_level(drawn, "0.20")):
        with pytest.raises(UserError, match=named):
            ask()
    # By its name, and as a run that began before the others were there asks for it.
    assert shard_set.level("n20").seed == shard_set.level("0.2", strict=False).seed == 0
    assert shard_set.level("0.1").name == "n10"
    check_level(drawn, "n20-seed2")
    with pytest.raises(UserError, match=r"has no noise level worst.*--noise RATIO --name worst"):
        check_level(drawn, "worst")


def test_a_ratio_that_only_a_named_level_has_says_its_name(copied: Path) -> None:
    relabel.main([str(copied), "--noise", "0.4", "--name", "worst"])
    with pytest.raises(UserError, match=r"1 of its levels has the ratio 0\.4.*by its name, worst"):
        ShardSet.open(copied).level(0.4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0.2", "--name", "again"], r"again is there already by another name \(n20: .*: --noise n20"),
        (["0.3", "--seed", "1", "--name", "n20-x"], "--name n20-x: reads like another ratio than 0.3"),
        (["0.2", "--seed", "1", "--name", "0.2"], "--name 0.2: not a name of a level"),
        (["0.2", "--seed", "1", "--name", "../x"], "not a name of a level"),
        (["0.2", "--seed", "1", "--name", "own"], "not a name of a level"),
        (["0.2", "--seed", "1", "--name", "n00"], "reads like another ratio"),
        (["0.2", "--seed", "1", "--name", "Clean"], "a level that is not clean would be called so"),
        (["0.5", "0.6", "--name", "a"], "1 names for 2 levels"),
        (["0.5", "0.6", "--name", "a", "a"], "a is asked for twice"),
    ],
)
def test_a_name_that_cannot_be_is_refused(copied: Path, words: list[str], message: str) -> None:
    before = (copied / "set.json").read_bytes()
    with pytest.raises(UserError, match=message):
        relabel.main([str(copied), "--noise", *words])
    assert (copied / "set.json").read_bytes() == before


def test_the_name_that_a_refusal_offers_is_taken(copied: Path) -> None:
    words = [str(copied), "--noise", "0.2", "--model", "pair-flip"]
    with pytest.raises(UserError, match="n20 is there already") as refused:
        relabel.main(words)
    offered = str(refused.value).split("--name ")[1].split()[0]
    relabel.main([*words, "--name", offered])
    assert ShardSet.open(copied).level(offered).model == "pair-flip"


def test_a_set_is_written_with_named_levels(tmp_path: Path) -> None:
    words = ["--noise", "0", "0.2", "0.4", "--name", "slight", "strong", "--out", str(tmp_path / "set")]
    write.main(words)
    shard_set = ShardSet.open(tmp_path / "set")
    assert list(shard_set.levels) == ["n00", "slight", "strong"]
    assert not [finding for finding in verify.verify(tmp_path / "set") if finding.problem]
    assert "label_slight" in shard_set.index.names


def test_a_run_is_named_after_its_level() -> None:
    assert RunOptions(recipe_name="r", shards="s", noise="n20-pair-flip").run_name == "r-n20-pair-flip-seed0"


def test_the_bundled_digits_have_no_named_levels() -> None:
    with pytest.raises(UserError, match="the bundled digits have no levels by name"):
        RunOptions(noise="worst")
