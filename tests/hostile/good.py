"""One good folder of each kind that people share, and how each is read."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from nml.cli import Parser
from nml.curves import read_curves, time_shares
from nml.errors import UserError
from nml.files import write_json
from nml.recipe import Recipe
from nml.untrusted import Untrusted
from plugins.registry import HEADS
from plugins.saved import load_head, save_head
from pretrain.checkpoints import complete, verify
from pretrain.engines import plan_reader
from pretrain.export import export_run
from pretrain.options import parse_options
from pretrain.same_run import check_same_data, check_same_run, describe_data, read_done
from probes.encoders.checkpoint import find_export, read_meta
from probes.encoders.torch_images import checked
from probes.reporting.build import build
from probes.results import read_rows, write_rows
from probes.results.row import arrow_schema
from probes.results.trace import trace
from shards.index import index_tars
from shards.manifest import index_digests
from shards.reader import DamagedSample, ShardReader
from shards.shardset import ShardSet
from shards.write import main as write_shards
from slurm.invocation import recorded
from slurm.journal import Journal
from slurm.logs import choose, find_log
from slurm.members import Member, Submission
from slurm.plan import make_plan
from slurm.pretraining import run_member
from slurm.receipts import told_ids, write_receipts
from slurm.same_run import check_same_words
from slurm.study import Study, SweepRequest
from slurm.table import aligned, launched_under, make_rows
from tests.hostile.sets import info_of, with_record
from tests.probes.conftest import write_export
from tests.probes.reporting.made_up import make_row

Labels = tuple[int | str, int | str]
EVERY = 23


def digits_set(folder: Path) -> Path:
    """Write the validation part of the bundled digits at 0 and 0.2."""
    words = ["--source", "digits", "--split", "validation", "--noise", "0.2", "--force", "--workers", "1"]
    with redirect_stdout(io.StringIO()):
        write_shards([*words, "--out", str(folder)])
    return folder


def read_labels(folder: Path) -> Iterator[tuple[int, Labels]]:
    """Yield number, clean and noisy label of some samples, their images read as well."""
    shard_set = ShardSet.open(folder)
    reader = ShardReader(shard_set)
    for number in range(0, shard_set.num_samples, EVERY):
        with suppress(DamagedSample):
            reader.image(number)
        clean, noisy = (shard_set.index.supervision(number, name) for name in ("label", "label_n20"))
        yield number, (clean, noisy)


def without_digest(source: Path, folder: Path) -> Path:
    """Copy a set as the first versions wrote it, whose set.json does not vouch for itself."""
    shutil.copytree(source, folder)
    with_record(folder, lambda record: None)
    return folder


def fit_index(folder: Path) -> None:
    """Let set.json say that the index is the one that was written."""
    path = folder / "index.arrow"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    fitting = dataclasses.replace(info_of(folder), index_digests=index_digests(path), index_sha256=sha256)
    (folder / "set.json").write_text(json.dumps(fitting.as_json()))


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def foreign_tar(folder: Path, **members: bytes) -> Path:
    """Write a tar of four samples, an image, a class and a record each, and of further members."""
    folder.mkdir()
    files = [
        (f"{n}.{end}", data) for n in range(4) for end, data in (("png", png()), ("cls", b"%d" % (n % 2)))
    ]
    with tarfile.open(folder / "x.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (*files, *((name.replace("_", "."), data) for name, data in members.items())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return folder


def index_tar(folder: Path) -> None:
    index_tars(folder, label_column="", caption_column="", workers=1)


def export(folder: Path) -> Path:
    return write_export(folder)


def read_export(folder: Path) -> None:
    meta = read_meta(find_export(folder))
    checked(meta["preprocessing"], str(folder))


def head(folder: Path) -> Path:
    """Save a linear probe of three classes."""
    features, labels = torch.randn(30, 6), torch.arange(30).remainder(3)
    fitted = HEADS.load("lp")(epochs=1)
    fitted.fit(features, labels, validation=(features, labels), seed=1)
    save_head(
        folder, fitted, HEADS.find("lp"), dim=6, classes=("cat", "dog", "eel"), about={"encoder": "mine"}
    )
    return folder


def fit_head(folder: Path) -> None:
    record = json.loads((folder / "head.json").read_text())
    record["weights_sha256"] = hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest()
    (folder / "head.json").write_text(json.dumps(record))


def read_head(folder: Path) -> None:
    load_head(folder)


def rows(folder: Path) -> Path:
    """Write results of two levels and two heads."""
    made = [make_row(noise=noise, head=name) for noise in (0.0, 0.2) for name in ("lp", "nmtune")]
    made = [dataclasses.replace(row, singular_values=row.singular_values[:8]) for row in made]
    written = write_rows(folder, made)
    assert written is not None
    written.rename(written.with_name("r.parquet"))
    return folder


def report(folder: Path) -> None:
    """Make all of a report but its pictures, and follow a row back."""
    found = read_rows(folder)
    build(found)
    list(trace(found[0], features=folder))


def row_values(folder: Path) -> Path:
    """Write the values of some rows, which are made rows of when they are read."""
    rows(folder)
    (folder / "rows.json").write_text(json.dumps([dataclasses.asdict(row) for row in read_rows(folder)]))
    shutil.rmtree(folder / "rows")
    return folder


def report_values(folder: Path) -> None:
    (folder / "rows").mkdir()
    try:
        values: list[Any] = json.loads((folder / "rows.json").read_text())
        table = pa.Table.from_pylist(values, schema=arrow_schema())
        pq.write_table(table, folder / "rows" / "r.parquet")
    # What is of no such type is no row that anybody could write.
    except Exception:
        return
    report(folder)


def checkpoint(folder: Path) -> Path:
    """Write a checkpoint's folder as the engines of torch leave it, with a plan and a marker."""
    import torch.distributed.checkpoint as dcp

    state = {"network": {"weight": torch.zeros(2)}, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    with warnings.catch_warnings():
        # That there are no other ranks is what this is for.
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "state"), no_dist=True)
    complete(folder, {"step": 4, "world_size": 1})
    return folder


