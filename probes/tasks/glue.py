"""The eight tasks of GLUE that the paper uses, each with the sets that GLUE-X tests it on out-of-domain.

The labels of GLUE's test splits are hidden, so its validation splits are what is tested on, and validation
samples are carved from the training splits.
"""

from __future__ import annotations

from collections.abc import Mapping

from nml.labels import Target
from probes.tasks import glue_ood
from probes.tasks.examples import Convert
from probes.tasks.glue_ood import COMMIT, REPOSITORY, in_steps, keep, on_scale
from probes.tasks.hub_splits import HubSplits
from probes.tasks.prepared import Part, PreparedTask
from probes.tasks.task import Metric, TaskRecord


def _task(
    config: str,
    classes: int,
    train: int,
    test: int,
    ood: Mapping[str, Part],
    metric: Metric = "accuracy",
    *,
    disk: str,
    name: str = "",
    target: Target = "classification",
    split: str = "validation",
    pair: tuple[str, str] | None = None,
    convert: Convert | None = None,
    note: str = "",
) -> PreparedTask:
    """Return a task of GLUE.

    Args:
        config: Its name in GLUE.
        classes: Number of classes.
        train: Training samples.
        test: Test samples.
        ood: The sets of GLUE-X.
        metric: GLUE's metric.
        disk: Space that everything takes.
        name: What follows ``glue-``, where it is not ``config``.
        target: What its labels are.
        split: The split that is tested on.
        pair: Columns of a pair of texts; None for ``sentence`` alone.
        convert: Turns rows into examples where they are not kept as they are.
        note: What a user must know.
    """
    name = f"glue-{name or config}"
    by_hand = [part for part, source in ood.items() if source.hub is None]
    notes = [
        note,
        f"tested on GLUE's {split} split; its test labels are hidden",
        f"by hand: {', '.join(by_hand)} (prepare says what to place where)" if by_hand else "",
    ]
    record = TaskRecord(
        name=name,
        modality="text",
        num_classes=classes,
        target=target,
        metric=metric,
        splits={"train": train, "test": test},
        ood=tuple(f"{name}-{part}" for part in ood),
        source=f"hf.co/datasets/{REPOSITORY}, {config}; OOD: "
        + ", ".join(f"{part} ({_place(source)})" for part, source in ood.items()),
        revision=f"{COMMIT}; of the OOD sets, see task.json when prepared",
        licence="each part's own, see gluebenchmark.com and GLUE-X (arXiv 2211.08073)",
        disk=disk,
        checked="commit: code that pins it; OOD sets, their splits and labels: GLUE-X's evaluation code; "
        "counts from memory",
        note="; ".join(filter(None, notes)),
    )
    columns = dict(zip(("text", "pair"), pair or ("sentence",), strict=False))
    return PreparedTask(
        record=record,
        parts={
            "train": Part(hub=_glue(config, "train"), convert=convert),
            "test": Part(hub=_glue(config, split), convert=convert),
            **ood,
        },
        columns=columns,
    )


def _glue(config: str, split: str) -> HubSplits:
    return HubSplits(repository=REPOSITORY, config=config, splits=(split,), revision=COMMIT)


def _place(part: Part) -> str:
    return part.hub.repository if part.hub else "by hand"


COLA = _task("cola", 2, 8551, 1043, {"grammar-test": glue_ood.GRAMMAR_TEST}, "matthews", disk="1 MB")
SST2 = _task(
    "sst2",
    2,
    67349,
    872,
    {
        "imdb": glue_ood.IMDB,
        "yelp": glue_ood.YELP,
        "amazon": glue_ood.AMAZON,
        "flipkart": glue_ood.FLIPKART,
    },
    disk="2.5 GB, of which amazon is 2 GB",
    note="amazon has 4,000,000 samples, yelp 598,000: ood_limit=N keeps N of each OOD set",
)
MRPC = _task(
    "mrpc",
    2,
    3668,
    408,
    {"qqp": glue_ood.QQP, "twitter": glue_ood.TWITTER},
    "f1",
    pair=("sentence1", "sentence2"),
    disk="40 MB",
)
STSB = _task(
    "stsb",
    5,
    5749,
    1500,
    {"sick": glue_ood.SICK_SCORES},
    "pearson",
    convert=keep("sentence1", "sentence2", label=in_steps(0.0, 1.25)),
    disk="1 MB",
    note="as in GLUE-X, scores of 0 to 5 are five classes, round(score / 1.25); the metric correlates the "
    "expected class with them",
)
STSB_SCORES = _task(
    "stsb",
    0,
    5749,
    1500,
    {"sick": glue_ood.SICK_NUMBERS},
    "spearman",
    name="stsb-scores",
    target="regression",
    convert=keep("sentence1", "sentence2", label=on_scale(0.0, 1.0)),
    disk="1 MB",
    note="scores of 0 to 5 as they are; those of SICK, 1 to 5, are brought to 0 to 5",
)
QQP = _task(
    "qqp",
    2,
    363846,
    40430,
    {"mrpc": glue_ood.MRPC, "twitter": glue_ood.TWITTER},
    "f1",
    pair=("question1", "question2"),
    disk="40 MB",
)
MNLI = _task(
    "mnli",
    3,
    392702,
    9815,
    {"mismatched": glue_ood.MISMATCHED, "snli": glue_ood.SNLI, "sick": glue_ood.SICK_ENTAILMENT},
    split="validation_matched",
    pair=("premise", "hypothesis"),
    disk="80 MB",
)
QNLI = _task(
    "qnli", 2, 104743, 5463, {"newsqa": glue_ood.NEWSQA}, pair=("question", "sentence"), disk="20 MB"
)
RTE = _task(
    "rte",
    2,
    2490,
    277,
    {"scitail": glue_ood.SCITAIL, "hans": glue_ood.HANS},
    pair=("sentence1", "sentence2"),
    disk="5 MB",
)
