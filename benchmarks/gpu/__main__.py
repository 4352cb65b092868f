"""Everything that is claimed of a GPU, measured on one in under eight minutes.

    make gpu                                  # or: python -m benchmarks.gpu [--out build/gpu] [--parts race]
    python -m benchmarks.gpu --tiny           # the same lines on a CPU; the figures mean nothing

Each part is a process of its own with a budget. What it has measured is written to results.json and .md as
soon as it is known; a part that fails or runs out of time is told, and the others go on, with status 1 at the
end. A stop signal ends the part that is at work and the command; what was measured stays.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.machine import Clocks, describe, has_gpu, warnings
from benchmarks.gpu.results import Results, page
from benchmarks.gpu.running import LOG, Part, run_part, start
from benchmarks.gpu.sizes import FULL, TINY, Sizes
from nml import cli
from nml.errors import UserError, unknown_name
from nml.lifeline import Warden, warden

# By worth: what comes last is what is missing where the time is short.
PARTS = (
    Part("first", 40, "benchmarks.gpu.steady:measure"),
    Part("race", 125, "benchmarks.gpu.race:classes"),
    Part("waits", 40, "benchmarks.gpu.waits:count"),
    Part("run", 105, "benchmarks.gpu.run:train_kill_resume"),
    Part("clip", 45, "benchmarks.gpu.race:captions"),
    Part("engines", 50, "benchmarks.gpu.race:engines"),
    Part("heads", 25, "benchmarks.gpu.heads_fit:measure"),
    Part("tests", 30, "benchmarks.gpu.marked_tests:run"),
    Part("again", 20, "benchmarks.gpu.steady:measure"),
)
# With the imports before them under eight minutes.
LIMIT = 455
# What tells whether the machine kept its pace comes last, and its time is nobody else's.
LAST = PARTS[-1]


def main() -> None:
    parser = cli.Parser("python -m benchmarks.gpu", "Measure training and heads on the GPU of this machine.")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, as little as runs every line")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of results.json and .md")
    parser.add_argument(
        "--work", type=Path, default=Path("build/gpu-work"), help="folder for all other files"
    )
    parser.add_argument("--parts", type=str, nargs="+", default=[part.name for part in PARTS])
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all parts together")
    options = parser.parse_args()
    names = [part.name for part in PARTS]
    for name in options.parts:
        if name not in names:
            raise unknown_name("--parts", name, names)
    if options.limit <= 0:
        raise UserError(f"--limit {options.limit}: no time", possible="seconds, more than 0")
    sizes = TINY if options.tiny else FULL
    machine = describe()
    if not options.tiny and not has_gpu(machine):
        raise UserError("no GPU: nvidia-smi tells of none", mend="--tiny runs the same lines on a CPU")
    work = options.work.absolute()
    prepare(work, sizes)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if part.name in options.parts]
    results = Results(options.out, machine=machine, tiny=options.tiny, parts=[part.name for part in chosen])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    others = multiprocessing.active_children()
    try:
        # If this process is killed, a part must not keep the GPU.
        with warden(0.0) as keeper:
            measure(chosen, sizes, results, work, options.limit, keeper)
    finally:
        results.finish()
        if results.unwritten:
            print(json.dumps(results.record))
        print(page(results.record))
        print(f"results: {results.unwritten or results.path}", flush=True)
    if set(multiprocessing.active_children()) - set(others):
        # Python would wait for a part that not even SIGKILL has ended, for as long as its driver hangs.
        os._exit(1)
    if not results.whole:
        sys.exit(1)


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - a signal handler's signature
    raise KeyboardInterrupt(signal.Signals(number).name)


def prepare(work: Path, sizes: Sizes) -> None:
    """Set what all parts inherit."""
    work.mkdir(parents=True, exist_ok=True)
    # What one part compiles, the next one finds.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work / "compiled"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(work / "compiled" / "triton"))
    # Without nvcc DeepSpeed looks for its version and fails; none of its operators is built here.
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    # torch would ask the driver in this way whether there is a GPU, which no fork lives through.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Nothing is to be fetched, and nothing to wait for that cannot be reached.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sizes.device == "cpu":
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def measure(
    parts: list[Part], sizes: Sizes, results: Results, work: Path, limit: float, keeper: Warden
) -> None:
    """Run the parts, each within its budget and what is left of all."""
    started = start()
    print(f"imported in {started.seconds:.0f} s", flush=True)
    warned = warnings(results.record["machine"], tiny=results.record["tiny"]) + started.warnings
    for line in results.warned(warned):
        print(f"warning: {line}", flush=True)
    began, clocks = time.monotonic(), Clocks()
    for part in parts:
        kept = LAST.seconds if LAST in parts and part != LAST else 0
        left = (limit - kept) * sizes.patience - (time.monotonic() - began)
        if left < 5:
            results.end(part.name, "left out", error="no time was left", seconds=0.0, clocks={})
            continue
        seconds = min(part.seconds * sizes.patience, left)
        print(f"{datetime.datetime.now():%H:%M:%S} {part.name} (at most {seconds:.0f} s)", flush=True)
        clocks.look()
        clocks.since()
        results.begin(part.name)
        start_of_part, status, error = time.monotonic(), "stopped", "by a signal"
        try:
            status, error = run_part(
                part,
                sizes,
                work / part.name,
                seconds=seconds,
                tell=partial(results.note, part.name),
                look=clocks.look,
                watch=keeper.watch,
                context=started.context,
            )
        # Nothing that happens to one part may take the others with it.
        except Exception as unexpected:
            status, error = "failed", f"{type(unexpected).__name__}: {unexpected}"
        finally:
            spent = time.monotonic() - start_of_part
            results.end(part.name, status, error=error, seconds=spent, clocks=clocks.since())
            if error:
                print(f"  {status}: {error}; see {work / part.name / LOG}", flush=True)
                results.keep_log(part.name, work / part.name / LOG)


if __name__ == "__main__":
    cli.run(main)
