"""``python -m probes.run``: heads on frozen encoders, measured in-domain and out-of-domain."""

from __future__ import annotations

from collections.abc import Sequence

from nml.cli import run
from probes.options import parse_options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study that the command line or a config file names; return 1 if a head gave no result."""
    options = parse_options(argv)
    from probes.command import measure, open_inputs, plan_of
    from probes.heads import TRIES, check_classes, choose_heads
    from probes.probing import Probe, probes_of

    encoders, tasks, device = open_inputs(options, choose_heads(options.plugin, options.hyper, "image"), argv)
    measurements: list[Probe] = []
    for task in tasks:
        heads = choose_heads(options.plugin, options.hyper, task.modality, tries=options.tries or TRIES)
        check_classes(heads, task.name, len(task.classes))
        measurements += probes_of(encoders, task, plan_of(options, heads, device, options.save_heads))
    return measure(options, encoders, measurements, saved="heads")


if __name__ == "__main__":
    run(main)
