"""What a stranger may send, and the commands that may meet it."""

from __future__ import annotations

import os
import pickle
import tarfile
from typing import NamedTuple

import pyarrow as pa

from tests.hostile import good
from tests.hostile.made import (
    BOMB,
    DEEP,
    ESCAPE,
    RECIPE,
    Make,
    a_file,
    a_head,
    a_pipe,
    a_run,
    a_table,
    a_tar,
    an_image,
    broken_tar,
    eps,
    export_file,
    first_shard,
    huge_png,
    launched,
    level,
    linked_image,
    linked_lock,
    manifest,
    many_scans,
    member,
    meta,
    negative,
    of,
    pickled_head,
    preprocessed,
    recorded,
    repeated,
    row_table,
    rows,
    set_file,
    unfinished,
)
from tests.hostile.meets import (
    AUDIT,
    BY_RECIPE,
    CANCEL,
    CHECK_FOLDER,
    CURVES,
    EXPORT,
    EXPORT_RUN,
    EXPORTS,
    FOLDER_TASK,
    GO_ON,
    HEADS,
    INDEX,
    INDEX_LABELS,
    INFO,
    LAUNCH_BOMB,
    LAUNCH_SET,
    LOGS,
    OPENED,
    PLOT,
    READ,
    RELABEL,
    REPORT,
    RESUME,
    REWRITE,
    ROWS,
    SHOW,
    STATUS,
    SWEEPS,
    TABLES,
    TARS,
    TRAIN,
    VERIFY,
    WRITE_BOMB,
    WRITE_FOLDER,
    WRITE_TAR,
)
from tests.hostile.sets import filled, outside

STEP = "checkpoints/step-00000002"
JOURNAL = "run/launch/jobs.jsonl"
ATTEMPT = "run/launch/attempts/12_0-001"
OF_A_LAUNCH = (STATUS, LOGS, CANCEL)


class Input(NamedTuple):
    """Something from elsewhere.

    Attributes:
        make: Makes it in a folder; the second argument holds good folders of each kind.
        commands: Who must meet it.
        status: How they end; 2 is one line of error.
        unmoved: Who may meet it or not look that far, and do what they are asked to.
    """

    make: Make
    commands: tuple[str, ...]
    status: int = 2
    unmoved: tuple[str, ...] = ()


