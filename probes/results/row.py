"""The row of a result and its Parquet schema."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Collection
from typing import Any, Literal

import pyarrow as pa

from nml.urls import without_secret

SCHEMA_VERSION = "nml-results/1"
"""Name of the format, in every file of rows."""

Domain = Literal["id", "ood"]
"""In-domain or out-of-domain."""

TUNED = "tuned"
"""Kind of encoders that were fine-tuned (:mod:`probes.tuning.saved`); their run is that of before."""

IDENTITY = (
    "encoder_hash",
    "task",
    "task_revision",
    "split_hash",
    "domain",
    "dataset",
    "head",
    "head_distribution",
    "head_version",
    "head_code",
    "study",
    "fraction",
    "seed",
    "downstream_noise",
    "svd_convention",
)
"""What a result follows from; its hash is the row's id.

Measurements, times and places are left out: a row computed before is found again wherever its inputs lie.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measured result with everything it follows from.

    Attributes:
        row_id: Hash of the fields in :data:`IDENTITY`, 16 hex digits; see :func:`identify`.
        encoder: Display name, for example ``quickstart-n20-seed0`` or ``timm:resnet18``.
        encoder_kind: Registered name of the encoder's kind: checkpoint, timm, api, ...
        encoder_hash: Hash of weights and preprocessing.
        run_path: Pre-training run or export the encoder came from; None where there is none.
        step: Optimiser steps of pre-training.
        epoch: The same in passes over its set; None in rows from before it was recorded.
        objective: ``classify`` or ``clip``.
        noise_ratio: Realised pre-training noise, 0 to 1; None where it is not known.
        noise_level: Name of the level, for example ``n20``.
        noise_model: For example ``symmetric``.
        manifest_sha256: Hash of the noise manifest that pre-training used.
        set_fingerprint: Fingerprint of the shard set that pre-training used.
        set_path: Where that shard set was.
        task: Task as the user named it.
        task_revision: Revision of the task's data.
        split_hash: Hash of the sample ids of train, validation and test.
        domain: ``id`` or ``ood``.
        dataset: The evaluated variant, for example ``digits-inverted``.
        head: Registered name of the head; of a fine-tuned encoder ``tune-`` and its method.
        head_distribution: Installed distribution that registers the head.
        head_version: Its version.
        head_code: Hash of the source of the head, which a version does not tell while it is being written;
            None in rows from before it was recorded.
        hyper_parameters: JSON object of the hyper-parameters that made this row's head.
        selection: JSON object: the candidates' validation scores, which was chosen, and the head's
            ``outcome`` where it has one (what it chose itself, for example the k of nmtune-topk).
        study: JSON object of the candidates and the rule, known before any fit; part of the identity.
        fraction: Share of the training data used, 0 to 1.
        seed: Seed of head, subset and downstream noise.
        downstream_noise: Ratio of training labels flipped on purpose, 0 to 1.
        downstream_model: Noise model that flipped them, with its file; None without flips, and in rows from
            before there was a choice: then it is ``symmetric``.
        n_train: Training samples used.
        n_validation: Validation samples used for selection.
        n_test: Test samples scored.
        dim: Feature dimension D.
        num_classes: Classes of the task; 0 where it predicts numbers.
        accuracy: Test accuracy, 0 to 1; None where a sample has no single class.
        macro_f1: Test F1 averaged over classes, 0 to 1; None the same.
        metric_name: The task's own metric, for example ``matthews`` or ``mean_per_class``.
        metric: Its value.
        temperature: What the head's logits are divided by before softmax, fitted on the validation data; None
            in rows from before it was fitted.
        nll: Mean negative log-likelihood of the test labels under these probabilities, in nats.
        ece: Expected calibration error of them over 15 bins, 0 to 1. Where numbers are predicted there are no
            probabilities, and all three are None.
        measures: JSON object of further measures: of numbers ``pearson``, ``spearman`` and ``rmse``, the last
            in their unit; of several classes a sample ``average_precision`` of each class by its name, null
            of those that no test sample has.
        sve: Singular value entropy of the encoder's features on ``dataset`` (paper, definition 2.1).
        lsvr: Largest singular value ratio of the same (paper, definition 2.2).
        head_sve: Singular value entropy of the features on ``dataset`` as the head's classifier sees them;
            equal to ``sve`` where the head leaves them as they are, None where it was not measured.
        head_lsvr: Largest singular value ratio of the same.
        svd_convention: ``raw``, ``row-centred`` or ``column-centred``.
        spectrum_split: Split whose features the spectrum is of.
        singular_values: Singular values of the encoder's features, descending.
        train_features: Feature-store key of the training features.
        features: Feature-store key of the features scored.
        method: How the encoder was fine-tuned (:mod:`probes.tune`); None of heads on frozen features.
        trained_parameters: Numbers that were trained, those of the head included; None where the head does
            not tell, and in rows from before it was recorded.
        peak_memory: Most memory at once during the fit, in bytes: of the GPU, or without one of the whole
            process; None of heads.
        fit_seconds: Time to fit this head, its share where many were fitted in one pass.
        predict_seconds: Time to predict the test features.
        feature_seconds: Time it took to compute the scored features, when they were computed.
        created: ISO 8601 time, UTC.
        versions: JSON object of the versions of the libraries involved.
        schema: Version of this schema.
    """

    encoder: str
    encoder_kind: str
    encoder_hash: str
    run_path: str | None = None
    step: int | None = None
    objective: str | None = None
    noise_ratio: float | None = None
    noise_level: str | None = None
    noise_model: str | None = None
    manifest_sha256: str | None = None
    set_fingerprint: str | None = None
    set_path: str | None = None
    task: str
    task_revision: str
    split_hash: str
    domain: Domain
    dataset: str
    head: str
    head_distribution: str
    head_version: str
    hyper_parameters: str = "{}"
    selection: str = "{}"
    study: str = "{}"
    fraction: float = 1.0
    seed: int = 0
    downstream_noise: float = 0.0
    n_train: int
    n_validation: int
    n_test: int
    dim: int
    num_classes: int
    accuracy: float | None
    macro_f1: float | None
    metric_name: str = "accuracy"
    metric: float
    sve: float
    lsvr: float
    head_sve: float | None = None
    head_lsvr: float | None = None
    svd_convention: str = "raw"
    spectrum_split: str = "test"
    singular_values: tuple[float, ...] = ()
    train_features: str | None = None
    features: str | None = None
    fit_seconds: float = 0.0
    predict_seconds: float = 0.0
    feature_seconds: float = 0.0
    created: str = ""
    versions: str = "{}"
    schema: str = SCHEMA_VERSION
    row_id: str = ""
    head_code: str | None = None
    downstream_model: str | None = None
    temperature: float | None = None
    nll: float | None = None
    ece: float | None = None
    measures: str = "{}"
    epoch: float | None = None
    method: str | None = None
    trained_parameters: int | None = None
    peak_memory: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.singular_values, tuple):
            object.__setattr__(self, "singular_values", tuple(self.singular_values))
        if self.set_path is not None:
            # Of exports from before passwords were left out of them.
            object.__setattr__(self, "set_path", without_secret(self.set_path))
        if not self.row_id:
            object.__setattr__(self, "row_id", identify(**{name: getattr(self, name) for name in IDENTITY}))


def identify(**fields: Any) -> str:
    """Return the row id of the given identity fields, 16 hex digits.

    A head's code that is not known is left out, so that rows from before it was recorded keep their ids.

    Raises:
        TypeError: If the fields are not exactly those of :data:`IDENTITY`.
    """
    if fields.keys() != set(IDENTITY):
        raise TypeError(f"identity fields differ by {sorted(fields.keys() ^ set(IDENTITY))}")
    if fields["head_code"] is None:
        del fields["head_code"]
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_ARROW = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[float, ...]: pa.list_(pa.float64()),
}


def arrow_schema() -> pa.Schema:
    """Return the Parquet schema of :class:`Row`, its version in the metadata."""
    hints = typing.get_type_hints(Row)
    fields = []
    for field in dataclasses.fields(Row):
        kinds = typing.get_args(hints[field.name]) if _is_union(hints[field.name]) else (hints[field.name],)
        kind = next(kind for kind in kinds if kind is not types.NoneType)
        kind = str if typing.get_origin(kind) is Literal else kind
        fields.append(pa.field(field.name, _ARROW[kind], nullable=types.NoneType in kinds))
    return pa.schema(fields, metadata={"format": SCHEMA_VERSION})


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


_WHOSE = "encoder: as pre-trained, head: as its classifier sees them."


def spectra_note(shifted: Collection[bool]) -> str:
    """Return the note under a table of SVE and LSVR.

    Args:
        shifted: For each group of its lines, whether there are out-of-domain results, whose LSVR it shows
            then.
    """
    if all(shifted):
        return f"SVE of in-domain test features, LSVR of out-of-domain ones; {_WHOSE}"
    if not any(shifted):
        return f"SVE and LSVR of in-domain test features; {_WHOSE}"
    return (
        f"SVE of in-domain test features, LSVR of out-of-domain ones, or of in-domain ones where there are "
        f"no others; {_WHOSE}"
    )
