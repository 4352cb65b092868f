"""Features computed by a named encoder: the right ones, recorded, and refused where they cannot be had."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from nml import digits
from nml.errors import UserError
from nml.files import sha256_file
from shards import encode, encoding, finish, pack, plan, relabel, write
from shards.features import Encoder, parse_encoder
from shards.shardset import ShardSet
from shards.verify import verify
from tests.commands import Command

MODEL = "test_resnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # With its classifier, as timm's own files and our exports come.
        save_file(timm.create_model(MODEL, pretrained=False).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "train"
    data = digits.load("train")
    for number, (image, label) in enumerate(zip(data.images[:120], data.labels, strict=False)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{number:04d}.png")
    return root


def test_features_are_those_of_the_model_without_its_classifier(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    encoder = Encoder(parse_encoder(f"timm:{MODEL},weights={weights}"))
    files = sorted(images.rglob("*.png"))[:70]
    encoder.write_features(tmp_path / "f.npy", lambda number: files[number].read_bytes(), len(files))
    found = np.load(tmp_path / "f.npy")
    model = timm.create_model(MODEL, pretrained=False, num_classes=0, checkpoint_path="").eval()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights), strict=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        for row in (0, 63, 64, 69):
            image = Image.open(io.BytesIO(files[row].read_bytes())).convert("RGB")
            expected = model(transform(image)[None]).numpy()[0]
            np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_the_command_encodes_and_records_what_it_read(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards import planning

    read = []
    describe = planning.describe_input

    def remembering(file: str, encoder: Encoder) -> object:
        read.append(sha256_file(Path(file)))
        return describe(file, encoder)

    monkeypatch.setattr(planning, "describe_input", remembering)
    encoder = ["--model", "instance-dependent", "--encoder", f"timm:{MODEL},weights={weights}"]
    out = tmp_path / "set"
    write.main(["--source", f"imagefolder:{images}", "--noise", "0.1", "0.2", *encoder, "--out", str(out)])
    relabel.main([str(out), "--noise", "0.3", *encoder])
    levels = ShardSet.open(out).info.levels
    assert [level.flipped for level in levels.values()] == [12, 24, 36]
    written = levels["n10"].model_input
    assert written is not None
    assert written["file_sha256"] == read[0]
    assert written["encoder"] == encoder[-1]
    assert written["preprocessing"]["input_size"] == [3, 160, 160]
    added = levels["n30"].model_input
    assert added is not None
    assert added["weights_sha256"] == written["weights_sha256"]
    assert [finding for finding in verify(out) if finding.problem] == []


def test_parts_that_are_killed_give_the_plan_and_the_set_of_one_process(
    images: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Runs of a batch each, so that there are some to share out.
    monkeypatch.setattr("shards.encoding._LEAST_BATCHES", 1)
    monkeypatch.setattr("shards.encoding.BATCH", 32)
    encoder = ["--model", "instance-dependent", "--encoder", f"timm:{MODEL},weights={weights}"]
    asked = ["--source", f"imagefolder:{images}", "--noise", "0.1", "0.2", *encoder]
    write.main([*asked, "--out", str(tmp_path / "whole"), "--workers", "1"])
    out = tmp_path / "set"
    with pytest.raises(UserError, match="nothing is to be encoded there"):
        encode.main([str(out)])
    plan.main([*asked, "--out", str(out), "--encode-by-parts"])
    assert "4 runs of samples to encode" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"other options is there .*seed"):
        plan.main([*asked, "--out", str(out), "--seed", "1"])
    work = out / ".writing"
    begun = Command("shards.encode", str(out), "--part", "1/2", cwd=tmp_path)
    while begun.running() and not (work / encoding.name_of(0)).exists():
        time.sleep(0.005)
    os.kill(begun.process.pid, signal.SIGKILL)
    begun.end()
    encode.main([str(out), "--part", "1/2"])
    encode.main([str(out), "--part", "2/2"])
    encode.main([str(out), "--part", "2/2"])
    assert "part 2/2: 0 samples encoded now" in capsys.readouterr().out
    # One that is damaged, and one that is lost: the plan makes them anew.
    (work / encoding.name_of(2)).unlink()
    damaged = (work / encoding.name_of(3)).read_bytes()
    (work / encoding.name_of(3)).write_bytes(damaged[:200] + bytes([damaged[200] ^ 1]) + damaged[201:])
    plan.main([*asked, "--out", str(out)])
    assert not [path for path in work.iterdir() if encoding.is_run(path.name) or path.name == encoding.MARK]
    encode.main([str(out)])
    assert "is planned, nothing to do" in capsys.readouterr().out
    pack.main([str(out), "--workers", "1"])
    finish.main([str(out)])
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_file_that_a_model_read_is_recorded(
    images: Path, tmp_path: Path, written: Callable[..., ShardSet], requested: Callable
) -> None:
    matrix = tmp_path / "matrix.csv"
    np.savetxt(matrix, np.full((10, 10), 0.1), delimiter=",")
    request = requested(f"imagefolder:{images}", "0.2", model="transition-matrix", model_file=str(matrix))
    level = written(tmp_path / "set", request).info.levels["n20"]
    assert level.model_input == {"file_sha256": sha256_file(matrix)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "timm:resnet1888", "--model", "instance-dependent"], "possible: resnet18 or"),
        (["--encoder", "timm:resnet18"], "reads no features; choose --model instance-dependent"),
        (["--encoder", "clip:x", "--model", "instance-dependent"], "not an encoder of this command"),
        (["--encoder", "timm:resnet18,weights=/no", "--model", "instance-dependent"], "there is no file /no"),
        (["--encoder", "timm:resnet18,weights={}", "--model", "instance-dependent"], "another architecture"),
        (
            ["--encoder", "timm:x", "--model", "instance-dependent", "--model-file", "f.npy"],
            "name one of them",
        ),
        (["--model", "instance-dependent"], "--encoder timm:resnet18, or name them with --model-file"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, weights: Path, arguments: list[str], message: str
) -> None:
    named = [argument.format(weights) for argument in arguments]
    with pytest.raises(UserError, match=message):
        write.main(["--source", "digits", "--noise", "0.1", *named, "--out", str(tmp_path / "set")])
    assert list(tmp_path.iterdir()) == []
