"""The eight tasks of GLUE that the paper uses.

The labels of GLUE's test splits are hidden, so its validation splits are what is tested on, and
validation samples are carved from the training splits.
"""

from __future__ import annotations

from probes.tasks.prepared import HubTask
from probes.tasks.task import Metric, TaskRecord
from probes.tasks.vision import RESOLVED

REPOSITORY = "nyu-mll/glue"


def _task(
    config: str,
    classes: int,
    train: int,
    test: int,
    columns: tuple[str, ...],
    metric: Metric = "accuracy",
    *,
    test_split: str = "validation",
    ood: dict[str, str] | None = None,
    note: str = "",
) -> HubTask:
    name = f"glue-{config}"
    record = TaskRecord(
        name=name,
        modality="text",
        num_classes=classes,
        metric=metric,
        splits={"train": train, test_split: test},
        ood=tuple(f"{name}-{part}" for part in ood or {}),
        source=f"hf.co/datasets/{REPOSITORY}, {config}",
        revision=RESOLVED,
        licence="each part's own, see gluebenchmark.com",
        note=note or "tested on GLUE's validation split; its test labels are hidden",
    )
    return HubTask(
        record=record,
        repository=REPOSITORY,
        config=config,
        test=test_split,
        ood=ood or {},
        columns=dict(zip(("text", "pair"), columns, strict=False)),
    )


COLA = _task("cola", 2, 8551, 1043, ("sentence",), "matthews")
SST2 = _task("sst2", 2, 67349, 872, ("sentence",))
MRPC = _task("mrpc", 2, 3668, 408, ("sentence1", "sentence2"), "f1")
STSB = _task(
    "stsb", 6, 5749, 1500, ("sentence1", "sentence2"), "pearson",
    note="scores are rounded to classes 0 to 5; the metric correlates the expected class with them",
)  # fmt: skip
QQP = _task("qqp", 2, 363846, 40430, ("question1", "question2"), "f1")
MNLI = _task(
    "mnli", 3, 392702, 9815, ("premise", "hypothesis"), test_split="validation_matched",
    ood={"mismatched": "validation_mismatched"},
)  # fmt: skip
QNLI = _task("qnli", 2, 104743, 5463, ("question", "sentence"))
RTE = _task("rte", 2, 2490, 277, ("sentence1", "sentence2"))
