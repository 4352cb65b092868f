"""Real image-text pairs through a sidecar to training: it goes on, and nothing is written beside its tars."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import index, relabel, sign, verify, write
from shards.shardset import ShardSet
from tests.served import PASSWORD, USER, served
from tests.signing_keys import make_keys

DATA = Path(os.environ.get("NML_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
OFTEN = ["--recipe.checkpoints.every_steps", "1", "--recipe.checkpoints.keep_last", "999"]


@pytest.fixture(params=["cc12m", "flickr8k"])
def tars(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Tars of real pairs, in a folder that nobody may write to: those of CC12M, or of a table of Flickr8k."""
    folder = tmp_path / "tars"
    source = DATA / {"cc12m": "cc12m-0000.tar", "flickr8k": "flickr8k_1000.parquet"}[request.param]
    if not source.is_file():
        pytest.skip(f"real data is not there: {source} (name another folder with NML_TEST_DATA)")
    if request.param == "cc12m":
        folder.mkdir()
        shutil.copy(source, folder / source.name)
    else:
        write.main(["--source", f"parquet:{source}", "--out", str(folder), "--workers", "1"])
        for name in ("set.json", "manifest.parquet", "index.arrow", "stats.json"):
            (folder / name).unlink()
    folder.chmod(0o555)
    return folder


def test_real_pairs_are_trained_on_through_a_sidecar_and_a_run_goes_on_bit_for_bit(
    tars: Path,
    make_recipe: Callable[..., Path],
    tiny_clip: dict[str, object],
    run_ranks: Callable[..., str],
    losses: Callable[[Path], list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NML_SHARD_CACHE", str(tmp_path / "cache"))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tars, *tars.iterdir())}
    sidecar = tmp_path / "sidecar"
    monkeypatch.setenv("NML_URL_SECRETS", "{}")
    with served(tars) as server:
        index.main([f"http://{USER}:{PASSWORD}@{server.place}/", "--out", str(sidecar)])
        relabel.main([str(sidecar), "--noise", "0.25", "--name", "quarter"])
        assert verify.main([str(sidecar), "--decode"]) == 0
        shard_set = ShardSet.open(sidecar)
        assert shard_set.level("quarter").moved == round(shard_set.num_samples / 4)
        make_keys(tmp_path)
        sign.main([str(sidecar), "--key", str(tmp_path / "mine.pem")])
        of_pairs = {"objective": "clip", "loss": {"name": "infonce"}, "model": tiny_clip}
        recipe = make_recipe("sidecar", **of_pairs, epochs=1, global_batch=shard_set.num_samples // 4)
        command = ["--recipe", str(recipe), *OFTEN, "--shards", str(sidecar), "--noise", "quarter"]
        command += ["--require-signature", str(tmp_path / "mine.pub")]
        run_ranks(1, [*command, "--run-dir", str(tmp_path / "whole")], cwd=tmp_path)
        cut = [*command, "--run-dir", str(tmp_path / "cut")]
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        for folder in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
            shutil.rmtree(folder)
        (tmp_path / "cut" / "DONE.json").unlink()
        assert "resuming at" in run_ranks(1, cut, cwd=tmp_path)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    meta = json.loads((tmp_path / "whole" / "export" / "meta.json").read_text())["noise"]
    assert (meta["level"], meta["set_fingerprint"]) == ("quarter", shard_set.fingerprint)
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in before}
    assert {*before} == {tars, *tars.iterdir()}
