"""``python -m probes.run``: heads on frozen encoders, measured in-domain and out-of-domain."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from nml import digits
from nml.cli import Parser, run
from nml.errors import UserError
from nml.files import write_json
from nml.levels import parse_ratio
from nml.sources import find_task
from plugins.registry import HEADS
from probes.spec import split_spec
from probes.tasks.registry import TASKS

EXAMPLES = """\
examples:
  python -m probes.run --plugin nmtune
      the newest finished pre-training run in runs/, on the bundled digits
  python -m probes.run --plugin lp,mlp,nmtune --checkpoint runs/a runs/b --seeds 3 --fractions 0.1 0.5 1
      two encoders, three heads, three seeds; every encoder reads the data once
  python -m probes.run --plugin lp --encoder timm:resnet50 --task parquet:train.parquet,test.parquet
      your own images; columns are found, or named: ...,image=img,label=y
  python -m probes.run --plugin nmtune --hyper lr=0.0001,0.001,0.01
      validation data chooses the learning rate
  python -m probes.run --config study.yaml
      a whole study in a file: the options above, without their dashes

tasks: python -m probes.tasks list      encoders: python -m probes.encoders list
"""


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(
        "python -m probes.run",
        "Train heads on the features of frozen encoders and measure them, in-domain and out-of-domain.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--plugin", type=str, default="lp,mlp,nmtune", help="heads, comma-separated")
    add("--checkpoint", type=str, nargs="+", default=[], help="pre-training runs, checkpoints or exports")
    add(
        "--encoder", type=str, nargs="+", default=[], help="other encoders: timm:NAME, transformers:NAME, ..."
    )
    add(
        "--task",
        type=str,
        nargs="+",
        default=["digits"],
        help="tasks: a name, or parquet:TRAIN,TEST and the like",
    )
    add("--results", type=str, default="results", help="folder of result rows")
    add("--features", type=str, default="features", help="folder of the feature store")
    add("--save-heads", type=str, default=None, help="folder to save the fitted heads in, for probes.predict")
    add("--receipt", type=str, default=None, help="JSON file to list the ids of the rows asked for in")
    add(
        "--allow-overlap",
        action="store_true",
        help="probe on your own data although training and test data share samples",
    )
    add("--tasks-root", type=str, default="data/tasks", help="folder of prepared tasks")
    add(
        "--allow-key",
        type=str,
        nargs="+",
        default=[],
        help="VARIABLE@HOST: the key in a variable that an encoder of a config file may send to a host; only "
        "on the command line",
    )
    add("--seeds", type=int, default=1, help="number of seeds")
    add("--fractions", type=float, nargs="+", default=[1.0], help="shares of the training data, above 0 to 1")
    add("--downstream-noise", type=float, nargs="+", default=[0.0], help="shares of training labels to flip")
    add(
        "--hyper",
        type=str,
        nargs="+",
        default=[],
        help="[HEAD.]NAME=VALUE[,VALUE...]; several: validation chooses",
    )
    add(
        "--tries",
        type=int,
        default=None,
        help="settings to try of each head on validation data, 4 if not given; 1: its defaults alone",
    )
    add("--views", type=int, default=0, help="augmented views of the training images to add")
    add(
        "--svd", type=str, default="raw", help="singular value convention: raw, row-centred or column-centred"
    )
    add(
        "--head-spectra",
        type=bool,
        default=True,
        help="also the spectrum of each head's transformed features",
    )
    add("--device", type=str, default="auto", help="cpu, cuda or auto")
    add("--batch-size", type=int, default=64, help="samples a forward pass of the encoder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that the command line or a config file names; return 1 if a head gave no result."""
    arguments = build_parser().parse_args(argv)
    _check(arguments)
    # Names first: a misspelt one is told before torch is even imported.
    for name in arguments.plugin.split(","):
        if name.strip():
            HEADS.find(name.strip())
    for text in arguments.task:
        find_task(TASKS, split_spec(text).kind)
    # Everything else a user can get wrong is looked at before any of the slow work.
    from probes.encoders import Settings, open_checkpoint, open_encoder
    from probes.encoders.api_keys import named_keys
    from probes.encoders.endpoint import print_costs
    from probes.encoders.feature_files import FileEncoder
    from probes.encoders.registry import newest_run
    from probes.features import FeatureStore
    from probes.fitting import check_device
    from probes.head_code import earlier_code
    from probes.heads import TRIES, choose_heads
    from probes.matching import check_files, check_match
    from probes.options import Plan
    from probes.probing import Probe, probes_of
    from probes.results import read_rows
    from probes.results.row import spectra_note
    from probes.summary import summary_table
    from probes.tasks import open_task
    from probes.tasks.overlap import check_overlap
    from probes.tasks.registry import task_source

    choose_heads(arguments.plugin, arguments.hyper, "image")
    words = sys.argv[1:] if argv is None else argv
    keys = named_keys(arguments.encoder, arguments.allow_key, words)
    settings = Settings(device=arguments.device, batch_size=arguments.batch_size, keys=keys)
    device = settings.torch_device()
    check_device(device)
    paths = [Path(path) for path in arguments.checkpoint]
    if not paths and not arguments.encoder:
        paths = [newest_run()]
        print(f"no encoder named: the newest finished run stands in ({paths[0]})")
    tasks = [open_task(text, Path(arguments.tasks_root)) for text in arguments.task]
    encoders = [open_checkpoint(path, settings) for path in paths]
    encoders += [open_encoder(text, settings) for text in arguments.encoder]
    for encoder, task in itertools.product(encoders, tasks):
        check_match(encoder, task, views=arguments.views)
    # Ready features are not computed from the samples, which may be stand-ins then.
    if not all(isinstance(encoder, FileEncoder) for encoder in encoders):
        for text, task in zip(arguments.task, tasks, strict=True):
            published = task_source(split_spec(text).kind).record.num_classes > 0
            shared = check_overlap(task, published=published, allowed=arguments.allow_overlap)
            if shared:
                print(shared)
    for encoder in encoders:
        for line in check_files(encoder, tasks, allow_overlap=arguments.allow_overlap):
            print(line)
    if arguments.task == ["digits"] and not _given(argv, "--task"):
        print(digits.NOTICE)
    results = Path(arguments.results)
    measurements: list[Probe] = []
    for task in tasks:
        plan = Plan(
            heads=choose_heads(
                arguments.plugin, arguments.hyper, task.modality, tries=arguments.tries or TRIES
            ),
            fractions=[Fraction(str(fraction)) for fraction in arguments.fractions],
            seeds=range(arguments.seeds),
            noises=[parse_ratio(ratio, where="--downstream-noise") for ratio in arguments.downstream_noise],
            views=arguments.views,
            convention=arguments.svd,
            head_spectra=arguments.head_spectra,
            device=device,
            results=results,
            store=FeatureStore(Path(arguments.features)),
            heads_folder=Path(arguments.save_heads) if arguments.save_heads else None,
        )
        measurements += probes_of(encoders, task, plan)
    identities = itertools.chain.from_iterable(probe.identities() for probe in measurements)
    for line in earlier_code(identities, results):
        print(line)
    # First what nobody works on, over the whole study; then, with nothing else to do, what others began.
    try:
        for wait in (False, True):
            for probe in measurements:
                probe.run(wait=wait)
    finally:
        # What was spent is told however the run ends.
        print_costs(encoders)
    ids = frozenset().union(*(probe.ids for probe in measurements))
    rows = [row for row in read_rows(results) if row.row_id in ids]
    if arguments.receipt:
        ids_of = {
            head: sorted(row.row_id for row in rows if row.head == head)
            for head in {row.head for row in rows}
        }
        write_json(Path(arguments.receipt), ids_of)
    if rows:
        print(summary_table(rows))
        shifted = {row.encoder_hash + row.task: False for row in rows}
        shifted |= {row.encoder_hash + row.task: True for row in rows if row.domain == "ood"}
        print(f"\n{spectra_note(shifted.values())}")
    if arguments.save_heads:
        print(f"heads: {arguments.save_heads}")
    print(f"results: {results}")
    failed = sorted({name for probe in measurements for name, _ in probe.failed})
    if failed:
        print(f"error: no result of some fits of {', '.join(failed)}, see above", file=sys.stderr)
    return int(bool(failed))