def read_checkpoint(folder: Path) -> None:
    verify(folder)
    plan_reader.read_plan(folder / "state")


def fit_checkpoint(folder: Path) -> None:
    complete(folder, {"step": 4, "world_size": 1})


def recipe(folder: Path) -> Path:
    """Write a recipe with an alias in it."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        "source: &s here\nexpect: *s\nepochs: 3\nmodel: {name: resnet18, kwargs: {drop_path_rate: 0.1}}\n"
        "data: {size: 32, test_size: 32, scale: [0.5, 1.0]}\noptimizer: {name: adamw, betas: [0.9, 0.95]}\n"
    )
    return folder


def read_recipe(folder: Path) -> None:
    """Read a recipe as the command does, which ends with status 2 where it is none."""
    parser = Parser("fuzz", "Read a recipe.")
    parser.add_argument("--recipe", type=Recipe, default=Recipe(), sub_configs=True)
    with suppress(SystemExit):
        parser.parse_args(["--recipe", str(folder / "recipe.yaml")])


TOKEN = "nml-0123456789ab"
STEP = {
    "event": "step",
    "step": 1,
    "epoch": 0.5,
    "loss": 2.25,
    "lr": 0.1,
    "samples_per_s": 52.0,
    "useful_s": 1.5,
    "lost_s": {"startup": 2.0, "down": 0.0, "other": 0.0},
    "time": 1796031157.5,
}


def run_folder(folder: Path, shard_set: Path) -> Path:
    """Write a run of two steps as pre-training leaves it, with a checkpoint and its export."""
    export(folder)
    step = folder / "checkpoints/step-00000002"
    checkpoint(step)
    shutil.copytree(folder / "export", step / "export")
    fit_checkpoint(step)
    words = ["--recipe", "quickstart", "--shards", str(shard_set), "--noise", "0.2", "--run-dir", str(folder)]
    (folder / "config.yaml").write_text(parse_options(words)[1])
    write_json(folder / "data.json", describe_data(ShardSet.open(shard_set), "n20"))
    lines = [STEP, STEP | {"step": 2, "epoch": 1.0, "time": 1796031158.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "DONE.json", {"step": 2, "epochs": 1, "seconds": 3.0})
    return folder


def read_run(folder: Path, shard_set: Path, command: str) -> None:
    """Read a run as what continues it, exports it, draws it and tells how far it is."""
    for read in (
        lambda: check_same_run(folder, command),
        lambda: check_same_data(folder, ShardSet.open(shard_set), "n20"),
        lambda: read_done(folder),
        lambda: export_run(folder, None, str(folder / "out")),
        lambda: time_shares([read_curves(folder)]),
        lambda: aligned(make_rows(launched_under(folder))),
    ):
        with suppress(UserError, Untrusted):
            read()


def launched(folder: Path) -> Path:
    """Write what the launcher keeps of a run that Slurm has run twice, and of a sweep."""
    run, launch = folder / "run", folder / "run/launch"
    member = Member(
        name="pretrain run",
        argv=("python", "-m", "pretrain.run", "--seed", "1"),
        record=str(launch / "attempts"),
        done=str(run / "DONE.json"),
        progress=str(run / "checkpoints"),
        distributed=True,
        cwd=str(folder),
    )
    submission = Submission(
        stage="pretrain", token=TOKEN, snapshot=str(folder), members=(member,), max_idle_attempts=5
    )
    journal = Journal(launch)
    for event, more in (("submitting", {}), ("submitted", {"jobs": ["12_0"]})):
        journal.note(event, submission, **more)
    submission.write(launch / f"{TOKEN}.json")
    write_json(launch / "command.json", {"words": ["pretrain", "--seed", "1"], "cwd": str(folder)})
    for number in (0, 1):
        attempt = launch / f"attempts/12_0-00{number}"
        write_json(attempt / "open.json", {"job": "12_0", "step": 0, "time": 1.0, "attempt": attempt.name})
        write_json(attempt / "close.json", {"outcome": "failed", "reason": "exit status 1", "status": 1})
    (launch / "12_0_0_log.out").write_text("step 1\n")
    study = Study(arms=(SweepRequest(noise=("0", "0.2"), name="sweep", base=folder),))
    arms = [{**dataclasses.asdict(arm), "base": str(folder)} for arm in study.arms]
    write_json(study.folder / "sweep.json", {"arms": arms, "sets": []})
    for part in make_plan(study, run_member):
        if part.member.probe:
            told_ids(part.member.probe.receipts).parent.mkdir(parents=True, exist_ok=True)
            write_json(told_ids(part.member.probe.receipts), {"lp": ["a"]})
            write_receipts(part.member.probe)
    return folder


def read_launched(folder: Path) -> None:
    """Show, follow and go on with what was launched, as far as a reader comes without a cluster."""
    run = folder / "run"
    for read in (
        lambda: aligned(make_rows(launched_under(run))),
        lambda: aligned(make_rows(launched_under(folder / "sweeps/sweep"))),
        lambda: find_log(choose(launched_under(run), None), 0),
        lambda: recorded(run / "launch"),
        lambda: Journal(run / "launch").unanswered(),
        lambda: check_same_words(Submission.read(run / f"launch/{TOKEN}.json").members[0], run / "launch"),
    ):
        with suppress(UserError, Untrusted, OSError):
            read()
