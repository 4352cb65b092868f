"""``python -m probes.tune``: encoders fine-tuned on tasks, measured in-domain and out-of-domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nml import cli
from nml.cli import run
from nml.errors import UserError
from probes.options import Options, check_tasks

EXAMPLES = """\
examples:
  python -m probes.tune --method lp-ft --checkpoint runs/a
      the newest checkpoint of a run, on the bundled digits: a linear probe first, then all weights
  python -m probes.tune --method full,lora,bitfit,lp-ft --regulariser none,nmtune --encoder timm:resnet50 \\
      --task parquet:train.parquet,test.parquet,sketch=sketch.parquet --seeds 3
      all of them; rows join those of probes.run, and the report compares them
  python -m probes.tune --method lp-ft --wise-ft 0.25 0.5 0.75 1 --checkpoint runs/a
      one training, whose weights are interpolated with those before it
  python -m probes.tune --method lora --hyper rank=4 lr=0.001,0.0001 --tries 1 --checkpoint runs/a
      validation data chooses the learning rate

encoders: images, as networks of their own: runs, timm:, open_clip:, transformers:, tuned:
"""
# What heads have, and fine-tuning not.
_NOT_HERE = ("plugin", "save_heads")


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Options):
    """What is fine-tuned on what; the options that heads have, too, mean the same.

    Raises:
        UserError: If a value is impossible.
    """

    method: str = field(
        default="lp-ft", metadata={"help": "full, lora, bitfit, lp-ft; several: comma-separated"}
    )
    regulariser: str = field(
        default="none", metadata={"help": "none, nmtune (its terms on the tuned features); comma-separated"}
    )
    wise_ft: list[float] = field(
        default_factory=list,
        metadata={
            "help": "shares of the tuned weights in the network that is measured, 0 to 1; the rest is the "
            "encoder as it was with a linear probe"
        },
    )

    save: str | None = field(
        default=None,
        metadata={"help": "folder to save the tuned networks in, which are encoders then: tuned:FOLDER/NAME"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.save and Path(self.save).exists() and not Path(self.save).is_dir():
            raise UserError(f"--save {self.save}: is a file", possible="a folder, new or not")
        for share in self.wise_ft:
            if not 0 <= share <= 1:
                raise UserError(f"--wise-ft {share:g}", possible="0 to 1")


def _checked(namespace: Any) -> TuneOptions:
    options = TuneOptions(**cli.given_options(namespace, TuneOptions, leave_out=_NOT_HERE))
    check_tasks(options.tasks)
    return options


def build_parser() -> cli.Parser:
    """Return the parser of the command."""
    parser = cli.Parser(
        "python -m probes.tune",
        "Fine-tune encoders on tasks and measure them, in-domain and out-of-domain.",
        epilog=EXAMPLES,
        check=_checked,
    )
    cli.add_options(parser, TuneOptions, leave_out=_NOT_HERE)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune what the command line or a config file names; return 1 if a training gave no result."""
    options = _checked(build_parser().parse_args(argv))
    from probes.command import measure, open_inputs, plan_of
    from probes.heads import TRIES
    from probes.probing import Probe
    from probes.tuning.choosing import choose_methods
    from probes.tuning.measurement import tunings_of

    methods = choose_methods(
        options.method, options.regulariser, options.hyper, options.wise_ft, tries=options.tries or TRIES
    )
    encoders, tasks, device = open_inputs(options, methods, argv)
    measurements: list[Probe] = []
    for task in tasks:
        measurements += tunings_of(encoders, task, plan_of(options, methods, device, options.save))
    return measure(options, encoders, measurements, saved="tuned")


if __name__ == "__main__":
    run(main)