def _given(argv: Sequence[str] | None, flag: str) -> bool:
    return any(part.partition("=")[0] == flag for part in (sys.argv[1:] if argv is None else argv))


def _check(arguments: Any) -> None:
    """Refuse impossible values before any work starts."""
    possible = {
        "seeds": (arguments.seeds >= 1, "1 or more"),
        "tries": (arguments.tries is None or arguments.tries >= 1, "1 or more"),
        "views": (arguments.views >= 0, "0 or more"),
        "batch-size": (arguments.batch_size >= 1, "1 or more"),
        "fractions": (
            all(0 < part <= 1 for part in arguments.fractions),
            "above 0 to 1, for example 0.1 0.5 1",
        ),
        "svd": (
            arguments.svd in ("raw", "row-centred", "column-centred"),
            "raw, row-centred, column-centred",
        ),
    }
    for name, (right, values) in possible.items():
        if not right:
            raise UserError(f"--{name} {getattr(arguments, name.replace('-', '_'))}", possible=values)
    for ratio in arguments.downstream_noise:
        parse_ratio(ratio, where="--downstream-noise")
    for name in ("results", "features", "save-heads"):
        folder = Path(getattr(arguments, name.replace("-", "_")) or ".")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--{name} {folder}: is a file", possible="a folder, new or not")
    if arguments.receipt and Path(arguments.receipt).is_dir():
        raise UserError(f"--receipt {arguments.receipt}: is a folder", possible="a file, new or not")


if __name__ == "__main__":
    run(main)
