"""Results as a probe run writes them, with numbers made up by a formula.

usage: python -m tests.probes.reporting.made_up DIR

Writes five noise levels with three pre-training runs each to DIR, for ``python -m probes.report DIR``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from probes.results import Row, write_rows

HEADS = ("lp", "mlp", "nmtune")
SHIFTS = ("inverted", "rotated", "thick", "textured")
GAIN = {"lp": 0.0, "mlp": 0.008, "nmtune": 0.02}


def make_row(**changes: Any) -> Row:
    """Return one plausible row; ``noise`` and ``repetition`` set all that follows from the encoder."""
    noise, repetition = changes.pop("noise", 0.2), changes.pop("repetition", 0)
    level = f"n{round(100 * noise):02d}"
    dataset = changes.get("dataset", "digits")
    seed, head, fraction = changes.get("seed", 0), changes.get("head", "lp"), changes.get("fraction", 1.0)
    inside = dataset == changes.get("task", "digits")
    draw = np.random.default_rng(int(hashlib.sha256(f"{dataset}{seed}{noise}".encode()).hexdigest()[:8], 16))
    shift = 0.0 if inside else 0.18 + 0.04 * (SHIFTS.index(dataset.split("-")[-1]) if "-" in dataset else 1)
    accuracy = (
        0.93 - shift - 0.15 * noise + GAIN.get(head, 0.01) + 0.03 * np.log10(fraction) + draw.normal(0, 0.004)
    )
    accuracy += np.random.default_rng(seed * 97 + len(head) * 13 + round(1000 * noise)).normal(0, 0.003)
    accuracy -= 0.3 * changes.get("downstream_noise", 0.0)
    # A pre-training run is better or worse with every head, and suits one head better than another.
    luck = np.random.default_rng(repetition * 31 + round(1000 * noise)).normal(0, 0.01)
    suits = np.random.default_rng(repetition * 17 + len(head)).normal(0, 0.004)
    accuracy += (luck + suits) * (repetition > 0)
    singular = 40 * np.exp(-(np.arange(359) ** (0.5 + 0.1 * noise)) / 2.2)
    share = singular / singular.sum()
    sve, lsvr = float(-(share * np.log(share)).sum()), float(-np.log(share[0]))
    row = Row(
        encoder=f"quickstart-{level}-seed{repetition}",
        encoder_kind="checkpoint",
        encoder_hash=hashlib.sha256(f"{level} {repetition}".encode()).hexdigest(),
        run_path=f"/runs/quickstart-{level}-seed{repetition}",
        step=160,
        objective="classify",
        noise_ratio=noise,
        noise_level=level,
        noise_model="symmetric",
        manifest_sha256=hashlib.sha256(f"manifest {level}".encode()).hexdigest(),
        set_fingerprint=hashlib.sha256(b"set").hexdigest(),
        set_path="data/shards/digits",
        task="digits",
        task_revision="1",
        split_hash="5" * 64,
        domain="id" if inside else "ood",
        dataset=dataset,
        head=head,
        head_distribution="noisy-model-learning",
        head_version="0.1.0",
        hyper_parameters=json.dumps({"learning_rate": 0.001}),
        n_train=round(1259 * fraction),
        n_validation=179,
        n_test=359,
        dim=2048,
        num_classes=10,
        accuracy=float(accuracy),
        macro_f1=float(accuracy) - 0.004,
        metric=float(accuracy),
        sve=sve - shift,
        lsvr=lsvr - shift,
        head_sve=sve - shift + 0.4 * (head == "nmtune"),
        head_lsvr=lsvr - shift + 0.2 * (head == "nmtune"),
        singular_values=tuple(float(value) for value in singular),
        fit_seconds={"lp": 0.6, "mlp": 1.1}.get(head, 1.2) * fraction + 0.01 * seed,
        predict_seconds=0.01,
        feature_seconds=4.5,
        created=f"2026-01-02T03:04:{seed:02d}Z",
        versions=json.dumps({"python": "3.11.7", "torch": "2.13.0"}),
    )
    return dataclasses.replace(row, row_id="", **changes)


def digits_rows(
    *,
    noises: Iterable[float] = (0.0, 0.2),
    heads: Iterable[str] = HEADS,
    seeds: Iterable[int] = (0, 1, 2),
    fractions: Iterable[float] = (1.0,),
    repetitions: Iterable[int] = (0,),
    **changes: Any,
) -> list[Row]:
    """Return what ``probes.run`` writes for the bundled task: every head, in domain and shifted."""
    return [
        make_row(
            noise=noise,
            head=head,
            seed=seed,
            fraction=fraction,
            dataset=dataset,
            repetition=repetition,
            **changes,
        )
        for repetition in repetitions
        for noise in noises
        for head in heads
        for seed in seeds
        for fraction in fractions
        for dataset in ("digits", *(f"digits-{shift}" for shift in SHIFTS))
    ]


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]), digits_rows(noises=(0.0, 0.05, 0.1, 0.2, 0.3), repetitions=(0, 1, 2)))
