"""What ``probes.run`` and ``probes.tune`` do alike: open what is asked for, measure it, tell what it gave."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from nml import digits
from nml.files import write_json
from nml.levels import parse_ratio
from probes.downstream_noise import SYMMETRIC, open_model
from probes.encoders import Settings, open_checkpoint, open_encoders
from probes.encoders.api_keys import named_keys
from probes.encoders.encoder import Encoder
from probes.encoders.endpoint import print_costs
from probes.encoders.feature_files import FileEncoder
from probes.encoders.registry import newest_run
from probes.encoders.run_steps import open_steps
from probes.features import FeatureStore
from probes.fitting import check_device
from probes.head_code import earlier_code
from probes.heads import HeadChoice
from probes.matching import check_files, check_match, check_target, check_texts
from probes.options import Options
from probes.probing import Plan, Probe
from probes.results import read_rows
from probes.results.row import spectra_note
from probes.spec import split_spec
from probes.summary import summary_table
from probes.tasks import Task, open_task
from probes.tasks.overlap import check_overlap
from probes.tasks.registry import task_source


class Inputs(NamedTuple):
    """What a study reads.

    Attributes:
        encoders: The encoders.
        tasks: The tasks, each of a target that the heads take.
        device: Where to compute.
    """

    encoders: list[Encoder]
    tasks: list[Task]
    device: str


def open_inputs(options: Options, heads: Sequence[HeadChoice], argv: Sequence[str] | None) -> Inputs:
    """Open encoders and tasks, and look at everything a user can get wrong before any of the slow work.

    Args:
        options: What is asked for.
        heads: What is to be fitted.
        argv: The words of the command line; None for those of this process.

    Raises:
        UserError: Names the first thing that is impossible.
    """
    noises = _noises(options)
    keys = named_keys(options.encoder, options.allow_key, sys.argv[1:] if argv is None else argv)
    settings = Settings(
        device=options.device,
        batch_size=options.batch_size,
        keys=keys,
        signed_by=options.require_signature,
    )
    device = settings.torch_device()
    check_device(device)
    paths = [Path(path) for path in options.checkpoint]
    if not paths and not options.encoder:
        paths = [newest_run()]
        print(f"no encoder named: the newest finished run stands in ({paths[0]})")
    for text in options.downstream_model:
        if text != SYMMETRIC:
            open_model(text)
    tasks = [open_task(text, Path(options.tasks_root)) for text in options.tasks]
    for task in tasks:
        check_target(heads, task, noises)
    if options.steps:
        encoders = open_steps(paths, options.steps, settings)
    else:
        encoders = [open_checkpoint(path, settings) for path in paths]
    for text in options.encoder:
        encoders += open_encoders(text, settings)
    for encoder in encoders:
        check_texts(heads, encoder)
    for encoder, task in itertools.product(encoders, tasks):
        check_match(encoder, task, views=options.views)
    # Ready features are not computed from the samples, which may be stand-ins then.
    if not all(isinstance(encoder, FileEncoder) for encoder in encoders):
        for text, task in zip(options.tasks, tasks, strict=True):
            published = task_source(split_spec(text).kind).record.published
            shared = check_overlap(task, published=published, allowed=options.allow_overlap)
            if shared:
                print(shared)
    for encoder in encoders:
        for line in check_files(encoder, tasks, allow_overlap=options.allow_overlap):
            print(line)
    if not options.task:
        print(digits.NOTICE)
    return Inputs(encoders, tasks, device)


def plan_of(options: Options, heads: Sequence[HeadChoice], device: str, heads_folder: str | None) -> Plan:
    """Return what to measure on every (encoder, task).

    Args:
        options: What is asked for.
        heads: What is to be fitted.
        device: Where to compute.
        heads_folder: Where what is fitted is saved; None for nowhere.
    """
    return Plan(
        heads=heads,
        fractions=[Fraction(str(fraction)) for fraction in options.fractions],
        seeds=range(options.seeds),
        noises=_noises(options),
        noise_models=options.downstream_model,
        views=options.views,
        convention=options.svd,
        head_spectra=options.head_spectra,
        device=device,
        results=Path(options.results),
        store=FeatureStore(Path(options.features)),
        heads_folder=Path(heads_folder) if heads_folder else None,
    )


def measure(
    options: Options, encoders: Sequence[Encoder], measurements: Sequence[Probe], *, saved: str
) -> int:
    """Measure what the results folder does not have, and print what it has then; return the exit status.

    Args:
        options: What is asked for.
        encoders: The encoders, whose costs are told.
        measurements: What is to be measured.
        saved: What is saved, before the name of its folder.
    """
    results = Path(options.results)
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
    # Where every fit failed there may be none.
    rows = read_rows(results, ids)
    if options.receipt:
        ids_of = {
            head: sorted(row.row_id for row in rows if row.head == head)
            for head in {row.head for row in rows}
        }
        write_json(Path(options.receipt), ids_of)
    if rows:
        print(summary_table(rows))
        shifted = {row.encoder_hash + row.task: False for row in rows}
        shifted |= {row.encoder_hash + row.task: True for row in rows if row.domain == "ood"}
        print(f"\n{spectra_note(shifted.values())}")
    for folder in sorted({probe.plan.heads_folder for probe in measurements if probe.plan.heads_folder}):
        print(f"{saved}: {folder}")
    print(f"results: {results}")
    failed = sorted({name for probe in measurements for name, _ in probe.failed})
    if failed:
        print(f"error: no result of some fits of {', '.join(failed)}, see above", file=sys.stderr)
    return int(bool(failed))


def _noises(options: Options) -> list[Fraction]:
    return [parse_ratio(ratio, where="--downstream-noise") for ratio in options.downstream_noise]
