"""``python -m pretrain.objectives list`` and ``python -m pretrain.objectives check NAME``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nml.cli import Parser, refuse_unused, run
from nml.conformance import outcomes, show
from nml.errors import UserError
from nml.objectives import OBJECTIVES
from nml.run_options import DEFAULT_ENGINE, EngineName

EPILOG = """\
examples:
  python -m pretrain.objectives list
  python -m pretrain.objectives check simclr
  python -m pretrain.objectives check simclr moco --engine ddp fsdp deepspeed
"""


def main(argv: list[str] | None = None) -> int:
    """List the objectives, or hold some to what every one promises; return 1 if a check failed."""
    parser = Parser("python -m pretrain.objectives", "List or check objectives.", epilog=EPILOG, config=False)
    parser.add_argument("command", type=str, choices=["list", "check"], help="what to do")
    parser.add_argument("names", type=str, nargs="*", default=[], help="the objectives to check")
    parser.add_argument(
        "--engine", type=EngineName, nargs="+", default=[DEFAULT_ENGINE], help="engines to check them under"
    )
    arguments = parser.parse_args(argv)
    refuse_unused(parser, arguments, {"names": ("check",), "engine": ("check",)})
    if arguments.command == "list":
        OBJECTIVES.show()
        return 0
    if not arguments.names:
        raise UserError("check: no objective named", mend="see: python -m pretrain.objectives list")
    return max([check(name, engine) for engine in arguments.engine for name in arguments.names])


def check(name: str, engine: EngineName) -> int:
    """Print one line a check; return 1 if any failed."""
    OBJECTIVES.load(name, where="objective")
    from pretrain.objectives.conformance import CHECKS, Subject
    from pretrain.objectives.small_runs import warm

    warm(engine)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(name, engine, Path(folder))
        return show(outcomes(CHECKS, subject), f"{name} of {OBJECTIVES.find(name).owner}, {engine}")


if __name__ == "__main__":
    run(main)
