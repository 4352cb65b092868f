"""A run of 8 to 1,024 ranks, without having them: what each reads, waits for and saves, and what it costs to lead them.

    python benchmarks/scale.py [--ranks 8 64 512 1024] [--json FILE]

The order, the sampler's arithmetic, torch's planner on what the engine saves, and the coordinator's judgement and
records are the project's own, called in one process for every rank in turn. The set is of ImageNet's size: shards of
10,000 images whose sizes are log-normal around 110 kB. Nodes have 8 ranks, and read what their ranks read from a
shared file system once. Nothing is trained, and no network lies between the ranks.

A figure is followed by its growth: the exponent p of ranks^p between the smallest and the largest number of ranks. 0 is
no growth, 1 as many times as there are ranks. What grows by more than 1.1 is named at the end.
"""  # noqa: E501 - a title

from __future__ import annotations

import io
import json
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nml import cli
from nml.errors import UserError
from shards.sampler import ElasticBatchSampler

RANKS_A_NODE = 8
GLOBAL_BATCH = 8192
MEAN_BYTES, SPREAD = 110_000, 0.5
STREAMS = 1024


def reading(ranks: int, samples: int, per_shard: int, steps: int) -> dict[str, float]:
    """Return what an epoch reads, and how unequal steps are, by the order itself.

    Every rank's positions of the first, the middle and the last ``steps`` steps are asked for, as its loader
    asks; which shards an epoch takes it to follows from its streams.
    """
    from shards.order import StreamOrder

    ends = np.append(np.arange(per_shard, samples, per_shard), samples)
    sizes = np.random.default_rng(0).lognormal(math.log(MEAN_BYTES) - SPREAD**2 / 2, SPREAD, samples)
    order = StreamOrder(samples, STREAMS, 0, ends)
    in_epoch = _sampler(ranks, samples).steps_per_epoch

    shards: list[set[int]] = []
    before, read = np.append(0, np.cumsum(sizes)), np.zeros(-(-ranks // RANKS_A_NODE))
    for rank in range(ranks):
        ranges = [order.stream_range(stream) for stream in range(rank, STREAMS, ranks)]
        read[rank // RANKS_A_NODE] += sum(before[high] - before[low] for low, high in ranges)
        found = [np.searchsorted(ends, [low, high - 1], side="right") for low, high in ranges]
        shards.append({shard for first, last in found for shard in range(first, last + 1)})
    nodes = [set().union(*shards[at : at + RANKS_A_NODE]) for at in range(0, ranks, RANKS_A_NODE)]
    readers = np.bincount([shard for node in nodes for shard in node], minlength=len(ends))

    seen: list[np.ndarray] = []
    spent = []
    for first in (0, in_epoch // 2, max(0, in_epoch - steps)):
        for step in range(first, min(first + steps, in_epoch)):
            parts = []
            for rank in range(ranks):
                places = np.arange(step * GLOBAL_BATCH + rank, (step + 1) * GLOBAL_BATCH, ranks)
                start = time.process_time()
                parts.append(order.samples(0, places))
                spent.append((time.process_time() - start) / len(places))
            seen.append(sizes[np.stack(parts)].sum(1))
    of_step = np.stack(seen)
    return {
        "steps of an epoch": in_epoch,
        "images of a rank and step": GLOBAL_BATCH / ranks,
        "shards of a rank and epoch": max(map(len, shards)),
        "shards of a node and epoch": max(map(len, nodes)),
        "nodes that read a shard": float(readers.max()),
        "GB of the node with most and epoch": float(read.max() / 1e9),
        "GB of the file system and epoch": float(read.sum() / 1e9),
        "bytes of the largest rank of a step over the mean": float((of_step.max(1) / of_step.mean(1)).mean()),
        "order, us an image": 1e6 * float(np.mean(spent)),
    }


def checkpoint(ranks: int, model: str) -> dict[str, float]:
    """Return the plan of a checkpoint of ddp: what ranks send, what rank 0 makes of it, how large it is."""
    import torch
    from timm import create_model
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    from pretrain.batchnorm import running_statistics
    from pretrain.engines.packed import packed, share

    with torch.device("meta"):
        weights = dict(create_model(model).named_parameters())
    own = running_statistics(create_model(model))
    moments = {
        f"state.{name}.{kind}": one for name, one in weights.items() for kind in ("exp_avg", "exp_avg_sq")
    }
    options = {
        f"param_groups.{name}.{kind}": 0.1 for name in weights for kind in ("lr", "weight_decay", "eps")
    }
    shared = {f"mean/{name}": value for name, value in own.items()}
    state = {
        "network": weights,
        "optimizer": {**moments, **options},
        "scaler": torch.zeros(2),
        "shared": shared,
    }

    plans, sent, local = [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        writer = FileSystemWriter(folder, single_file_per_rank=True)
        for rank in range(ranks):
            start = time.process_time()
            planner = DefaultSavePlanner()
            planner.set_up_planner(share({**state, "own": packed(rank, own)}, rank, ranks), None, rank == 0)
            writer.set_up_storage_writer(rank == 0)
            plan = writer.prepare_local_plan(planner.create_local_plan())
            local.append(time.process_time() - start)
            message = pickle.dumps(plan)
            sent += len(message)
            plans.append(message)
        leader = DefaultSavePlanner()
        leader.set_up_planner(share({**state, "own": packed(0, own)}, 0, ranks), None, is_coordinator=True)
        found: list[Any] = []
        whole = io.BytesIO()

        def plan_all() -> None:
            made, metadata = leader.create_global_plan([pickle.loads(plan) for plan in plans])
            found[:] = writer.prepare_global_plan(made)
            whole.seek(0)
            pickle.dump(metadata, whole)

        seconds = _timed(plan_all)
    loads = [sum(item.tensor_data is not None for item in plan.items) for plan in found]
    return {
        "plan of one rank, ms": 1e3 * float(np.median(local)),
        "plans sent to rank 0, MB": sent / 1e6,
        "plan of all, made by rank 0, s": seconds,
        "plan of all, MB": len(whole.getvalue()) / 1e6,
        "tensors of the rank with most": max(loads),
    }


def leading(ranks: int) -> dict[str, float]:
    """Return what it costs to lead the ranks: the launcher's judgement and records, the books of a step."""
    from pretrain.goodput import Ledger
    from slurm.attempt import Attempt
    from slurm.members import Member
    from slurm.verdict import Beat, Exit, Seen, frozen, hung, judge

    member = Member(name="run", argv=("true",), record="unused", progress="unused", distributed=True, cwd="/")
    told = [
        {"rank": rank, "pace": 0.4, "phase": "computing", "quiet": 0.5, "still": 0.5} for rank in range(ranks)
    ]

    def look() -> None:
        beats = [Beat.read(f"node{beat['rank'] // RANKS_A_NODE}", beat) for beat in told]
        frozen(beats, 20.0)
        hung(beats, 20.0)

    exits = {
        rank: Exit(rank, f"node{rank // RANKS_A_NODE}", 1, "Connection closed by peer")
        for rank in range(ranks)
    }
    ledger = Ledger(time.perf_counter())
    ledger.hosts = [f"node{rank // RANKS_A_NODE}" for rank in range(ranks)]
    rows = np.random.default_rng(0).uniform(0, 0.1, (ranks, 3))

    def book() -> None:
        ledger.step(0.5, np.roll(rows, 1))
        ledger.as_json()

    with tempfile.TemporaryDirectory() as folder:
        attempt = Attempt.__new__(Attempt)
        attempt.member, attempt.folder = member, Path(folder)
        attempt._stalled, attempt._stalled_at = {}, 0.0
        attempt.stall({rank: (f"node{rank // RANKS_A_NODE}", 30.0, "computing") for rank in range(ranks)})
        record = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {
        "the coordinator's look at all, ms": 1e3 * _timed(look),
        "its verdict on all failed, ms": 1e3 * _timed(lambda: judge(member, Seen(ranks, exits=dict(exits)))),
        "record of a standstill of all, kB": record / 1e3,
        "books of a step, us": 1e6 * _timed(book),
    }


def starting(ranks: int, samples: int) -> dict[str, float]:
    """Return what a rank does before its first batch that depends on the number of ranks."""

    def start() -> None:
        sampler = _sampler(ranks, samples)
        sampler.batch(3, sampler.steps_per_epoch // 2)

    return {"first batch of a rank located, ms": 1e3 * _timed(start, 3)}


def _sampler(ranks: int, samples: int) -> ElasticBatchSampler:
    """Return the sampler of the last rank."""
    return ElasticBatchSampler(
        samples, global_batch=GLOBAL_BATCH, rank=ranks - 1, world=ranks, streams=STREAMS
    )


def _timed(call: Callable[[], Any], times: int = 5) -> float:
    """Return the median processor time of a call."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return float(np.median(spent))


def simulate(
    worlds: Sequence[int], *, samples: int, per_shard: int, steps: int, model: str
) -> dict[str, dict[str, float]]:
    """Return the figures by name, each by number of ranks and with its growth, ``growth``."""
    table: dict[str, dict[str, float]] = {}
    for ranks in worlds:
        figures = (
            reading(ranks, samples, per_shard, steps)
            | checkpoint(ranks, model)
            | leading(ranks)
            | starting(ranks, samples)
        )
        for name, value in figures.items():
            table.setdefault(name, {})[str(ranks)] = value
    for row in table.values():
        first, last = row[str(worlds[0])], row[str(worlds[-1])]
        times = worlds[-1] / worlds[0]
        row["growth"] = math.log(last / first) / math.log(times) if first > 0 < last and times > 1 else 0.0
    return table


def check(worlds: Sequence[int], options: Any) -> None:
    """Refuse what cannot be simulated.

    Raises:
        UserError: Naming it.
    """
    import timm

    for name in ("per_shard", "steps"):
        if getattr(options, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(options, name)}: nothing to simulate", possible="1 and more")
    for ranks in worlds:
        # It says what does not divide, or is too few.
        _sampler(ranks, options.samples)
    if not timm.is_model(options.model):
        raise UserError(f"--model {options.model}: timm has none of that name", possible="timm.list_models()")
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(f"--json {options.json}: its folder is not there", mend="make it first")


def main() -> None:
    parser = cli.Parser("python benchmarks/scale.py", "What a run of many ranks reads, waits for and saves.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512, 1024], help="divisors of 1,024")
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--per-shard", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=3, help="of each of three places of an epoch")
    parser.add_argument(
        "--model", type=str, default="resnet50", help="timm model, whose checkpoint is planned"
    )
    parser.add_argument("--json", type=Path, default=None, help="file to write the figures to")
    options = parser.parse_args()
    worlds = sorted(set(options.ranks))
    check(worlds, options)
    table = simulate(
        worlds, samples=options.samples, per_shard=options.per_shard, steps=options.steps, model=options.model
    )
    width = max(map(len, table))
    print(" " * width, *(f"{ranks:>10,}" for ranks in worlds), "  growth")
    for name, row in table.items():
        print(f"{name:{width}}", *(f"{row[str(ranks)]:10,.4g}" for ranks in worlds), f"{row['growth']:8.2f}")
    fast = [name for name, row in table.items() if row["growth"] > 1.1]
    print("faster than the ranks grow:", "; ".join(fast) or "nothing")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
