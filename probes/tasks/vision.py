"""The 14 in-domain vision sets of the paper.

From the Hugging Face hub, at commits that public code pins or that the hub's pages showed, or from
torchvision's downloads. Where a copy has a training and a test split alone, validation samples are carved
from the training split.
"""

from __future__ import annotations

from collections.abc import Mapping

from probes.tasks.hub_splits import MAIN, HubSplits
from probes.tasks.prepared import Part, PreparedTask
from probes.tasks.task import Metric, TaskRecord
from probes.tasks.torchvision_sets import TorchvisionSet

RESOLVED = "commit of the hub's main branch, looked up and recorded when prepared"


def _task(
    name: str,
    repository: str,
    revision: str = MAIN,
    *,
    classes: int,
    splits: Mapping[str, int],
    hub: Mapping[str, str] | None = None,
    config: str | None = None,
    torchvision: TorchvisionSet | None = None,
    metric: Metric = "accuracy",
    licence: str,
    disk: str,
    checked: str,
    note: str = "",
) -> PreparedTask:
    """Return a task whose parts are splits of one repository.

    Args:
        name: Registered name.
        repository: Data set on the hub.
        revision: Its commit, or ``main``.
        classes: Number of classes.
        splits: Samples of each part.
        hub: Splits of the repository where they are not named as the parts are.
        config: Configuration of the repository.
        torchvision: The same data in torchvision.
        metric: What its field reports.
        licence: Licence note.
        disk: Space it takes.
        checked: What was compared with a source.
        note: What a user must know.
    """
    record = TaskRecord(
        name=name,
        modality="image",
        num_classes=classes,
        metric=metric,
        splits=splits,
        source=f"hf.co/datasets/{repository}"
        + (f" or torchvision {torchvision.name}" if torchvision else ""),
        revision=RESOLVED if revision == MAIN else revision,
        licence=licence,
        disk=disk,
        checked=checked,
        note=note,
    )
    return PreparedTask(
        record=record,
        parts={
            part: Part(
                hub=HubSplits(
                    repository=repository,
                    splits=((hub or {}).get(part, part),),
                    config=config,
                    revision=revision,
                )
            )
            for part in splits
        },
        torchvision=torchvision,
    )


def _by_flag(name: str) -> TorchvisionSet:
    return TorchvisionSet(name=name, splits={"train": {"train": True}, "test": {"train": False}})


def _by_split(name: str, **splits: str) -> TorchvisionSet:
    return TorchvisionSet(name=name, splits={part: {"split": split} for part, split in splits.items()})


def _without_split(name: str, train_per_class: int) -> TorchvisionSet:
    return TorchvisionSet(name=name, splits={"train": {}, "test": {}}, train_per_class=train_per_class)


MEMORY = "the rest from memory"