INPUTS: dict[str, Input] = {
    "a shard above the set": Input(first_shard(name="../../thesis.tar"), OPENED, unmoved=(LAUNCH_SET,)),
    "a shard anywhere": Input(first_shard(name="/tmp/thesis.tar"), OPENED),
    "a shard called the folder": Input(first_shard(name=".."), OPENED),
    "a shard with an escape": Input(first_shard(name="\x1b[2J.tar"), OPENED),
    "a shard of text": Input(first_shard(bytes="many"), OPENED),
    "a shard of less than nothing": Input(first_shard(samples=-1), OPENED),
    "a fingerprint that is a path": Input(recorded(fingerprint="../../x"), OPENED),
    "a hash that is a path": Input(recorded(manifest_sha256="../../x"), OPENED),
    "samples of text": Input(recorded(num_samples="68"), OPENED),
    "more samples than there are": Input(recorded(num_samples=10**9), OPENED),
    "classes that are a number": Input(recorded(classes=10), OPENED),
    "a level in the clean column": Input(level(column="label"), OPENED),
    "a level of text": Input(level(realised="much"), OPENED),
    "a parent that is none": Input(recorded(parent={"x": "y"}), OPENED),
    "an escape in the source": Input(recorded(source=ESCAPE), (INFO, REWRITE), status=0),
    "deep set.json": Input(set_file(DEEP), OPENED),
    "a number of 5,000 digits": Input(set_file(b'{"format": 1' + b"0" * 5000 + b"}"), OPENED),
    "set.json that is a list": Input(set_file(b"[]"), OPENED),
    "set.json without an end": Input(set_file(b'"' + b"x" * (40 << 20)), (INFO, TRAIN)),
    "set.json that is a pipe": Input(a_pipe("set.json"), (INFO, VERIFY, RELABEL, TRAIN)),
    "an index that is a pipe": Input(a_pipe("index.arrow"), (RELABEL, TRAIN), unmoved=(VERIFY,)),
    "a manifest that is a pipe": Input(a_pipe("manifest.parquet"), (RELABEL,), unmoved=(VERIFY,)),
    "deep stats.json": Input(set_file(DEEP, "stats.json"), (PLOT, RELABEL), unmoved=(VERIFY,)),
    "transitions outside": Input(
        set_file(b'{"classes": [], "levels": {"n20": {"transitions": [[9, 9, 9]]}}}', "stats.json"),
        (PLOT,),
        unmoved=(RELABEL,),
    ),
    "an index with offsets outside": Input(
        of("key", outside), (*READ, RELABEL), unmoved=(VERIFY, INFO, LAUNCH_SET)
    ),
    "an index with images of exabytes": Input(
        of("image_size", lambda a: filled(a, 2**62)), READ, unmoved=(RELABEL, VERIFY)
    ),
    "an index with labels of no class": Input(
        of("label_n20", lambda a: filled(a, 10)), READ, unmoved=(RELABEL, VERIFY)
    ),
    "an index with shards of no set": Input(
        of("shard", lambda a: filled(a, 7)), READ, unmoved=(RELABEL, VERIFY)
    ),
    "an index with nothing": Input(
        of("label", lambda a: filled(a, None)), (RELABEL,), unmoved=(AUDIT, REWRITE, VERIFY)
    ),
    "an index of other types": Input(of("label", lambda a: a.cast(pa.string())), (*READ, RELABEL)),
    "an index that is cut": Input(set_file(b"ARROW1\0\0", "index.arrow"), (*READ, RELABEL)),
    "a manifest without keys": Input(
        manifest(lambda t: t.drop_columns(["key"])), (VERIFY,), status=1, unmoved=(RELABEL, AUDIT)
    ),
    "a manifest of no table": Input(
        set_file(b"PAR1", "manifest.parquet"), (RELABEL,), unmoved=(VERIFY, AUDIT, REWRITE)
    ),
    "a manifest of gigabytes": Input(
        manifest(lambda t: repeated(t, "key")), (RELABEL,), unmoved=(VERIFY, AUDIT, REWRITE)
    ),
    "a deep record in a tar": Input(
        a_tar(z_png=good.png(), z_cls=b"1", z_json=DEEP),
        ("shards.index tars --label-column x",),
        unmoved=TARS,
    ),
    "a class that is a list": Input(
        a_tar(z_png=good.png(), z_json=b'{"label": [1, 2]}'), (INDEX_LABELS,), unmoved=TARS
    ),
    "a class of a megabyte": Input(a_tar(z_png=good.png(), z_cls=b"1" * (2 << 20)), TARS),
    "a class that is an escape": Input(
        a_tar(z_png=good.png(), z_cls=ESCAPE.encode()), (INDEX, WRITE_TAR), status=0, unmoved=TARS
    ),
    "a link in a tar": Input(member("y.json", tarfile.SYMTYPE, "/etc/hostname"), TARS),
    "a device in a tar": Input(member("y.json", tarfile.CHRTYPE), TARS),
    "a member above a tar": Input(member("../y.json"), TARS),
    "code in a tar": Input(a_tar(z_png=good.png(), z_pkl=pickle.dumps(os.system)), TARS),
    "a sparse member": Input(
        member(
            "y.json",
            **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(3 << 30)},
        ),
        TARS,
    ),
    "a member of less than nothing": Input(broken_tar(negative), TARS),
    "a tar that is cut": Input(broken_tar(lambda data: data[:700]), TARS),
    "PostScript called png": Input(an_image(eps), (WRITE_FOLDER, FOLDER_TASK), unmoved=(CHECK_FOLDER,)),
    "an image of 3.6 billion pixels": Input(
        an_image(huge_png), (FOLDER_TASK,), unmoved=(WRITE_FOLDER, CHECK_FOLDER)
    ),
    "a JPEG of 5,000 scans": Input(
        an_image(many_scans), (FOLDER_TASK,), unmoved=(WRITE_FOLDER, CHECK_FOLDER)
    ),
    "an image that is a link": Input(
        linked_image("pets/cat/99.png"), (WRITE_FOLDER, FOLDER_TASK), unmoved=(CHECK_FOLDER,)
    ),
    "a class that is a link": Input(
        linked_image("pets/eel"), (WRITE_FOLDER, FOLDER_TASK), unmoved=(CHECK_FOLDER,)
    ),
    "an image by its absolute path": Input(a_table(str), TABLES),
    "an image in a home": Input(a_table(lambda _: "~/private.png"), TABLES),
    "an image above the table": Input(a_table(lambda _: "../home/private.png"), TABLES),
    "an image behind a link": Input(a_table(lambda _: "link.png"), TABLES),
    "an image that is no path": Input(a_table(lambda _: "a\0b.png"), TABLES),
    "an image of a device": Input(a_table(lambda _: "/dev/zero"), TABLES),
    "an image in a text table": Input(
        a_table(str, "csv"), ("shards.write --source csv:tables/a.csv --noise 0 --out out --workers 1",)
    ),
    "weights to unpickle": Input(
        meta(library="open_clip", architecture="RN50", model_kwargs={"pretrained_image_path": "x.pt"}),
        EXPORTS,
    ),
    "a checkpoint to unpickle": Input(meta(model_kwargs={"checkpoint_path": "x.pt"}), EXPORTS),
    "weights to download": Input(meta(model_kwargs={"pretrained": True}), EXPORTS),
    "another place of weights": Input(meta(model_kwargs={"pretrained_cfg": {"file": "x.pt"}}), EXPORTS),
    "a model of a hub": Input(meta(architecture="hf-hub:timm/resnet18"), EXPORTS),
    "a model of a folder": Input(meta(library="open_clip", architecture="local-dir:/tmp"), EXPORTS),
    "a model of all memory": Input(meta(architecture="vit_giant_patch14_224", model_kwargs={}), EXPORTS),
    "a layer of all memory": Input(meta(model_kwargs={"num_classes": 10**12}), EXPORTS),
    "images of all memory": Input(preprocessed(input_size=[3, 10**6, 10**6]), EXPORTS),
    "preprocessing of text": Input(preprocessed(mean="x"), EXPORTS),
    "noise that is a list": Input(meta(noise=[1]), EXPORTS),
    "deep meta.json": Input(export_file("meta.json", DEEP), EXPORTS),
    "weights that are a pickle": Input(export_file("model.safetensors", pickle.dumps(os.system)), EXPORTS),
    "deep head.json": Input(a_head(DEEP), HEADS),
    "a head of no kind": Input(a_head(head=["lp"]), HEADS),
    "a head with other settings": Input(a_head(hyper_parameters={"x": 1}), HEADS),
    "classes of a head that are none": Input(a_head(classes=None), HEADS),
    "a head that is a pickle": Input(pickled_head, HEADS),
    "aliases in a config": Input(a_file("bomb.yaml", BOMB), (WRITE_BOMB,), unmoved=(LAUNCH_BOMB,)),
    "a deep config": Input(a_file("bomb.yaml", "- " * 5000), (WRITE_BOMB,), unmoved=(LAUNCH_BOMB,)),
    "a config of Python": Input(
        a_file("bomb.yaml", "noise: !!python/object/apply:os.system [id]"),
        (WRITE_BOMB,),
        unmoved=(LAUNCH_BOMB,),
    ),
    "a recipe that unpickles": Input(
        a_file("recipe.yaml", RECIPE % "pretrained_image_path: x.pt, weights_only: false"), (BY_RECIPE,)
    ),
    "a recipe with aliases": Input(a_file("recipe.yaml", BOMB), (BY_RECIPE,)),
    "a lock that is a link": Input(linked_lock, (TRAIN,)),
    "escapes in a row": Input(rows(encoder=ESCAPE), ROWS),
    "zeros in a row": Input(rows(task="t\0"), ROWS),
    "a row without a task": Input(row_table(lambda t: t.drop_columns(["task"])), ROWS),
    "a row of gigabytes": Input(row_table(lambda t: repeated(t, "task")), ROWS),
    "rows that are none": Input(row_table(lambda t: t.slice(0, 0)), ROWS),
    "a row of no samples": Input(rows(n_test=0), ROWS),
    "a row of no number": Input(rows(noise_ratio=float("nan")), ROWS),
    "a row of another domain": Input(rows(domain="\u202e"), ROWS),
    "a row whose study is deep": Input(rows(study=DEEP.decode()), ROWS),
    "a row whose study is none": Input(rows(study='{"candidates": 3}'), ROWS),
    "formulas in a row": Input(
        rows(encoder="a$\\badcommand{$b", head="=HYPERLINK(1)"), (f"{REPORT} --latex", EXPORT, SHOW), status=0
    ),
    "deep metrics": Input(a_run("metrics.jsonl", DEEP + b"\n"), (CURVES,), unmoved=(STATUS, GO_ON)),
    "steps of text": Input(
        a_run("metrics.jsonl", '{"step": "x", "event": "step"}\n'), (CURVES,), unmoved=(STATUS,)
    ),
    "steps without an end": Input(
        a_run("metrics.jsonl", '{"step": 1e999, "epoch": 1e-300}\n'), (CURVES,), unmoved=(STATUS,)
    ),
    "metrics that are a list": Input(a_run("metrics.jsonl", "[1]\n"), (CURVES,), unmoved=(STATUS,)),
    "a run of aliases": Input(a_run("config.yaml", BOMB), (GO_ON,), unmoved=(STATUS, CURVES)),
    "a run of Python": Input(
        a_run("config.yaml", "recipe: !!python/name:os.system x"), (GO_ON,), unmoved=(STATUS,)
    ),
    "data of text": Input(unfinished(a_run("data.json", '{"set_fingerprint": "x", "level": "x"}')), (GO_ON,)),
    "a run done in text": Input(
        a_run("DONE.json", '{"step": [], "epochs": {}}'), (GO_ON,), unmoved=(STATUS, CURVES)
    ),
    "a deep marker": Input(
        unfinished(a_run(f"{STEP}/COMPLETE.json", DEEP)), (EXPORT_RUN, GO_ON), unmoved=(STATUS,)
    ),
    "a marker of files elsewhere": Input(
        unfinished(
            a_run(
                f"{STEP}/COMPLETE.json",
                '{"format": "nml-checkpoint/1", "files": {"../../../thesis.tex": "0"}}',
            )
        ),
        (EXPORT_RUN, GO_ON),
    ),
    "a plan that runs": Input(
        unfinished(a_run(f"{STEP}/state/.metadata", pickle.dumps(os.system), complete=True)), (GO_ON,)
    ),
    "a job that is an option": Input(launched(JOURNAL, jobs=["--user=me"]), OF_A_LAUNCH),
    "jobs for more than there are": Input(launched(JOURNAL, jobs=["1", "2"]), OF_A_LAUNCH),
    "a token of nothing": Input(launched(JOURNAL, token=""), OF_A_LAUNCH),
    "members that are numbers": Input(launched(JOURNAL, members=[[]]), OF_A_LAUNCH),
    "a deep journal": Input(launched(JOURNAL, DEEP + b"\n"), OF_A_LAUNCH),
    "a journal that is a list": Input(launched(JOURNAL, "[1]\n"), OF_A_LAUNCH),
    "a reason of a list": Input(launched(f"{ATTEMPT}/close.json", reason=[]), (STATUS,), status=0),
    "an escape in a reason": Input(launched(f"{ATTEMPT}/close.json", reason=ESCAPE), (STATUS,), status=0),
    "an escape in a log": Input(launched("run/launch/12_0_0_log.out", ESCAPE), (LOGS,), status=0),
    "words that are numbers": Input(launched("run/launch/command.json", words=[1]), (RESUME,)),
    "deep words": Input(launched("run/launch/command.json", DEEP), (RESUME,)),
    "a sweep of text": Input(launched("sweeps/sweep/sweep.json", recipes="quickstart"), SWEEPS),
    "a sweep elsewhere": Input(launched("sweeps/sweep/sweep.json", base=["/"]), SWEEPS),
    "a sweep named elsewhere": Input(launched("sweeps/sweep/sweep.json", name="../../x"), SWEEPS),
    "options of a sweep that are none": Input(launched("sweeps/sweep/sweep.json", options={"x": 1}), SWEEPS),
    "a deep sweep": Input(launched("sweeps/sweep/sweep.json", DEEP), SWEEPS),
}
