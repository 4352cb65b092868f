"""Which labels of a task are flipped on purpose before heads are fitted: the noise models of ``shards``.

The only file of ``probes`` that imports ``shards``, and only where another model than symmetric noise is
asked for: a second implementation of the models would be another noise under the same name.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nml.errors import UserError
from nml.files import sha256_file
from probes.samples import Labels
from probes.splits import Indices, flip_labels

if TYPE_CHECKING:
    from shards.noise import NoiseModel

# Drawn in ``splits``, uniformly over the other classes (appendix B.5 of the paper), since the first results.
SYMMETRIC = "symmetric"


@functools.cache
def open_model(text: str) -> NoiseModel:
    """Return a noise model for ``NAME`` or ``NAME:FILE``, see ``shards.noise``.

    Raises:
        UserError: If there is none of this name, it is none of class labels, or its file does not do.
    """
    from shards.noise import NOISE_MODELS

    name, _, file = text.partition(":")
    make = NOISE_MODELS.load(name, where="--downstream-model")
    if make.kind != "class":
        raise UserError(
            f"--downstream-model {text}: is noise of {make.kind}s", possible="noise of class labels"
        )
    try:
        with NOISE_MODELS.blaming(name):
            model: NoiseModel = make(file or None)
    except UserError as error:
        raise _ours(text, error) from error
    return model


def identity_of(text: str) -> dict[str, str]:
    """Return what tells a noise model from others: its name, and the hash of its file."""
    name, _, file = text.partition(":")
    # FILE.pt:NAME names labels inside a file.
    path, mark, part = file.partition(".pt:")
    place = Path(path + ".pt" if mark else file)
    return {"name": name} | ({"file": sha256_file(place)} if file else {}) | ({"part": part} if mark else {})


def flip(
    keys: Sequence[str],
    labels: Labels,
    ratio: Fraction,
    num_classes: int,
    seed: int,
    parts: Sequence[Indices] | None = None,
    *,
    model: str = SYMMETRIC,
) -> Labels:
    """Return labels of which round(ratio * n) of every part are wrong, by a noise model.

    Nested as the model is: what is flipped at 10 % is flipped at 20 %. A model that takes its ratio from a
    file of labels flips what the file has, in whatever part it is; ``ratio`` must be that of all samples.

    Args:
        keys: N sample keys.
        labels: Their classes, int64 [N].
        ratio: Share to flip.
        num_classes: K.
        seed: Seed of the choice and of the wrong classes.
        parts: Positions of each part, int64 [n]; samples in none keep their labels. All samples are one
            part without it.
        model: ``NAME`` or ``NAME:FILE``.

    Raises:
        UserError: If the model cannot flip these labels so.
    """
    if model == SYMMETRIC:
        return flip_labels(keys, labels, ratio, num_classes, seed, parts)
    if not ratio:
        return labels.copy()
    from shards.hashing import hash_keys
    from shards.ladder import plan
    from shards.noise import Population

    opened = open_model(model)
    everything = np.arange(len(keys))
    parts = [everything] if parts is None else parts
    flipped = labels.copy()
    for rows in [everything] if opened.own_ratio else parts:
        named = [keys[row] for row in rows]
        population = Population(
            "class", hash_keys(named), labels[rows], num_classes, np.empty(0, np.uint64), keys=named
        )
        try:
            [flips] = plan(opened, model.partition(":")[0], population, [ratio], seed)
        except UserError as error:
            raise _ours(model, error) from error
        flipped[rows[flips.rows]] = flips.values
    if opened.own_ratio:
        outside = np.setdiff1d(everything, np.concatenate(parts))
        flipped[outside] = labels[outside]
    return flipped


def _ours(text: str, error: UserError) -> UserError:
    """Return an error of a model that names the options of this room."""
    told = [
        part.removeprefix(f"--model {text.partition(':')[0]}: ")
        .replace("--model-file", "--downstream-model")
        .replace("--noise", "--downstream-noise")
        for part in (error.what, error.possible, error.mend)
    ]
    return UserError(f"--downstream-model {text}: {told[0]}", possible=told[1], mend=told[2])
