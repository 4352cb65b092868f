"""The paper's in-domain vision sets, from the clip-benchmark project's WebDataset copies on the hub.

Those copies have a training and a test split; validation samples are carved from the training split.
"""

from __future__ import annotations

from probes.tasks.prepared import HubTask
from probes.tasks.task import Metric, TaskRecord

RESOLVED = "commit of the hub's main branch, resolved and recorded when prepared"


def _task(
    name: str,
    copy: str,
    classes: int,
    train: int,
    test: int,
    licence: str,
    metric: Metric = "accuracy",
    note: str = "",
) -> HubTask:
    repository = copy if "/" in copy else f"clip-benchmark/wds_{copy}"
    record = TaskRecord(
        name=name,
        modality="image",
        num_classes=classes,
        metric=metric,
        splits={"train": train, "test": test} if train else {},
        source=f"hf.co/datasets/{repository}",
        revision=RESOLVED,
        licence=licence,
        note=note,
    )
    return HubTask(record=record, repository=repository)


CIFAR10 = _task("cifar10", "vtab-cifar10", 10, 50000, 10000, "research use, authors' page")
CIFAR100 = _task("cifar100", "vtab-cifar100", 100, 50000, 10000, "research use, authors' page")
FLOWERS102 = _task("flowers102", "vtab-flowers", 102, 0, 0, "images of various owners", "mean_per_class")
FOOD101 = _task(
    "food101", "djghosh/wds_food101", 101, 75750, 25250, "images of various owners",
    note="not among clip-benchmark's copies; DataComp's copy, whose existence was not checked",
)  # fmt: skip
PETS = _task("pets", "vtab-pets", 37, 3680, 3669, "CC BY-SA 4.0", "mean_per_class")
CARS = _task(
    "cars", "cars", 196, 8144, 8041, "research use",
    note="the original links are dead; torchvision cannot download it",
)  # fmt: skip
AIRCRAFT = _task("aircraft", "fgvc_aircraft", 100, 6667, 3333, "non-commercial research", "mean_per_class")
SVHN = _task("svhn", "vtab-svhn", 10, 73257, 26032, "non-commercial")
DTD = _task("dtd", "vtab-dtd", 47, 0, 0, "research use", note="partition 1")
CALTECH101 = _task(
    "caltech101", "vtab-caltech101", 102, 0, 0, "CC BY 4.0", "mean_per_class",
    note="the original links are dead",
)  # fmt: skip
EUROSAT = _task("eurosat", "vtab-eurosat", 10, 0, 0, "MIT")
PCAM = _task("pcam", "vtab-pcam", 2, 0, 0, "CC0")
RESISC45 = _task("resisc45", "vtab-resisc45", 45, 18900, 6300, "research use")
RENDERED_SST2 = _task("rendered-sst2", "renderedsst2", 2, 0, 0, "research use")
