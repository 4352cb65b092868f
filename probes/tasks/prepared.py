"""Published tasks: fetched once, kept as plain Parquet, read from there ever after.

    data/tasks/glue-sst2/
        train.parquet  test.parquet  imdb.parquet ...
        task.json           written last: of every file its source, exact revision, rows and hash
        preparing.json      while it is prepared: the same, of the files that are whole
        sources/flipkart/   what only a person can fetch, placed by hand

The revision of a source is a commit wherever one is known; where none is, it is looked up when the task is
prepared. Either way it is recorded, and travels into every result row.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nml.errors import UserError
from nml.files import TEMPORARY_SUFFIX, atomic_writer, make_folder, sha256_file, write_json
from nml.locking import byte_lock
from nml.untrusted import read_object
from probes.spec import Spec, check_options
from probes.tasks.assembling import OPTIONS, RawSplit, SplitName, assemble, check_values
from probes.tasks.by_hand import Row, read_tables
from probes.tasks.examples import BATCH_ROWS, Convert, write_examples
from probes.tasks.hub_splits import HubSplits
from probes.tasks.own_data import read_split
from probes.tasks.remembered import remembered_hash
from probes.tasks.task import Task, TaskRecord
from probes.tasks.torchvision_sets import TorchvisionSet

FORMAT = "nml-task/2"
MANIFEST = "task.json"
UNFINISHED = "preparing.json"
SOURCES = "sources"
LOCK = ".lock"
ALWAYS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a task and where its rows come from.

    Attributes:
        hub: Splits on the hub; None where the data is not there.
        convert: What becomes of a row; without it, rows are kept as they are.
        by_hand: What to place in ``sources/PART/`` and where it is; empty where the hub is enough. Files
            that are there go before the hub.
    """

    hub: HubSplits | None = None
    convert: Convert | None = None
    by_hand: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """A published task.

    Attributes:
        record: What is known of it.
        parts: Its files by name: ``train``, ``test``, perhaps ``validation``; every other is OOD.
        torchvision: The same data in torchvision; None where it has none.
        columns: Text columns, where their names are not the usual ones.
    """

    record: TaskRecord
    parts: Mapping[str, Part]
    torchvision: TorchvisionSet | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ood(self) -> tuple[str, ...]:
        """Names of the out-of-domain parts."""
        return tuple(name for name in self.parts if name not in ALWAYS)

    def by_hand(self) -> dict[str, str]:
        """Return the parts that can be placed by hand, and what to place."""
        return {name: part.by_hand for name, part in self.parts.items() if part.by_hand}

    def is_prepared(self, root: Path) -> bool:
        """Whether the task can be opened."""
        return (root / self.record.name / MANIFEST).exists()

    def check(self, spec: Spec) -> None:
        """Refuse options that cannot be meant."""
        check_options(spec, OPTIONS, where="--task")
        check_values(spec, self.record.modality)

    def open(self, spec: Spec, root: Path) -> Task:
        """Return the prepared task.

        Raises:
            UserError: If it is not prepared, or a file is not the one that was prepared.
        """
        self.check(spec)
        name, folder = self.record.name, root / self.record.name
        manifest = self._manifest(folder)
        for file, facts in manifest["files"].items():
            if not _is(folder / file, facts["sha256"]):
                raise UserError(
                    f"task {name}: {folder / file} is not what was prepared",
                    mend=f"remove {folder} and run: python -m probes.tasks prepare {name}",
                )
        there = [part for part in self.ood if f"{part}.parquet" in manifest["files"]]
        if len(there) < len(self.ood):
            missing = ", ".join(part for part in self.ood if part not in there)
            print(
                f"task {name}: without {missing}; how to get them: python -m probes.tasks prepare {name}",
                file=sys.stderr,
            )
        paths = [str(folder / f"{part}.parquet") for part in ("train", "test", *there)]
        options = {"name": name, "shifts": "none" if self.ood else "all"} | dict(spec.options)
        if self.record.target != "classification":
            options |= {"target": self.record.target, "metric": self.record.metric}
        if "validation.parquet" in manifest["files"]:
            options.setdefault("validation", str(folder / "validation.parquet"))
        task = assemble(Spec(spec.text, spec.kind, tuple(paths), options), self._read)
        revision = manifest["files"]["train.parquet"]["revision"] or "local"
        return dataclasses.replace(task, metric=self.record.metric, revision=f"{revision}-{task.revision}")

    def _read(self, path: str, _: SplitName) -> RawSplit:
        part = self.parts.get(Path(path).stem)
        # What was converted has the usual columns.
        columns = {} if part is None or part.convert else self.columns
        return read_split("parquet", path, columns={"target": self.record.target, **columns})

    def _manifest(self, folder: Path) -> dict[str, Any]:
        try:
            manifest = read_object(folder / MANIFEST)
        except FileNotFoundError as error:
            raise UserError(
                f"task {self.record.name}: not prepared in {folder}",
                mend=f"run: python -m probes.tasks prepare {self.record.name} "
                "(on a machine with network; then copy the folder)",
            ) from error
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{folder / MANIFEST}: format {manifest.get('format')!r}",
                possible=repr(FORMAT),
                mend=f"remove {folder} and prepare the task again",
            )
        return manifest

    def prepare(self, root: Path, *, torchvision: Path | None = None) -> dict[str, str]:
        """Fetch what is not there yet into ``root``.

        Stopped or killed, the same call goes on with the parts that are missing. A part that only a person
        can fetch, or an out-of-domain part that cannot be had now, is left out; the next call tries again.

        Args:
            root: Folder of prepared tasks.
            torchvision: Read training and test data from this folder of torchvision's downloads, not from
                the hub; what is not in it, torchvision downloads.

        Returns:
            Out-of-domain parts that are missing, and why.

        Raises:
            UserError: If training or test data cannot be had.
        """
        folder = root / self.record.name
        make_folder(folder)
        with byte_lock(folder / LOCK, 0, wait=True):
            # What a killed preparation was writing; nobody else is while the lock is ours.
            for rest in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                rest.unlink()
            files = self._done(folder, from_torchvision=torchvision is not None)
            missing: dict[str, str] = {}
            for part in self._wanted(torchvision):
                file = f"{part}.parquet"
                if file in files:
                    continue
                try:
                    source = self._write(folder, part, torchvision)
                except UserError as error:
                    if part in ALWAYS:
                        raise UserError(f"task {self.record.name}: {error.what}", mend=error.mend) from error
                    missing[part] = str(error)
                    continue
                path = folder / file
                rows = pq.read_metadata(path).num_rows
                files[file] = {"rows": rows, "sha256": sha256_file(path), **source}
                write_json(folder / UNFINISHED, {"format": FORMAT, "files": files})
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_json(
                folder / MANIFEST,
                {"format": FORMAT, "files": files, "missing": missing, "created": created},
            )
            (folder / UNFINISHED).unlink(missing_ok=True)
        return missing

    def _wanted(self, torchvision: Path | None) -> list[str]:
        if torchvision is None:
            return list(self.parts)
        if self.torchvision is None:
            raise UserError(f"task {self.record.name}: torchvision does not have it", possible="the hub")
        return [*self.torchvision.splits, *self.ood]

    def _done(self, folder: Path, *, from_torchvision: bool) -> dict[str, Any]:
        """Return the facts of the parts that are whole.

        Raises:
            UserError: If the task is prepared from the other source.
        """
        name = next((name for name in (MANIFEST, UNFINISHED) if (folder / name).exists()), None)
        content = read_object(folder / name) if name else {}
        if content.get("format") != FORMAT:
            return {}
        whole = {}
        for file, facts in content["files"].items():
            # Two sources may divide the same images differently: training data of one and test data of the
            # other could share some.
            strange = file.removesuffix(".parquet") in ALWAYS and from_torchvision != _is_torchvisions(facts)
            if strange and name == MANIFEST:
                raise UserError(
                    f"task {self.record.name}: prepared from {facts['source']}",
                    mend=f"remove {folder} to prepare it from another source",
                )
            if not strange and _is(folder / file, facts["sha256"]):
                whole[file] = facts
        return whole

    def _write(self, folder: Path, name: str, torchvision: Path | None) -> dict[str, Any]:
        """Write one part; return what to record of its source."""
        path = folder / f"{name}.parquet"
        if torchvision is not None and self.torchvision is not None and name in self.torchvision.splits:
            return self.torchvision.write(path, name, torchvision)
        part = self.parts[name]
        placed = folder / SOURCES / name
        if part.convert and part.by_hand and placed.is_dir():
            write_examples(path, map(part.convert, read_tables(placed)))
            return {"source": f"{SOURCES}/{name}", "revision": None}
        if part.hub is None:
            raise UserError(f"not on the hub: place {part.by_hand} in {placed}, then prepare again")
        data = part.hub.load()
        if part.convert:
            write_examples(path, map(part.convert, _rows(data)))
        else:
            plain = _plain(data)
            with atomic_writer(path) as file:
                plain.to_parquet(file)
        return part.hub.describe()


def _rows(data: Any) -> Iterator[Row]:
    for batch in data.iter(batch_size=BATCH_ROWS):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _plain(data: Any) -> Any:
    """Drop what is no sample, and keep images as their bytes."""
    import datasets

    data = data.remove_columns([name for name in data.column_names if name.startswith("__")])
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def _is_torchvisions(facts: Mapping[str, Any]) -> bool:
    return str(facts["source"]).startswith("torchvision.")


def _is(path: Path, sha256: str) -> bool:
    return path.exists() and remembered_hash([path], "sha256", lambda: sha256_file(path)) == sha256
