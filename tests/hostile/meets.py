"""The commands that could meet what a stranger sent: a module and its words each, for a folder that holds it.

``{goods}`` is the folder of what is good (tests/hostile/good.py), keys included.
"""

from __future__ import annotations

INFO = "shards.info set"
PLOT = "shards.info set --plot x.png"
VERIFY = "shards.verify set"
SIGN = "shards.sign set --key {goods}/mine.pem"
RELABEL = "shards.relabel set --noise 0.3 --force"
AUDIT = "shards.audit {goods}/labels.npy --against set"
REWRITE = "shards.write --source webdataset:set --noise 0 --out out --workers 1"
REINDEX = "shards.index set"
TRAIN = (
    "pretrain.run --recipe cifar_resnet18_quick --shards set --noise 0.2 --run-dir run --recipe.epochs 1 "
    "--recipe.data.workers 0 --recipe.data.streams 8 --recipe.global_batch 32"
)
VALIDATE = f"{TRAIN.replace('--shards set', '--shards {goods}/set')} --validation set"
TRAIN_SIGNED = f"{TRAIN} --require-signature {{goods}}/mine.pub"
LAUNCH_SET = "slurm.launch pretrain --dry-run --shards set --noise 0.2"
OPENED = (INFO, VERIFY, SIGN, RELABEL, AUDIT, REWRITE, REINDEX, TRAIN, VALIDATE, TRAIN_SIGNED)
READ = (REWRITE, TRAIN)

INDEX = "shards.index tars"
INDEX_LABELS = "shards.index tars --label-column label"
WRITE_TAR = "shards.write --source webdataset:tars --noise 0 --out out --workers 1"
AUDIT_TAR = "shards.audit {goods}/labels.npy --against webdataset:tars"
TAR_TASK = "probes.run --plugin lp --checkpoint run --task wds:tars/x.tar,tars/x.tar,shifts=none"
CHECK_TARS = "probes.tasks check wds:tars/x.tar,tars/x.tar,shifts=none"
TARS = (INDEX, INDEX_LABELS, WRITE_TAR, AUDIT_TAR, TAR_TASK, CHECK_TARS)

WRITE_FOLDER = "shards.write --source imagefolder:pets --noise 0 --out out --workers 1"
TASK = "probes.run --plugin lp --checkpoint run --allow-overlap --task"
FOLDER_TASK = f"{TASK} imagefolder:pets,pets,shifts=none"
CHECK_FOLDER = "probes.tasks check imagefolder:pets,pets,shifts=none"
WRITE_TABLE = "shards.write --source parquet:tables/a.parquet --noise 0 --out out --workers 1"
TABLE_TASK = f"{TASK} parquet:tables/a.parquet,tables/a.parquet,shifts=none"
CHECK_TABLE = "probes.tasks check parquet:tables/a.parquet,tables/a.parquet,shifts=none"
TABLES = (WRITE_TABLE, TABLE_TASK, CHECK_TABLE)

PROBE = "probes.run --plugin lp --checkpoint run --task digits"
EXPORTS = (PROBE, "probes.encoders check checkpoint:run")
HEADS = ("probes.predict head --features features.npy", "probes.export head --onnx head.onnx")

REPORT = "probes.report results"
SHOW = "probes.results show results"
EXPORT = "probes.results export results"
ROWS = (
    *(REPORT, f"{REPORT} --latex", SHOW, EXPORT, f"{EXPORT} --format latex", "probes.results query results"),
    "probes.results trace 0 --results results",
)

CURVES = "pretrain.curves run"
EXPORT_RUN = "pretrain.export run --out out"
GO_ON = "pretrain.run --recipe quickstart --shards {goods}/set --noise 0.2 --run-dir run"
STATUS = "slurm.launch status run"
LOGS = "slurm.launch logs run"
CANCEL = "slurm.launch cancel run"
RESUME = "slurm.launch resume run"
STATUS_SWEEP = "slurm.launch status sweeps/sweep"
SWEEPS = (STATUS_SWEEP, "slurm.launch logs sweeps/sweep", "slurm.launch cancel sweeps/sweep")

WRITE_BOMB = "shards.write --config bomb.yaml --out out"
LAUNCH_BOMB = "slurm.launch pretrain --dry-run --shards {goods}/set --cluster-file bomb.yaml"
BY_RECIPE = "pretrain.run --recipe ./recipe.yaml --shards {goods}/set --run-dir run"
