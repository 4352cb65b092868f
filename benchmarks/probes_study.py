"""How long a study of 1,600 fits takes on cached features: a fortieth of it, or the whole.

    python benchmarks/probes_study.py FOLDER [--all]

The study is probes_study.yaml. Its second set are the bundled digits turned by a quarter. The features are
computed first and not counted. Without --all a fortieth is measured, 40 fits: the first set and encoder, one
noise model at one rate. Two processes of one thread each share the work. Processor time is what counts on a
machine that others use, too: theirs together, start of the processes included.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from probes.results import read_rows
from probes.tasks import open_task

CONFIG = Path(__file__).with_suffix(".yaml").resolve()
PART = {
    "--task": "digits",
    "--encoder": "timm:test_vit,weights=random",
    "--downstream-model": "pair-flip",
    "--downstream-noise": "0.3",
}
PROCESSES = 2
STUDY = 1600


def write_turned() -> None:
    """Write the digits turned by a quarter, as two tables of images and labels."""
    digits = open_task("digits")
    for name, samples in (("train", digits.train), ("test", digits.evaluations[0].samples)):
        images = []
        for row in range(len(samples.keys)):
            file = io.BytesIO()
            samples.read(row).convert("L").rotate(90).save(file, "PNG")
            images.append(file.getvalue())
        labels = samples.labels.tolist()
        pq.write_table(pa.table({"image": images, "label": labels}), f"turned_{name}.parquet")


def probe(*words: str, processes: int = 1) -> None:
    """Run the study, so many processes at once."""
    chosen = [] if "--all" in sys.argv else [word for option in PART.items() for word in option]
    command = [sys.executable, "-m", "probes.run", "--config", str(CONFIG), *chosen, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env=environment) for _ in range(processes)]
    if sum(process.wait() for process in running):
        sys.exit("the study did not end well")


def main() -> None:
    os.chdir(sys.argv[1])
    write_turned()
    # One quick head computes the features.
    probe("--plugin", "knn", "--tries", "1", "--seeds", "1", "--results", "warm")
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    probe(processes=PROCESSES)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    fits = sum(row.domain == "id" for row in read_rows(Path("results")))
    print(f"{fits} fits: {wall / 60:.1f} min, {spent / 60:.1f} of processor time")
    if fits < STUDY:
        each = STUDY / fits / 60
        print(f"{STUDY:,} at that rate: {each * wall:.1f} min, {each * spent:.1f} of processor time")


if __name__ == "__main__":
    main()
