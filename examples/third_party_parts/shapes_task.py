"""A task from outside: the shapes, in-domain as they are drawn and out-of-domain as negatives."""

import numpy as np
from PIL import ImageOps
from probes.hashing import hash_value
from probes.spec import check_options
from probes.tasks import Evaluation, Task, TaskRecord
from shapes_source import CLASSES, COUNT, draw


class Drawn:
    """One split as samples, perhaps with ink and paper swapped."""

    def __init__(self, split, negative=False):
        self.keys = [f"{split}/{number:03d}" for number in range(COUNT)]
        self.labels = np.arange(COUNT, dtype=np.int64) % len(CLASSES)
        # Features are stored under it: whatever is drawn otherwise needs another one.
        self.fingerprint = hash_value(["shapes/1", split, negative])
        self.split, self.negative = split, negative

    def read(self, index):
        image = draw(self.split, index).convert("RGB")
        return ImageOps.invert(image) if self.negative else image


class ShapesTask:
    record = TaskRecord(
        name="shapes-small",
        modality="image",
        num_classes=len(CLASSES),
        splits={"train": COUNT, "test": COUNT},
        ood=("shapes-negative",),
        source="drawn by nml-shapes",
        revision="1",
        licence="Apache-2.0",
    )

    def open(self, spec, root):
        check_options(spec, (), where="--task")
        return Task(
            name="shapes-small",
            modality="image",
            classes=CLASSES,
            revision="1",
            train=Drawn("train"),
            validation=None,
            evaluations=(
                Evaluation("shapes-small", "id", Drawn("test")),
                Evaluation("shapes-negative", "ood", Drawn("test", negative=True)),
            ),
        )


SHAPES = ShapesTask()
