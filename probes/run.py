"""``python -m probes.run``: heads on frozen encoders, measured in-domain and out-of-domain."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from nml import digits
from nml.cli import run
from nml.files import write_json
from nml.levels import parse_ratio
from nml.sources import find_task
from plugins.registry import HEADS
from probes.options import parse_options
from probes.spec import split_spec
from probes.tasks.registry import TASKS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that the command line or a config file names; return 1 if a head gave no result."""
    options = parse_options(argv)
    # Names first: a misspelt one is told before torch is even imported.
    for name in options.heads:
        HEADS.find(name)
    for text in options.tasks:
        find_task(TASKS, split_spec(text).kind)
    # Everything else a user can get wrong is looked at before any of the slow work.
    from probes.downstream_noise import SYMMETRIC, open_model
    from probes.encoders import Settings, open_checkpoint, open_encoders
    from probes.encoders.api_keys import named_keys
    from probes.encoders.endpoint import print_costs
    from probes.encoders.feature_files import FileEncoder
    from probes.encoders.registry import newest_run
    from probes.encoders.run_steps import open_steps
    from probes.features import FeatureStore
    from probes.fitting import check_device
    from probes.head_code import earlier_code
    from probes.heads import TRIES, check_classes, choose_heads
    from probes.matching import check_files, check_match, check_target, check_texts
    from probes.probing import Plan, Probe, probes_of
    from probes.results import read_rows
    from probes.results.row import spectra_note
    from probes.results.rowfiles import row_files
    from probes.summary import summary_table
    from probes.tasks import open_task
    from probes.tasks.overlap import check_overlap
    from probes.tasks.registry import task_source

    heads = choose_heads(options.plugin, options.hyper, "image")
    noises = [parse_ratio(ratio, where="--downstream-noise") for ratio in options.downstream_noise]
    words = sys.argv[1:] if argv is None else argv
    keys = named_keys(options.encoder, options.allow_key, words)
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
    results = Path(options.results)
    measurements: list[Probe] = []
    for task in tasks:
        plan = Plan(
            heads=choose_heads(options.plugin, options.hyper, task.modality, tries=options.tries or TRIES),
            fractions=[Fraction(str(fraction)) for fraction in options.fractions],
            seeds=range(options.seeds),
            noises=noises,
            noise_models=options.downstream_model,
            views=options.views,
            convention=options.svd,
            head_spectra=options.head_spectra,
            device=device,
            results=results,
            store=FeatureStore(Path(options.features)),
            heads_folder=Path(options.save_heads) if options.save_heads else None,
        )
        check_classes(plan.heads, task.name, len(task.classes))
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
    # Where every fit failed there may be none.
    rows = [row for row in read_rows(results) if row.row_id in ids] if row_files(results) else []
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
    if options.save_heads:
        print(f"heads: {options.save_heads}")
    print(f"results: {results}")
    failed = sorted({name for probe in measurements for name, _ in probe.failed})
    if failed:
        print(f"error: no result of some fits of {', '.join(failed)}, see above", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    run(main)
