"""Small real things to probe: an exported encoder, and arrays as data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nml.files import sha256_file
from tests.probes.chromium import CHROMIUM, Browser

ARCHITECTURE = "test_resnet"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def write_export(run: Path, *, seed: int = 0, realised: float = 0.0, **changes: object) -> Path:
    """Write a run folder as pre-training leaves it: an export of a tiny timm model and DONE.json."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model_kwargs = {"num_classes": 10, "in_chans": 3}
    model = timm.create_model(ARCHITECTURE, pretrained=False, **model_kwargs)
    export = run / "export"
    export.mkdir(parents=True)
    save_file(model.state_dict(), export / "model.safetensors")
    level = f"n{round(100 * realised):02d}"
    meta = {
        "format": "nml-export/1",
        "objective": "classify",
        "library": "timm",
        "architecture": ARCHITECTURE,
        "model_kwargs": model_kwargs,
        "preprocessing": {
            "input_size": [3, 32, 32],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
        "step": 40,
        "seed": seed,
        "noise": {
            "level": level,
            "asked": str(realised),
            "realised": realised,
            "model": "symmetric",
            "manifest_sha256": "m" * 64,
            "set_fingerprint": "f" * 64,
            "set_path": str(run.parent / "set"),
        },
        "weights_sha256": sha256_file(export / "model.safetensors"),
    }
    (export / "meta.json").write_text(json.dumps(meta | changes))
    (run / "DONE.json").write_text("{}")
    return run


@pytest.fixture
def make_export() -> Callable[..., Path]:
    return write_export


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which open_clip knows two small towers."""
    import open_clip

    towers = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-towers", towers)
    return "tiny-towers"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets; the test is skipped where there is none."""
    folder = Path(os.environ.get("NML_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10_test.parquet").exists():
        pytest.skip(f"no real data in {folder}; set NML_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium; the test is skipped where it is not installed."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()
