"""``launch.py pretrain``: one run, on Slurm or on this machine."""

from __future__ import annotations

import os
import subprocess
from typing import Any, Literal

from nml import cli
from nml.errors import UserError
from slurm.detection import detect_slurm
from slurm.request import CODE, DEFAULT_ENGINE, Engine, PretrainRequest
from slurm.standin import run_ranks

DESCRIPTION = "Pre-train one encoder on one noise level."
EXAMPLE = "python slurm/launch.py pretrain --noise 0.2 --nodes 8"

Where = Literal["auto", "slurm", "local"]


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``pretrain``."""
    parser.add_argument(
        "--noise", type=str, default="0", help="noise ratio of the data, 0 (clean) to below 1"
    )
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs and ranks a node; 0: one CPU rank")
    parser.add_argument("--engine", type=Engine, default=DEFAULT_ENGINE, help="how the ranks share the work")
    parser.add_argument(
        "--recipe", type=str, default="quickstart", help="name under recipes/, or a YAML file"
    )
    parser.add_argument("--shards", type=str, default=None, help="shard set; default: the bundled digits")
    parser.add_argument("--epochs", type=int, default=None, help="epochs; default: the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--run-dir", type=str, default=None, help="default: runs/RECIPE-LEVEL-seedSEED")
    parser.add_argument("--cluster", type=Where, default="auto", help="auto: Slurm if a controller answers")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, do nothing")


def run(options: Any, overrides: tuple[str, ...]) -> int:
    """Check the request, write the bundled shards if needed, and run or submit it."""
    if options.nodes < 1:
        raise UserError(f"--nodes {options.nodes}: not a number of nodes", possible="1 and more")
    if options.gpus_per_node < 0:
        raise UserError(
            f"--gpus-per-node {options.gpus_per_node}: not a number of GPUs", possible="0 and more"
        )
    request = PretrainRequest(
        noise=options.noise,
        engine=options.engine,
        recipe=options.recipe,
        shards=options.shards,
        epochs=options.epochs,
        seed=options.seed,
        run_dir=options.run_dir,
        overrides=overrides,
    )
    return run_locally(request, nodes=options.nodes, tasks=max(1, options.gpus_per_node))


def run_locally(request: PretrainRequest, *, nodes: int, tasks: int) -> int:
    """Run a request with local processes and return its exit status."""
    found = detect_slurm()
    print(f"no Slurm found ({found.reason}): {nodes * tasks} local processes stand in", flush=True)
    status = write_shards(request)
    if status == 0:
        status = run_ranks(request.argv(), nodes=nodes, tasks=tasks, logs=request.path / "logs")
    if status == 0:
        print(f"run: {request.path}")
    return status


def write_shards(request: PretrainRequest) -> int:
    """Write the bundled set where no data was named and it is not there yet."""
    if request.notice():
        print(request.notice(), flush=True)
    argv = request.shards_argv()
    if not argv:
        return 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CODE), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(argv, env=environment).returncode
