"""Published tasks: fetched once from the Hugging Face hub, kept as plain Parquet, read from there ever after.

    data/tasks/cifar10/
        train.parquet  test.parquet ...
        task.json       written last: the exact revision of the source, rows and hash of every file

The revision is resolved to a commit when a task is prepared, and travels into every result row.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.files import atomic_writer, sha256_file, write_json
from probes.spec import Spec, check_options
from probes.tasks.assembling import OPTIONS, assemble
from probes.tasks.tables import read_parquet
from probes.tasks.task import Task, TaskRecord

FORMAT = "nml-task/1"
MANIFEST = "task.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubTask:
    """A task whose parts are splits of one data set on the Hugging Face hub.

    Attributes:
        record: What is known of it.
        repository: Data set on the hub, or a local clone of one.
        config: Its configuration; None for the only one.
        train: Its training split.
        test: The split that is tested on.
        validation: A published validation split; None to carve one.
        ood: Splits that count as out-of-domain, by name.
        columns: Text columns, where their names are not the usual ones.
        revision: Commit, branch or tag to ask for.
    """

    record: TaskRecord
    repository: str
    config: str | None = None
    train: str = "train"
    test: str = "test"
    validation: str | None = None
    ood: Mapping[str, str] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    revision: str = "main"

    def open(self, spec: Spec, root: Path) -> Task:
        """Return the prepared task.

        Raises:
            UserError: If it is not prepared, or a file is not the one that was prepared.
        """
        check_options(spec, OPTIONS, where="--task")
        folder = root / self.record.name
        manifest = self._manifest(folder)
        for name, facts in manifest["files"].items():
            if not (folder / name).exists() or sha256_file(folder / name) != facts["sha256"]:
                raise UserError(
                    f"task {self.record.name}: {folder / name} is not what was prepared",
                    mend=f"remove {folder} and run: python -m probes.tasks prepare {self.record.name}",
                )
        paths = [str(folder / f"{part}.parquet") for part in ("train", "test", *self.ood)]
        options = {"name": self.record.name, "shifts": "none" if self.ood else "all"} | dict(spec.options)
        if self.validation:
            options["validation"] = str(folder / "validation.parquet")
        task = assemble(
            Spec(spec.text, spec.kind, tuple(paths), options),
            functools.partial(read_parquet, columns=self.columns),
        )
        return dataclasses.replace(
            task,
            metric=self.record.metric,
            revision=f"{manifest['revision'] or 'local'}-{task.revision}",
        )

    def _manifest(self, folder: Path) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"task {self.record.name}: not prepared in {folder}",
                mend=f"run: python -m probes.tasks prepare {self.record.name} "
                "(on a machine with network; then copy the folder)",
            ) from error
        if manifest.get("format") != FORMAT:
            raise UserError(f"{folder / MANIFEST}: format {manifest.get('format')!r}", possible=repr(FORMAT))
        return manifest

    def prepare(self, root: Path) -> None:
        """Fetch the data into ``root``; a prepared task is left as it is.

        Raises:
            UserError: If the library is missing, or the hub cannot be reached.
        """
        folder = root / self.record.name
        if (folder / MANIFEST).exists():
            return
        splits = {"train": self.train, "test": self.test, **self.ood}
        if self.validation:
            splits["validation"] = self.validation
        files = {}
        for part, split in splits.items():
            data = _plain(_load(self, split))
            path = folder / f"{part}.parquet"
            with atomic_writer(path) as file:
                data.to_parquet(file)
            files[path.name] = {"rows": len(data), "sha256": sha256_file(path)}
        write_json(
            folder / MANIFEST,
            {
                "format": FORMAT,
                "source": self.repository,
                "config": self.config,
                "revision": _commit(self),
                "files": files,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )


def _load(task: HubTask, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"task {task.record.name}: the library datasets is not installed",
            mend="pip install 'noisy-model-learning[huggingface]'",
        ) from error
    revision = {} if Path(task.repository).is_dir() else {"revision": _commit(task)}
    try:
        return datasets.load_dataset(task.repository, task.config, split=split, **revision)
    # The hub's client, fsspec and the library each raise types of their own without network.
    except Exception as error:
        raise _offline(task, error) from error


@functools.cache
def _resolve(repository: str, revision: str) -> str:
    from huggingface_hub import HfApi

    sha = HfApi().dataset_info(repository, revision=revision).sha
    if sha is None:
        raise OSError("the hub names no commit")
    return sha


def _commit(task: HubTask) -> str | None:
    if Path(task.repository).is_dir():
        return None
    try:
        return _resolve(task.repository, task.revision)
    except Exception as error:
        raise _offline(task, error) from error


def _offline(task: HubTask, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return UserError(
        f"task {task.record.name}: {task.repository} could not be fetched{offline}: {reason}",
        mend="prepare it on a machine with network and copy its folder here",
    )


def _plain(data: Any) -> Any:
    """Drop what is no sample, keep images as their bytes, and round labels that lie on a scale (STS-B)."""
    import datasets

    data = data.remove_columns([name for name in data.column_names if name.startswith("__")])
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
        elif name in ("label", "cls") and getattr(feature, "dtype", "").startswith("float"):
            data = data.map(lambda row, name=name: {name: round(row[name])})
            data = data.cast_column(name, datasets.Value("int64"))
    return data
