"""Step time and memory of the engines, each a run of its own on the same bundled images.

    python benchmarks/engines.py [--engines ddp fsdp deepspeed-1] [--model resnet18] [--size 64]
        [--batch 64] [--ranks 2] [--workers 1] [--dtype fp32] [--channels-last] [--compile]
    python benchmarks/engines.py --objective clip --model RN50-quickgelu --size 224 --shards CAPTION_SET

Every engine trains by ``pretrain.run`` on ``--ranks`` processes of this machine (one a GPU where there
are some) and is judged by the lines of its metrics.jsonl: medians over the steps after the first five.
MFU is that of the step without the wait for data (:mod:`pretrain.utilisation`).
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import yaml

from nml import cli, digits
from nml.recipe import Data, Loss, Model, Recipe
from pretrain.engines.native import device_of_rank
from pretrain.utilisation import flops_of_sample, peak_of
from shards.shardset import ShardSet

ENGINES = ("ddp", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3")
WARM = 5
# Steps that are looked at, at least.
MEASURED = 20


class Row(NamedTuple):
    """Medians of an engine: milliseconds, samples a second, and the largest memory of rank 0 in MB."""

    engine: str
    step_ms: float
    wait_ms: float
    samples_per_s: float
    memory_mb: int


def main() -> None:
    parser = cli.Parser("python benchmarks/engines.py", "Step time and memory of the engines.")
    parser.add_argument("--engines", type=str, default=list(ENGINES), nargs="+", choices=ENGINES)
    parser.add_argument("--model", type=str, default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="samples of a step over all ranks")
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count() or 2)
    parser.add_argument("--workers", type=int, default=1, help="loader processes of each rank")
    parser.add_argument("--objective", type=Literal["classify", "clip"], default="classify")
    parser.add_argument("--dtype", type=str, default="fp32")
    parser.add_argument("--optimizer", type=str, default="adamw")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--shards", type=str, default=None, help="a shard set instead of the bundled digits")
    options = parser.parse_args()
    recipe = {
        "objective": options.objective,
        "loss": {"name": "infonce" if options.objective == "clip" else "cross-entropy"},
        "epochs": epochs(options.shards, options.batch),
        "global_batch": options.batch,
        "model": {"name": options.model},
        "data": {"size": options.size, "test_size": options.size, "crop": "none", "workers": options.workers},
        "optimizer": {"name": options.optimizer, "lr": 1e-3, "weight_decay": 0.05, "clip": 1.0},
        "engine": {
            "dtype": options.dtype,
            "channels_last": options.channels_last,
            "compile": options.compile,
        },
        "validate_every": 999,
        "checkpoints": {"every_epochs": 0},
    }
    trained = Recipe(
        objective=options.objective,
        model=Model(name=options.model),
        data=Data(size=options.size, test_size=options.size),
        loss=Loss(name=recipe["loss"]["name"]),
    )
    flops = flops_of_sample(trained, 0 if options.objective == "clip" else len(digits.CLASSES))
    peak = peak_of(device_of_rank(), options.dtype)
    print(
        f"{options.model} at {options.size} px, batch {options.batch}, {options.ranks} ranks, {options.dtype}"
    )
    print(f"on {device_name()}; {flops / 1e9:.2f} GFLOP a sample")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        for engine in options.engines:
            row = measure(engine, path, Path(folder) / engine, options.ranks, options.shards)
            achieved = flops * options.batch / row.step_ms / 1e9
            mfu = f"MFU {1e12 * achieved / peak / options.ranks:.1%}" if peak else "peak unknown, no MFU"
            print(
                f"{row.engine:12} {row.step_ms:8.1f} ms a step {row.wait_ms:6.1f} ms wait "
                f"{row.samples_per_s:8.1f} samples/s {row.memory_mb:6d} MB {achieved:7.3f} TFLOP/s, {mfu}",
                flush=True,
            )


def measure(engine: str, recipe: Path, run: Path, ranks: int, shards: str | None) -> Row:
    """Train and read what it says of itself."""
    name, _, stage = engine.partition("-")
    command = [sys.executable, "-m", "pretrain.run", "--recipe", str(recipe), "--run-dir", str(run)]
    command += ["--engine", name, "--noise", "0", *(["--shards", shards] if shards else [])]
    command += [f"--recipe.engine.zero_stage={stage}"] if stage else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1"}
        with (run.parent / f"{engine}-{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    statuses = [process.wait() for process in processes]
    if any(statuses):
        sys.exit((run.parent / f"{engine}-0.log").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"][WARM:]
    return Row(
        engine,
        1000 * statistics.median(line["step_s"] for line in steps),
        1000 * statistics.median(line["data_wait_s"] for line in steps),
        statistics.median(line["samples_per_s"] for line in steps),
        max(line["memory_mb"] for line in steps),
    )


def epochs(shards: str | None, batch: int) -> int:
    """Return how many epochs have steps enough to look at."""
    samples = ShardSet.open(shards).num_samples if shards else len(digits.load("train").labels)
    return math.ceil((WARM + MEASURED) / max(1, samples // batch))


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} CPU cores"


if __name__ == "__main__":
    cli.run(main)
