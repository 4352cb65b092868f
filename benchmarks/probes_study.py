"""How long a study of 1,600 fits takes on cached features, estimated from a part of it.

    python benchmarks/probes_study.py FOLDER [--all]

The study is probes_study.yaml. Its second set are the bundled digits turned by a quarter. The features are
computed first and not counted. Without --all a fortieth is measured, 40 fits: the first set and encoder, one
noise model at one rate.
"""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from probes.results import read_rows
from probes.run import main as probe
from probes.tasks import open_task

CONFIG = Path(__file__).with_suffix(".yaml").resolve()
PART = {
    "--task": "digits",
    "--encoder": "timm:test_vit,weights=random",
    "--downstream-model": "pair-flip",
    "--downstream-noise": "0.3",
}


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


def main() -> None:
    os.chdir(sys.argv[1])
    write_turned()
    chosen = [] if "--all" in sys.argv else [word for option in PART.items() for word in option]
    study = ["--config", str(CONFIG), *chosen]
    # One quick head computes the features.
    probe([*study, "--plugin", "knn", "--tries", "1", "--seeds", "1", "--results", "warm"])
    wall, cpu = time.perf_counter(), time.process_time()
    probe(study)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    fits = sum(row.domain == "id" for row in read_rows(Path("results")))
    whole = 1600 / fits / 60
    print(f"{fits} fits: {wall:.0f} s, {cpu:.0f} s of processor time")
    print(f"1,600 at that rate: {whole * wall:.1f} min, {whole * cpu:.1f} of processor time")


if __name__ == "__main__":
    main()
