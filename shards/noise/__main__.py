"""``python -m shards.noise list`` and ``python -m shards.noise check NAME``."""

from __future__ import annotations

from nml.cli import Parser, refuse_unused, run
from nml.conformance import outcomes, show
from nml.errors import UserError
from shards.noise import NOISE_MODELS
from shards.noise.conformance import CHECKS, CLASSES, SAMPLES, Subject

EPILOG = f"""\
examples:
  python -m shards.noise list
  python -m shards.noise check symmetric
  python -m shards.noise check transition-matrix --model-file matrix.csv
      the file is for {SAMPLES} samples, sample-000 to sample-{SAMPLES - 1}, of {CLASSES} classes
"""


def main(argv: list[str] | None = None) -> int:
    """List the noise models, or hold one to what a plan promises; return 1 if a check failed."""
    parser = Parser("python -m shards.noise", "List or check noise models.", epilog=EPILOG, config=False)
    parser.add_argument("command", type=str, choices=["list", "check"], help="what to do")
    parser.add_argument("name", type=str, nargs="?", default="", help="the noise model to check")
    parser.add_argument("--model-file", type=str, default=None, help="file that the noise model reads")
    arguments = parser.parse_args(argv)
    refuse_unused(parser, arguments, {"name": ("check",), "model_file": ("check",)})
    if arguments.command == "list":
        NOISE_MODELS.show()
        return 0
    if not arguments.name:
        raise UserError("check: no noise model named", mend="see: python -m shards.noise list")
    model = NOISE_MODELS.load(arguments.name, where="noise model")
    # What the model says of a file that it lacks is the user's to read, not a promise broken.
    with NOISE_MODELS.blaming(arguments.name):
        model(arguments.model_file)
    owner = NOISE_MODELS.find(arguments.name).owner
    return show(outcomes(CHECKS, Subject(model, arguments.model_file)), f"{arguments.name} of {owner}")


if __name__ == "__main__":
    run(main)