CIFAR10 = _task(
    "cifar10",
    "uoft-cs/cifar10",
    "0b2714987fa478483af9968de7c934580d0bb9a2",
    classes=10,
    splits={"train": 50000, "test": 10000},
    torchvision=_by_flag("CIFAR10"),
    licence="none stated; research use is customary",
    disk="0.15 GB",
    checked=f"commit, columns and test count: mteb; {MEMORY}",
)
CIFAR100 = _task(
    "cifar100",
    "uoft-cs/cifar100",
    "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
    classes=100,
    splits={"train": 50000, "test": 10000},
    torchvision=_by_flag("CIFAR100"),
    licence="none stated; research use is customary",
    disk="0.15 GB",
    checked=f"commit, columns and test count: mteb; {MEMORY}",
    note="the 100 fine labels",
)
FLOWERS102 = _task(
    "flowers102",
    "dpdl-benchmark/oxford_flowers102",
    classes=102,
    splits={"train": 1020, "validation": 1020, "test": 6149},
    metric="mean_per_class",
    torchvision=_by_split("Flowers102", train="train", validation="val", test="test"),
    licence="images of various owners",
    disk="0.35 GB",
    checked=f"classes: torchvision; counts: code that reads the copy; {MEMORY}",
    note="1020 training images, fewer than the dimensions of most encoders",
)
FOOD101 = _task(
    "food101",
    "ethz/food101",
    "e06acf2a88084f04bce4d4a525165d68e0a36c38",
    classes=101,
    splits={"train": 75750, "test": 25250},
    hub={"test": "validation"},
    torchvision=_by_split("Food101", train="train", test="test"),
    licence="images of various owners (Foodspotting)",
    disk="5 GB",
    checked=f"classes and counts: torchvision; commit and test split: mteb; {MEMORY}",
    note="the hub calls its test images validation",
)
PETS = _task(
    "pets",
    "timm/oxford-iiit-pet",
    classes=37,
    splits={"train": 3680, "test": 3669},
    metric="mean_per_class",
    torchvision=_by_split("OxfordIIITPet", train="trainval", test="test"),
    licence="CC BY-SA 4.0",
    disk="0.8 GB (2.5 GB from torchvision)",
    checked=f"classes: torchvision; counts of about this size: the hub's page of another copy; {MEMORY}",
)
CARS = _task(
    "cars",
    "clip-benchmark/wds_cars",
    "25cfe61",
    classes=196,
    splits={"train": 8144, "test": 8041},
    torchvision=_by_split("StanfordCars", train="train", test="test"),
    licence="non-commercial research",
    disk="2 GB",
    checked=f"classes and counts: torchvision and the hub's pages; commit: the hub's pages; {MEMORY}",
    note="the authors' page is gone: torchvision reads it from disk but cannot download it",
)
AIRCRAFT = _task(
    "aircraft",
    "clip-benchmark/wds_fgvc_aircraft",
    classes=100,
    splits={"train": 3334, "test": 3333},
    metric="mean_per_class",
    torchvision=_by_split("FGVCAircraft", train="train", validation="val", test="test"),
    licence="non-commercial research",
    disk="2.8 GB",
    checked=f"classes and their sum: torchvision; {MEMORY}, the split of the hub's copy included",
    note="the 100 variants; torchvision's copy has validation images, the hub's has none",
)
SVHN = _task(
    "svhn",
    "ufldl-stanford/svhn",
    config="cropped_digits",
    classes=10,
    splits={"train": 73257, "test": 26032},
    torchvision=_by_split("SVHN", train="train", test="test"),
    licence="non-commercial use",
    disk="0.3 GB",
    checked=f"configuration: code that reads the copy; test count: the hub's page of another copy; {MEMORY}",
    note="cropped digits, without the extra split",
)
DTD = _task(
    "dtd",
    "tanganke/dtd",
    "d2afa97d9f335b1a6b3b09c637aef667f98f966e",
    classes=47,
    splits={"train": 3760, "test": 1880},
    torchvision=_by_split("DTD", train="train", validation="val", test="test"),
    licence="research use",
    disk="0.7 GB",
    checked=f"commit: mteb; {MEMORY}, also that the copy is partition 1 with validation in train",
    note="torchvision: partition 1, 1880 images in each of train, validation and test",
)
CALTECH101 = _task(
    "caltech101",
    "dpdl-benchmark/caltech101",
    classes=102,
    splits={"train": 3060, "test": 6084},
    metric="mean_per_class",
    torchvision=_without_split("Caltech101", train_per_class=30),
    licence="CC BY 4.0",
    disk="0.15 GB (1.3 GB from torchvision)",
    checked=f"classes and counts in thousands: a survey that read the copy; {MEMORY}",
    note="102 classes with the background on the hub, 101 without it in torchvision, which has no split: "
    "30 images of each class are training data. Torchvision's link to Google Drive is dead; newer versions "
    "download from CaltechDATA",
)
EUROSAT = _task(
    "eurosat",
    "timm/eurosat-rgb",
    "b4e28552cd5f3932b6abc37eb20d3e84901ad728",
    classes=10,
    splits={"train": 16200, "validation": 5400, "test": 5400},
    torchvision=_without_split("EuroSAT", train_per_class=1600),
    licence="MIT",
    disk="0.1 GB",
    checked=f"commit and test count: mteb; {MEMORY}",
    note="torchvision has no split: 1600 images of each class are training data",
)
PCAM = _task(
    "pcam",
    "clip-benchmark/wds_vtab-pcam",
    "502695fe1a141108650e3c5b91c8b5e0ff84ed49",
    classes=2,
    splits={"train": 262144, "test": 32768},
    torchvision=_by_split("PCAM", train="train", validation="val", test="test"),
    licence="CC0",
    disk="7 GB",
    checked=f"commit, columns, test count: mteb; training count: the hub's page; {MEMORY}",
    note="torchvision needs h5py for it",
)
RESISC45 = _task(
    "resisc45",
    "timm/resisc45",
    "fe12fc5f1b7606543b0355eda392f1ddc54625c6",
    classes=45,
    splits={"train": 18900, "validation": 6300, "test": 6300},
    licence="none stated; research use is customary",
    disk="0.5 GB",
    checked=f"commit: mteb; training and test counts: the hub's page of another copy; {MEMORY}",
    note="not in torchvision",
)
RENDERED_SST2 = _task(
    "rendered-sst2",
    "clip-benchmark/wds_renderedsst2",
    "66b9a461eda025201dd147e5f390f5984c33643a",
    classes=2,
    splits={"train": 6920, "test": 1821},
    torchvision=_by_split("RenderedSST2", train="train", validation="val", test="test"),
    licence="MIT, as the hub's copy says",
    disk="0.2 GB",
    checked=f"commit and columns: mteb; training count: torchvision; {MEMORY}",
)
